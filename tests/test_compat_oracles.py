"""DeepGEMM's functions before the judges of `gemmir.testing`: integers exactly, random data within its bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import gemmir
import gemmir.compat.deep_gemm as deep_gemm
from gemmir.testing import check_bound, check_exact

BF16, F32, FP8, I32 = torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.int32
N, K, G = 200, 384, 3
BLOCKS = ("block_wise_1x128", "block_wise_128x128")
ROWS = ("block_wise_1x128", "block_wise_1x128")
KernelFunction = Callable[..., torch.Tensor]


def program(words: dict[str, tuple[Any, ...]], result: torch.dtype, **options: Any) -> gemmir.Program:
    """A product of inputs of these names, shapes and types: its arguments are passed in that order."""
    p = gemmir.Program("product")
    inputs = {name: p.input(name, shape, dtype) for name, (shape, dtype) in words.items()}
    grouped = any(word in inputs for word in ("offs", "group_ids", "counts"))
    product: Any = p.grouped_matmul if grouped else p.matmul
    p.output(product(**inputs, **options).cast(result))
    return p


def into(call: Callable[[torch.Tensor], None], like: torch.Tensor, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    d = torch.full(shape, 7.0, dtype=dtype, device=like.device)
    call(d)
    return d


def dense(a: Any, b: Any, sa: Any, sb: Any) -> torch.Tensor:
    w = b.t().contiguous(), sb.t().contiguous()
    return into(lambda d: deep_gemm.fp8_gemm_nt((a, sa), w, d), a, a.shape[0], N, dtype=BF16)


def dense_to_c(a: Any, b: Any, sa: Any, sb: Any, c: Any) -> torch.Tensor:
    w = b.t().contiguous(), sb.t().contiguous()
    d = c.clone()
    deep_gemm.fp8_gemm_nt((a, sa), w, d, c=d, recipe=(1, 1, 128))
    return d


def plain(letters: str) -> KernelFunction:
    def kernel(a: Any, b: Any, c: Any) -> torch.Tensor:
        x = a if letters[0] == "n" else a.t().contiguous()
        w = b.contiguous() if letters[1] == "n" else b.t().contiguous()
        function = getattr(deep_gemm, f"bf16_gemm_{letters}")
        return into(lambda d: function(x, w, d, c=c), a, a.shape[0], N, dtype=F32)

    return kernel


def contiguous(a: Any, b: Any, ids: Any, sa: Any, sb: Any) -> torch.Tensor:
    w = b.mT.contiguous(), sb.mT.contiguous()
    call = deep_gemm.m_grouped_fp8_gemm_nt_contiguous
    return into(lambda d: call((a, sa), w, d, ids), a, a.shape[0], N, dtype=BF16)


def masked(a: Any, b: Any, counts: Any, sa: Any, sb: Any) -> torch.Tensor:
    w = b.mT.contiguous(), sb.mT.contiguous()
    call = deep_gemm.m_grouped_fp8_gemm_nt_masked
    return into(lambda d: call((a, sa), w, d, counts, 20), a, *a.shape[:2], N, dtype=BF16)


def ends_to_ks(offs: torch.Tensor) -> list[int]:
    return offs.diff(prepend=offs.new_zeros(1)).tolist()


def along_k(a: Any, b: Any, offs: Any, sa: Any, sb: Any, c: Any) -> torch.Tensor:
    """Each group's matrix by itself, one after another: of what `offs` leaves, nothing is passed."""
    ks = ends_to_ks(offs)
    used = sum(ks)
    left, right = (flattened(x[:, :used], ks) for x in (a, b.mT))
    x, w = (left, sa[:, : used // 128]), (right, sb.mT[:, : used // 128])
    layout = torch.tensor(ks, dtype=I32, device=a.device)
    d = c.clone()
    deep_gemm.k_grouped_fp8_gemm_nt_contiguous(x, w, d, ks, layout, c=d)
    return d


def flattened(matrix: torch.Tensor, ks: list[int]) -> torch.Tensor:
    parts = matrix.contiguous().view(torch.uint8).split(ks, 1)
    return torch.cat([part.reshape(-1) for part in parts]).view(matrix.dtype)


def plain_along_k(a: Any, b: Any, offs: Any, c: Any) -> torch.Tensor:
    """DeepGEMM's groups have a multiple of 128 rows, gemmir's of 64: those that lack 64 end with zeros."""
    ks = ends_to_ks(offs)
    whole = [deep_gemm.align(k, 128) for k in ks]
    layout = torch.tensor(whole, dtype=I32, device=a.device)
    x, w = (torch.cat(padded(rows, ks)) for rows in (a.t(), b))
    call = deep_gemm.k_grouped_bf16_gemm_tn_contiguous
    return into(lambda d: call(x, w, d, whole, layout, c=c), a, G, *c.shape[1:], dtype=F32)


def padded(rows: torch.Tensor, ks: list[int]) -> list[torch.Tensor]:
    parts = rows[: sum(ks)].split(ks)
    return [torch.nn.functional.pad(part, (0, 0, 0, -part.shape[0] % 128)) for part in parts]


A, B = ((None, K), FP8), ((K, N), FP8)
SA, SB = ((None, K // 128), F32), ((K // 128, 2), F32)
WEIGHTS, SCALES = ((G, K, N), FP8), ((G, K // 128, 2), F32)
PLAIN = {"a": ((None, K), BF16), "b": ((K, N), BF16), "c": ((None, N), F32)}
TALL, TO = 4 * K, ((G, None, N), F32)
CASES: dict[str, tuple[gemmir.Program, KernelFunction]] = {
    "fp8": (program({"a": A, "b": B, "scale_a": SA, "scale_b": SB}, BF16, recipe=BLOCKS), dense),
    "fp8 to C": (
        program(
            {"a": A, "b": B, "scale_a": SA, "scale_b": ((K // 128, N), F32), "c": ((None, N), F32)}, F32, recipe=ROWS
        ),
        dense_to_c,
    ),
    **{f"bf16 {letters}": (program(PLAIN, F32), plain(letters)) for letters in ("nt", "nn", "tn", "tt")},
    "rows in groups": (
        program(
            {"a": A, "b": WEIGHTS, "group_ids": ((None,), I32), "scale_a": SA, "scale_b": SCALES}, BF16, recipe=BLOCKS
        ),
        contiguous,
    ),
    "rows that count": (
        program(
            {
                "a": ((G, None, K), FP8),
                "b": WEIGHTS,
                "counts": ((G,), I32),
                "scale_a": ((G, None, K // 128), F32),
                "scale_b": SCALES,
            },
            BF16,
            recipe=BLOCKS,
        ),
        masked,
    ),
    "K in groups": (
        program(
            {
                "a": ((None, TALL), FP8),
                "b": ((TALL, N), FP8),
                "offs": ((G,), I32),
                "scale_a": ((None, TALL // 128), F32),
                "scale_b": ((TALL // 128, N), F32),
                "c": TO,
            },
            F32,
            recipe=ROWS,
        ),
        along_k,
    ),
    "K in groups, bf16": (
        program({"a": ((None, TALL), BF16), "b": ((TALL, N), BF16), "offs": ((G,), I32), "c": TO}, F32),
        plain_along_k,
    ),
}


@pytest.mark.parametrize("m", [1, 37, 256])
@pytest.mark.parametrize("case", CASES)
def test_integers_exactly(case: str, m: int):
    product, kernel = CASES[case]
    check_exact(kernel, product, m)


@pytest.mark.parametrize("case", CASES)
def test_random_data_within_the_bound(case: str):
    product, kernel = CASES[case]
    check_bound(kernel, product, 37)
