"""What machine code may be refused for: found in the code of kernels that are so, and not in one that is not."""

from functools import cache

import pytest

from gemmir.backends.cuda.code_conditions import CONDITIONS, check_conditions
from gemmir.backends.cuda.nvrtc import compile_cubin
from gemmir.backends.cuda.sass import disassemble
from gemmir.errors import CompileError
from tests.backends.cuda.test_compiler_log import SOURCES


@cache
def facts(name: str) -> tuple[str, str]:
    """The compiler's log and the disassembly of a small kernel."""
    compiled = compile_cubin(SOURCES[name])
    return compiled.log, disassemble(compiled.cubin)


@pytest.mark.parametrize(
    ("kernel", "holding"),
    [
        ("clean", set[str]()),
        ("shared", {"no-wgmma"}),
        ("stack", {"no-wgmma", "local-memory"}),
        ("spill", {"no-wgmma", "local-memory", "spill"}),
    ],
)
@pytest.mark.parametrize("asked", [*((name,) for name in CONDITIONS), tuple(CONDITIONS)])
def test_each_condition_is_found_where_it_holds(kernel: str, holding: set[str], asked: tuple[str, ...]):
    if not holding & set(asked):
        check_conditions(asked, *facts(kernel))
        return
    with pytest.raises(CompileError) as error:
        check_conditions(asked, *facts(kernel))
    assert error.value.code == "GMR-C002"
    assert {name for name in CONDITIONS if f"{name}: " in error.value.what} == holding & set(asked)
    assert error.value.fix


def test_instructions_count_where_the_log_says_nothing():
    log, _ = facts("clean")
    _, sass = facts("stack")
    with pytest.raises(CompileError, match=r"local-memory: [0-9]+ LDL, [0-9]+ STL\n"):
        check_conditions(["local-memory"], log, sass)
