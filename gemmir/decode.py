"""
Products of few rows, as in decoding: in how many parts K is summed.

The bits of a result depend on it. So it follows from N, K and the machine only, and a row has the same bits in every
batch of up to `DECODE_ROWS` rows.
"""

from __future__ import annotations

from gemmir.expression import find_dtype
from gemmir.stream_legality import MAX_PARTS
from gemmir.target import SM_90A

DECODE_ROWS = 128
"""Rows up to which `decode_split_k` is meant. With more there are tiles enough for all SMs."""

LEAST_PART_BLOCKS = 8
"""k-blocks of a part: with fewer the exchange takes longer than they do (estimate)."""


def decode_split_k(n: int, k: int, dtype: object = "f8E4M3FN") -> int:
    """
    Parts of K for a product of up to `DECODE_ROWS` rows with a weight of `k` x `n` elements of `dtype`.

    As many, up to three, as keep half of the SMs busy, one CTA for every 64 columns and part. With more of them the
    exchange takes longer than it saves (measured: 4096 columns take 4 to 8% longer in two parts than in one).
    """
    columns = -(-n // SM_90A.wgmma_m)
    blocks = -(-k * find_dtype(dtype, "dtype").bytes // 128)
    fits = min(MAX_PARTS, SM_90A.sms // (2 * columns))
    return max(parts for parts in range(1, max(fits, 1) + 1) if parts == 1 or is_worth(blocks, parts))


def is_worth(blocks: int, parts: int) -> bool:
    """Whether every part has k-blocks enough; the last one may have fewer than the others."""
    each = -(-blocks // parts)
    return blocks - (parts - 1) * each >= LEAST_PART_BLOCKS
