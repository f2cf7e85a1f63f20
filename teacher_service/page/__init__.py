"""The teacher's live page: what it serves and how it goes, and a box to ask it in.

Knows nothing of how answers are made.
"""
