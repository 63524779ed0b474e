"""`torch.ops.gemmir`: the bits of `gemmir`'s own functions, one graph for every M, and the same errors."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch._subclasses.fake_tensor import FakeTensorMode

import gemmir
import gemmir.torch_ops
from gemmir.errors import GemmirError, InputError
from tests.torch_forms import (
    FORMS,
    GROUPS,
    Call,
    K,
    N,
    check_compiled,
    check_eager,
    direct,
    half,
    through_op,
)

forms = pytest.mark.parametrize("form", FORMS)
RECIPES = ("block_wise_1x128", "block_wise_128x128", "row_wise", "tensor_wise")
NAMES = ("matmul", "grouped_matmul", "batched_matmul")


@forms
def test_bits_are_those_of_the_function(form: str):
    check_eager(form, (1, 5, 130), "cpu")


def unfit(op: Any, tensors: tuple[Any, ...], options: dict[str, Any]) -> dict[str, str]:
    """What `opcheck` finds fault with. It compares inputs before and after, which torch cannot do for FP8 ones."""
    given = [t for t in (*tensors, *options.values()) if isinstance(t, torch.Tensor)]
    schema = () if any(t.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) for t in given) else ("test_schema",)
    tests = (*schema, "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    found = torch.library.opcheck(op.default, tensors, options, test_utils=tests)
    assert len(found) == len(tests)
    return {test: verdict for test, verdict in found.items() if verdict != "SUCCESS"}


@forms
def test_ops_are_what_torch_asks_of_one(form: str):
    name, tensors, options = call = FORMS[form](6, "cpu")
    out = {"out": torch.empty_like(direct(call))}
    assert not unfit(getattr(torch.ops.gemmir, name), tensors, options)
    assert not unfit(getattr(torch.ops.gemmir, f"{name}_out"), tensors, options | out)


@pytest.mark.parametrize("recipe", RECIPES)
def test_quantize(recipe: str):
    x = half(GROUPS, 8, 200)
    x[0, 0, :2] = float("inf")
    options = {"dtype": torch.float8_e5m2, "power_of_two": True, "saturate": True}
    expected = gemmir.quantize(x, recipe, **options)  # type: ignore[arg-type]
    out = {"q": torch.empty_like(expected[0]), "scale": torch.empty_like(expected[1])}
    torch.ops.gemmir.quantize_out(x, recipe, **options, **out)
    for q, scale in (torch.ops.gemmir.quantize(x, recipe, **options), out.values()):
        assert torch.equal(q.view(torch.uint8), expected[0].view(torch.uint8))
        assert torch.equal(scale, expected[1])
    assert not unfit(torch.ops.gemmir.quantize_out, (x, recipe), options | out)
    fake_q, fake_scale = torch.ops.gemmir.quantize(x.to("meta"), recipe, **options)
    for found, wanted in ((fake_q, expected[0]), (fake_scale, expected[1])):
        assert (found.shape, found.stride(), found.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_quantising_and_back_is_one_graph(recipe: str, backend: str):
    def there_and_back(x: torch.Tensor) -> torch.Tensor:
        return gemmir.dequantize(*gemmir.quantize(x, recipe), recipe, dtype=torch.bfloat16)

    torch._dynamo.reset()
    compiled = torch.compile(there_and_back, backend=backend, fullgraph=True)
    for rows in (130, 7, 300):
        x = half(rows, 200)
        assert torch.equal(compiled(x), there_and_back(x))


@pytest.mark.skipif(not hasattr(torch.nn.functional, "ScalingType"), reason="torch has no ScalingType")
def test_quantising_by_a_scaling_type_is_one_graph():
    kind = torch.nn.functional.ScalingType.BlockWise128x128
    call = torch.compile(lambda x: gemmir.dequantize(*gemmir.quantize(x, kind), kind), fullgraph=True, backend="eager")
    x = half(7, 200)
    assert torch.equal(call(x), gemmir.dequantize(*gemmir.quantize(x, kind), kind))


@pytest.mark.parametrize("name", NAMES)
def test_ops_take_what_the_functions_take(name: str):
    """By the same names, in the same order, with the same defaults."""
    parameters = inspect.signature(getattr(gemmir, name)).parameters.values()
    public = [p for p in parameters if not p.name.startswith("_")]
    wanted = [(p.name, p.kind is p.KEYWORD_ONLY, None if p.default is p.empty else p.default) for p in public]
    for op, left_out in ((name, ("out",)), (f"{name}_out", ())):
        arguments = getattr(torch.ops.gemmir, op).default._schema.arguments
        assert [(a.name, a.kwarg_only, a.default_value) for a in arguments] == [
            w for w in wanted if w[0] not in left_out
        ]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@forms
def test_one_graph_for_every_m(form: str, backend: str):
    check_compiled(form, backend, (130, 7, 300), "cpu")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch's own making
def test_inductor():
    check_compiled("fp8", "inductor", (130, 7), "cpu")


class Module(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return gemmir.matmul(a, b, out_dtype=torch.float32)


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict: bool, tmp_path: Path):
    a, b = half(6, K), half(N, K).t()
    rows = torch.export.Dim("m", max=4096)
    program = torch.export.export(Module(), (a, b), dynamic_shapes=({0: rows}, None), strict=strict)
    torch.export.save(program, tmp_path / "program.pt2")
    again = torch.export.load(tmp_path / "program.pt2").module()
    for m in (2, 33):
        assert torch.equal(again(half(m, K), b), gemmir.matmul(half(m, K), b, out_dtype=torch.float32))


@forms
def test_meta_tensors(form: str):
    call = FORMS[form](5, "cpu")
    name, tensors, options = call
    moved = {word: v.to("meta") if isinstance(v, torch.Tensor) else v for word, v in options.items()}
    found = through_op((name, (tensors[0].to("meta"), tensors[1].to("meta")), moved))
    expected = direct(call)
    assert (found.device.type, found.shape, found.dtype) == ("meta", expected.shape, expected.dtype)
    assert found.stride() == expected.stride()


FP8 = torch.float8_e4m3fn
BAD: dict[str, tuple[str, Call]] = {
    "K": ("GMR-I002", ("matmul", (half(5, 64), half(32, 16)), {})),
    "rank": ("GMR-I002", ("matmul", (half(5, 64), half(3, 64, 16)), {})),
    "operand type": ("GMR-I001", ("matmul", (half(5, 64).float(), half(64, 16)), {})),
    "mixed types": ("GMR-I001", ("matmul", (half(5, 64), half(64, 16).half()), {})),
    "result type": ("GMR-I001", ("matmul", (half(5, 64), half(64, 16)), {"out_dtype": torch.float64})),
    "shape of C": ("GMR-I002", ("matmul", (half(5, 64), half(64, 16)), {"c": half(5, 15)})),
    "rows of C": ("GMR-I002", ("matmul", (half(5, 64), half(64, 16)), {"c": half(6, 16)})),
    "scales of 16 bits": ("GMR-I001", ("matmul", (half(5, 64), half(64, 16)), {"scale_a": half(5, 1).float()})),
    "parts": ("GMR-I009", ("matmul", (half(5, 64), half(64, 16)), {"split_k": 3})),
    "expected rows": ("GMR-I009", ("matmul", (half(5, 64), half(64, 16)), {"expected_m": 0})),
    "no index": ("GMR-I005", ("grouped_matmul", (half(5, 64), half(3, 64, 16)), {})),
    "index type": ("GMR-I001", ("grouped_matmul", (half(5, 64), half(3, 64, 16)), {"offs": torch.tensor([1, 2, 5])})),
    "ids": (
        "GMR-I002",
        ("grouped_matmul", (half(5, 64), half(3, 64, 16)), {"group_ids": torch.zeros(4, dtype=torch.int32)}),
    ),
    "batches": ("GMR-I002", ("batched_matmul", (half(2, 5, 64), half(3, 64, 16)), {})),
    "scale missing": (
        "GMR-I005",
        ("matmul", (half(5, 64).to(FP8), half(64, 16).to(FP8)), {"scale_a": half(5, 1).float()}),
    ),
    "out shape": ("GMR-I002", ("matmul", (half(5, 64), half(64, 16)), {"out": half(5, 17)})),
    "out type": ("GMR-I001", ("matmul", (half(5, 64), half(64, 16)), {"out": half(5, 16).double()})),
    "a gradient": ("GMR-I005", ("matmul", (half(5, 64).requires_grad_(), half(64, 16)), {})),
}


def faked(call: Call, make: Any) -> Call:
    name, tensors, options = call
    a, b = (make(t) for t in tensors)
    return name, (a, b), {word: make(v) if isinstance(v, torch.Tensor) else v for word, v in options.items()}


def op_of(call: Call) -> None:
    name, tensors, options = call
    getattr(torch.ops.gemmir, f"{name}_out" if "out" in options else name)(*tensors, **options)


@pytest.mark.parametrize("bad", BAD)
def test_what_is_wrong_is_wrong_without_data_too(bad: str):
    code, call = BAD[bad]
    meta = faked(call, lambda t: t.detach().to("meta").requires_grad_(t.requires_grad))
    mode = FakeTensorMode()
    for attempt in (lambda: direct(call), lambda: op_of(call), lambda: op_of(meta), lambda: op_of(in_mode(mode, call))):
        with pytest.raises(GemmirError) as raised:
            attempt()
        assert raised.value.code == code


def in_mode(mode: FakeTensorMode, call: Call) -> Call:
    return faked(call, mode.from_tensor)


def test_devices_are_one_without_data_too():
    with pytest.raises(InputError, match="GMR-I004"):
        torch.ops.gemmir.matmul(half(5, 64).to("meta"), half(64, 16))


@pytest.mark.parametrize(
    ("code", "x", "recipe"),
    [
        ("GMR-I009", half(4, 64), "mx"),
        ("GMR-I001", half(4, 64).double(), "row_wise"),
        ("GMR-I002", half(64), "row_wise"),
        ("GMR-I006", half(64, 4).t(), "row_wise"),
        ("GMR-I005", half(4, 64).requires_grad_(), "row_wise"),
    ],
)
def test_what_cannot_be_quantised(code: str, x: torch.Tensor, recipe: str):
    mode = FakeTensorMode()
    fake = mode.from_tensor(x)
    for attempt in (lambda: gemmir.quantize(x, recipe), lambda: torch.ops.gemmir.quantize(fake, recipe)):
        with pytest.raises(InputError) as raised:
            attempt()
        assert raised.value.code == code


def test_what_does_not_fit_is_refused_while_tracing_and_later():
    compiled = torch.compile(lambda a, b: gemmir.matmul(a, b), backend="eager", fullgraph=True, dynamic=True)
    compiled(half(5, 64), half(64, 16))
    with pytest.raises(torch._dynamo.exc.TorchRuntimeError, match="GMR-I002"):
        compiled(half(5, 64), half(96, 16))
    options = ({1: torch.export.Dim("k", max=512)}, {0: torch.export.Dim("k2", max=512)})
    with pytest.raises(GemmirError, match="GMR-I002"):  # it is not one K to it
        torch.export.export(Module(), (half(5, 64), half(96, 16)), dynamic_shapes=options)


def test_sizes_that_are_not_known_while_tracing():
    @torch.compile(backend="eager", fullgraph=True)
    def chosen(a: torch.Tensor, rows: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return gemmir.matmul(a[rows.nonzero().squeeze(1)], b)

    a, b, rows = half(9, 64), half(64, 16), torch.arange(9) % 2 == 0
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        assert torch.equal(chosen(a, rows, b), gemmir.matmul(a[::2], b))


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # a trace has wrappers, which raise
def test_real_tensors_are_computed_with_while_something_compiles(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("went through the dispatcher")

    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    monkeypatch.setitem(gemmir.torch_ops.FUNCTIONAL, "matmul", refuse)
    a, b = half(5, 64), torch.nn.Parameter(half(64, 16), requires_grad=False)
    assert gemmir.matmul(a, b).shape == (5, 16)
    with FakeTensorMode() as mode, pytest.raises(AssertionError, match="dispatcher"):
        gemmir.matmul(mode.from_tensor(a), b)


def test_nothing_has_to_be_imported_for_a_graph():
    program = """
import gemmir, torch
f = torch.compile(lambda a, b: gemmir.matmul(a, b), backend="eager", fullgraph=True)
print(f(torch.ones(2, 64).bfloat16(), torch.ones(64, 8).bfloat16()).sum().item())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) == 2 * 8 * 64


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_page_runs():
    page = (Path(__file__).parents[1] / "docs" / "torch.md").read_text()
    names: dict[str, Any] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), names)
    assert torch.equal(names["program"].module()(names["a"], names["b"]), gemmir.matmul(names["a"], names["b"]))
    assert names["y"].shape == (33, 256)
