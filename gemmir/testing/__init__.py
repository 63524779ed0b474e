"""
For whoever tests kernels: oracles that say whether a result is right, a simulator to run kernels on, and strategies.

    from gemmir.testing import check_exact, check_bits, simulated

    check_bits(simulated(program, seed=3), program, m=300)

`gemmir.testing.strategies`, `gemmir.testing.groups` and `gemmir.testing.gemm_programs` need hypothesis,
`gemmir.testing.torch_model` is the bit model on a GPU.
"""

from gemmir.testing.oracles import Kernel, check_bits, check_bound, check_exact, model_of, simulated

__all__ = ["Kernel", "check_bits", "check_bound", "check_exact", "model_of", "simulated"]
