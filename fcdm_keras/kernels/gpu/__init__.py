"""The FCDM block on NVIDIA GPUs: one Triton source, launched from PyTorch and from JAX."""
