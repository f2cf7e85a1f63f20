"""What a GPU computes of rows of a teacher's logits by Triton, which comes with torch's builds for CUDA and ROCm."""
