"""The workers of a run as one group.

Who takes part, in which order gradients are summed, and how a newcomer gets its weights.
"""
