"""
Other libraries' kernels for products of several groups, on the tensors of `gemmir.bench.inputs`.

For groups of FP8 with 1x128 and 128x128 scales DeepGEMM alone is asked. The dense product of one group's shape is no
peer: it reads one B.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from gemmir.bench.cases import Case
from gemmir.bench.grouped import AnyCase
from gemmir.bench.peers import Inputs, Maker, Peer, Refusal, deep_gemm_function
from gemmir.bench.timing import Launch
from gemmir.dtypes import DTYPES
from gemmir.problem import GROUP_ALIGNMENT, Grouping
from gemmir.scales import align_scales

if TYPE_CHECKING:
    import torch


def torch_grouped(inputs: Inputs) -> Launch:
    """torch's product of groups that end at `offs`; 16 bits only."""
    import torch

    if (function := getattr(torch, "_grouped_mm", None)) is None:
        raise Refusal(f"torch {torch.__version__} has no torch._grouped_mm")
    x, w, ends = inputs["x"], inputs["w"], inputs["index"]
    return lambda: function(x, w, offs=ends)


def cublas_batched(inputs: Inputs) -> Launch:
    import torch

    x, w = inputs["x"], inputs["w"]
    return lambda: torch.bmm(x, w)


def deep_gemm_contiguous(inputs: Inputs, ids: Callable[[Inputs], torch.Tensor]) -> Launch:
    """DeepGEMM for groups whose rows are contiguous; `ids` makes the group of each row, which it takes."""
    function = deep_gemm_function(_name(inputs, "contiguous"))
    a, b, groups = *_operands(inputs), ids(inputs)
    out = _result(inputs["x"], inputs["w"])
    return lambda: function(a, b, out, groups)


def deep_gemm_masked(inputs: Inputs) -> Launch:
    """DeepGEMM for a count of rows for each group."""
    function = deep_gemm_function(_name(inputs, "masked"))
    expected, counts = inputs["x"].shape[1], inputs["index"]
    inputs = with_whole_tiles(inputs)
    a, b = _operands(inputs)
    out = _result(inputs["x"], inputs["w"])
    return lambda: function(a, b, out, counts, expected)


def given_ids(inputs: Inputs) -> torch.Tensor:
    return inputs["index"]


def ids_of_ends(inputs: Inputs) -> torch.Tensor:
    """The group of each row, from where groups end; `Refusal` where one starts at no multiple of 128."""
    import torch

    ends = inputs["index"]
    if stray := [end for end in ends.tolist()[:-1] if end % GROUP_ALIGNMENT]:
        raise Refusal(f"a group starts at row {stray[0]}: DeepGEMM's start at multiples of {GROUP_ALIGNMENT}")
    rows = torch.arange(inputs["x"].shape[0], dtype=torch.int32, device=ends.device)
    return torch.searchsorted(ends, rows, right=True, out_int32=True)


def with_whole_tiles(inputs: Inputs) -> Inputs:
    """The same with rows for whole tiles in every group: DeepGEMM's last tile of a group would run into the next."""
    from torch.nn.functional import pad

    x = inputs["x"]
    groups, rows, k = x.shape
    if (spare := -rows % GROUP_ALIGNMENT) == 0:
        return inputs
    wide = x.new_zeros((groups, rows + spare, k))
    wide[:, :rows].copy_(x)
    scales = {"xs": align_scales(pad(inputs["xs"], (0, 0, 0, spare)))} if "xs" in inputs else {}
    return inputs | {"x": wide} | scales


def _name(inputs: Inputs, layout: str) -> str:
    return f"m_grouped_{'fp8' if 'xs' in inputs else 'bf16'}_gemm_nt_{layout}"


def _operands(inputs: Inputs) -> tuple[Any, Any]:
    """A and B (G, N, K), with their scales if they have any."""
    x, w = inputs["x"], inputs["w"].mT
    if "xs" not in inputs:
        return x, w
    return (x, inputs["xs"]), (w, inputs["ws"].mT.contiguous())


def _result(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.empty((*x.shape[:-1], w.shape[-1]), dtype=torch.bfloat16, device=x.device)


EVERY_TYPE: dict[tuple[str, Grouping], Maker] = {
    ("deep_gemm", Grouping.OFFS): partial(deep_gemm_contiguous, ids=ids_of_ends),
    ("deep_gemm", Grouping.GROUP_IDS): partial(deep_gemm_contiguous, ids=given_ids),
    ("deep_gemm", Grouping.COUNTS): deep_gemm_masked,
}
"""By name of the peer and form of the groups."""

SIXTEEN_BITS: dict[tuple[str, Grouping], Maker] = {
    ("cublas", Grouping.BATCH): cublas_batched,
    ("torch", Grouping.OFFS): torch_grouped,
}
"""What a peer has beside those, for A of 16 bits."""


def maker_for(peer: Peer, case: AnyCase) -> Maker | None:
    """What makes the peer's launch of a case; None where it has nothing of the kind."""
    if isinstance(case, Case):
        return peer.maker(case.dtype)
    makers = EVERY_TYPE if DTYPES[case.dtype].is_fp8 else EVERY_TYPE | SIXTEEN_BITS
    return makers.get((peer.name, case.form))
