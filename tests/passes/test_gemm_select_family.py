"""`gemm-select-family`: what it takes, and what it refuses by name."""

from dataclasses import replace

import pytest

from gemmir.bench.grouped import GroupedCase
from gemmir.compiler import lower
from gemmir.dialects.gemm import schedule_of, the_matmul
from gemmir.dtypes import F32
from gemmir.errors import InputError, UnsupportedError
from gemmir.passes.gemm_select_family import unlowered
from gemmir.passes.stream_search import search_family
from gemmir.problem import Grouping
from gemmir.schedule import Family, Schedule
from gemmir.testing.strategies import columns_problem, fp8_problem, half_problem
from tests.passes.run_passes import fp8_text, plain_text, run

NAME = "gemm-select-family"


def scaled(recipe_a: str, recipe_b: str, scales: tuple[str, str]) -> str:
    x, w, y = "tensor<?x256xf8E4M3FN>", "tensor<256x256xf8E4M3FN>", "tensor<?x256xbf16>"
    return f"""
func.func @layer(%x: {x}, %xs: {scales[0]}, %w: {w}, %ws: {scales[1]}) -> {y} {{
  %y = gemm.matmul %x, %w scaled (%xs by {recipe_a}, %ws by {recipe_b})
    : ({x}, {w}, {scales[0]}, {scales[1]}) -> {y}
  func.return %y : {y}
}}"""


ADDEND = """
func.func @layer(%x: tensor<?x64xbf16>, %w: tensor<64x64xbf16>, %c: tensor<?x64x{0}>) -> tensor<?x64xbf16> {{
  %y = gemm.matmul %x, %w accumulate %c : (tensor<?x64xbf16>, tensor<64x64xbf16>, tensor<?x64x{0}>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}}"""


@pytest.mark.parametrize(
    "text",
    [
        fp8_text("?", 7168, 2048),
        fp8_text(4096, 7168, 2048, d="f16"),
        fp8_text("?", 7168, 2048, a="f8E5M2"),
        fp8_text("?", 8, 16),
        fp8_text(257, 24, 1168),
        fp8_text("?", 64, 0),
        plain_text("?", 7168, 2048),
        plain_text("?", 7168, 2048, a="f16", d="bf16"),
        plain_text("?", 8, 8, d="f16"),
        plain_text("?", 64, 0),
        plain_text("?", 4, 8, d="f32"),
        fp8_text("?", 12, 16, d="f32"),
        ADDEND.format("bf16"),
        plain_text("?", 64, 64, "layout <a = m>"),
        plain_text(16, 64, 64, "layout <b = n>"),
        plain_text(8, 8, 3, "layout <a = m, b = n>"),
        scaled("1x128", "1x128", ("tensor<?x2xf32>", "tensor<2x256xf32>")),
    ],
)
def test_takes_fp8_block_wise_and_16_bit_products(text: str):
    _, schedule, decisions = run(text, NAME)
    assert schedule.family is Family.TILES
    assert [(d.by, d.subject, d.choice) for d in decisions] == [(NAME, "family", "tiles")]


@pytest.mark.parametrize("m", [1, 8, 64, 128])
@pytest.mark.parametrize("form", ["fp8", "half"])
def test_few_rows_stream(m: int, form: str) -> None:
    """By the cost model, which names what the best tile of the other family would take."""
    text = fp8_text(m, 4096, 7168) if form == "fp8" else plain_text(m, 4096, 7168)
    _, schedule, (decision,) = run(text, NAME)
    assert schedule.family is Family.STREAM
    assert "us predicted for its best tile" in decision.because
    assert decision.runner_up.startswith("tiles at ")


@pytest.mark.parametrize("text", [plain_text(8, 256, 256, d="f32"), plain_text(8, 64, 64, "layout <b = n>")])
def test_forms_that_do_not_stream(text: str) -> None:
    assert run(text, NAME)[1].family is Family.TILES


@pytest.mark.parametrize(("m", "family"), [(160, "stream"), (176, "stream"), (192, "tiles"), (240, "stream")])
def test_16_bit_tiles_whose_last_rows_are_zeros_are_doubted(m: int, family: str) -> None:
    """The model says tiles from 172 rows on; rows between those that were measured, 160 and 192, take their share."""
    _, _, (decision,) = run(plain_text(m, 7168, 2048), NAME)
    assert decision.choice == family


GROUPS = {
    ("f8E4M3FN", "counts", 2, 8, 2112, 7168): (19.0, 11.8),
    ("f8E4M3FN", "counts", 4, 16, 7168, 2048): (23.7, 20.2),
    ("f8E4M3FN", "counts", 8, 64, 4096, 7168): (70.1, 68.1),
    ("bf16", "counts", 8, 64, 4096, 7168): (130.4, 122.4),
    ("f8E4M3FN", "counts", 16, 32, 7168, 2048): (69.9, 65.4),
    ("f8E4M3FN", "counts", 8, 128, 4096, 7168): (73.9, 75.0),
    ("f8E4M3FN", "counts", 32, 64, 7168, 2048): (128.1, 129.8),
    ("f8E4M3FN", "counts", 32, 20, 4096, 7168): (233.6, 238.6),
    ("f8E4M3FN", "offs", 32, 128, 7168, 2048): (140.9, 154.7),
}
"""Microseconds of `tiles` and of `stream` on an H200 (docs/performance.md)."""


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_groups_of_few_rows_get_the_faster_family(group: tuple[str, str, int, int, int, int]) -> None:
    """Or, of tiles in one round, one that takes 1.5% longer."""
    us = dict(zip(("tiles", "stream"), GROUPS[group], strict=True))
    chosen = lower(GroupedCase(*group).text, until="schedule", pipeline=f"gemm-canonicalize,{NAME}").module
    family = schedule_of(the_matmul(chosen)).family
    assert family is not None
    assert us[family.value] <= 1.016 * min(us.values())


def test_more_rows_are_not_even_considered_for_streams() -> None:
    _, schedule, (decision,) = run(fp8_text(257, 4096, 7168), NAME)
    assert schedule.family is Family.TILES
    assert "more than 256 rows" in decision.because


ROW = "tensor<?x1xf32>", "tensor<1x256xf32>"


BIAS = """
func.func @layer(%x: tensor<?x64xbf16>, %w: tensor<64x64xbf16>, %b: tensor<64xf32>) -> tensor<?x64xbf16> {
  %y = gemm.matmul %x, %w epilogue (%b by column) {
    ^bb0(%acc: f32, %e: f32):
      %s = arith.addf %acc, %e : f32
      %r = arith.truncf %s : f32 to bf16
      gemm.yield %r : bf16
    } : (tensor<?x64xbf16>, tensor<64x64xbf16>, tensor<64xf32>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}"""

SQUARE = """
func.func @layer(%x: tensor<64x64xbf16>) -> tensor<64x64xbf16> {
  %y = gemm.matmul %x, %x : (tensor<64x64xbf16>, tensor<64x64xbf16>) -> tensor<64x64xbf16>
  func.return %y : tensor<64x64xbf16>
}"""


NO_K = """
func.func @f(%a: tensor<2x4x0xbf16>, %b: tensor<2x0x64xbf16>) -> tensor<2x4x64xbf16> {
  %y = gemm.batched_matmul %a, %b : (tensor<2x4x0xbf16>, tensor<2x0x64xbf16>) -> tensor<2x4x64xbf16>
  func.return %y : tensor<2x4x64xbf16>
}"""


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        (NO_K, "K = 0 of several groups", "clear the result"),
        (plain_text(12, 64, 64, "layout <a = m>"), "M = 12: rows of A, which is m-major, of 24 bytes", "M = 8 or 16"),
        (plain_text("?", 12, 64, "layout <b = n>", d="f32"), "N = 12: rows of B, which is n-major, of", "N = 8 or 16"),
        (plain_text("?", 64, 12, "layout <b = n>"), "K = 12", "nearest: K = 8 or 16"),
        (plain_text("?", 64, 64, a="f8E4M3FN"), "scales none x none", "1x128, 128x128"),
        (scaled("row", "row", ROW), "scales row x row", "1x128, 128x128"),
        (plain_text("?", 64, 64, "numerics <promote_every = 64>"), "promote_every = 64", "leave numerics out"),
        (ADDEND.format("f32"), "C of f32", "cast C to bf16"),
        (SQUARE, "an argument that is two operands", "pass a copy"),
        (BIAS, "an epilogue region", "apply it to the result"),
        (
            fp8_text("?", 12, 128),
            "N = 12: rows of the result of 24 bytes",
            "pad N to 16 with zeros (nearest: N = 8 or 16)",
        ),
        (plain_text("?", 6, 8, d="f32"), "N = 6: rows of the result of 24 bytes", "nearest: N = 4 or 8"),
        (fp8_text("?", 4, 128), "N = 4", "nearest: N = 8)"),
        (fp8_text("?", 64, 24), "K = 24: rows of the operands of 24 bytes", "nearest: K = 16 or 32"),
        (plain_text("?", 64, 12), "K = 12: rows of the operands of 24 bytes", "nearest: K = 8 or 16"),
    ],
)
def test_names_what_it_does_not_lower(text: str, what: str, fix: str):
    with pytest.raises(UnsupportedError) as caught:
        run(text, NAME)
    assert caught.value.code == "GMR-U001"
    assert what in caught.value.what
    assert caught.value.rule
    assert caught.value.fix is not None
    assert fix in caught.value.fix
    assert "runs on: --backend reference" in caught.value.fix


def test_a_family_in_the_schedule_is_kept():
    before = fp8_text("?", 256, 256, "schedule <family = tiles, block = 128x128x128>")
    module, schedule, decisions = run(before, NAME)
    assert schedule.block_m == 128
    assert decisions == []
    again, _, _ = run(str(module), NAME)
    assert str(again) == str(module)


def test_unknown_families_are_refused():
    with pytest.raises(InputError, match="GMR-I009: gemm-select-family: family=streams") as caught:
        run(fp8_text("?", 256, 256), NAME + "{family=streams}")
    assert caught.value.rule == "one of tiles, stream"
    assert run(fp8_text("?", 256, 256), NAME + "{family=stream}")[1].family is Family.STREAM
    assert run(fp8_text("?", 256, 256), NAME + "{family=tiles}")[1].family is Family.TILES


def test_prints_the_choice():
    module, _, _ = run(plain_text("?", 256, 256), NAME)
    assert "schedule <family = tiles>" in str(module)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"d": F32}, "result f32"),
        ({"has_c": True}, "an operand C"),
        ({"b_major": "n"}, "layout <a = k, b = n>"),
        ({"a_major": "m"}, "layout <a = m, b = k>"),
    ],
)
def test_forms_of_whole_products_are_grouped_and_not_split(change: dict[str, object], what: str):
    plain = half_problem(64, 64, 128)
    groups = replace(plain, grouping=Grouping.BATCH, groups=3)
    assert unlowered(replace(groups, **change)) is None
    split = replace(plain, numerics=replace(plain.numerics, split_k=2))
    assert unlowered(split) is None
    missing = unlowered(replace(split, **change))
    assert missing is not None
    assert missing.what.startswith(f"{what} with split_k")
    assert unlowered(replace(columns_problem(64, 64, 256), grouping=Grouping.BATCH, groups=3)) is None


@pytest.mark.parametrize(("most", "expected", "block_m"), [(None, 1, 32), (128, 1, 32), (20, 1, 24), (None, 64, 64)])
def test_tiles_of_counted_groups_are_not_as_low_as_what_is_expected(most: int | None, expected: int, block_m: int):
    """A group with more rows than its tile would read its weights again."""
    counted = replace(fp8_problem(128, 7168, 2048), m=most, expected_m=expected, grouping=Grouping.COUNTS, groups=8)
    assert search_family(counted, Schedule(family=Family.STREAM)).best.schedule.block_m == block_m
    one = replace(counted, grouping=Grouping.NONE, groups=1, m=expected)
    assert search_family(one, Schedule(family=Family.STREAM)).best.schedule.block_m == max(8, expected)
