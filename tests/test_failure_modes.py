"""The cases of tests/failure_modes.py that no other test is about; and that all of them have tests."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from xdsl.utils.exceptions import VerifyException

import gemmir
from gemmir.backends.cuda.arguments import check_arguments
from gemmir.backends.cuda.source_lint import lint
from gemmir.backends.cuda.target import the_kernel
from gemmir.backends.reference import random_inputs
from gemmir.bench.cases import Case
from gemmir.compiler import lower
from gemmir.dialects.hopper import CtaSyncOp
from gemmir.dialects.hopper.bounds import MAX_OPS, check_kernel_bounds
from gemmir.errors import CompileError, GemmirError, InputError, IRError, UnsupportedError
from gemmir.ir_text import parse_module
from gemmir.problem import Grouping
from gemmir.target import MOST_EXTENT
from gemmir.testing.oracles import check_bits, simulated
from gemmir.testing.strategies import fp8_problem, half_problem, program_text
from tests.backends.cuda.cuda_doubles import MANIFEST, tensors
from tests.failure_modes import CASES

ROOT = Path(__file__).parent
FAR = 2**31 - 8


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
    """As many rows as there may be, of 7168 columns: each size is legal, the number of tiles of 64 x 8 is not."""
    manifest = replace(MANIFEST, block_m=64, block_n=8, cluster_m=1)
    infos = [gemmir_describe(tensor, spec.name) for tensor, spec in zip(tensors(8), manifest.inputs, strict=True)]
    most = MOST_EXTENT
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


@pytest.mark.parametrize(("name", "m", "n", "k"), [("M", FAR, 64, 64), ("N", 64, FAR, 64), ("K", 64, 64, FAR)])
def test_sizes_whose_last_tile_could_not_be_counted(name: str, m: int, n: int, k: int):
    """2^31 - 8 is an integer of 32 bits; the end of the tile that holds it is none."""
    with pytest.raises(UnsupportedError, match=rf"GMR-U001: {name} = {FAR}(.|\n)*at most {MOST_EXTENT}") as error:
        gemmir.compile(fixed_m(m, n, k), cache=False)
    assert f"split {name}" in (error.value.fix or "")
    largest = [size if size != FAR else MOST_EXTENT for size in (m, n, k)]
    source = gemmir.compile(fixed_m(*largest), cache=False).source
    assert max(int(number) for number in re.findall(r"\b\d+\b", source.partition('extern "C"')[2])) < 2**31


def fixed_m(m: int, n: int, k: int) -> gemmir.Program:
    program = gemmir.Program("f")
    a, b = program.input("a", (m, k), "bf16"), program.input("b", (k, n), "bf16")
    return _output(program, program.matmul(a, b))


def test_more_rows_than_can_be_counted_are_refused_when_they_come():
    rows = MOST_EXTENT + 1
    manifest = replace(MANIFEST, block_m=128)
    infos = [gemmir_describe(tensor, spec.name) for tensor, spec in zip(tensors(8), manifest.inputs, strict=True)]
    infos[0] = replace(infos[0], shape=(rows, 2048))
    infos[2] = replace(infos[2], shape=(rows, 16), strides=(1, rows + 3))
    with pytest.raises(InputError, match=rf"GMR-I007: x: dimension 0 is {rows}(.|\n)*at most {MOST_EXTENT}"):
        check_arguments(manifest, infos)


# ------------------------------------------------------------ 52


def test_no_number_of_a_kernel_is_more_than_an_int():
    lowered = lower(Case("bf16", 64, 256, 512).text, m=64)
    source, manifest = lowered.source, lowered.manifest
    assert manifest is not None
    for old, new in (("constexpr int N = 256;", "constexpr int N = 2147483648;"), (" k < 8;", f" k < {2**31};")):
        assert old in source
        lint(source.replace(old, new.replace("2147483648", "2147483647")), manifest.entry)
        with pytest.raises(CompileError, match="GMR-C005: the number 2147483648"):
            lint(source.replace(old, new), manifest.entry)
    with pytest.raises(CompileError, match="GMR-C005: the number 9999999999"):
        lint(source.replace(" k < 8;", f" k < {'9' * 5000};"), manifest.entry)


def test_a_kernel_that_was_unrolled_without_end_is_refused():
    """Each op is one that there is: 4096 of a kernel may be printed."""
    kernel = the_kernel(lower(Case("bf16", 64, 256, 512).text, m=64, until="hopper").module)
    block, sync = kernel.body.block, next(op for op in kernel.body.block.ops if isinstance(op, CtaSyncOp))
    room = MAX_OPS - sum(1 for _ in kernel.walk())
    block.add_ops(sync.clone() for _ in range(room))
    check_kernel_bounds(kernel)
    block.add_op(sync.clone())
    with pytest.raises(VerifyException, match="operations: 4097 of 4096"):
        check_kernel_bounds(kernel)


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
