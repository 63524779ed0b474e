"""
A kernel's parameters in memory, as the driver takes them: values, and an array of their addresses.

Encoding tensor maps is slow, so it is done once for a kind of call; for tensors elsewhere the block is copied, and the
addresses in it replaced.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gemmir.backends.cuda import driver
from gemmir.backends.cuda.tensor_map import MAP_ALIGNMENT, MAP_BYTES, TensorMapFields, encode, replace_address
from gemmir.errors import UnsupportedError
from gemmir.manifest import (
    OverlapsParam,
    Param,
    PointerParam,
    RowsParam,
    SeedParam,
    StrideParam,
    TensorMapParam,
)

_WORD = 8


@dataclass(frozen=True, slots=True)
class Slots:
    """Where in a block each parameter lies, and the array of their addresses; in bytes. Tensor maps come first."""

    offsets: tuple[int, ...]
    array: int
    size: int


def slots_of(params: Sequence[Param]) -> Slots:
    maps = [isinstance(param, TensorMapParam) for param in params]
    scalars = sum(maps) * MAP_BYTES
    offsets = [
        MAP_BYTES * sum(maps[:i]) if is_map else scalars + _WORD * (i - sum(maps[:i])) for i, is_map in enumerate(maps)
    ]
    array = scalars + _WORD * (len(params) - sum(maps))
    return Slots(tuple(offsets), array, array + _WORD * len(params))


class Block:
    """
    The parameters of one launch. `address` is that of the array which the driver takes.

    Never changed once it is made, so that threads may share it. `seed` is that of a kernel's delays under chaos, which
    may change.
    """

    __slots__ = ("_base", "_memory", "_seed", "address")

    def __init__(self, slots: Slots, seed: ctypes.c_uint32):
        self._memory = (ctypes.c_char * (slots.size + MAP_ALIGNMENT))()
        self._base = -(-ctypes.addressof(self._memory) // MAP_ALIGNMENT) * MAP_ALIGNMENT
        self._seed = seed
        self.address = self._base + slots.array

    def at(self, offset: int) -> int:
        return self._base + offset


@dataclass(frozen=True, slots=True)
class Values:
    """
    What the parameters of a kind of call are, but for its tensors' addresses.

    `maps` has the tensor map of each parameter that is one, `numbers` the value of each that is a number.
    """

    params: tuple[Param, ...]
    slots: Slots
    maps: dict[int, TensorMapFields]
    numbers: dict[int, int]
    seed: ctypes.c_uint32

    def encoded(self, addresses: Sequence[int]) -> Block:
        """The block for tensors at `addresses`, the output last; needs a current context."""
        block = Block(self.slots, self.seed)
        for i, fields in self.maps.items():
            param = self.params[i]
            assert isinstance(param, TensorMapParam)
            packed = encode(replace(fields, address=addresses[param.tensor]))
            ctypes.memmove(block.at(self.slots.offsets[i]), int(packed.getPtr()), MAP_BYTES)
        for i, value in self.numbers.items():
            _write(block.at(self.slots.offsets[i]), value)
        self._point(block, addresses)
        return block

    def moved(self, block: Block, addresses: Sequence[int]) -> Block:
        """The same for tensors at other addresses."""
        copy = Block(self.slots, self.seed)
        ctypes.memmove(copy.at(0), block.at(0), self.slots.array)
        for i in self.maps:
            param = self.params[i]
            assert isinstance(param, TensorMapParam)
            replace_address(copy.at(self.slots.offsets[i]), addresses[param.tensor])
        self._point(copy, addresses)
        return copy

    def _point(self, block: Block, addresses: Sequence[int]) -> None:
        """Fill in pointers, and the array of the parameters' addresses."""
        where = [block.at(offset) for offset in self.slots.offsets]
        for i, param in enumerate(self.params):
            if isinstance(param, PointerParam):
                _write(where[i], addresses[param.tensor])
            elif isinstance(param, SeedParam):
                where[i] = ctypes.addressof(self.seed)
        (ctypes.c_uint64 * len(where)).from_address(block.address)[:] = where


def _write(address: int, value: int) -> None:
    """As 64 bits; a kernel reads the lower half where it takes an int."""
    ctypes.c_int64.from_address(address).value = value


def number(param: Param, strides: Sequence[Sequence[int]], m: int, overlap: bool) -> int | None:
    """The value of a parameter that is the same for tensors anywhere, or None. `strides` in elements, output last."""
    match param:
        case StrideParam():
            return strides[param.tensor][param.dimension]
        case RowsParam():
            return m
        case OverlapsParam():
            return int(overlap)
        case PointerParam() | SeedParam() | TensorMapParam():
            return None
    raise UnsupportedError("GMR-U001", f"a kernel parameter of kind {param.kind!r}", rule="the launcher must know it")


def launch_config(shape: tuple[int, int, int], stream: int, overlap: bool) -> Any:
    """
    How to launch: CTAs, threads of each and bytes of shared memory; on `stream`.

    `overlap`: the kernel may start while the one before it on the stream ends, and waits for that one by itself.
    """
    cuda = driver.bindings()
    config = cuda.CUlaunchConfig()
    config.gridDimX, config.blockDimX, config.sharedMemBytes = shape
    config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1
    config.hStream = stream
    if overlap:
        attribute = cuda.CUlaunchAttribute()
        attribute.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        config.attrs, config.numAttrs = [attribute], 1
    return config
