"""`validate=True`: the first bad scale is named wherever it lies, but for those on which nothing depends."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch

import gemmir
import gemmir.torch_ops
from gemmir.backends.reference.groups import Operands
from gemmir.errors import InputError
from gemmir.groups import spans
from gemmir.matmul_rules import RECIPE_PAIRS, operand_scale_shape
from gemmir.problem import Grouping, Recipe
from gemmir.validation import check_values

FP8 = torch.float8_e4m3fn
NAN, INF = float("nan"), float("inf")
BAD = (NAN, INF, -INF, 0.0, -0.0, -2.0, -1e-45)
GOOD = (1.0, 1e-45, 2.0**-116, 3.4e38)
M, N, K, G = 20, 136, 384, 3


def fp8(*shape: int) -> torch.Tensor:
    """Ones; by their bits, which is far faster than to convert them."""
    return torch.full(shape, 0x38, dtype=torch.uint8).view(FP8)


def i32(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


INDICES = {
    Grouping.OFFS: i32(5, 5, 17),
    Grouping.GROUP_IDS: i32(*[0] * 9, *[-1] * 11),
    Grouping.COUNTS: i32(7, 0, M),
    Grouping.K_OFFS: i32(128, 128, 256),
}
FORMS = [(g, pair) for g in Grouping for pair in RECIPE_PAIRS if g is not Grouping.K_OFFS or pair[1] == pair[0]]


def operands_of(grouping: Grouping, recipes: tuple[Recipe, Recipe]) -> dict[str, torch.Tensor]:
    """A, B and good scales of a form by name, the index as `index`."""
    stacked_a, stacked_b = (
        grouping in (Grouping.COUNTS, Grouping.BATCH),
        grouping not in (Grouping.NONE, Grouping.K_OFFS),
    )
    a, b = fp8(*[G][:stacked_a], M, K), fp8(*[G][:stacked_b], N, K).mT
    shape_a = operand_scale_shape(recipes[0], tuple(a.shape), k_axis=1)
    shape_b = operand_scale_shape(recipes[1], tuple(b.shape), k_axis=0)
    tensors = {"a": a, "b": b, "scale_a": torch.ones(shape_a), "scale_b": torch.ones(shape_b)}  # type: ignore[arg-type]
    return tensors | ({"index": INDICES[grouping]} if grouping in INDICES else {})


def call_of(grouping: Grouping, tensors: dict[str, torch.Tensor], through: Any = gemmir) -> Callable[..., torch.Tensor]:
    """The call of a form: what takes the other options."""
    named = dict(tensors)
    if "index" in named:
        named["offs" if grouping is Grouping.K_OFFS else grouping.value] = named.pop("index")
    a, b = named.pop("a"), named.pop("b")
    name = {Grouping.NONE: "matmul", Grouping.BATCH: "batched_matmul"}.get(grouping, "grouped_matmul")
    return lambda **options: getattr(through, name)(a, b, **named, **options)


def counts(grouping: Grouping, tensors: dict[str, torch.Tensor], name: str, place: tuple[int, ...]) -> bool:
    """Whether the result depends on a scale, by the meaning of groups: some span has its row, or its K."""
    operands = Operands(tensors["a"], tensors["b"], index=tensors.get("index"))
    index = [] if operands.index is None else operands.index.tolist()
    found = spans(grouping, index, operands.extent(grouping))
    if not place or grouping in (Grouping.NONE, Grouping.BATCH):
        return True
    if grouping is Grouping.K_OFFS:
        block = place[-1 if name == "scale_a" else -2]
        return any(s.k_first <= 128 * block < s.k_last for s in found)
    if name == "scale_b":
        return True
    return any(s.first <= place[-2] < s.last and (len(place) == 2 or s.number == place[0]) for s in found)


@pytest.mark.parametrize(("grouping", "recipes"), FORMS, ids=str)
def test_the_first_scale_that_counts_is_named(grouping: Grouping, recipes: tuple[Recipe, Recipe]):
    draw = Random(f"{grouping} {recipes}")
    for _ in range(8):
        tensors = operands_of(grouping, recipes)
        expected = [*spoiled(grouping, tensors, "scale_a", draw), *spoiled(grouping, tensors, "scale_b", draw)]
        scales = tensors["scale_a"], tensors["scale_b"]
        operands = Operands(tensors["a"], tensors["b"], *scales, index=tensors.get("index"))
        try:
            check_values(grouping, operands)
            found = []
        except InputError as error:
            found = [(error.code, error.what)]
        assert found == [("GMR-I010", what) for what in expected[:1]]


def spoiled(grouping: Grouping, tensors: dict[str, torch.Tensor], name: str, draw: Random) -> list[str]:
    """Write some scales, bad ones among them; what is to be said of those that count, in their order."""
    scale = tensors[name]
    places = {tuple(draw.randrange(extent) for extent in scale.shape) for _ in range(draw.randrange(3))}
    for place in places:
        scale[place] = draw.choice(BAD + GOOD)
    bad = [place for place in sorted(places) if not 0 < float(scale[place]) < INF]
    return [
        f"{name}{list(place) or ''} = {float(scale[place]):g}"
        for place in bad
        if counts(grouping, tensors, name, place)
    ]


@pytest.mark.parametrize("through", [gemmir, torch.ops.gemmir], ids=["gemmir", "torch.ops"])
@pytest.mark.parametrize("grouping", Grouping)
def test_a_call_that_is_validated_writes_nothing_before_it_raises(grouping: Grouping, through: Any):
    columns = grouping is Grouping.K_OFFS
    tensors = operands_of(grouping, (Recipe.BLOCK_WISE_1X128, RECIPE_PAIRS[3 if columns else 2][1]))
    wanted = call_of(grouping, tensors)()
    written = call_of(grouping, tensors, through)(validate=True)
    assert torch.equal(written.nan_to_num(), wanted.nan_to_num())
    last = (0,) * (tensors["scale_b"].dim() - 2) + (1, 1)
    tensors["scale_b"][last] = NAN
    out = torch.full_like(wanted, 7.0)
    options = {"out": out} if through is gemmir else {}
    with pytest.raises(InputError, match=re.escape(f"GMR-I010: scale_b{[*last]} = nan") + "(.|\n)*gemmir.quantize"):
        call_of(grouping, tensors, through)(validate=True, **options)
    assert bool((out == 7).all())
    assert bool(call_of(grouping, tensors, through)().isnan().any()), "without it, NaN is what comes out"


BAD_INDICES = {
    "ends that go back": (Grouping.OFFS, (9, 3, 17), "offs[1] = 3: group 1 begins at 9, M is 20"),
    "an end below 0": (Grouping.OFFS, (-1, 3, 17), "offs[0] = -1"),
    "an end past M": (Grouping.OFFS, (3, 21, 20), "offs[1] = 21"),
    "the last int32 as an end": (Grouping.OFFS, (3, 5, 2**31 - 1), "offs[2] = 2147483647"),
    "the first int32 as an end": (Grouping.OFFS, (3, -(2**31), 9), "offs[1] = -2147483648"),
    "a group that there is not": (Grouping.GROUP_IDS, (*[0] * 19, 3), "group_ids[19] = 3"),
    "a group below -1": (Grouping.GROUP_IDS, (*[0] * 18, -2, 7), "group_ids[18] = -2"),
    "a second group among 128 rows": (Grouping.GROUP_IDS, (*[0] * 7, 1, *[-1] * 12), "group_ids[7] = 1"),
    "a count below 0": (Grouping.COUNTS, (1, -1, 21), "counts[1] = -1: from 0 to M = 20"),
    "a count above M": (Grouping.COUNTS, (20, 0, 21), "counts[2] = 21"),
    "the last int32 as a count": (Grouping.COUNTS, (2**31 - 1, 0, 1), "counts[0] = 2147483647"),
    "ends along K that go back": (Grouping.K_OFFS, (256, 128, 384), "offs[1] = 128: group 1 begins at 256, K is 384"),
    "an end along K below 0": (Grouping.K_OFFS, (-128, 128, 384), "offs[0] = -128"),
    "an end along K that is no multiple": (Grouping.K_OFFS, (128, 200, 384), "offs[1] = 200"),
    "an end past K": (Grouping.K_OFFS, (128, 256, 512), "offs[2] = 512"),
}


@pytest.mark.parametrize("scaled", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("what", BAD_INDICES)
def test_the_first_bad_entry_of_an_index_is_named(what: str, scaled: bool):
    """With scales, which are read in the same copy, and without."""
    grouping, entries, message = BAD_INDICES[what]
    tensors = operands_of(grouping, RECIPE_PAIRS[3 if grouping is Grouping.K_OFFS else 2]) | {"index": i32(*entries)}
    if not scaled:
        halves = {name: torch.ones_like(tensors[name], dtype=torch.bfloat16) for name in ("a", "b")}
        tensors = halves | {"index": tensors["index"]}
    out = torch.full_like(call_of(grouping, tensors)(), 7.0)
    with pytest.raises(InputError, match=re.escape(f"GMR-I009: {message}")):
        call_of(grouping, tensors)(validate=True, out=out)
    assert bool((out == 7).all())


def test_the_index_comes_before_the_scales():
    tensors = operands_of(Grouping.OFFS, RECIPE_PAIRS[2])
    tensors["scale_a"][0, 0] = NAN
    tensors["index"] = i32(9, 3, 7)
    with pytest.raises(InputError, match=r"GMR-I009: offs\[1\] = 3"):
        call_of(Grouping.OFFS, tensors)(validate=True)


def test_shapes_come_before_numbers():
    tensors = operands_of(Grouping.NONE, RECIPE_PAIRS[2])
    tensors["scale_a"] = torch.full((M - 1, 3), NAN)
    with pytest.raises(InputError, match="GMR-I002"):
        call_of(Grouping.NONE, tensors)(validate=True)
    ids = operands_of(Grouping.GROUP_IDS, RECIPE_PAIRS[2]) | {"index": i32(0)}
    with pytest.raises(InputError, match="GMR-I002"):
        call_of(Grouping.GROUP_IDS, ids)(validate=True)


@pytest.mark.parametrize("m", [0, 3])
def test_without_scales_there_is_nothing_to_look_at(m: int):
    a, b = torch.ones(m, 64).bfloat16(), torch.ones(64, 16).bfloat16()
    assert torch.equal(gemmir.matmul(a, b, validate=True), gemmir.matmul(a, b))
    assert gemmir.batched_matmul(a[None], b[None], validate=True).shape == (1, m, 16)
    scales = {"scale_a": torch.ones(m, 3), "scale_b": torch.ones(3, 2)}
    assert gemmir.matmul(fp8(m, K), fp8(N, K).t(), validate=True, **scales).shape == (m, N)  # type: ignore[arg-type]


@pytest.mark.parametrize("power_of_two", [True, False])
@pytest.mark.parametrize("recipe", [r.torch_name for r in Recipe if r is not Recipe.NONE])
def test_scales_of_quantize_are_always_accepted(recipe: str, power_of_two: bool):
    """Of blocks of zeros, of NaN and of the least numbers too: so a zero is never one of gemmir's own."""
    kinds = torch.tensor([0.0, -0.0, NAN, INF, 1e-45, 2.0**-100, 3.4e38])
    for x in (kinds[None].repeat(2, 20), torch.zeros(2, 130), torch.full((2, 130), 1e-45)):
        for dtype in (FP8, torch.float8_e5m2):
            q, scale = gemmir.quantize(x, recipe, dtype=dtype, power_of_two=power_of_two)
            check_values(Grouping.NONE, Operands(q, fp8(N, 140).t(), scale))


def test_not_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch):
    class OnDevice:
        device = torch.device("cuda")

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    on_device: Any = OnDevice()
    with pytest.raises(InputError, match="GMR-I009: validate=True while a CUDA graph is being captured"):
        check_values(Grouping.NONE, Operands(on_device, on_device))
