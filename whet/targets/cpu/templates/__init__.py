"""Hand-scheduled kernels."""
