"""The trainer's own loop over small students, for measuring."""
