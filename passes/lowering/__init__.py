"""How `gemm-lower-to-hopper` builds a kernel: one file per role."""
