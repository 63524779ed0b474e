"""DeepGEMM's functions that gemmir has no kernel for, and what to use instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from gemmir.errors import UnsupportedError

_TORCH = "use torch.mm"
_EINSUM = "use torch.einsum, or gemmir.batched_matmul for products of batches"
_ATTENTION = "keep DeepGEMM for attention scores"
_MEGA = "keep DeepGEMM for fused mixtures of experts, or see examples/moe_layer.py"
_SM100 = "it is for SM100, as in DeepGEMM"

_FLOAT_SCALES = _SM100 + ": kernels for Hopper take float32 scales"

LEGACY = "use the product of the same layout in deep_gemm: m_grouped_bf16_gemm_*, k_grouped_bf16_gemm_*"
"""The way out of all of `deep_gemm.legacy`."""

MEGA: dict[str, str] = {
    "SymmBuffer": _MEGA,
    "get_symm_buffer_for_mega_moe": _MEGA,
    "transform_weights_for_mega_moe": _MEGA,
    "fp8_fp4_mega_moe": _MEGA,
    "bf16_mega_moe": _MEGA,
}
"""Name -> the way out, of `deep_gemm.mega`."""

MISSING: dict[str, str] = {
    "cublaslt_gemm_nt": _TORCH,
    "cublaslt_gemm_nn": _TORCH,
    "cublaslt_gemm_tn": _TORCH,
    "cublaslt_gemm_tt": _TORCH,
    "fp8_gemm_nt_skip_head_mid": "use fp8_gemm_nt and copy the heads apart",
    "k_grouped_fp8_gemm_tn_contiguous": _SM100 + ": use k_grouped_fp8_gemm_nt_contiguous",
    "einsum": _EINSUM,
    "fp8_einsum": _EINSUM,
    "fp8_mqa_logits": _ATTENTION,
    "fp8_fp4_mqa_logits": _ATTENTION,
    "fp8_paged_mqa_logits": _ATTENTION,
    "fp8_fp4_paged_mqa_logits": _ATTENTION,
    "get_paged_mqa_logits_metadata": _ATTENTION,
    "tf32_hc_prenorm_gemm": "use torch.mm in float32",
    **MEGA,
}
"""The same of `deep_gemm` itself."""

HELPERS: dict[str, str] = {
    "get_mn_major_tma_aligned_packed_ue8m0_tensor": _FLOAT_SCALES,
    "get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor": _FLOAT_SCALES,
    "pack_ue8m0_to_int": _FLOAT_SCALES,
    "unpack_ue8m0_from_int": _FLOAT_SCALES,
    "per_token_cast_to_fp4": _SM100 + ": use per_token_cast_to_fp8",
    "transpose_packed_fp4": _SM100 + ": use FP8",
    "cast_back_from_fp4": _SM100 + ": use FP8",
    "init_dist": "use torch.distributed.init_process_group",
    "uneven_all_gather": "use torch.distributed.all_gather",
    "dist_print": "use print where torch.distributed.get_rank() is 0",
}
"""The same of `deep_gemm.utils`, which DeepGEMM has under its own name too."""

TESTING: dict[str, str] = {
    "bench": "use torch.utils.benchmark, or the command gemmir bench",
    "bench_kineto": "use torch.profiler, or the command gemmir bench",
    "empty_suppress": "use contextlib.nullcontext",
    "suppress_stdout_stderr": "use contextlib.redirect_stdout and redirect_stderr",
    "assert_bitwise_equal": "use torch.equal",
    "get_arch_major": "use torch.cuda.get_device_capability()[0]",
    "test_filter": "use pytest.mark.skipif",
    "ignore_env": "use pytest's monkeypatch.delenv",
}
"""The same of `deep_gemm.testing`."""


def refusing(module: str, table: dict[str, str]) -> Callable[[str], Callable[..., NoReturn]]:
    """The `__getattr__` of a module: what is in `table` can be imported, and raises when it is called."""

    def find(name: str) -> Callable[..., NoReturn]:
        if name not in table:
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        return missing(name, table[name])

    return find


def refusing_all(module: str, fix: str) -> Callable[[str], Callable[..., NoReturn]]:
    """The same of a module of which gemmir has nothing, whatever it is called."""

    def find(name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        return missing(f"{module.rpartition('.')[2]}.{name}", fix)

    return find


def missing(name: str, fix: str) -> Callable[..., NoReturn]:
    """A function of that name, which says that there is none."""

    def refuse(*arguments: object, **options: object) -> NoReturn:
        raise UnsupportedError("GMR-U001", f"deep_gemm.{name}", rule="gemmir does not have it", fix=fix)

    refuse.__name__ = refuse.__qualname__ = name
    return refuse
