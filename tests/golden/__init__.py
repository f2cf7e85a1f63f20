"""What each release has written, kept for good: those after it read it, or refuse it by name."""
