"""
A kernel's parameters in memory, as the driver takes them: values, and an array of their addresses.

Encoding tensor maps is slow, so it is done once for a kind of call; for tensors elsewhere the block is copied, and the
addresses in it replaced.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from struct import Struct, pack_into
from typing import Any

from gemmir.backends.cuda import driver
from gemmir.backends.cuda.tensor_map import MAP_ALIGNMENT, MAP_BYTES, TensorMapFields, encode, replace_address
from gemmir.errors import UnsupportedError
from gemmir.manifest import (
    OverlapsParam,
    Param,
    RowsParam,
    StrideParam,
    TensorMapParam,
)
from gemmir.records import dataclass

_WORD = 8
_ADDRESS, _NUMBER = Struct("=Q"), Struct("=q")


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

    Never changed once it is made, so that threads may share it.
    """

    __slots__ = ("_seed", "address", "base", "memory", "start")

    def __init__(self, slots: Slots, seed: ctypes.c_uint32):
        self.memory = ctypes.create_string_buffer(slots.size + MAP_ALIGNMENT)
        address = ctypes.addressof(self.memory)
        self.start = -address % MAP_ALIGNMENT
        self.base = address + self.start
        self.address = self.base + slots.array
        self._seed = seed  # which the array may point to


@dataclass(frozen=True, slots=True)
class Map:
    """A tensor map at `offset` of a block, over tensor number `tensor` (-1: the output), wherever that lies."""

    offset: int
    tensor: int
    fields: TensorMapFields


@dataclass(frozen=True, slots=True)
class Values:
    """
    The parameters of one kind of call, but for its tensors' addresses.

    `pointers` are offsets in a block and numbers of tensors, `numbers` offsets and values, each of 64 bits: a kernel
    reads the lower half where it takes an int. `seeds` says which parameters are the seed of a kernel's delays under
    chaos, which may change.
    """

    slots: Slots
    maps: list[Map]
    pointers: list[tuple[int, int]]
    numbers: list[tuple[int, int]]
    seeds: list[int]
    seed: ctypes.c_uint32

    def encoded(self, addresses: Sequence[int]) -> Block:
        """The block for tensors at `addresses`, the output last; needs a current context."""
        block = Block(self.slots, self.seed)
        for one in self.maps:
            packed = encode(replace(one.fields, address=addresses[one.tensor]))
            ctypes.memmove(block.base + one.offset, int(packed.getPtr()), MAP_BYTES)
        for offset, value in self.numbers:
            _NUMBER.pack_into(block.memory, block.start + offset, value)
        self._point(block, addresses)
        return block

    def moved(self, block: Block, addresses: Sequence[int]) -> Block:
        """The same for tensors at other addresses."""
        copy = Block(self.slots, self.seed)
        ctypes.memmove(copy.base, block.base, self.slots.array)
        for one in self.maps:
            replace_address(copy.base + one.offset, addresses[one.tensor])
        self._point(copy, addresses)
        return copy

    def _point(self, block: Block, addresses: Sequence[int]) -> None:
        """Fill in pointers, and the array of the parameters' addresses."""
        for offset, tensor in self.pointers:
            _ADDRESS.pack_into(block.memory, block.start + offset, addresses[tensor])
        base = block.base
        where = [base + offset for offset in self.slots.offsets]
        for i in self.seeds:
            where[i] = ctypes.addressof(self.seed)
        pack_into(f"={len(where)}Q", block.memory, block.start + self.slots.array, *where)


def number(param: Param, strides: Sequence[Sequence[int]], m: int, overlap: bool) -> int:
    """The value of a parameter that is one. `strides` of each tensor in elements, the output's last."""
    match param:
        case StrideParam():
            return strides[param.tensor][param.dimension]
        case RowsParam():
            return m
        case OverlapsParam():
            return int(overlap)
        case _:
            kind = f"a kernel parameter of kind {param.kind!r}"
            raise UnsupportedError("GMR-U001", kind, rule="the launcher must know it")


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
