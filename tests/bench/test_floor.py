"""The floor: the longer of multiplying and moving every byte once."""

import pytest

from gemmir.bench.cases import Case
from gemmir.bench.floor import floor_us, unique_bytes
from gemmir.target import SM_90A

H200, H100 = "NVIDIA H200", "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("shape", "us"),
    [((4096, 2112, 7168), 62.7), ((4096, 24576, 1536), 156.3), ((4096, 32768, 512), 69.5), ((8192, 8192, 8192), 555.6)],
)
def test_a_large_product_is_bound_by_the_tensor_cores(shape: tuple[int, int, int], us: float):
    found = floor_us(Case("f8E4M3FN", *shape), H200)
    assert found == pytest.approx(2 * shape[0] * shape[1] * shape[2] / 1979e12 * 1e6, rel=1e-4)
    assert found is not None
    assert round(found, 1) == us
    assert floor_us(Case("bf16", *shape), H200) == pytest.approx(2 * found)


@pytest.mark.parametrize(("shape", "us"), [((64, 4096, 7168), 6.33), ((256, 7168, 2048), 3.94)])
def test_a_product_of_few_rows_is_bound_by_dram(shape: tuple[int, int, int], us: float):
    m, n, k = shape
    moved = m * k + n * k + 2 * m * n + 4 * (m * k // 128 + n // 128 * k // 128)
    assert unique_bytes(Case("f8E4M3FN", *shape)) == moved
    found = floor_us(Case("f8E4M3FN", *shape), H200)
    assert found == pytest.approx(moved / 4.8e12 * 1e6)
    assert found is not None
    assert round(found, 2) == us
    assert floor_us(Case("f8E4M3FN", *shape), H100) == pytest.approx(found * 4.8 / 3.35)


def test_a_partial_block_has_a_whole_scale():
    assert unique_bytes(Case("f8E5M2", 3, 136, 144)) == (3 + 136) * 144 + 3 * 136 * 2 + 4 * (3 * 2 + 2 * 2)
    assert unique_bytes(Case("f16", 3, 136, 144)) == 2 * ((3 + 136) * 144 + 3 * 136)


def test_fewer_sms_multiply_more_slowly():
    case = Case("f8E4M3FN", 8192, 8192, 8192)
    assert floor_us(case, H200, sms=66) == pytest.approx(2 * (floor_us(case, H200) or 0))


def test_a_device_whose_dram_is_not_known_has_no_floor():
    assert floor_us(Case("bf16", 64, 64, 64), "NVIDIA H100 PCIe") is None


def test_the_tensor_rate_follows_from_the_instruction():
    assert (SM_90A.tensor_flops_per_clock(1), SM_90A.tensor_flops_per_clock(2)) == (8192, 4096)
