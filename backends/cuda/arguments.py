"""
What the host can know about the tensors of a call, checked before any CUDA call is made.

A tensor is described once as plain data (`TensorInfo`); the checks need neither torch nor a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

from gemmir.backends.cuda.tensor_map import group_pitch, row_pitch
from gemmir.dtypes import BY_TORCH_NAME, DTYPES
from gemmir.errors import InputError
from gemmir.manifest import Manifest, PointerParam, StrideParam, TensorMapParam, TensorSpec
from gemmir.records import dataclass
from gemmir.target import MOST_EXTENT, SM_90A

MAX_PITCH_BYTES = 2**40
OUTPUT = -1
"""Number of the output where inputs count from 0."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """
    A tensor that someone passes: where it is and how it lies there.

    `dtype` is MLIR's name where gemmir has that type, else torch's. `shape` and `strides` in elements, `address` and
    `item_bytes` in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    device_type: str
    device_index: int
    address: int
    item_bytes: int

    @property
    def device(self) -> str:
        return f"{self.device_type}:{self.device_index}" if self.device_type == "cuda" else self.device_type

    @property
    def span(self) -> tuple[int, int]:
        """First byte, and the one after the last, that the tensor's elements can lie in."""
        return (self.address, self.address + self.reach)

    @property
    def reach(self) -> int:
        """Bytes from the first element's start to the last one's end; 0 if there are no elements."""
        if 0 in self.shape:
            return 0
        last = sum((extent - 1) * stride for extent, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.item_bytes


@dataclass(frozen=True, slots=True)
class Use:
    """
    How a kernel reaches a tensor: through TMA, through a pointer, with which strides passed along; `addend`: as operand
    C and nothing else.
    """

    tma: bool
    pointer: bool
    strided: frozenset[int]
    addend: bool = False


def describe(tensor: Any, name: str) -> TensorInfo:
    """
    The facts about a torch tensor.

    `InputError`: GMR-I005 if it is no tensor, or one that autograd would have to follow; GMR-I006 if it is sparse, or
    a view that negates another; GMR-I004 if it has no storage.
    """
    if not all(hasattr(tensor, attribute) for attribute in ("dtype", "shape", "stride", "device", "data_ptr")):
        raise InputError(
            "GMR-I005",
            f"{name}: {type(tensor).__name__}",
            rule="arguments are torch tensors",
            fix="pass torch.as_tensor(...)",
        )
    if (layout := str(getattr(tensor, "layout", "torch.strided"))) != "torch.strided":
        raise InputError(
            "GMR-I006", f"{name}: layout is {layout}", rule="tensors are dense", fix=f"pass {name}.to_dense()"
        )
    if getattr(tensor, "is_neg", bool)():
        rule, fix = "elements lie in memory as they are", f"pass {name}.resolve_neg()"
        raise InputError("GMR-I006", f"{name}: is a view that negates another tensor", rule=rule, fix=fix)
    device = tensor.device
    try:
        address = tensor.data_ptr()
    except RuntimeError:
        address = 0
    if device.type == "meta" or (address == 0 and prod(tensor.shape) > 0):  # the latter were made for tracing
        raise InputError(
            "GMR-I004",
            f"{name}: holds no data (device {device.type})",
            rule="tensors hold data",
            fix="pass it on a GPU",
        )
    torch_name = str(tensor.dtype).removeprefix("torch.")
    known = BY_TORCH_NAME.get(torch_name)
    return TensorInfo(
        name=name,
        dtype=torch_name if known is None else known.name,
        shape=tuple(tensor.shape),
        strides=tuple(tensor.stride()),
        device_type=device.type,
        device_index=device.index or 0,
        address=address,
        item_bytes=tensor.element_size(),
    )


def refuse_gradient(name: str) -> InputError:
    """The error for a tensor that autograd would have to follow through the kernel."""
    return InputError(
        "GMR-I005",
        f"{name}: requires a gradient",
        rule="kernels have no backward pass",
        fix=f"call under torch.no_grad(), or pass {name}.detach()",
    )


def check_arguments(manifest: Manifest, infos: Sequence[TensorInfo]) -> int:
    """
    M of a call with these tensors, in the order of `manifest.inputs`.

    `InputError`, in this order: GMR-I005 wrong number, GMR-I001 dtype, GMR-I002 shapes, GMR-I004 devices, GMR-I007 too
    large, GMR-I006 memory order, GMR-I003 alignment.
    """
    specs = manifest.inputs
    if len(infos) != len(specs):
        raise InputError(
            "GMR-I005",
            f"{len(infos)} tensors",
            rule=f"this kernel takes {len(specs)}: {', '.join(spec.name for spec in specs)}",
        )
    for spec, info in zip(specs, infos, strict=True):
        _check_dtype(spec, info)
    m = _check_shapes(manifest, infos)
    _check_devices(infos)
    _check_sizes(manifest, m, infos)
    for number, (spec, info) in enumerate(zip(specs, infos, strict=True)):
        _check_memory(spec, info, uses(manifest)[number])
    return m


def check_output(manifest: Manifest, out: TensorInfo, m: int, inputs: Sequence[TensorInfo]) -> None:
    """
    Check a tensor that the caller wants the result in; errors as in `check_arguments`.

    GMR-I008 if it overlaps an input: the kernel reads while it writes. It may be operand C itself, each tile of which
    is read before that of the result is written.
    """
    spec = manifest.output
    _check_dtype(spec, out)
    wanted = tuple(m if extent is None else extent for extent in spec.shape)
    if out.shape != wanted:
        raise InputError(
            "GMR-I002", f"{out.name}: shape is {out.shape}", rule=f"the result has the shape {wanted}", fix="omit out"
        )
    _check_devices([*inputs, out])
    _check_memory(spec, out, uses(manifest)[OUTPUT])
    start, end = out.span
    for number, info in enumerate(inputs):
        first, last = info.span
        if start < last and first < end and not (uses(manifest)[number].addend and _same_place(info, out)):
            raise InputError(
                "GMR-I008",
                f"{out.name}: overlaps {info.name}",
                rule="inputs are read while the output is written",
                fix=f"pass another tensor, or {info.name}.clone()",
            )


def _same_place(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether every element of two tensors of one shape lies where that of the other does."""
    return (one.address, one.dtype, one.strides) == (other.address, other.dtype, other.strides)


@cache
def uses(manifest: Manifest) -> dict[int, Use]:
    """How the kernel reaches each input, and the output as number -1."""
    numbers = [*range(len(manifest.inputs)), OUTPUT]
    maps = {p.tensor for p in manifest.params if isinstance(p, TensorMapParam)}
    read = {p.tensor for p in manifest.params if isinstance(p, TensorMapParam) and not p.addend}
    pointers = {p.tensor for p in manifest.params if isinstance(p, PointerParam)}
    strides = {(p.tensor, p.dimension) for p in manifest.params if isinstance(p, StrideParam)}
    return {
        number: Use(
            number in maps,
            number in pointers,
            frozenset(d for t, d in strides if t == number),
            number in maps - read - pointers,
        )
        for number in numbers
    }


def alignments(manifest: Manifest, infos: Sequence[TensorInfo]) -> tuple[int, ...]:
    """What the address of each tensor must be a multiple of, in bytes; the output is last."""
    table = uses(manifest)
    numbers = [*range(len(infos) - 1), OUTPUT]
    return tuple(_alignment(info, table[number]) for number, info in zip(numbers, infos, strict=True))


def _alignment(info: TensorInfo, use: Use) -> int:
    if prod(info.shape) == 0 or not (use.tma or use.pointer):
        return 1
    return SM_90A.tma_alignment if use.tma else info.item_bytes


def _check_dtype(spec: TensorSpec, info: TensorInfo) -> None:
    if info.dtype == spec.dtype:
        return
    wanted = DTYPES[spec.dtype].torch_name
    raise InputError(
        "GMR-I001",
        f"{info.name}: dtype is {info.dtype}",
        rule=f"this kernel was compiled for {spec.dtype} (torch.{wanted})",
        fix=f"pass {info.name}.to(torch.{wanted}), or compile for {info.dtype}",
    )


def _shape_text(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("M" if extent is None else str(extent) for extent in shape) + ")"


def _check_shapes(manifest: Manifest, infos: Sequence[TensorInfo]) -> int:
    """M; the extents that stand for it must agree with each other, all others with the manifest."""
    seen: tuple[str, int] | None = None
    for spec, info in zip(manifest.inputs, infos, strict=True):
        if len(info.shape) != len(spec.shape):
            raise _shape_error(spec, info, f"has rank {len(info.shape)}")
        for axis, (wanted, found) in enumerate(zip(spec.shape, info.shape, strict=True)):
            if wanted is not None and found != wanted:
                raise _shape_error(spec, info, f"dimension {axis} is {found}, not {wanted}")
            if wanted is not None:
                continue
            if seen is not None and found != seen[1]:
                raise _shape_error(spec, info, f"M is {found} in dimension {axis}, but {seen[1]} in {seen[0]}")
            seen = (f"{info.name} {_shape_text(info.shape)}", found)
    rows = manifest.output.shape[-2]
    if rows is not None:
        return rows
    if seen is None:
        raise ValueError("a manifest whose output has M rows, but no input")
    return seen[1]


def _shape_error(spec: TensorSpec, info: TensorInfo, why: str) -> InputError:
    transposed = (*info.shape[:-2], *info.shape[:-3:-1])
    turned = len(info.shape) == len(spec.shape) >= 2 and all(
        w in (None, f) for w, f in zip(spec.shape, transposed, strict=True)
    )
    return InputError(
        "GMR-I002",
        f"{info.name}: shape is {_shape_text(info.shape)}: {why}",
        rule=f"this kernel takes {info.name} of shape {_shape_text(spec.shape)}",
        fix=f"pass {info.name}.{'t()' if len(spec.shape) == 2 else 'mT'}"
        if turned
        else "compile a kernel for these shapes",
    )


def _check_devices(infos: Sequence[TensorInfo]) -> None:
    devices = dict.fromkeys(info.device for info in infos)
    if len(devices) == 1 and infos[0].device_type == "cuda":
        return
    where = "; ".join(f"{device}: {', '.join(i.name for i in infos if i.device == device)}" for device in devices)
    stray = next((i for i in infos if i.device_type != "cuda"), infos[-1])
    raise InputError(
        "GMR-I004",
        f"tensors on {where}" if infos else "no tensors",
        rule="all tensors of a call are on one CUDA device",
        fix=f"pass {stray.name}.to({next((d for d in devices if d.startswith('cuda')), 'cuda')!r})",
    )


def _check_sizes(manifest: Manifest, m: int, infos: Sequence[TensorInfo]) -> None:
    for info in infos:
        if (largest := max(info.shape, default=0)) > MOST_EXTENT:
            raise InputError(
                "GMR-I007",
                f"{info.name}: dimension {info.shape.index(largest)} is {largest}",
                rule=f"dimensions are at most {MOST_EXTENT}",
                fix="split the tensor",
            )
    tiles = manifest.most_cluster_tiles(m) * manifest.cluster_m * manifest.cluster_n
    if tiles > MOST_EXTENT:
        raise InputError("GMR-I007", f"{tiles} tiles", rule=f"at most {MOST_EXTENT}", fix="split M")


def _check_memory(spec: TensorSpec, info: TensorInfo, use: Use) -> None:
    if prod(info.shape) == 0 or not (use.tma or use.pointer):
        return
    if use.tma:
        _check_tma(spec, info)
    elif not spec.free_strides:
        _check_dense(spec, info, use.strided)
    if use.pointer and info.address % info.item_bytes:
        raise _misaligned(info, info.item_bytes)


def _check_tma(spec: TensorSpec, info: TensorInfo) -> None:
    """The fastest dimension is contiguous, rows do not overlap, and address and pitches are multiples of 16 bytes."""
    fast = spec.order[-1]
    if info.shape[fast] > 1 and info.strides[fast] != 1:
        raise _wrong_order(spec, info)
    pitch = row_pitch(spec, info.shape, info.strides)
    if pitch < info.shape[fast] * info.item_bytes:
        raise _wrong_order(spec, info)
    pitches = [(spec.order[-2] if len(spec.order) > 1 else spec.order[0], pitch)]
    if len(spec.order) == 3:
        pitches.append((spec.order[0], group_pitch(spec, info.shape, info.strides)))
        if not _lie_apart(spec, info, *(stride for _, stride in pitches)):
            raise _wrong_order(spec, info)
    if info.address % SM_90A.tma_alignment:
        raise _misaligned(info, SM_90A.tma_alignment)
    for slow, stride in pitches:
        what = f"{info.name}: stride of dimension {slow} is {stride} bytes"
        if stride % SM_90A.tma_alignment:
            rule = f"TMA needs strides that are multiples of {SM_90A.tma_alignment} bytes"
            fix = _scales_fix(spec, info) or f"pad dimension {fast} to a multiple of {_padding(info)}"
            raise InputError("GMR-I003", what, rule=rule, fix=fix)
        if stride >= MAX_PITCH_BYTES:
            raise InputError("GMR-I007", what, rule="TMA strides are below 2^40")


def _lie_apart(spec: TensorSpec, info: TensorInfo, pitch: int, group: int) -> bool:
    """
    Whether the matrices of groups, `group` bytes apart, do not overlap: one ends before the next begins, or their first
    rows lie side by side, then their second ones, as in `x.transpose(0, 1)`. Both are the same to TMA.
    """
    groups, rows, row = (info.shape[dimension] for dimension in spec.order)
    row *= info.item_bytes
    return group >= pitch * (rows - 1) + row or (group >= row and pitch >= group * (groups - 1) + row)


def _check_dense(spec: TensorSpec, info: TensorInfo, strided: frozenset[int]) -> None:
    """A tensor reached by its address alone lies densely in `order`; dimensions of extent 1 have no stride."""
    stride = 1
    for dimension in reversed(spec.order):
        extent = info.shape[dimension]
        if extent > 1 and dimension not in strided and info.strides[dimension] != stride:
            raise _wrong_order(spec, info)
        stride *= extent


def _padding(info: TensorInfo) -> int:
    return SM_90A.tma_alignment // info.item_bytes


def _scales_fix(spec: TensorSpec, info: TensorInfo) -> str | None:
    """Scales of A are the only f32 tensors that lie column by column."""
    is_scale = spec.dtype == "f32" and spec.order[-2:] in ((1, 0), (2, 1))
    return f"pass gemmir.align_scales({info.name})" if is_scale else None


def _misaligned(info: TensorInfo, alignment: int) -> InputError:
    return InputError(
        "GMR-I003",
        f"{info.name}: address is {info.address % alignment} bytes past a multiple of {alignment}",
        rule=f"its first element lies at a multiple of {alignment} bytes",
        fix=f"pass {info.name}.clone()",
    )


def _wrong_order(spec: TensorSpec, info: TensorInfo) -> InputError:
    if spec.order == (0, 2, 1):
        groups, rows, columns = info.shape
        rule = "the second dimension is contiguous: each matrix is the transpose of a row-major one"
        fix = _scales_fix(spec, info) or (
            f"pass w.mT of a contiguous ({groups}, {columns}, {rows}) tensor w, or {info.name}.mT.contiguous().mT"
        )
    elif spec.order != (1, 0):
        rule, fix = "the last dimension is contiguous and rows do not overlap", f"pass {info.name}.contiguous()"
    else:
        rows, columns = info.shape
        rule = "the first dimension is contiguous: the transpose of a row-major tensor"
        fix = _scales_fix(spec, info) or (
            f"pass w.t() of a contiguous ({columns}, {rows}) tensor w, or {info.name}.t().contiguous().t()"
        )
    return InputError("GMR-I006", f"{info.name}: strides are {info.strides}", rule=rule, fix=fix)
