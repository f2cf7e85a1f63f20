"""A load tool for a teacher that runs: what is asked, how it is driven, what is measured, how it is shown."""
