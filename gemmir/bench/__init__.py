"""
What `gemmir bench` is made of: cases, peers, flushes of L2, clocks, graphs of layers, the floor, the report.

`timing.kernel_us`, `timing.hot_us` and `timing.measure_kernel` time anything that launches work on the GPU;
`graph.captured` and `graph.layer_us` time several such launches as one CUDA graph.
"""
