"""The oracles of `gemmir.testing`: they pass what is right, and name what is wrong with what is not."""

from collections.abc import Callable

import pytest
import torch

from gemmir.backends.reference import run
from gemmir.compiler import module_of
from gemmir.errors import UnsupportedError
from gemmir.testing import check_bits, check_bound, check_exact, simulated
from tests.gpu.problems import Case, fp8_text, plain_text

FP8 = fp8_text(64, 256)
HALF = plain_text(Case("bf16", 0, 64, 128))
BIAS = """
func.func @biased(%x: tensor<?x64xbf16>, %w: tensor<64x32xbf16>, %bias: tensor<32xf32>) -> tensor<?x32xbf16> {
  %y = gemm.matmul %x, %w epilogue (%bias by column) {
  ^bb0(%acc: f32, %b: f32):
    %sum = arith.addf %acc, %b : f32
    %r = arith.truncf %sum : f32 to bf16
    gemm.yield %r : bf16
  } : (tensor<?x64xbf16>, tensor<64x32xbf16>, tensor<32xf32>) -> tensor<?x32xbf16>
  func.return %y : tensor<?x32xbf16>
}"""

Change = Callable[[torch.Tensor], None]


def reference(text: str):
    """The reference backend as a kernel."""
    module = module_of(text)
    return lambda *tensors: run(module, tensors)


def changed(text: str, change: Change):
    def kernel(*tensors: torch.Tensor) -> torch.Tensor:
        result = reference(text)(*tensors).clone()
        change(result)
        return result

    return kernel


def one_bit(result: torch.Tensor) -> None:
    result.view(torch.int16)[3, 5] ^= 1


@pytest.mark.parametrize("text", [FP8, HALF])
def test_simulated_kernels_pass_every_oracle(text):
    for check in (check_exact, check_bits, check_bound):
        check(simulated(text, seed=1), text, 33, seed=2)


def test_the_reference_is_exact_and_within_the_bound_but_has_other_bits():
    check_exact(reference(FP8), FP8, 40)
    check_bound(reference(FP8), FP8, 40)
    with pytest.raises(AssertionError, match=r"of 2560 elements differ, in rows \d+\.\.\d+ and columns"):
        check_bits(reference(FP8), FP8, 40)


@pytest.mark.parametrize("text", [FP8, HALF, BIAS])
def test_one_wrong_bit_is_seen_in_exact_data(text):
    with pytest.raises(AssertionError) as caught:
        check_exact(changed(text, one_bit), text, 40, seed=7)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("1 of ")
    assert "in rows 3..3 and columns 5..5" in lines[0]
    assert lines[1].startswith("  first: [3, 5] is ")
    assert "(0x" in lines[1]
    assert lines[2].startswith("  exact data, seed 7: ?x")


def test_one_wrong_bit_is_seen_in_random_data():
    kernel = simulated(HALF)

    def wrong(*tensors: torch.Tensor) -> torch.Tensor:
        result = kernel(*tensors)
        one_bit(result)
        return result

    check_bits(kernel, HALF, 20)
    with pytest.raises(AssertionError, match=r"1 of 1280 elements differ, in rows 3\.\.3 and columns 5\.\.5"):
        check_bits(wrong, HALF, 20)


def test_a_result_out_of_its_bound_is_named():
    def shift(result: torch.Tensor) -> None:
        result[2, 9] += 4

    check_bound(reference(BIAS), BIAS, 40)
    with pytest.raises(AssertionError, match=r"out of its bound: element \[2, 9\]"):
        check_bound(changed(BIAS, shift), BIAS, 40)


def test_another_shape_or_type_is_no_result():
    with pytest.raises(AssertionError, match=r"the result is \(64, 40\) of torch.bfloat16, expected \(40, 64\)"):
        check_bits(lambda *tensors: reference(HALF)(*tensors).t(), HALF, 40)
    with pytest.raises(AssertionError, match=r"of torch\.float32, expected"):
        check_bits(lambda *tensors: reference(HALF)(*tensors).float(), HALF, 40)


def test_given_inputs_are_used():
    tensors = [torch.ones(2, 128).bfloat16(), torch.ones(128, 64).bfloat16()]
    check_bits(lambda *_: torch.full((2, 64), 128.0).bfloat16(), HALF, inputs=tensors)
    check_bound(lambda *_: torch.full((2, 64), 128.0).bfloat16(), HALF, inputs=tensors)


def test_programs_without_a_bit_model_are_refused():
    with pytest.raises(UnsupportedError, match="no bit model"):
        check_bits(reference(BIAS), BIAS, 4)
