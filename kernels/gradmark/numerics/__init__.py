"""What the kernels stand on: elementary functions, random numbers, fused loop drivers, compile caching."""
