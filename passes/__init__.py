"""
The passes of gemmir, one file each, named after the pass: `gemm-select-blocks` is in `gemm_select_blocks.py`.

A pass fills in what is still open and keeps what is fixed. It is installed, and imported, as `gemmir.passes`.
"""

if __name__ != "gemmir.passes":
    raise ImportError("import gemmir.passes: this folder is not a package of its own")

PASSES = (
    "gemm-canonicalize",
    "gemm-select-family",
    "gemm-select-blocks",
    "gemm-fit-tail",
    "gemm-rasterize",
    "gemm-balance",
    "gemm-plan-pipeline",
    "gemm-lower-to-hopper",
    "hopper-check-sync",
)
"""In the order in which they run."""
