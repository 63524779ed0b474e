"""Where the simulator puts bytes: the maps against the formulas of `gemmir.layouts`, and against one another."""

import numpy as np
import pytest

from gemmir.backends.simulator.memory import (
    IN_FLIGHT,
    PRIVATE,
    UNFENCED,
    VALID,
    Region,
    SharedMemory,
    box_chunks,
    descriptor_chunks,
    operand_descriptor,
    slot_chunks,
    slot_panels,
    swizzled,
)
from gemmir.backends.simulator.registers import fragment_map, staging_offsets
from gemmir.errors import UnsupportedError
from gemmir.layouts import Swizzle, fragment_element, store_chunks


@pytest.mark.parametrize("swizzle", list(Swizzle))
def test_swizzled_addresses_are_those_of_the_layout(swizzle):
    for row in range(32):
        for byte in range(swizzle.span):
            linear = np.array([4096 + row * swizzle.span + byte])
            assert swizzled(linear, swizzle)[0] == 4096 + swizzle.offset(row, byte)


@pytest.mark.parametrize("swizzle", [Swizzle.B128, Swizzle.B64, Swizzle.B32])
@pytest.mark.parametrize("address", [0, 1024, 8192 + 1024])
def test_a_box_fills_its_rows_exactly_once(swizzle, address):
    chunks = box_chunks(address, 24, swizzle.span, swizzle)
    assert sorted(chunks) == list(range(address // 16, address // 16 + 24 * swizzle.span // 16))


def test_a_box_of_scales_is_not_permuted():
    assert box_chunks(512, 1, 256, Swizzle.NONE).tolist() == list(range(32, 48))
    with pytest.raises(UnsupportedError, match="multiples of 16 bytes"):
        box_chunks(8, 1, 256, Swizzle.NONE)


@pytest.mark.parametrize("first_row", [0, 64, 96])
def test_wgmma_reads_what_tma_wrote(first_row):
    """A box of 160 rows x 128 bytes in its swizzle, read back through descriptors, is the box."""
    shared = SharedMemory(64 << 10)
    box = np.random.default_rng(0).integers(0, 256, (160, 128)).astype(np.uint8)
    slot = 3 * 1024
    shared.put_chunks(box_chunks(slot, 160, 128, Swizzle.B128), box.reshape(-1, 16))
    data, state = shared.chunks(slot_chunks(slot + first_row * 128, 64))
    np.testing.assert_array_equal(data.reshape(64, 128), box[first_row : first_row + 64])
    assert (state == VALID).all()


def test_a_descriptor_says_where_and_how():
    assert operand_descriptor(0) == 0x4000004000000000
    assert operand_descriptor(0x2400) == 0x4000004000000240
    assert descriptor_chunks(operand_descriptor(1024), 16)[:, 0].tolist()[:3] == [64, 64 + 9, 64 + 18]


@pytest.mark.parametrize("columns", [16, 48, 64, 128, 160, 192, 256])
def test_the_fragment_map_is_the_layout(columns):
    rows, places = fragment_map(columns)
    for thread in range(0, 128, 7):
        for register in range(columns // 2):
            assert (rows[thread, register], places[thread, register]) == fragment_element(thread, register)


@pytest.mark.parametrize("columns", [16, 48, 64, 96, 128, 160, 192, 256])
@pytest.mark.parametrize(("rows", "first_row"), [(64, 0), (128, 64), (192, 128)])
@pytest.mark.parametrize("size", [2, 4])
def test_staging_puts_every_element_where_its_box_has_it(columns, rows, first_row, size):
    offsets = staging_offsets(columns, rows, size, first_row)
    for thread in range(128):
        for register in range(columns // 2):
            row, column = fragment_element(thread, register)
            chunk = next(c for c in store_chunks(columns, rows, size) if c.first <= column < c.first + c.columns)
            inside = chunk.swizzle.offset(first_row + row, size * (column - chunk.first), size * chunk.columns)
            assert offsets[thread, register] == chunk.offset + inside
    assert len(np.unique(offsets)) == 64 * columns


def test_bytes_are_valid_only_when_written_and_published():
    shared = SharedMemory(1024)
    offsets = np.arange(32, 48, 4)
    region = Region(offsets, 4)
    assert shared.load_f32(offsets)[1].all()
    shared.write(region, np.array([1, 2, 3, 4], np.float32).view(np.uint32))
    assert (shared.state[32:48] == VALID | UNFENCED | PRIVATE).all()
    assert shared.load_f32(offsets)[1].all()
    shared.mark(region, VALID | UNFENCED)
    values, garbage = shared.load_f32(offsets)
    assert values.tolist() == [1, 2, 3, 4]
    assert not garbage.any()
    shared.mark_chunks(np.array([2]), IN_FLIGHT)
    assert shared.load_f32(offsets)[1].all()
    assert (shared.state[48:] == 0).all()


@pytest.mark.parametrize("rows", [64, 128, 256])
def test_panels_are_read_where_tma_puts_them(rows):
    """Boxes of 64 rows of K and 64 columns, one after another, hold element (column, k) where WGMMA looks for it."""
    shared = SharedMemory(rows * 128)
    values = np.arange(64 * rows, dtype=np.uint16).reshape(64, rows)
    for panel in range(rows // 64):
        box = np.ascontiguousarray(values[:, 64 * panel : 64 * panel + 64]).view(np.uint8).reshape(-1, 16)
        shared.put_chunks(box_chunks(8192 * panel, 64, 128, Swizzle.B128), box)
    read = shared.data.view(np.uint16)[slot_panels(0, rows) // 2]
    np.testing.assert_array_equal(read, values.T)
