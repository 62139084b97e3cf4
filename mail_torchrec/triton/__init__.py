"""A repository of models for NVIDIA's Triton Inference Server (nothing to do with the compiler of that name)."""
