"""DeepGEMM's layouts of scales and alignments of groups."""

from __future__ import annotations

import torch

import gemmir
from gemmir.compat.deep_gemm.missing import HELPERS, refusing
from gemmir.compat.deep_gemm.operands import tensor
from gemmir.compat.deep_gemm.scaling import Granularity, Recipe, check_scales
from gemmir.errors import InputError, UnsupportedError
from gemmir.problem import GROUP_ALIGNMENT
from gemmir.target import SM_90A

__getattr__ = refusing(__name__, HELPERS)


def get_tma_aligned_size(x: int, element_size: int) -> int:
    """x elements, rounded up to a multiple of 16 bytes, which those of `element_size` bytes must divide (GMR-I009)."""
    if element_size < 1 or SM_90A.tma_alignment % element_size:
        rule = f"a divisor of {SM_90A.tma_alignment} bytes"
        raise InputError("GMR-I009", f"element_size = {element_size}", rule=rule, fix="pass tensor.element_size()")
    step = SM_90A.tma_alignment // element_size
    return -(-x // step) * step


def get_mn_major_tma_aligned_tensor(sf: torch.Tensor) -> torch.Tensor:
    """Scales (M, K/128) or (G, M, K/128) laid out as kernels load them: `gemmir.align_scales`."""
    return gemmir.align_scales(tensor("sf", sf))


def transform_sf_into_required_layout(
    sf: torch.Tensor,
    mn: int,
    k: int,
    recipe: Recipe | Granularity,
    num_groups: int | None = None,
    is_sfa: bool | None = None,
    disable_ue8m0_cast: bool = False,
    psum_layout: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scales of an operand with `mn` rows, as kernels for Hopper take them: 1x128 aligned, 128x128 as they are."""
    found = tensor("sf", sf)
    if not _is_recipe(recipe) or (len(recipe) == 3) != (is_sfa is not None):
        rule = "is_sfa says whose scales they are, where the recipe is that of both operands"
        raise InputError("GMR-I005", f"recipe {recipe} with is_sfa = {is_sfa}", rule=rule)
    rows, along_k = recipe if len(recipe) == 2 else (recipe[0 if is_sfa else 1], recipe[2])
    if rows not in (1, 128) or along_k != 128:
        rule = "kernels for Hopper have scales for 1 or 128 rows and 128 elements of K"
        raise UnsupportedError("GMR-U001", f"scales for {rows} x {along_k} elements", rule=rule)
    if found.dtype != torch.float32:
        rule = "kernels for Hopper take float32 scales"
        raise UnsupportedError("GMR-U001", f"scales of {found.dtype}", rule=rule, fix="pass float32 scales")
    check_scales("sf", found, mn, rows, k, num_groups)
    return gemmir.align_scales(sf) if rows == 1 else sf


def _is_recipe(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) in (2, 3)


def get_mk_alignment_for_contiguous_layout() -> int:
    """At a multiple of how many rows a group starts, where rows carry their group's number."""
    return GROUP_ALIGNMENT


get_m_alignment_for_contiguous_layout = get_mk_alignment_for_contiguous_layout
get_k_alignment_for_contiguous_layout = get_mk_alignment_for_contiguous_layout


def set_mk_alignment_for_contiguous_layout(new_value: int) -> None:
    """Only 128. Groups that start anywhere: `gemmir.grouped_matmul(offs=...)`."""
    if new_value != GROUP_ALIGNMENT:
        fix = "use gemmir.grouped_matmul(offs=...), which needs no alignment"
        raise UnsupportedError("GMR-U001", f"groups at multiples of {new_value}", rule="128", fix=fix)


def get_theoretical_mk_alignment_for_contiguous_layout(expected_m: int | None = None) -> int:
    """128, whatever is expected."""
    return GROUP_ALIGNMENT
