"""
The C header of a bundle: the launch code, then a kernel's tables and functions, printed from its manifest.

The launch code (`bundle_launch.h`) is the same for every kernel. Of the names in a manifest only those that are plain
identifiers reach the header, behind a prefix; numbers are printed as numbers.
"""

from __future__ import annotations

import re
from importlib.resources import files

from gemmir.backends.cuda.arguments import MAX_PITCH_BYTES, OUTPUT, Use, uses
from gemmir.dtypes import DTYPES
from gemmir.errors import UnsupportedError
from gemmir.layouts import Swizzle
from gemmir.manifest import Manifest, Param, PointerParam, StrideParam, TensorMapParam, TensorSpec
from gemmir.target import MOST_EXTENT, find_target

MAX_INPUTS = 16
MAX_PARAMS = 40
MAX_MAPS = 16
"""Bounds of the arrays in `bundle_launch.h`."""

_IDENTIFIER = re.compile(r"[A-Za-z](_?[A-Za-z0-9]){0,62}_?")
_ENTRY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def c_name(manifest: Manifest) -> str:
    """The kernel's name where it is fit for C and for a file name, else "kernel"; C++ reserves double underscores."""
    return manifest.name if _IDENTIFIER.fullmatch(manifest.name) else "kernel"


def argument_names(manifest: Manifest) -> tuple[str, ...]:
    """A C identifier for each input: its own name behind `in_`, or its number where names are unfit or not distinct."""
    names = [spec.name for spec in manifest.inputs]
    fit = len(set(names)) == len(names) and all(map(_IDENTIFIER.fullmatch, names))
    return tuple(f"in_{name}" if fit else f"in_{number}" for number, name in enumerate(names))


def refuse_unlaunchable(manifest: Manifest) -> None:
    """`UnsupportedError` (GMR-U001) if there is nothing to launch, or more than the launch code has room for."""
    if manifest.n == 0 or manifest.k == 0:
        raise UnsupportedError(
            "GMR-U001",
            f"a bundle of a product with N = {manifest.n}, K = {manifest.k}",
            rule="where there is nothing to multiply no kernel is launched",
            fix="fill the result with zeros, or with C",
        )
    maps = sum(isinstance(param, TensorMapParam) for param in manifest.params)
    counts = (len(manifest.inputs), MAX_INPUTS), (len(manifest.params), MAX_PARAMS), (maps, MAX_MAPS)
    if any(count > most for count, most in counts) or not _ENTRY.fullmatch(manifest.entry):
        raise UnsupportedError(
            "GMR-U001",
            f"a bundle of a kernel with {len(manifest.inputs)} tensors and {len(manifest.params)} parameters",
            rule=f"at most {MAX_INPUTS} tensors and {MAX_PARAMS} parameters, {MAX_MAPS} of them tensor maps",
        )


def print_header(manifest: Manifest) -> str:
    """The whole header, which needs `cuda.h` and the standard library of C only."""
    refuse_unlaunchable(manifest)
    runtime = files(__package__).joinpath("bundle_launch.h").read_text(encoding="ascii")
    name = f"gemmir_{c_name(manifest)}"
    guard = f"{name.upper()}_TABLES"
    parts = [
        runtime,
        f"#ifndef {guard}\n#define {guard}\n",
        _tensors(manifest, name),
        _params(manifest, name),
        _spec(manifest, name),
        _functions(manifest, name),
        f"#endif /* {guard} */\n",
    ]
    return "\n".join(parts)


def _tensors(manifest: Manifest, name: str) -> str:
    specs = [*enumerate(manifest.inputs), (OUTPUT, manifest.output)]
    rows = [_tensor(spec, uses(manifest)[number]) for number, spec in specs]
    return _table(f"static const gemmir_tensor_spec {name}_tensors[]", rows)


def _tensor(spec: TensorSpec, use: Use) -> str:
    shape = [-1 if extent is None else extent for extent in spec.shape]
    pad = [0] * (3 - len(shape))
    strided = sum(1 << dimension for dimension in use.strided)
    flags = [use.tma, use.pointer, use.addend, spec.free_strides]
    dtype = DTYPES[spec.dtype]
    fields = [
        str(len(shape)),
        _braces([*shape, *pad]),
        _braces([*spec.order, *pad]),
        str(dtype.bytes),
        f"CU_TENSOR_MAP_DATA_TYPE_{dtype.tma}",
        *(str(int(flag)) for flag in flags),
        f"{strided}u",
    ]
    return "{" + ", ".join(fields) + "}"


def _params(manifest: Manifest, name: str) -> str:
    return _table(f"static const gemmir_param_spec {name}_params[]", [_param(param) for param in manifest.params])


def _param(param: Param) -> str:
    tensor = param.tensor if isinstance(param, TensorMapParam | PointerParam | StrideParam) else 0
    dimension = param.dimension if isinstance(param, StrideParam) else 0
    box, swizzle = ([0, 0], "NONE")
    if isinstance(param, TensorMapParam):
        box, swizzle = [*param.box], Swizzle(param.swizzle).tma
    kind = f"GEMMIR_{param.kind.upper()}"
    return f"{{{kind}, {tensor}, {dimension}, {_braces(box)}, CU_TENSOR_MAP_SWIZZLE_{swizzle}}}"


def _spec(manifest: Manifest, name: str) -> str:
    grid, target = manifest.grid_rule, find_target(manifest.target)
    numbers = [
        [grid.rows, grid.repeats, grid.extra, grid.columns],
        [grid.cluster_ctas, manifest.cluster_m * manifest.cluster_n, int(grid.balanced)],
        [manifest.threads, manifest.shared_bytes, int(manifest.waits)],
    ]
    rows = [
        f'"{manifest.entry}", {len(manifest.inputs)}, {len(manifest.params)}, {name}_tensors, {name}_params',
        *(", ".join(map(str, row)) for row in numbers),
        f"{_braces([*target.compute_capability])}, {target.tma_alignment}, {MOST_EXTENT}, INT64_C({MAX_PITCH_BYTES})",
    ]
    return _table(f"static const gemmir_spec {name}_spec", rows)


def _functions(manifest: Manifest, name: str) -> str:
    names = argument_names(manifest)
    arguments = "".join(f"    const gemmir_tensor *{argument},\n" for argument in (*names, "out"))
    return f"""\
/* See gemmir_load. */
static inline gemmir_result {name}_load(gemmir_kernel *kernel, const void *cubin) {{
    return gemmir_load(kernel, &{name}_spec, cubin);
}}

/* See gemmir_launch. */
static inline gemmir_result {name}_launch(
    const gemmir_kernel *kernel,
{arguments}    int overlap,
    CUstream stream) {{
    const gemmir_tensor *const tensors[] = {{{", ".join(names)}, out}};
    return gemmir_launch(kernel, tensors, overlap, stream);
}}
"""


def _table(declaration: str, rows: list[str]) -> str:
    return f"{declaration} = {{\n" + "".join(f"    {row},\n" for row in rows) + "};\n"


def _braces(numbers: list[int]) -> str:
    return "{" + ", ".join(map(str, numbers)) + "}"
