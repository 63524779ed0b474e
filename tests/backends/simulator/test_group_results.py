"""Simulated kernels of several groups have the bits of the model, for valid and for invalid indices."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from gemmir.backends.cuda.target import the_kernel
from gemmir.backends.reference import exact_inputs, random_inputs
from gemmir.backends.simulator import simulate
from gemmir.compiler import lower
from gemmir.groups import spans
from gemmir.ir_text import parse_module
from gemmir.problem import Grouping
from gemmir.schedule import Family, Schedule
from gemmir.testing.groups import GROUPINGS, any_indices, extent_of, grouped_forms, indices
from gemmir.testing.oracles import check_bits, check_exact, simulated
from gemmir.testing.strategies import half_problem, program_text


@given(data=st.data(), grouping=st.sampled_from(GROUPINGS), valid=st.booleans(), seed=st.integers(0, 1 << 16))
def test_drawn_groups(data: st.DataObject, grouping: Grouping, valid: bool, seed: int):
    """Random data have the bits of the model; with odd seeds, exact ones the values of the reference."""
    problem = data.draw(grouped_forms(grouping))
    text = program_text(problem)
    check, inputs_of = (check_exact, exact_inputs) if seed % 2 else (check_bits, random_inputs)
    inputs = inputs_of(parse_module(text), None, seed)
    if grouping is not Grouping.BATCH:
        index = data.draw((indices if valid else any_indices)(grouping, extent_of(problem)))
        inputs["index"] = torch.tensor(index, dtype=torch.int32)
    check(simulated(text, seed=seed), text, inputs=list(inputs.values()))


def test_hundreds_of_groups():
    """Far more groups than rows in a tile: most are empty, some have one row."""
    text = """
func.func @f(%x: tensor<300x64xbf16>, %w: tensor<333x64x8xbf16>, %ends: tensor<333xi32>) -> tensor<300x8xbf16> {
  %y = gemm.grouped_matmul %x, %w groups (%ends by offs)
      : (tensor<300x64xbf16>, tensor<333x64x8xbf16>, tensor<333xi32>) -> tensor<300x8xbf16>
  func.return %y : tensor<300x8xbf16>
}"""
    inputs = random_inputs(parse_module(text), None, 0)
    inputs["ends"] = torch.tensor([min(300, g // 3 + (97 if g > 100 else 0)) for g in range(333)], dtype=torch.int32)
    check_bits(simulated(text), text, inputs=list(inputs.values()))


def test_a_balanced_grid_of_groups():
    """Nine tiles on two CTAs, and on eight: five rounds of two, two rounds of five."""
    text = """
func.func @f(%x: tensor<3x130x64xbf16>, %w: tensor<3x64x16xbf16>, %counts: tensor<3xi32>) -> tensor<3x130x16xbf16> {
  %y = gemm.grouped_matmul %x, %w groups (%counts by counts) schedule <block = 64x16x64, balanced = true>
      : (tensor<3x130x64xbf16>, tensor<3x64x16xbf16>, tensor<3xi32>) -> tensor<3x130x16xbf16>
  func.return %y : tensor<3x130x16xbf16>
}"""
    inputs = random_inputs(parse_module(text), None, 0)
    inputs["counts"] = torch.tensor([130, 129, 130], dtype=torch.int32)
    for clusters in (2, 8):

        def run(*tensors: torch.Tensor, clusters: int = clusters) -> torch.Tensor:
            return simulate(the_kernel(lower(text).module), tensors, 130, clusters=clusters)

        check_bits(run, text, inputs=list(inputs.values()))


def test_a_number_that_comes_back_in_its_block():
    """Rows 64 to 127 carry the number of row 0, but another one lies between: they belong to nobody."""
    problem = replace(half_problem(128, 16, 64), grouping=Grouping.GROUP_IDS, groups=6)
    text = program_text(problem, Schedule(family=Family.TILES, block_m=64))
    inputs = random_inputs(parse_module(text), None, 0)
    index = [3] * 10 + [5] * 54 + [3] * 64
    inputs["index"] = torch.tensor(index, dtype=torch.int32)
    assert spans(Grouping.GROUP_IDS, index, extent_of(problem))[0].last == 10
    kernel = the_kernel(lower(text).module)

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        result = simulate(kernel, tensors, 128)
        assert not result[10:].any(), "memory that nobody writes is zero"
        return result

    check_bits(run, text, inputs=list(inputs.values()))
