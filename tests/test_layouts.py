"""Swizzles, descriptors, fragments and store boxes, against the PTX manual's words and hand-computed constants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmir.layouts import (
    DESCRIPTOR_STEP,
    PANEL_BYTES,
    PANEL_STEP,
    SWIZZLES,
    Swizzle,
    descriptor_high_bits,
    fragment_element,
    store_chunks,
    swizzle_for_row,
)

SWIZZLED = (Swizzle.B32, Swizzle.B64, Swizzle.B128)


@pytest.mark.parametrize("swizzle", SWIZZLED)
def test_swizzle_permutes_the_chunks_of_every_row(swizzle: Swizzle):
    chunks = swizzle.span // 16
    for row in range(16):
        assert sorted(swizzle.chunk(row, c) for c in range(chunks)) == list(range(chunks))
        assert [swizzle.chunk(row, swizzle.chunk(row, c)) for c in range(chunks)] == list(range(chunks))


@pytest.mark.parametrize("swizzle", Swizzle)
def test_swizzle_is_a_permutation_of_eight_rows(swizzle: Swizzle):
    offsets = {swizzle.offset(row, byte) for row in range(8) for byte in range(swizzle.span)}
    assert offsets == set(range(8 * swizzle.span))


@pytest.mark.parametrize("swizzle", SWIZZLED)
@given(row=st.integers(0, 255), byte=st.integers(0, 127))
def test_swizzle_is_an_exclusive_or_of_address_bits(swizzle: Swizzle, row: int, byte: int):
    """The hardware's own definition: bits 4 and up of the address, by as many bits from bit 7 up."""
    byte %= swizzle.span
    address = row * swizzle.span + byte
    assert swizzle.offset(row, byte) == address ^ ((address >> 7 & swizzle.row_mask) << 4)


@pytest.mark.parametrize("swizzle", SWIZZLED)
def test_pattern_repeats_at_its_alignment_and_not_before(swizzle: Swizzle):
    rows = swizzle.alignment // swizzle.span

    def pattern(first: int) -> list[int]:
        return [swizzle.chunk(first + row, 0) for row in range(rows)]

    assert pattern(rows) == pattern(0)
    assert all(pattern(shift) != pattern(0) for shift in range(1, rows) if shift % (1 << swizzle.row_shift) == 0)


def test_swizzle_moves_known_bytes():
    assert Swizzle.B128.offset(1, 0) == 128 + 16
    assert Swizzle.B128.offset(7, 16) == 7 * 128 + 6 * 16
    assert Swizzle.B128.offset(9, 5) == 9 * 128 + 16 + 5
    assert Swizzle.B64.offset(2, 0) == 2 * 64 + 16
    assert Swizzle.B32.offset(3, 0) == 3 * 32
    assert Swizzle.B32.offset(4, 0) == 4 * 32 + 16
    assert Swizzle.NONE.offset(3, 40, row_bytes=256) == 3 * 256 + 40


@pytest.mark.parametrize("swizzle", SWIZZLED)
def test_eight_rows_of_a_chunk_hit_all_banks_once(swizzle: Swizzle):
    """stmatrix and ldmatrix move eight rows of 16 bytes in a phase: conflict-free if they cover all 32 banks."""
    for first in range(0, 64, 8):
        for chunk in range(swizzle.span // 16):
            starts = [swizzle.offset(first + row, 16 * chunk) for row in range(8)]
            banks = {(start + 4 * word) // 4 % 32 for start in starts for word in range(4)}
            assert len(banks) == 32


def test_without_a_swizzle_eight_rows_of_128_bytes_hit_four_banks():
    starts = [Swizzle.NONE.offset(row, 0, row_bytes=128) for row in range(8)]
    assert len({(start + 4 * word) // 4 % 32 for start in starts for word in range(4)}) == 4


@pytest.mark.parametrize(
    ("swizzle", "stride", "bits"),
    [
        (Swizzle.B128, 1024, 0x4000_0040_0000_0000),
        (Swizzle.B64, 512, 0x8000_0020_0000_0000),
        (Swizzle.B32, 256, 0xC000_0010_0000_0000),
        (Swizzle.NONE, 128, 0x0000_0008_0000_0000),
    ],
)
def test_descriptor_bits(swizzle: Swizzle, stride: int, bits: int):
    assert descriptor_high_bits(swizzle, stride) == bits


def test_descriptor_step_is_32_bytes_in_units_of_16():
    assert DESCRIPTOR_STEP == 32 >> 4


def test_names_and_rows_of_swizzles():
    assert {name: s.tma for name, s in SWIZZLES.items()} == {"none": "NONE", "b32": "32B", "b64": "64B", "b128": "128B"}
    assert [swizzle_for_row(b) for b in (16, 32, 64, 128, 256)] == [
        Swizzle.NONE,
        Swizzle.B32,
        Swizzle.B64,
        Swizzle.B128,
        Swizzle.NONE,
    ]


@pytest.mark.parametrize("columns", range(8, 257, 8))
def test_fragment_covers_its_tile_exactly_once(columns: int):
    elements = [fragment_element(t, r) for t in range(128) for r in range(columns // 2)]
    assert len(elements) == len(set(elements)) == 64 * columns
    assert set(elements) == {(row, column) for row in range(64) for column in range(columns)}


@pytest.mark.parametrize(
    ("thread", "register", "element"),
    [
        (0, 0, (0, 0)),
        (0, 1, (0, 1)),
        (0, 2, (8, 0)),
        (0, 4, (0, 8)),
        (1, 0, (0, 2)),
        (4, 0, (1, 0)),
        (32, 0, (16, 0)),
        (127, 3, (63, 7)),
        (127, 127, (63, 255)),
    ],
)
def test_fragment_places_of_the_ptx_manual(thread: int, register: int, element: tuple[int, int]):
    assert fragment_element(thread, register) == element


@pytest.mark.parametrize("columns", range(16, 257, 16))
@pytest.mark.parametrize("rows", [64, 128, 192, 256])
@pytest.mark.parametrize("size", [2, 4])
def test_store_chunks_cover_the_tile_without_gaps(columns: int, rows: int, size: int):
    chunks = store_chunks(columns, rows, size)
    column = offset = 0
    for chunk in chunks:
        assert (chunk.first, chunk.offset) == (column, offset)
        assert chunk.swizzle.span == chunk.columns * size
        assert chunk.offset % chunk.swizzle.alignment == 0
        column += chunk.columns
        offset += rows * chunk.columns * size
    assert (column, offset) == (columns, rows * columns * size)
    assert [c.columns for c in chunks] == sorted((c.columns for c in chunks), reverse=True)
    assert len(chunks) <= columns * size // 128 + 2


def test_store_chunks_of_176_columns():
    assert [(c.first, c.columns, c.offset) for c in store_chunks(176, 64)] == [
        (0, 64, 0),
        (64, 64, 8192),
        (128, 32, 16384),
        (160, 16, 20480),
    ]


@pytest.mark.parametrize("columns", [8, 24, 100])
def test_store_chunks_refuse_other_columns(columns: int):
    with pytest.raises(ValueError, match=f"{columns} columns"):
        store_chunks(columns, 64)


def f32_stores(chunk_columns: int, swizzle: Swizzle, first_row: int, step: int) -> list[int]:
    """Where the 32 lanes of a warp store 8 bytes in step `step` of `stage_columns_f32`, in bytes from the box."""
    turn = 2 if chunk_columns == 32 else 0
    places = []
    for lane in range(32):
        row = first_row + lane // 4
        group = step ^ turn if row % 2 else step
        places.append(swizzle.offset(row, 32 * group + 8 * (lane % 4), chunk_columns * 4))
    return places


def test_half_a_warp_of_8_byte_stores_hits_all_banks_once():
    for step in range(4):
        places = f32_stores(32, Swizzle.B128, 16, step)
        for half in (places[:16], places[16:]):
            assert len({(place + 4 * word) // 4 % 32 for place in half for word in range(2)}) == 32
    narrow = f32_stores(16, Swizzle.B64, 16, 0)
    assert len(set(narrow)) == 32


def test_panels_of_an_operand_that_is_not_k_major():
    """PTX ISA, MN-major with the 128-byte swizzle: 64 elements a row, 8 rows every 1024 bytes, 64 k before the next."""
    assert descriptor_high_bits(Swizzle.B128, 1024, PANEL_BYTES) == 0x4000_0040_0200_0000
    assert PANEL_BYTES == 64 * 128 == 8192
    assert PANEL_STEP << 4 == 16 * 128
