"""
Products of few rows, as in decoding: in how many parts K is summed.

The bits of a result depend on it. So it follows from N, K and the machine only, and a row has the same bits in every
batch of up to `DECODE_ROWS` rows.
"""

from __future__ import annotations

from gemmir.target import SM_90A

DECODE_ROWS = 128
"""Rows up to which `decode_split_k` is meant. With more there are tiles enough for all SMs."""

LEAST_PART_BLOCKS = 8
"""k-blocks of a part: with fewer the exchange takes longer than they do (estimate)."""


def decode_split_k(n: int, k: int, dtype: object = "f8E4M3FN") -> int:
    """
    Parts of K for a product of up to `DECODE_ROWS` rows with a weight of `k` x `n` elements of `dtype`.

    As many, up to three, as all SMs can sum side by side, one CTA for every 64 columns and part; three only where they
    fill no more than half of the SMs (measured: for 2112 columns two are faster than three from 64 rows on). 4096
    columns are faster in two parts than in one where kernels overlap, as in decoding: one takes 4 to 12% longer on an
    H200. Launched alone two take 3 to 9% longer there, and on an H100 3 to 8% from 64 rows on.
    """
    from gemmir.expression import find_dtype

    columns = -(-n // SM_90A.wgmma_m)
    blocks = -(-k * find_dtype(dtype, "dtype").bytes // 128)
    fits = 3 if 6 * columns <= SM_90A.sms else 2 if 2 * columns <= SM_90A.sms else 1
    return max(parts for parts in range(1, fits + 1) if parts == 1 or is_worth(blocks, parts))


def is_worth(blocks: int, parts: int) -> bool:
    """Whether every part has k-blocks enough; the last one may have fewer than the others."""
    each = -(-blocks // parts)
    return blocks - (parts - 1) * each >= LEAST_PART_BLOCKS
