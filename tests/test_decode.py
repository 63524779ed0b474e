"""In how many parts K is summed for few rows: what it follows from, and what it does not."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemmir.decode import LEAST_PART_BLOCKS, decode_split_k, is_worth


def test_it_knows_nothing_of_m():
    assert list(inspect.signature(decode_split_k).parameters) == ["n", "k", "dtype"]


@pytest.mark.parametrize(
    ("n", "k", "fp8", "bf16"),
    [
        (1408, 8192, 3, 3),  # 22 x 64 columns in three parts are half of 132 SMs
        (1409, 8192, 2, 2),
        (4224, 8192, 2, 2),  # 66 x 64 columns in two parts are all of them
        (4225, 8192, 1, 1),
        (512, 3072, 3, 3),  # 24 k-blocks of FP8, 48 of BF16
        (512, 2944, 2, 3),  # 23: the last of three parts would have seven
        (512, 2048, 2, 3),
        (512, 1920, 1, 3),
        (512, 1024, 1, 2),
        (512, 512, 1, 1),
        (1, 1, 1, 1),
    ],
)
def test_known_shapes(n: int, k: int, fp8: int, bf16: int):
    assert (decode_split_k(n, k, "f8E4M3FN"), decode_split_k(n, k, "bf16")) == (fp8, bf16)
    assert decode_split_k(n, k) == decode_split_k(n, k, torch.float8_e5m2) == fp8
    assert decode_split_k(n, k, torch.float16) == decode_split_k(n, k, torch.bfloat16) == bf16


@given(st.integers(1, 40_000), st.integers(1, 40_000), st.sampled_from(["f8E4M3FN", "bf16"]))
def test_ctas_side_by_side_and_no_part_too_short(n: int, k: int, dtype: str):
    parts, blocks = decode_split_k(n, k, dtype), -(-k * (1 if dtype == "f8E4M3FN" else 2) // 128)
    assert parts in (1, 2, 3)
    assert parts == 1 or -(-n // 64) * parts <= 132
    assert parts < 3 or -(-n // 64) * parts <= 66
    assert parts == 1 or blocks - (parts - 1) * -(-blocks // parts) >= LEAST_PART_BLOCKS
    assert is_worth(blocks, parts) or parts == 1
