"""The namespace of the generated contract; see `proto/`."""
