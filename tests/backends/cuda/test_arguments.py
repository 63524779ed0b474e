"""What is refused before any CUDA call, and what each refusal says."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemmir.backends.cuda.arguments import TensorInfo, Use, check_arguments, check_output, describe, uses
from gemmir.errors import InputError
from gemmir.manifest import Manifest, PointerParam, RowsParam, TensorMapParam, TensorSpec
from gemmir.scales import align_scales

M = 100
FP8 = torch.float8_e4m3fn
MANIFEST = Manifest(
    name="down_proj",
    entry="k_0",
    target="sm_90a",
    inputs=(
        TensorSpec("x", "f8E4M3FN", (None, 2048), (0, 1)),
        TensorSpec("w", "f8E4M3FN", (2048, 7168), (1, 0)),
        TensorSpec("xs", "f32", (None, 16), (1, 0)),
        TensorSpec("ws", "f32", (16, 56), (0, 1), free_strides=True),
        TensorSpec("bias", "bf16", (7168,), (0,)),
        TensorSpec("alpha", "f32", (), ()),
    ),
    output=TensorSpec("out", "bf16", (None, 7168), (0, 1)),
    params=(
        TensorMapParam(0, (128, 128), 128),
        TensorMapParam(1, (128, 128), 128),
        TensorMapParam(2, (128, 1), 16),
        PointerParam(3),
        PointerParam(4),
        PointerParam(5),
        TensorMapParam(-1, (64, 128), 128),
        RowsParam(),
    ),
    n=7168,
    k=2048,
    block_m=128,
    block_n=128,
    cluster_m=1,
    cluster_n=1,
    threads=384,
    shared_bytes=200_000,
    balanced=False,
    schedule="",
)


def info(name: str, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], address: int) -> TensorInfo:
    size = {"f8E4M3FN": 1, "bf16": 2, "f32": 4}[dtype]
    return TensorInfo(name, dtype, shape, strides, "cuda", 0, address, size)


def arguments(m: int = M) -> dict[str, TensorInfo]:
    pitch = -(-m // 4) * 4
    return {
        "x": info("x", "f8E4M3FN", (m, 2048), (2048, 1), 1 << 30),
        "w": info("w", "f8E4M3FN", (2048, 7168), (1, 2048), 2 << 30),
        "xs": info("xs", "f32", (m, 16), (1, pitch), 3 << 30),
        "ws": info("ws", "f32", (16, 56), (1, 16), 4 << 30),
        "bias": info("bias", "bf16", (7168,), (1,), 5 << 30),
        "alpha": info("alpha", "f32", (), (), 6 << 30),
    }


def output(m: int = M) -> TensorInfo:
    return info("out", "bf16", (m, 7168), (7168, 1), 7 << 30)


def refused(**changes: Any) -> InputError:
    """The error when one argument is changed: `refused(x={"dtype": ...})`."""
    all_of_them = arguments()
    for name, change in changes.items():
        all_of_them[name] = replace(all_of_them[name], **change)
    with pytest.raises(InputError) as error:
        check_arguments(MANIFEST, list(all_of_them.values()))
    return error.value


@pytest.mark.parametrize("m", [0, 1, 2, 63, 4096])
def test_tensors_that_fit(m: int):
    assert check_arguments(MANIFEST, list(arguments(m).values())) == m
    check_output(MANIFEST, output(m), m, list(arguments(m).values()))


def test_how_a_kernel_reaches_its_tensors():
    tma, pointer = Use(True, False, frozenset()), Use(False, True, frozenset())
    assert uses(MANIFEST) == {0: tma, 1: tma, 2: tma, 3: pointer, 4: pointer, 5: pointer, -1: tma}


def test_a_fixed_m():
    manifest = replace(MANIFEST, output=replace(MANIFEST.output, shape=(7, 7168)))
    specs = tuple(replace(s, shape=tuple(7 if e is None else e for e in s.shape)) for s in MANIFEST.inputs)
    assert check_arguments(replace(manifest, inputs=specs), list(arguments(7).values())) == 7
    with pytest.raises(InputError, match="dimension 0 is 8, not 7"):
        check_arguments(replace(manifest, inputs=specs), list(arguments(8).values()))


# ------------------------------------------------------------ refusals


def test_the_number_of_tensors():
    infos = list(arguments().values())
    for wrong in (infos[:-1], [*infos, infos[0]], []):
        with pytest.raises(InputError) as error:
            check_arguments(MANIFEST, wrong)
        assert error.value.code == "GMR-I005"
        assert f"{len(wrong)} tensors" in str(error.value)
        assert "takes 6: x, w, xs, ws, bias, alpha" in str(error.value)


@pytest.mark.parametrize(("name", "dtype"), [("x", "f16"), ("w", "float8_e4m3fnuz"), ("ws", "bf16"), ("bias", "int64")])
def test_dtypes(name: str, dtype: str):
    error = refused(**{name: {"dtype": dtype}})
    assert error.code == "GMR-I001"
    assert f"{name}: dtype is {dtype}" in error.what


def test_a_dtype_is_named_as_torch_names_it():
    assert "torch.float8_e4m3fn" in str(refused(x={"dtype": "f16"}))


def test_a_k_that_disagrees():
    error = refused(w={"shape": (2176, 7168), "strides": (1, 2176)})
    assert (error.code, error.what) == ("GMR-I002", "w: shape is (2176, 7168): dimension 0 is 2176, not 2048")
    assert error.rule == "this kernel takes w of shape (2048, 7168)"


def test_an_m_that_disagrees():
    error = refused(xs={"shape": (101, 16), "strides": (1, 104)})
    assert error.code == "GMR-I002"
    assert error.what == "xs: shape is (101, 16): M is 101 in dimension 0, but 100 in x (100, 2048)"


def test_a_weight_that_was_not_transposed():
    error = refused(w={"shape": (7168, 2048), "strides": (2048, 1)})
    assert (error.code, error.fix) == ("GMR-I002", "pass w.t()")


def test_ranks():
    assert "bias: shape is (1, 7168): has rank 2" in str(refused(bias={"shape": (1, 7168), "strides": (7168, 1)}))
    assert "alpha: shape is (1): has rank 1" in str(refused(alpha={"shape": (1,), "strides": (1,)}))


def test_devices():
    error = refused(w={"device_type": "cpu"})
    assert error.code == "GMR-I004"
    assert error.what == "tensors on cuda:0: x, xs, ws, bias, alpha; cpu: w"
    assert error.fix == "pass w.to('cuda:0')"
    error = refused(bias={"device_index": 1})
    assert (error.code, error.what) == ("GMR-I004", "tensors on cuda:0: x, w, xs, ws, alpha; cuda:1: bias")
    cpu = [replace(i, device_type="cpu") for i in arguments().values()]
    with pytest.raises(InputError, match=r"GMR-I004: tensors on cpu: x, w, xs, ws, bias, alpha"):
        check_arguments(MANIFEST, cpu)


def test_misaligned_addresses():
    error = refused(x={"address": (1 << 30) + 8})
    assert (error.code, error.what) == ("GMR-I003", "x: address is 8 bytes past a multiple of 16")
    assert error.fix == "pass x.clone()"
    assert refused(bias={"address": 3}).what == "bias: address is 1 bytes past a multiple of 2"
    good = arguments()
    good["bias"] = replace(good["bias"], address=(5 << 30) + 2)  # read element by element
    assert check_arguments(MANIFEST, list(good.values())) == M


def test_misaligned_strides():
    error = refused(w={"strides": (1, 2056)})
    assert (error.code, error.what) == ("GMR-I003", "w: stride of dimension 1 is 2056 bytes")
    assert error.fix == "pad dimension 0 to a multiple of 16"
    error = refused(x={"strides": (2049, 1)})
    assert (error.code, error.what) == ("GMR-I003", "x: stride of dimension 0 is 2049 bytes")
    error = refused(xs={"strides": (1, 101)})
    assert (error.code, error.what) == ("GMR-I003", "xs: stride of dimension 1 is 404 bytes")
    assert error.fix == "pass gemmir.align_scales(xs)"


def test_wrong_memory_order():
    error = refused(x={"strides": (1, 112)})
    assert (error.code, error.fix) == ("GMR-I006", "pass x.contiguous()")
    error = refused(w={"strides": (7168, 1)})
    assert error.code == "GMR-I006"
    assert error.fix == "pass w.t() of a contiguous (7168, 2048) tensor w, or w.t().contiguous().t()"
    error = refused(xs={"strides": (16, 1)})
    assert (error.code, error.fix) == ("GMR-I006", "pass gemmir.align_scales(xs)")
    error = refused(bias={"strides": (2,)})
    assert (error.code, error.fix) == ("GMR-I006", "pass bias.contiguous()")


def test_overlapping_rows():
    assert refused(x={"strides": (0, 1)}).code == "GMR-I006"
    assert refused(x={"strides": (1024, 1)}).code == "GMR-I006"


def test_a_padded_pitch_is_fine():
    good = arguments()
    good["x"] = replace(good["x"], strides=(4096, 1))
    good["w"] = replace(good["w"], strides=(1, 2064))
    assert check_arguments(MANIFEST, list(good.values())) == M


def test_strides_that_are_passed_along_are_free():
    good = arguments()
    good["ws"] = replace(good["ws"], strides=(1000, 3))
    assert check_arguments(MANIFEST, list(good.values())) == M


def test_sizes():
    far = 1 << 31
    error = refused(x={"shape": (far, 2048)}, xs={"shape": (far, 16), "strides": (1, far)})
    assert (error.code, error.what) == ("GMR-I007", "x: dimension 0 is 2147483648")
    error = refused(x={"strides": (1 << 40, 1)})
    assert (error.code, error.rule) == ("GMR-I007", "TMA strides are below 2^40")
    many = replace(MANIFEST, block_m=1, block_n=1)
    with pytest.raises(InputError, match="GMR-I007: 7340032000000 tiles"):
        check_arguments(many, list(arguments(1_024_000_000).values()))


# ------------------------------------------------------------ dimensions of one


@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 5000))
def test_a_dimension_of_one_has_any_stride(row: int, column: int, scale: int):
    tensors = arguments(1)
    tensors["x"] = replace(tensors["x"], strides=(row, 1))
    tensors["xs"] = replace(tensors["xs"], strides=(column, 4))
    assert check_arguments(MANIFEST, list(tensors.values())) == 1
    specs = (TensorSpec("x", "bf16", (None, 1), (0, 1)), TensorSpec("b", "f32", (1,), (0,)))
    params = (TensorMapParam(0, (8, 8), 16), PointerParam(1))
    manifest = replace(MANIFEST, inputs=specs, params=params)
    infos = [info("x", "bf16", (9, 1), (8, scale), 16), info("b", "f32", (1,), (scale,), 4)]
    assert check_arguments(manifest, infos) == 9


def only_scales(blocks: int) -> Manifest:
    scales = TensorSpec("xs", "f32", (None, blocks), (1, 0))
    return replace(MANIFEST, inputs=(scales,), params=(TensorMapParam(0, (128, 1), 16),))


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 100, 1000])
@pytest.mark.parametrize("blocks", [1, 2, 16])
def test_aligned_scales_fit(m: int, blocks: int):
    """What align_scales makes is what the check wants, M = 1 and a single block of K included."""
    manifest = replace(
        MANIFEST, inputs=(TensorSpec("xs", "f32", (None, blocks), (1, 0)),), params=(TensorMapParam(0, (128, 1), 16),)
    )
    aligned = describe(align_scales(torch.rand(m, blocks)), "xs")
    on_gpu = replace(aligned, device_type="cuda", address=1 << 30)
    assert check_arguments(manifest, [on_gpu]) == m


def test_scales_of_one_row_still_need_their_pitch():
    manifest = replace(
        MANIFEST, inputs=(TensorSpec("xs", "f32", (None, 16), (1, 0)),), params=(TensorMapParam(0, (128, 1), 16),)
    )
    with pytest.raises(InputError, match=r"GMR-I003: xs: stride of dimension 1 is 4 bytes(.|\n)*align_scales"):
        check_arguments(manifest, [info("xs", "f32", (1, 16), (16, 1), 1 << 30)])


def test_strides_of_nothing_do_not_matter():
    tensors = arguments(0)
    tensors["x"] = replace(tensors["x"], strides=(7, 7), address=0)
    tensors["xs"] = replace(tensors["xs"], strides=(3, 3), address=5)
    assert check_arguments(MANIFEST, list(tensors.values())) == 0


# ------------------------------------------------------------ the output


def refused_output(**change: Any) -> InputError:
    with pytest.raises(InputError) as error:
        check_output(MANIFEST, replace(output(), **change), M, list(arguments().values()))
    return error.value


def test_outputs_that_do_not_fit():
    assert refused_output(dtype="f32").code == "GMR-I001"
    assert refused_output(shape=(M + 1, 7168)).what == "out: shape is (101, 7168)"
    assert refused_output(strides=(1, 112)).code == "GMR-I006"
    assert refused_output(strides=(0, 1)).code == "GMR-I006"
    assert refused_output(strides=(7169, 1)).code == "GMR-I003"
    assert refused_output(address=(7 << 30) + 2).code == "GMR-I003"
    assert refused_output(device_index=1).code == "GMR-I004"
    assert refused_output(device_type="cpu").code == "GMR-I004"


def test_a_padded_output_fits():
    check_output(MANIFEST, replace(output(), strides=(8192, 1)), M, list(arguments().values()))


@pytest.mark.parametrize(("offset", "overlaps"), [(-16, True), (0, True), (2048 * M - 16, True), (2048 * M, False)])
def test_overlap_with_an_input(offset: int, overlaps: bool):
    x = arguments()["x"]
    out = replace(output(), address=x.address + offset)
    if not overlaps:
        check_output(MANIFEST, out, M, [x])
        return
    with pytest.raises(InputError, match="GMR-I008: out: overlaps x"):
        check_output(MANIFEST, out, M, [x])


def test_an_output_just_before_an_input():
    x = arguments()["x"]
    check_output(MANIFEST, replace(output(), address=x.address - M * 7168 * 2), M, [x])


@pytest.mark.parametrize(
    ("shape", "strides", "bytes_"), [((), (), 4), ((3,), (2,), 20), ((2, 3), (10, 1), 52), ((0, 3), (3, 1), 0)]
)
def test_the_span_of_a_tensor(shape: tuple[int, ...], strides: tuple[int, ...], bytes_: int):
    assert info("t", "f32", shape, strides, 64).span == (64, 64 + bytes_)


# ------------------------------------------------------------ torch tensors


def test_describing_a_tensor():
    tensor = torch.empty(8, 64, dtype=torch.bfloat16)[:, :32].t()
    found = describe(tensor, "w")
    assert found == TensorInfo("w", "bf16", (32, 8), (1, 64), "cpu", 0, tensor.data_ptr(), 2)
    assert [describe(torch.empty(1, dtype=d), "t").dtype for d in (FP8, torch.float8_e5m2, torch.float8_e4m3fnuz)] == [
        "f8E4M3FN",
        "f8E5M2",
        "float8_e4m3fnuz",
    ]


def test_things_that_are_no_dense_tensors():
    import numpy

    for thing in (None, 3, [1.0], numpy.zeros(3), "x"):
        with pytest.raises(InputError, match=r"GMR-I005: x: (NoneType|int|list|ndarray|str)"):
            describe(thing, "x")
    with pytest.raises(InputError, match=r"GMR-I006: x: layout is torch.sparse_coo"):
        describe(torch.eye(3).to_sparse(), "x")
    with pytest.raises(InputError, match=r"GMR-I004: x: holds no data \(device meta\)"):
        describe(torch.empty(3, device="meta"), "x")
    with pytest.raises(InputError, match=r"GMR-I006: x: is a view that negates another"):
        describe(torch.ones(3, dtype=torch.complex64).conj().imag, "x")


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_a_tensor_made_for_tracing():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.empty(3)
    with pytest.raises(InputError, match="GMR-I004: x: holds no data"):
        describe(fake, "x")


ADDEND = replace(
    MANIFEST,
    inputs=(*MANIFEST.inputs, TensorSpec("c", "bf16", (None, 7168), (0, 1))),
    params=(*MANIFEST.params, TensorMapParam(6, (64, 128), 128, addend=True)),
)


def with_c(**changes: Any) -> list[TensorInfo]:
    return [*arguments().values(), replace(output(), name="c", **changes)]


def test_the_result_may_lie_where_c_does() -> None:
    """Exactly there: every element where C has it."""
    for c in (with_c(), with_c(address=8 << 30), with_c(strides=(8192, 1), address=8 << 30)):
        assert check_arguments(ADDEND, c) == M
        check_output(ADDEND, output(), M, c)


@pytest.mark.parametrize(
    "change", [{"address": (7 << 30) + 16}, {"strides": (7176, 1)}, {"address": (7 << 30) - 16 * 7168}], ids=str
)
def test_the_result_may_not_lie_beside_c(change: dict[str, Any]) -> None:
    c = with_c(**change)
    assert check_arguments(ADDEND, c) == M
    with pytest.raises(InputError, match="GMR-I008: out: overlaps c"):
        check_output(ADDEND, output(), M, c)


def test_an_operand_that_is_read_otherwise_is_not_written() -> None:
    """The same tensor as an ordinary input, or by another map."""
    plain = replace(ADDEND, params=(*MANIFEST.params, TensorMapParam(6, (64, 128), 128)))
    both = replace(ADDEND, params=(*ADDEND.params, TensorMapParam(6, (64, 128), 128)))
    for manifest in (plain, both):
        with pytest.raises(InputError, match="GMR-I008: out: overlaps c"):
            check_output(manifest, output(), M, with_c())


def test_c_is_checked_as_what_tma_reads() -> None:
    with pytest.raises(InputError, match="GMR-I003: c: address"):
        check_arguments(ADDEND, with_c(address=(8 << 30) + 8))
    with pytest.raises(InputError, match="GMR-I006: c: strides"):
        check_arguments(ADDEND, with_c(strides=(1, 128)))
    with pytest.raises(InputError, match="GMR-I001: c: dtype is f32"):
        check_arguments(ADDEND, with_c(dtype="f32"))
