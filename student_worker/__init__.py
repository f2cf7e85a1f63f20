"""The deployable that trains: pulls batches, asks the teacher, applies the gradients. Start with `cli` or `run`."""
