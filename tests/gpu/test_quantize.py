"""
Quantising on a Hopper GPU: the bits of the CPU, which `tests/test_quantization.py` holds to the definition.

Results lie in larger buffers of a value of their own, so that a byte that is written and should not be is seen.
"""

from __future__ import annotations

import itertools

import pytest
import torch

import gemmir
from gemmir.problem import RECIPES
from gemmir.scale_blocks import scale_layout
from tests.quantize_data import DTYPES, FP8, KINDS, data
from tests.quantize_data import RECIPES as NAMES

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
MARGIN = 512
HELD = 0x5A
SHAPES = (
    (1, 128),
    (1, 1),
    (3, 130),
    (5, 520),
    (8, 512),
    (17, 1000),
    (129, 257),
    (300, 1152),
    (1000, 7168),
    (2, 3, 72),
    (3, 130, 136),
)


def guarded(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor in the middle of a buffer that holds something; the buffer's bytes."""
    reach = sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True)) + 1
    buffer = torch.full((2 * MARGIN + reach * dtype.itemsize,), HELD, dtype=torch.uint8, device=DEVICE)
    inner = buffer[MARGIN : MARGIN + reach * dtype.itemsize].view(dtype)
    return inner.as_strided(shape, strides), buffer


def check(x: torch.Tensor, recipe: str, fp8: torch.dtype, power_of_two: bool = False, saturate: bool = False) -> None:
    """On the GPU as on the CPU: q, its scales, and what lies around them."""
    shape, layout = tuple(x.shape), scale_layout(RECIPES[recipe], tuple(x.shape))
    buffers: list[list[torch.Tensor]] = []
    for device in ("cpu", DEVICE):
        q, around_q = guarded(shape, torch.empty(shape, device="meta").stride(), fp8)
        scale, around_scale = guarded(*layout, torch.float32)
        options = {"dtype": fp8, "power_of_two": power_of_two, "saturate": saturate}
        if device == "cpu":
            expected = gemmir.quantize(x.cpu(), recipe, **options)
            q.view(torch.uint8).copy_(expected[0].view(torch.uint8))
            scale.copy_(expected[1])
        else:
            gemmir.quantize(x, recipe, out=(q, scale), **options)
        buffers.append([around_q, around_scale])
    for expected_bytes, found in zip(*buffers, strict=True):
        wrong = (expected_bytes != found).nonzero()
        assert len(wrong) == 0, f"{len(wrong)} bytes differ, first at {int(wrong[0]) - MARGIN}"


@pytest.mark.parametrize("fp8", FP8, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("recipe", NAMES)
def test_the_bits_of_the_cpu(recipe: str, dtype: torch.dtype, fp8: torch.dtype) -> None:
    for seed, (shape, kind) in enumerate(itertools.product(SHAPES, KINDS)):
        check(
            data(kind, shape, dtype, seed).to(DEVICE), recipe, fp8, power_of_two=bool(seed % 2), saturate=bool(seed % 3)
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("recipe", NAMES)
def test_rows_may_be_any_distance_apart(recipe: str, dtype: torch.dtype) -> None:
    wide = data("bits", (3, 40, 1200), dtype, 0).to(DEVICE)
    for first, last, step in ((0, 1024, 1), (8, 1032, 1), (1, 1025, 3), (3, 700, 2), (1199, 1200, 1)):
        check(wide[:, ::step, first:last], recipe, torch.float8_e4m3fn)
        check(wide[1, ::step, first:last], recipe, torch.float8_e4m3fn)
    check(wide.transpose(0, 1), recipe, torch.float8_e5m2)
    check(wide[:, :1].expand(3, 40, 1200), recipe, torch.float8_e4m3fn)


@pytest.mark.parametrize("recipe", NAMES)
def test_nothing_to_quantise(recipe: str) -> None:
    for shape in ((0, 256), (4, 0), (0, 4, 128), (2, 0, 128), (2, 3, 0)):
        x = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE)
        q, scale = gemmir.quantize(x, recipe)
        expected, scales = gemmir.quantize(x.cpu(), recipe)
        assert q.shape == expected.shape
        assert torch.equal(scale.cpu(), scales)


@pytest.mark.parametrize("recipe", ["block_wise_1x128", "block_wise_128x128"])
def test_more_than_2_31_elements(recipe: str) -> None:
    row = data("normal", (1, 8192), torch.bfloat16, 0).to(DEVICE)
    x = row.expand((1 << 18) + 129, 8192)
    q, scale = gemmir.quantize(x, recipe)
    expected, scales = gemmir.quantize(row.cpu(), "block_wise_1x128")
    for i in (0, 1 << 18, len(x) - 1):
        assert torch.equal(q[i].cpu().view(torch.uint8), expected[0].view(torch.uint8))
    assert torch.equal(scale.amax(0).cpu(), scales[0])
    assert torch.equal(scale.amin(0).cpu(), scales[0])


@pytest.mark.parametrize("recipe", NAMES)
def test_a_captured_step_reads_new_data(recipe: str) -> None:
    x = data("normal", (70, 640), torch.bfloat16, 0).to(DEVICE)
    out = gemmir.quantize(x, recipe)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gemmir.quantize(x, recipe, out=out)
        fresh = gemmir.quantize(x, recipe)
    for seed in range(1, 4):
        x.copy_(data("wide", (70, 640), torch.bfloat16, seed))
        graph.replay()
        q, scale = gemmir.quantize(x.cpu(), recipe)
        for found in (out, fresh):
            assert torch.equal(found[0].cpu().view(torch.uint8), q.view(torch.uint8))
            assert torch.equal(found[1].cpu(), scale)


def test_the_current_stream_is_used() -> None:
    x = torch.zeros(4096, 4096, dtype=torch.bfloat16, device=DEVICE)
    out = gemmir.quantize(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        x.fill_(448.0)
        gemmir.quantize(x, out=out)
    stream.synchronize()
    assert (out[1] == 1).all()
    assert (out[0].float() == 448).all()


@pytest.mark.parametrize("weight", ["block_wise_128x128", "block_wise_1x128"])
def test_products_of_what_was_quantised(weight: str) -> None:
    """Small integers survive scales that are powers of two, and their sums are exact."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-8, 9, (70, 640), generator=generator).to(DEVICE, torch.bfloat16)
    w = torch.randint(-8, 9, (272, 640), generator=generator).to(DEVICE, torch.bfloat16)
    qx, sx = gemmir.quantize(x, power_of_two=True)
    qw, sw = gemmir.quantize(w, weight, power_of_two=True)
    y = gemmir.matmul(qx, qw.t(), scale_a=sx, scale_b=sw.t(), out_dtype=torch.float32)
    assert torch.equal(y, (x.double() @ w.double().t()).float())
    assert torch.equal(gemmir.dequantize(qx, sx, dtype=torch.bfloat16), x)


def test_groups_of_what_was_quantised() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-8, 9, (3, 40, 256), generator=generator).to(DEVICE, torch.bfloat16)
    w = torch.randint(-8, 9, (3, 144, 256), generator=generator).to(DEVICE, torch.bfloat16)
    qx, sx = gemmir.quantize(x, power_of_two=True)
    qw, sw = gemmir.quantize(w, "block_wise_128x128", power_of_two=True)
    y = gemmir.batched_matmul(qx, qw.mT, scale_a=sx, scale_b=sw.mT)
    assert torch.equal(y, (x.double() @ w.double().mT).to(torch.bfloat16))
