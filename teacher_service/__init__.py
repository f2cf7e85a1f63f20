"""The deployable that holds the teacher: two doors, one way to an answer, a cache that remembers it."""
