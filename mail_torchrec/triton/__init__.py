"""Model repositories for NVIDIA's Triton Inference Server (not the compiler of that name)."""
