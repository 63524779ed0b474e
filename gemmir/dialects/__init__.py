"""The IR of gemmir: `gemm` says what is computed, `hopper` how one kernel computes it."""
