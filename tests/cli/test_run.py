"""`gemmir run` on the CPU: the right backend is chosen, the result is checked, and a wrong one is found."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gemmir.backends import reference
from gemmir.cli import backends
from gemmir.cli.backends import Options, lowered_kernel, multiply_adds
from gemmir.cli.inputs import arguments_of, load_inputs
from gemmir.cli.main import main
from gemmir.dialects.gemm import MatmulOp, the_matmul
from gemmir.errors import InputError, ToolMissingError
from gemmir.ir_text import parse_module
from gemmir.testing import model_of

FP8 = """
func.func @small(%x: tensor<?x256xf8E4M3FN>, %xs: tensor<?x2xf32>,
                 %w: tensor<256x128xf8E4M3FN>, %ws: tensor<2x1xf32>) -> tensor<?x128xbf16> {
  %y = gemm.matmul %x, %w scaled (%xs by 1x128, %ws by 128x128)
    : (tensor<?x256xf8E4M3FN>, tensor<256x128xf8E4M3FN>, tensor<?x2xf32>, tensor<2x1xf32>) -> tensor<?x128xbf16>
  func.return %y : tensor<?x128xbf16>
}
"""
FIXED = """
func.func @fixed(%a: tensor<8x64xbf16>, %b: tensor<64x16xbf16>) -> tensor<8x16xbf16> {
  %d = gemm.matmul %a, %b : (tensor<8x64xbf16>, tensor<64x16xbf16>) -> tensor<8x16xbf16>
  func.return %d : tensor<8x16xbf16>
}
"""


@pytest.fixture
def fp8(tmp_path: Path) -> str:
    (tmp_path / "fp8.mlir").write_text(FP8)
    return str(tmp_path / "fp8.mlir")


@pytest.fixture
def fixed(tmp_path: Path) -> str:
    (tmp_path / "fixed.mlir").write_text(FIXED)
    return str(tmp_path / "fixed.mlir")


def matmul(text: str) -> MatmulOp:
    return the_matmul(parse_module(text))


def on_cpu(*argv: str) -> int:
    return main(["run", *argv, "--backend", "reference"])


def test_a_right_result_holds(fp8: str, capsys: pytest.CaptureFixture[str]):
    assert on_cpu(fp8, "--shape", "M=5", "--check") == 0
    out = capsys.readouterr().out
    assert "result   5x128 bf16, by the CPU (reference)\n" in out
    assert "check    every element is within its bound; worst element [" in out


GROUPED = """
func.func @up(%x: tensor<?x64xbf16>, %w: tensor<3x64x16xbf16>, %ends: tensor<3xi32>) -> tensor<?x16xbf16> {
  %d = gemm.grouped_matmul %x, %w groups (%ends by offs)
      : (tensor<?x64xbf16>, tensor<3x64x16xbf16>, tensor<3xi32>) -> tensor<?x16xbf16>
  func.return %d : tensor<?x16xbf16>
}
"""


def test_products_of_several_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file, inputs, output = tmp_path / "up.mlir", tmp_path / "in.npz", tmp_path / "out.npz"
    file.write_text(GROUPED)
    assert on_cpu(str(file), "--shape", "M=40", "--check") == 0
    assert "result   40x16 bf16, by the CPU (reference)\n" in capsys.readouterr().out
    ones, ends = np.full((3, 64, 16), 0x3F80, np.uint16), np.array([2, 2, 5], np.int32)
    np.savez(inputs, x=ones[0].T.copy()[:6], w=ones, ends=ends)
    assert on_cpu(str(file), "--inputs", str(inputs), "--output", str(output), "--check") == 0
    result = torch.from_numpy(np.load(output)["output"]).view(torch.bfloat16)
    assert result[:5].eq(64).all()
    assert result[5].eq(0).all()
    np.savez(inputs, x=ones[0].T.copy()[:6], w=ones, ends=ends.astype(np.int64))
    assert on_cpu(str(file), "--inputs", str(inputs)) == 1
    assert "i32 is stored in an .npz as int32" in capsys.readouterr().err


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "has_hopper", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_kernel_is_simulated_bit_for_bit(
    fp8: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "out.npz"
    assert main(["run", fp8, "--shape", "M=130", "--seed", "3", "--check", "--output", str(path)]) == 0
    out = capsys.readouterr().out
    assert "backend  the simulator, since there is no Hopper GPU: the kernel itself, bit for bit\n" in out
    assert "result   130x128 bf16, by the CPU (simulator)\n" in out
    assert "check    every element is within its bound; worst element [" in out
    tensors = list(reference.random_inputs(parse_module(FP8), 130, seed=3).values())
    expected = model_of(matmul(FP8), tensors).view(torch.uint16).numpy()
    assert np.array_equal(np.load(path)["output"], expected)


def test_the_seed_also_draws_the_simulated_order(fixed: str, monkeypatch: pytest.MonkeyPatch):
    seeds: list[int] = []

    def simulate(kernel: object, tensors: object, m: int, *, seed: int) -> torch.Tensor:
        seeds.append(seed)
        return torch.zeros(m, 16, dtype=torch.bfloat16)

    monkeypatch.setattr("gemmir.backends.simulator.simulate", simulate)
    assert main(["run", fixed, "--backend", "simulator", "--seed", "41"]) == 0
    assert seeds == [41]


@pytest.mark.usefixtures("no_gpu")
def test_a_large_product_is_left_to_the_reference_unless_asked(
    fp8: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(backends, "MOST_SIMULATED", 1000)
    assert main(["run", fp8, "--shape", "M=5"]) == 0
    out = capsys.readouterr().out
    assert "backend  the reference, since there is no Hopper GPU and the simulator would take up to 0 minutes" in out
    assert "; --backend simulator runs it all the same\n" in out
    assert "by the CPU (reference)\n" in out
    assert main(["run", fp8, "--shape", "M=5", "--backend", "simulator"]) == 0
    assert "by the CPU (simulator)\n" in capsys.readouterr().out


def test_work_is_that_of_whole_tiles():
    pipeline = (
        "gemm-select-family,gemm-select-blocks{block=128,64,128 warpgroups=2 split=m turns=false cluster=1,2},"
        "gemm-fit-tail,gemm-rasterize,gemm-balance,gemm-plan-pipeline,gemm-lower-to-hopper"
    )
    kernel = lowered_kernel(parse_module(FP8), Options(pipeline=pipeline))
    assert multiply_adds(kernel, 1) == 128 * 128 * 256
    assert multiply_adds(kernel, 129) == 256 * 128 * 256


def test_a_program_without_a_kernel_runs_on_the_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    odd = tmp_path / "odd.mlir"
    odd.write_text(FIXED.replace("x16x", "x12x"))
    assert main(["run", str(odd), "--check"]) == 0
    out = capsys.readouterr().out
    assert "backend  the reference, since there is no kernel for this program: GMR-U001: N = 12" in out
    assert "result   8x12 bf16, by the CPU (reference)\n" in out
    assert main(["run", str(odd), "--backend", "simulator"]) == 1
    assert capsys.readouterr().err.startswith("error[GMR-U001]: N = 12")


def test_an_unknown_target_is_no_reason_for_the_reference(fixed: str, capsys: pytest.CaptureFixture[str]):
    assert main(["run", fixed, "--target", "sm_80"]) == 1
    assert capsys.readouterr().err.startswith("error[GMR-U002]: ")


def test_a_pipeline_that_makes_no_kernel_cannot_be_simulated(fixed: str, capsys: pytest.CaptureFixture[str]):
    assert main(["run", fixed, "--backend", "simulator", "-p", "gemm-canonicalize"]) == 1
    assert capsys.readouterr().err.startswith("error[GMR-R004]: 0 hopper kernels")


def test_tensors_that_do_not_fit_are_refused_before_they_are_simulated(
    tmp_path: Path, fixed: str, capsys: pytest.CaptureFixture[str]
):
    np.savez(tmp_path / "in.npz", a=np.zeros((), np.uint16), b=np.zeros((64, 16), np.uint16))
    assert main(["run", fixed, "--backend", "simulator", "--inputs", str(tmp_path / "in.npz")]) == 1
    assert capsys.readouterr().err.startswith("error[GMR-I002]: a: shape is ()")


def test_a_wrong_element_is_found_and_named(
    fp8: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    right = reference.run

    def off_by_one_element(*args: object) -> torch.Tensor:
        result = right(*args)  # type: ignore[arg-type]
        assert isinstance(result, torch.Tensor)
        result[3, 77] += 1
        return result

    monkeypatch.setattr(reference, "run", off_by_one_element)
    assert on_cpu(fp8, "--shape", "M=5", "--check") == 1
    assert "check    FAILED, an element is out of its bound; worst element [3, 77]" in capsys.readouterr().out


def test_the_seed_decides_the_inputs(fp8: str, tmp_path: Path):
    outputs: list[np.ndarray] = []
    for number, seed in enumerate(("1", "1", "2")):
        path = tmp_path / f"{number}.npz"
        assert on_cpu(fp8, "--shape", "M=5", "--seed", seed, "--output", str(path)) == 0
        outputs.append(np.load(path)["output"])
    assert np.array_equal(outputs[0], outputs[1])
    assert not np.array_equal(outputs[0], outputs[2])


def test_m_that_is_fixed_cannot_be_changed(fixed: str, capsys: pytest.CaptureFixture[str]):
    assert on_cpu(fixed, "--shape", "M=8") == 0
    assert on_cpu(fixed, "--shape", "M=9") == 2
    assert capsys.readouterr().err == "error: --shape M=9: the program fixes M = 8\n"


def test_tensors_in_and_out_of_npz(fp8: str, tmp_path: Path):
    op = matmul(FP8)
    tensors = reference.random_inputs(parse_module(FP8), 7, seed=3)
    raw = {name: (t.view(torch.uint8) if t.dtype == torch.float8_e4m3fn else t).numpy() for name, t in tensors.items()}
    np.savez(tmp_path / "in.npz", **raw)
    loaded = load_inputs(tmp_path / "in.npz", arguments_of(op))
    assert all(torch.equal(loaded[name].float(), tensors[name].float()) for name in tensors)

    assert on_cpu(fp8, "--inputs", str(tmp_path / "in.npz"), "--output", str(tmp_path / "out.npz"), "--check") == 0
    output = torch.from_numpy(np.load(tmp_path / "out.npz")["output"]).view(torch.bfloat16)
    expected = reference.run(parse_module(FP8), list(tensors.values()))
    assert isinstance(expected, torch.Tensor)
    assert torch.equal(output, expected)


def test_an_npz_without_an_input_is_refused(tmp_path: Path):
    np.savez(tmp_path / "in.npz", a=np.zeros((8, 64), np.uint16))
    with pytest.raises(InputError, match="no tensor called b") as error:
        load_inputs(tmp_path / "in.npz", arguments_of(matmul(FIXED)))
    assert error.value.code == "GMR-I005"


def test_an_npz_of_another_dtype_is_refused(tmp_path: Path):
    np.savez(tmp_path / "in.npz", a=np.zeros((8, 64), np.float32), b=np.zeros((64, 16), np.uint16))
    with pytest.raises(InputError, match="a: the array holds float32") as error:
        load_inputs(tmp_path / "in.npz", arguments_of(matmul(FIXED)))
    assert error.value.code == "GMR-I001"


def test_an_npz_that_is_none_is_refused(tmp_path: Path):
    (tmp_path / "in.npz").write_bytes(b"not a zip file")
    with pytest.raises(InputError) as error:
        load_inputs(tmp_path / "in.npz", arguments_of(matmul(FIXED)))
    assert error.value.code == "GMR-I005"


def test_a_missing_safetensors_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ToolMissingError, match="pip install safetensors") as error:
        load_inputs(tmp_path / "in.safetensors", arguments_of(matmul(FIXED)))
    assert (error.value.code, error.value.exit_code) == ("GMR-C004", 3)


def test_the_cuda_backend_without_a_gpu_exits_with_3(fixed: str):
    command = [sys.executable, "-m", "gemmir", "run", fixed, "--backend", "cuda"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.startswith("error[GMR-D001]")


def test_a_python_file_is_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "layer.py").write_text(
        "import gemmir\n"
        "def program():\n"
        "    p = gemmir.Program('layer')\n"
        "    a, b = p.input('a', (None, 64), 'bf16'), p.input('b', (64, 16), 'bf16')\n"
        "    p.output(p.matmul(a, b).cast('bf16'))\n"
        "    return p\n"
    )
    assert on_cpu(str(tmp_path / "layer.py"), "--shape", "M=3", "--check") == 0
    assert "result   3x16 bf16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("x = 1\n", "has no function program()"), ("def program():\n    return 7\n", "program() returned int")],
)
def test_a_python_file_that_is_no_program_is_refused(
    text: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "layer.py").write_text(text)
    assert on_cpu(str(tmp_path / "layer.py")) == 2
    assert complaint in capsys.readouterr().err
