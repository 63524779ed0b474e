"""
What `gemmir bench` is made of: cases, peers, clocks, the floor, the report.

`timing.kernel_us`, `timing.hot_us` and `timing.measure_kernel` time anything that launches work on the GPU.
"""
