"""The sets of shapes, and how shapes are written."""

import pytest

from gemmir.bench.cases import DENSE, DTYPES, LAYERS, SETS, Case, parse_shape, parse_shapes, program_text
from gemmir.compiler import lower
from gemmir.dialects.gemm import problem_of, the_matmul
from gemmir.errors import InputError, IRError
from gemmir.ir_text import parse_module


def test_the_dense_set_holds_the_agreed_shapes():
    agreed = """
        4096 2112 7168;  4096 24576 1536;  4096 32768 512;  4096 7168 16384;  4096 4096 7168;  4096 7168 2048
        2048 2112 7168;  1024 7168 16384;  512 4096 7168;  256 7168 2048;  8192 8192 8192
    """
    assert parse_shapes(agreed.replace(";", "\n").replace("  ", "\n")) == DENSE == SETS["dense"]


def test_the_layers_are_the_six_of_deepseek_v3_times_five_m():
    assert set(LAYERS) == {(2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048)}
    assert len(set(SETS["layers"])) == 30
    assert {m for m, _, _ in SETS["layers"]} == {1, 64, 128, 512, 4096}
    assert {m for m, _, _ in SETS["small"]} == {1, 64, 128}
    assert set(SETS["small"]) < set(SETS["layers"])


def test_the_random_set_is_the_same_every_time_and_within_its_limits():
    shapes = SETS["random"]
    assert len(set(shapes)) == 30
    assert shapes[:2] == ((7047, 15488, 640), (2709, 7808, 9600))
    assert all(129 <= m <= 8192 for m, _, _ in shapes)
    assert all(512 <= size <= 16384 and size % 128 == 0 for _, n, k in shapes for size in (n, k))


@pytest.mark.parametrize("text", ["4096x7168x2048", " 4096 7168  2048 ", "4096\t7168 2048"])
def test_a_shape_is_m_n_k(text: str):
    assert parse_shape(text) == (4096, 7168, 2048)


@pytest.mark.parametrize("text", ["8x256x4096x7168", "8 256\t4096  7168"])
def test_a_shape_of_four_sizes_is_groups_m_n_k(text: str):
    assert parse_shape(text) == (8, 256, 4096, 7168)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1x2",
        "1x2x3x4x5",
        "0x8x8",
        "0x8x8x8",
        "1x-8x8",
        "1x8x2147483648",
        "65536x32768x8x8",
        "8*256x8x8",
        "axbxc",
        "1.5x8x8",
        "1x8x8y",
    ],
)
def test_what_is_no_shape_is_refused(text: str):
    with pytest.raises(InputError) as error:
        parse_shape(text)
    assert error.value.code == "GMR-I009"
    assert error.value.fix == "write 4096x7168x2048, or 8x256x7168x2048 for groups"


def test_a_file_has_a_shape_a_line_and_comments():
    text = "# M N K\n1x8x16  # tiny\n\n64 128 256\n2x3x8x16\n"
    assert parse_shapes(text) == ((1, 8, 16), (64, 128, 256), (2, 3, 8, 16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_program_is_the_product_of_that_type(dtype: str):
    problem = problem_of(the_matmul(parse_module(Case(dtype, 5, 264, 384).text)))
    assert (problem.m, problem.n, problem.k, problem.a.name) == (None, 264, 384, dtype)
    fp8 = dtype.startswith("f8")
    assert (problem.scale_a.value, problem.scale_b.value) == (("1x128", "128x128") if fp8 else ("none", "none"))
    assert problem.d.name == ("bf16" if fp8 else dtype)


@pytest.mark.parametrize("dtype", ["f8E4M3FN", "bf16"])
def test_a_part_of_the_schedule_can_be_fixed(dtype: str):
    schedule = lower(program_text(256, 256, dtype, "stages = 2"), m=64, until="schedule").schedule
    assert "stages = 2" in schedule
    assert "block = " in schedule


def test_a_schedule_that_is_none_is_refused():
    with pytest.raises(IRError):
        parse_module(program_text(256, 256, "bf16", "speed = 9"))


def test_k_in_parts_is_a_case_of_its_own():
    case = Case("bf16", 64, 128, 256, 2)
    assert "numerics <split_k = 2> :" in case.text
    assert (str(case), str(Case("bf16", 64, 128, 256))) == ("bf16-64x128x256-split2", "bf16-64x128x256")
    text = program_text(128, 512, "f8E4M3FN", "stages = 3", 2)
    assert "numerics <split_k = 2> schedule <stages = 3> :" in text
