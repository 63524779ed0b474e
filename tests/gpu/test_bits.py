"""
Whole results on a Hopper GPU against the bit model of the tensor cores: tolerance zero, NaNs and infinities included.

`GEMMIR_BITS_OUT` names a file to which the number of outputs compared is added, by kind of data.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

import gemmir
from gemmir.backends.reference.data import random_inputs
from gemmir.dialects.gemm import problem_of, the_matmul
from gemmir.ir_text import parse_module
from gemmir.testing.torch_model import gemm_model
from tests.gpu.forms import FORMS, LARGE_FORMS, Form
from tests.gpu.problems import Case
from tests.gpu.test_matmul import launch

pytestmark = pytest.mark.gpu

LARGE = [
    Case("f8E4M3FN", 4096, 24576, 1536),
    Case("f8E4M3FN", 4096, 7168, 2048),
    Case("bf16", 4096, 7168, 2048),
    Case("bf16", 4096, 2112, 7168),
    Case("f16", 4096, 4096, 1024),
]
SMALL = [Case(dtype, 2048, 2112, 1168) for dtype in ("f8E4M3FN", "f8E5M2", "bf16", "f16")]

Make = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""Data in place of an operand: same shape, type and strides."""


def raw(like: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Bit patterns as an operand that lies in memory like `like`."""
    width = {1: torch.uint8, 2: torch.int16}[like.element_size()]
    data = torch.empty_like(like)
    data.view(width).copy_(bits.to(width))
    return data


def bf16_between(like: torch.Tensor, generator: torch.Generator, low: int, high: int) -> torch.Tensor:
    """Random signs and significands, exponents from `low` to `high` - 1 (127 is 1.0)."""
    drawn = torch.randint(low << 7, high << 7, like.shape, generator=generator, device=like.device)
    sign = torch.randint(0, 2, like.shape, generator=generator, device=like.device)
    return raw(like, torch.where(sign == 1, drawn - (1 << 15), drawn))


def all_patterns(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every bit pattern alike (BF16: from 2^-50 to 2^50), but for one in 2,000 no NaN or Inf."""
    if like.dtype == torch.bfloat16:
        return bf16_between(like, generator, 77, 178)
    bits = 8 * like.element_size()
    drawn = torch.randint(0, 1 << bits, like.shape, generator=generator, device=like.device)
    data = raw(like, drawn if bits == 8 else (drawn + (1 << 15)) % (1 << 16) - (1 << 15))
    keep = torch.rand(like.shape, generator=generator, device=like.device) < 1 / 2000
    finite = torch.isfinite(data.float()) | keep
    return torch.where(finite, data.float(), 0.0).to(like.dtype).as_strided(like.shape, like.stride())


def tiny(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Subnormal and very small values; BF16 so that products lie around 2^-132, from 2^-160 to 2^-110."""
    if like.dtype == torch.bfloat16:
        return bf16_between(like, generator, 47, 72)
    mantissa = {torch.float8_e4m3fn: 3, torch.float8_e5m2: 2, torch.bfloat16: 7, torch.float16: 10}[like.dtype]
    low = torch.randint(0, 1 << (mantissa + 2), like.shape, generator=generator, device=like.device)
    sign = torch.randint(0, 2, like.shape, generator=generator, device=like.device)
    top = 1 << (8 * like.element_size() - 1)
    return raw(like, torch.where(sign == 1, low - top if like.element_size() == 2 else low + top, low))


def wide(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Magnitudes spread evenly over 16 binary orders (FP8: over its range)."""
    normal = torch.randn(like.shape, generator=generator, device=like.device)
    orders = torch.rand(like.shape, generator=generator, device=like.device) * 16 - 8
    limit = 240.0 if like.element_size() == 1 else 3e4
    return (normal * torch.exp2(orders)).clamp(-limit, limit).to(like.dtype).as_strided(like.shape, like.stride())


def sparse(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Nine zeros out of ten, of both signs."""
    normal = torch.randn(like.shape, generator=generator, device=like.device)
    keep = torch.rand(like.shape, generator=generator, device=like.device) < 0.1
    return torch.where(keep, normal, normal * 0.0).to(like.dtype).as_strided(like.shape, like.stride())


def specials(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A NaN or an infinity (where the type has one) in one element out of 3,000."""
    data = torch.randn(like.shape, generator=generator, device=like.device)
    chance = torch.rand(like.shape, generator=generator, device=like.device)
    has_inf = like.dtype != torch.float8_e4m3fn
    data = torch.where(chance < 1e-4, torch.nan, data)
    if has_inf:
        data = torch.where((chance > 1e-4) & (chance < 2.5e-4), torch.inf, data)
        data = torch.where((chance > 2.5e-4) & (chance < 3.3e-4), -torch.inf, data)
    return data.to(like.dtype).as_strided(like.shape, like.stride())


KINDS: dict[str, Make] = {"patterns": all_patterns, "tiny": tiny, "wide": wide, "sparse": sparse, "specials": specials}


def cancelling(inputs: dict[str, torch.Tensor]) -> None:
    """The second half of K undoes the first, but for a few elements."""
    x, w = inputs["x"], inputs["w"]
    half = x.shape[1] // 256 * 128
    x[:, half : 2 * half] = x[:, :half]
    w[half : 2 * half] = (-w[:half].float()).to(w.dtype)
    w[half : half + 3] = w[:3]


def compare(case: Case | Form, inputs: dict[str, torch.Tensor], kind: str) -> None:
    module = parse_module(case.text)
    problem = problem_of(the_matmul(module))
    kernel = gemmir.compile(case.text, m=case.m)
    got = launch(kernel, inputs, case.m)
    expected = gemm_model(problem, inputs["x"], inputs["w"], inputs.get("xs"), inputs.get("ws"), inputs.get("c"))
    width = {2: torch.int16, 4: torch.int32}[got.element_size()]
    different = (got.view(width) != expected.view(width)).nonzero()
    if (path := os.environ.get("GEMMIR_BITS_OUT")) is not None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{kind} {case} {got.numel()} outputs, {len(different)} different\n")
    assert len(different) == 0, describe(got, expected, different)


def describe(got: torch.Tensor, expected: torch.Tensor, different: torch.Tensor) -> str:
    row, column = different[0].tolist()
    width, mask = {2: (torch.int16, 0xFFFF), 4: (torch.int32, 0xFFFFFFFF)}[got.element_size()]
    bits = [int(t.view(width)[row, column]) & mask for t in (got, expected)]
    return f"{len(different)} differ, first [{row}, {column}]: got {bits[0]:#x}, model {bits[1]:#x}"


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_random_data(case: Case) -> None:
    compare(case, random_inputs(parse_module(case.text), case.m, 11, "cuda"), "random")


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_cancellation(case: Case) -> None:
    inputs = random_inputs(parse_module(case.text), case.m, 12, "cuda")
    cancelling(inputs)
    compare(case, inputs, "cancelling")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_adversarial_data(case: Case, kind: str) -> None:
    inputs = random_inputs(parse_module(case.text), case.m, 13, "cuda")
    generator = torch.Generator("cuda").manual_seed(14)
    for name in ("x", "w"):
        inputs[name] = KINDS[kind](inputs[name], generator)
    compare(case, inputs, kind)


@pytest.mark.parametrize("form", [*FORMS, *LARGE_FORMS], ids=str)
def test_forms_on_random_data(form: Form) -> None:
    compare(form, random_inputs(parse_module(form.text), form.m, 15, "cuda"), "random")


@pytest.mark.parametrize("form", [form for form in FORMS if form.problem.has_c], ids=str)
def test_the_result_may_take_the_place_of_c(form: Form) -> None:
    """The same bits in a tensor of its own and in C, which is overwritten."""
    inputs = random_inputs(parse_module(form.text), form.m, 16, "cuda")
    kernel = gemmir.compile(form.text, m=form.m)
    expected = launch(kernel, inputs, form.m)
    result = kernel(*inputs.values(), out=inputs["c"])
    assert result is inputs["c"]
    assert torch.equal(result, expected)
