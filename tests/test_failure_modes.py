"""The cases of tests/failure_modes.py that no other test is about; and that all of them have tests."""

from __future__ import annotations

import ast
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import gemmir
from gemmir.backends.cuda.arguments import check_arguments
from gemmir.backends.reference import random_inputs
from gemmir.bench.cases import Case
from gemmir.compiler import lower
from gemmir.errors import GemmirError, InputError, IRError
from gemmir.ir_text import parse_module
from gemmir.problem import Grouping
from gemmir.testing.oracles import check_bits, simulated
from gemmir.testing.strategies import fp8_problem, half_problem, program_text
from tests.backends.cuda.cuda_doubles import MANIFEST, tensors
from tests.failure_modes import CASES

ROOT = Path(__file__).parent


@cache
def functions_of(file: str) -> set[str]:
    return {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.FunctionDef)}


def test_all_cases_are_there():
    assert [*CASES] == [*range(1, 57)]


@pytest.mark.parametrize("number", CASES)
def test_every_case_has_tests(number: int):
    title, tests = CASES[number]
    assert title
    assert tests
    for test in tests.split():
        file, name = test.split("::")
        assert name in functions_of(file), test
    on_the_cpu = [test for test in tests.split() if not test.startswith("gpu/")]
    assert on_the_cpu or number == 12, "only a device has that much memory"


# ------------------------------------------------------------ 2, 6


@pytest.mark.parametrize("types", [("bf16", "f16"), ("bf16", "f8E4M3FN"), ("f32", "bf16"), ("i32", "i32")])
def test_operand_types_that_do_not_go_together(types: tuple[str, str]):
    program = gemmir.Program("f")
    a, b = program.input("a", (None, 64), types[0]), program.input("b", (64, 64), types[1])
    with pytest.raises(GemmirError) as error:
        gemmir.compile(_output(program, program.matmul(a, b)), cache=False)
    assert error.value.code in ("GMR-I001", "GMR-U001")
    assert error.value.rule


def _output(program: gemmir.Program, product: Any) -> gemmir.Program:
    program.output(product.cast("bf16"))
    return program


@pytest.mark.parametrize("size", [-1, 1.5, "M", True, 2**31, float("nan")], ids=str)
def test_sizes_that_are_none(size: Any):
    with pytest.raises(InputError) as error:
        gemmir.Program("f").input("a", (None, size), "bf16")
    assert error.value.code in ("GMR-I002", "GMR-I005", "GMR-I007", "GMR-I009")
    assert "a" in error.value.what


# ------------------------------------------------------------ 9, 14


def test_a_box_that_is_wider_than_its_swizzle():
    text = lower(Case("bf16", 64, 256, 512).text, m=64).ir["hopper"]
    old = "!hopper.tensor_map<64x64xbf16, b128>"
    assert old in text
    with pytest.raises(IRError, match="GMR-R00"):
        parse_module(text.replace(old, "!hopper.tensor_map<64x128xbf16, b128>"))


def test_more_tiles_than_can_be_counted():
    """2^31 - 1 rows of 7168 columns: each size is legal, the number of tiles of 64 x 8 is not."""
    manifest = replace(MANIFEST, block_m=64, block_n=8, cluster_m=1)
    infos = [gemmir_describe(tensor, spec.name) for tensor, spec in zip(tensors(8), manifest.inputs, strict=True)]
    most = 2**31 - 4
    grown = [
        replace(info, shape=(most, *info.shape[1:]), strides=(info.strides[0], most)[: len(info.shape)])
        if info.name == "xs"
        else replace(info, shape=(most, *info.shape[1:]))
        if info.name == "x"
        else info
        for info in infos
    ]
    with pytest.raises(InputError, match=r"GMR-I007: \d+ tiles(.|\n)*split M"):
        check_arguments(manifest, grown)


def gemmir_describe(tensor: Any, name: str) -> Any:
    from gemmir.backends.cuda.arguments import describe

    return describe(tensor, name)


# ------------------------------------------------------------ 17


@pytest.mark.parametrize("backend", ["reference", "kernel, simulated"])
def test_scales_go_through_as_they_are(backend: str):
    """Nothing is checked: NaN and infinity spread to their row, zero and sign are multiplied."""
    m, n, k = 6, 64, 128
    x, w = torch.ones(m, k).to(torch.float8_e4m3fn), torch.ones(n, k).to(torch.float8_e4m3fn).t()
    xs = gemmir.align_scales(torch.tensor([1.0, float("nan"), float("inf"), 0.0, -2.0, float("-inf")])[:, None])
    ws = torch.ones(1, 1)
    if backend == "reference":
        result = gemmir.matmul(x, w, scale_a=xs, scale_b=ws)
    else:
        result = simulated(Case("f8E4M3FN", m, n, k).text)(x, xs, w, ws)
    rows = [row.unique().tolist() for row in result.float()]
    assert rows[0] == [128.0]
    assert bool(result[1].isnan().all())
    assert (rows[2], rows[3], rows[4], rows[5]) == ([float("inf")], [0.0], [-256.0], [float("-inf")])


# ------------------------------------------------------------ 34


@pytest.mark.parametrize("expected", [1, 100, 100_000])
def test_what_is_expected_changes_no_bit(expected: int):
    """The kernel for that M, simulated with another."""
    case = Case("bf16", 70, 64, 128)
    generator = torch.Generator().manual_seed(expected)
    x, w = (torch.randn(shape, generator=generator).bfloat16() for shape in ((70, 128), (64, 128)))
    text = lower(case.text, m=expected).ir["schedule"]
    assert torch.equal(simulated(text)(x, w.t()), gemmir.matmul(x, w.t(), split_k=1))


EXPECTED = (1, 64, 4096)


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("grouping", [Grouping.COUNTS, Grouping.OFFS])
def test_what_is_expected_of_groups_changes_no_bit(grouping: Grouping, fp8: bool):
    """The kernels for one row, 64 and 4096 of them."""
    problem = (fp8_problem if fp8 else half_problem)(None, 64, 256)
    text = program_text(replace(problem, grouping=grouping, groups=3))
    schedules = {lower(text, m=expected).ir["schedule"] for expected in EXPECTED}
    assert len(schedules) > 1, "hints that change no kernel say nothing"
    inputs = list(random_inputs(parse_module(text), 70, 5).values())
    for expected in EXPECTED:
        check_bits(simulated(text, m=expected), text, inputs=inputs)
