"""The loss and its gradient over whole rows, compiled for this machine's CPU by numba, which brings its own LLVM.

`vectors` has the loops over a piece of a row, `rows` and `top_k` what is done with one row, `kernel` the way from
tensors to them and back. Nothing here is imported before a kernel is wanted, and nothing without numba:
`stillhouse.kd.kernels` chooses. What is compiled lives as long as the process. numba's cache on disk is not used: its
files are pickles, and whoever could write one would run code here.
"""
