"""NVIDIA GPUs: kernels as Triton text, compiled without a device, launched by the CUDA driver."""
