"""The loss on a GPU: loops over rows for Triton, which comes with torch's builds for CUDA and ROCm."""
