"""
Kernels on a Hopper GPU, every element of every result.

Random data: compared with the float64 product of the dequantised operands, within the bound derived in
`gemmir.backends.reference.bound`. Exact data (small integers, power-of-two scales): equal bit for bit. The output is
filled with NaN first, so that an element that nobody wrote is seen.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

import gemmir
from gemmir.backends.reference.bound import exact_and_bound
from gemmir.backends.reference.checks import torch_dtype
from gemmir.backends.reference.data import exact_inputs, random_inputs
from gemmir.backends.reference.interpreter import run
from gemmir.backends.reference.worst import WorstElement, worst_element
from gemmir.dialects.gemm import problem_of, the_matmul
from gemmir.dtypes import DTYPES
from gemmir.ir_text import parse_module
from tests.gpu.forms import FORMS, Form
from tests.gpu.problems import Case, drawn_cases, layer_cases

pytestmark = pytest.mark.gpu


@functools.cache
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 2)


@functools.cache
def compiled(case: Case) -> Future[gemmir.CompiledKernel]:
    """The kernel whose schedule was chosen for this M; NVRTC runs in the background."""
    return pool().submit(lambda: gemmir.compile(case.text, m=case.m, cache=False))


@pytest.fixture(scope="module", autouse=True)
def compile_ahead(request: pytest.FixtureRequest) -> None:
    """Start all compilations of the selected tests at once."""
    for item in request.session.items:
        case = getattr(item, "callspec", None)
        if case is not None and isinstance(case.params.get("case"), Case):
            compiled(case.params["case"])


def launch(kernel: gemmir.CompiledKernel, inputs: dict[str, torch.Tensor], rows: int) -> torch.Tensor:
    columns = kernel.manifest.n
    dtype = torch_dtype(DTYPES[kernel.manifest.output.dtype])
    out = torch.full((rows, columns), float("nan"), dtype=dtype, device="cuda")
    return kernel(*inputs.values(), out=out)


def worst(kernel: gemmir.CompiledKernel, case: Case, seed: int) -> WorstElement:
    module = parse_module(case.text)
    inputs = random_inputs(module, case.m, seed, "cuda")
    problem = problem_of(the_matmul(module))
    result = launch(kernel, inputs, case.m)
    a, b = inputs["x"], inputs["w"]
    exact, bound = exact_and_bound(problem, a, b, inputs.get("xs"), inputs.get("ws"))
    return worst_element(result, exact, bound)


def check_exact(kernel: gemmir.CompiledKernel, case: Case | Form, seed: int) -> None:
    module = parse_module(case.text)
    inputs = exact_inputs(module, case.m, seed, "cuda")
    result, expected = launch(kernel, inputs, case.m), run(module, list(inputs.values()))
    assert isinstance(expected, torch.Tensor)
    different = (result != expected).nonzero()
    assert len(different) == 0, f"{len(different)} elements differ, first at {different[0].tolist()}"


@pytest.mark.parametrize("case", layer_cases(), ids=str)
def test_layers(case: Case, record_property: pytest.FixtureRequest) -> None:
    found = worst(compiled(case).result(), case, seed=1)
    record_property("ratio", found.ratio)  # type: ignore[operator]
    assert found.holds, str(found)


@pytest.mark.parametrize("case", drawn_cases(), ids=str)
def test_drawn_shapes(case: Case, record_property: pytest.FixtureRequest) -> None:
    kernel = compiled(case).result()
    found = worst(kernel, case, seed=2)
    record_property("ratio", found.ratio)  # type: ignore[operator]
    assert found.holds, str(found)
    check_exact(kernel, case, seed=3)


@pytest.mark.parametrize("dtype", ["f8E4M3FN", "bf16"])
def test_one_kernel_serves_every_m(dtype: str) -> None:
    """The kernel chosen for M = 4096 gives the right result, and the same bits in each row, for any M."""
    case = Case(dtype, 4096, 2112, 7168)
    kernel = compiled(case).result()
    module = parse_module(case.text)
    inputs = random_inputs(module, 4096, 4, "cuda")
    whole = launch(kernel, inputs, 4096)
    for rows in (1, 2, 63, 64, 65, 127, 129, 1000, 4095):
        some = {name: value[:rows] if name in ("x", "xs") else value for name, value in inputs.items()}
        assert torch.equal(launch(kernel, some, rows), whole[:rows]), rows


@pytest.mark.parametrize("dtype", ["f8E4M3FN", "bf16"])
def test_same_bits_every_run(dtype: str) -> None:
    case = Case(dtype, 1000, 7168, 2048)
    kernel = compiled(case).result()
    inputs = random_inputs(parse_module(case.text), case.m, 5, "cuda")
    first = launch(kernel, inputs, case.m)
    assert all(torch.equal(first, launch(kernel, inputs, case.m)) for _ in range(20))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_forms_on_exact_data(form: Form) -> None:
    check_exact(gemmir.compile(form.text, m=form.m, cache=False), form, seed=6)
