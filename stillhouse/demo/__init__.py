"""The demonstration: a real language model teaches a smaller one through the real services, on a laptop."""
