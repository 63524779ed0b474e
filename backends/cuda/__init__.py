"""
The CUDA backend: prints the hopper dialect as CUDA C++, compiles it with NVRTC, and launches it on torch's stream.

Everything up to the cubin works without a GPU and without a driver.
"""
