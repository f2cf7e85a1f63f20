"""Servers and load clients that take turns, each a process of its own, and what stands beside them as limits."""
