"""Preparing kernels: exactly those that the calls will ask for, each once, before anything has to wait for them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import gemmir
from gemmir import ops, preparing
from gemmir.bench.cases import Case
from gemmir.errors import DeviceError, InputError, UnsupportedError
from gemmir.problem import Grouping, Recipe
from gemmir.product_calls import Asked, Call, call_of

BF16, F16, F32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
BLOCKS = ("block_wise_1x128", "block_wise_128x128")
PAIRS = ("block_wise_1x128", "block_wise_1x128")


class Kernel:
    """What would be compiled for a call."""

    def __init__(self, call: Call):
        self.call = call


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The calls for which a kernel is compiled, or the reference asked; none is."""
    found: list[Call] = []

    class Noted(Exception):
        pass

    def note(call: Call) -> Any:
        found.append(call)
        raise Noted

    monkeypatch.setattr(preparing, "kernel_of", lambda call: found.append(call) or Kernel(call))
    monkeypatch.setattr(ops, "_reference", note)
    ops.forget()
    return found


def call(asked: list[Call], function: Callable[..., Any], *tensors: Any, **options: Any) -> Call:
    with pytest.raises(Exception, match=r"^$"):
        function(*tensors, **options)
    return asked.pop()


def data(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def i32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


M, N, K, G = 24, 256, 384, 3

CALLS: dict[str, tuple[dict[str, Any], Callable[..., Any], dict[str, Any]]] = {
    "bf16": ({"dtype": BF16}, gemmir.matmul, {"a": data(M, K, dtype=BF16), "b": data(N, K, dtype=BF16).t()}),
    "out": (
        {"dtype": F16, "out_dtype": F32, "c_dtype": F32, "expected_m": 100},
        gemmir.matmul,
        {
            "a": data(M, K, dtype=F16),
            "b": data(N, K, dtype=F16).t(),
            "c": data(M, N),
            "out_dtype": F32,
            "expected_m": 100,
        },
    ),
    "parts": (
        {"dtype": BF16, "split_k": 2, "batch_invariant": False},
        gemmir.matmul,
        {"a": data(M, K, dtype=BF16), "b": data(N, K, dtype=BF16).t(), "split_k": 2, "batch_invariant": False},
    ),
    "fp8": (
        {"dtype": FP8},
        gemmir.matmul,
        {
            "a": data(M, K, dtype=FP8),
            "b": data(N, K, dtype=FP8).t(),
            "scale_a": data(M, 3),
            "scale_b": data(3, 2),
        },
    ),
    "tensor": (
        {"dtype": FP8, "recipe": ("tensor_wise", "tensor_wise")},
        gemmir.matmul,
        {"a": data(M, K, dtype=FP8), "b": data(N, K, dtype=FP8).t(), "scale_a": data(), "scale_b": data()},
    ),
    "row": (
        {"dtype": FP8, "recipe": ("row_wise", "row_wise")},
        gemmir.matmul,
        {"a": data(M, K, dtype=FP8), "b": data(N, K, dtype=FP8).t(), "scale_a": data(M, 1), "scale_b": data(1, N)},
    ),
    "offs": (
        {"dtype": FP8, "recipe": PAIRS, "grouping": "offs", "groups": G},
        gemmir.grouped_matmul,
        {
            "a": data(M, K, dtype=FP8),
            "b": data(G, N, K, dtype=FP8).mT,
            "offs": i32(1, 2, 3),
            "scale_a": data(M, 3),
            "scale_b": data(G, 3, N),
        },
    ),
    "group_ids": (
        {"dtype": BF16, "grouping": "group_ids", "groups": G},
        gemmir.grouped_matmul,
        {"a": data(M, K, dtype=BF16), "b": data(G, N, K, dtype=BF16).mT, "group_ids": i32(*[0] * M)},
    ),
    "counts": (
        {"dtype": FP8, "grouping": "counts", "groups": G, "expected_m": 9, "c_dtype": BF16},
        gemmir.grouped_matmul,
        {
            "a": data(G, M, K, dtype=FP8),
            "b": data(G, N, K, dtype=FP8).mT,
            "counts": i32(1, 2, 3),
            "scale_a": data(G, M, 3),
            "scale_b": data(G, 3, 2),
            "c": data(G, M, N, dtype=BF16),
            "expected_m": 9,
        },
    ),
    "batch": (
        {"dtype": BF16, "grouping": "batch", "groups": G},
        gemmir.batched_matmul,
        {"a": data(G, M, K, dtype=BF16), "b": data(G, N, K, dtype=BF16).mT},
    ),
    "k_offs": (
        {"dtype": FP8, "recipe": PAIRS, "grouping": "k_offs", "groups": G, "c_dtype": F32},
        gemmir.grouped_matmul,
        {
            "a": data(M, K, dtype=FP8),
            "b": data(N, K, dtype=FP8).t(),
            "offs": i32(128, 128, 384),
            "scale_a": data(M, 3),
            "scale_b": data(3, N),
            "c": data(G, M, N),
        },
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_prepared_is_what_is_called(name: str, asked: list[Call]):
    options, function, given = CALLS[name]
    wanted = call(asked, function, **given)
    gemmir.prepare([(M, N, K)], load=False, **options)
    assert asked == [wanted]


SCALING_TYPE = getattr(torch.nn.functional, "ScalingType", None)
"""Of newer torch."""
BLOCKS = (SCALING_TYPE.BlockWise1x128,) * 2 if SCALING_TYPE else ("BlockWise1x128", "BlockWise1x128")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("offs", {"dtype": "f8E4M3FN", "recipe": BLOCKS}),
        ("offs", {"dtype": "float8_e4m3fn", "recipe": (Recipe.BLOCK_WISE_1X128,) * 2, "grouping": Grouping.OFFS}),
        ("offs", {"recipe": "block_wise_1x128"}),
        ("counts", {"dtype": "torch.float8_e4m3fn", "c_dtype": "bf16", "out_dtype": "bfloat16"}),
        ("k_offs", {"c_dtype": "f32", "out_dtype": "f32"}),
        ("batch", {"dtype": "bf16", "grouping": Grouping.BATCH}),
    ],
    ids=str,
)
def test_types_and_recipes_may_be_said_in_words(form: str, words: dict[str, Any], asked: list[Call]):
    """As those of `gemmir.Program`, and the calls that are prepared are those with torch's own types."""
    plain = dict(CALLS[form][0])
    if "out_dtype" in words:
        plain["out_dtype"] = F32 if words["out_dtype"] == "f32" else BF16
    gemmir.prepare([(M, N, K)], load=False, **plain)
    gemmir.prepare([(M, N, K)], load=False, **plain | words)
    wanted, found = asked
    assert found == wanted


def test_words_that_are_no_type():
    for option in ("dtype", "c_dtype", "out_dtype"):
        with pytest.raises(InputError, match=f"GMR-I001: {option}: dtype 'float7'"):
            gemmir.prepare([(M, N, K)], load=False, **{"dtype": BF16} | {option: "float7"})
    with pytest.raises(InputError, match=r"GMR-I001(.|\n)*only FP8 operands are scaled"):
        gemmir.prepare([(M, N, K)], BF16, recipe=PAIRS, load=False)


@pytest.mark.parametrize("word", ["bf16", "bfloat16", "torch.bfloat16"])
def test_a_result_type_in_words_is_the_same_call(word: Any, asked: list[Call]):
    a, b = data(M, K, dtype=BF16), data(N, K, dtype=BF16).t()
    assert call(asked, gemmir.matmul, a, b, out_dtype=word) == call(asked, gemmir.matmul, a, b, out_dtype=BF16)


def test_every_grouping_is_there():
    assert {options.get("grouping", "none") for options, *_ in CALLS.values()} == {g.value for g in Grouping}


@pytest.mark.parametrize("dtype", [BF16, FP8])
@pytest.mark.parametrize(("n", "k"), [(4096, 7168), (256, 128), (7168, 16384)])
def test_every_m_has_at_most_six_kernels_and_all_are_prepared(dtype: torch.dtype, n: int, k: int, asked: list[Call]):
    """For M from 1 to 16384 at fixed N and K."""
    gemmir.prepare([(None, n, k)], dtype, load=False)
    prepared = {*asked}
    assert len(asked) == len(prepared) <= 6
    one = Asked(True, True, True, True, False, None, None, None, True)
    found = {
        call_of(Grouping.NONE, preparing._stand_ins(Grouping.NONE, (m, n, k), 1, None, dtype, None), one)
        for m in range(1, 16385)
    }
    assert found == prepared


def test_kernels_are_returned_once_and_reported_one_by_one(asked: list[Call]):
    seen: list[tuple[int, int, Any]] = []
    shapes = [(1, N, K), (2, N, K), (500, N, K), (M, 2 * N, K), (1, N, K)]
    kernels: Any = gemmir.prepare(shapes, BF16, load=False, threads=3, progress=lambda *report: seen.append(report))
    assert [(kernel.call.expected_m, kernel.call.tensors[1][1]) for kernel in kernels] == [
        (16, (K, N)),
        (None, (K, N)),
        (32, (K, 2 * N)),
    ]
    assert [(done, total) for done, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert {id(kernel) for *_, kernel in seen} == {id(kernel) for kernel in kernels}


def test_kernels_are_compiled_and_then_in_the_cache(capsys: pytest.CaptureFixture[str]):
    ops.kernel_of.cache_clear()
    kernels = gemmir.prepare([(64, 128, 128), (None, 128, 128)], BF16, load=False, progress=True)
    assert len(kernels) == 5
    assert all(kernel.cubin.startswith(b"\x7fELF") for kernel in kernels)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    assert lines[-1].startswith("[" + "#" * 30 + "] 5/5 gemm_bf16")
    again = gemmir.prepare([(64, 128, 128)], BF16, load=False)
    assert again == [kernels[0]]


def test_what_no_kernel_computes_is_refused_as_a_call_would_be():
    with pytest.raises(InputError, match=r"GMR-I009: grouping 'rows'(.|\n)*offs"):
        gemmir.prepare([(M, N, K)], BF16, grouping="rows", load=False)
    with pytest.raises(InputError, match=r"GMR-I009: recipe '1x128'(.|\n)*block_wise_1x128"):
        gemmir.prepare([(M, N, K)], FP8, recipe=("1x128", "x"), load=False)
    with pytest.raises(InputError, match="GMR-I001: dtype: dtype 'float64'"):
        gemmir.prepare([(M, N, K)], torch.float64, load=False)
    with pytest.raises(UnsupportedError, match="GMR-U001"):
        gemmir.prepare([(M, N, K)], FP8, recipe=("row_wise", "row_wise"), load=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_compiled(asked: list[Call]):
    with pytest.raises(DeviceError, match="GMR-D001"):
        gemmir.prepare([(M, N, K)], BF16)
    assert asked == []


def test_a_case_is_prepared_with_the_schedule_that_it_has():
    """Few rows: the same source as the program of `gemmir bench` for 16 rows, but for K in parts."""
    (kernel,) = gemmir.prepare([(16, 512, 512)], BF16, load=False, split_k=1)
    assert kernel.manifest.schedule == gemmir.compile(Case("bf16", 16, 512, 512).text, m=16).manifest.schedule
