"""
The one list of passes, and when the IR is verified.

The IR is verified where it comes in and before it is printed; `verify_each` also does so after every pass. A pipeline
is written as for `xdsl-opt`: `gemm-select-blocks{block=128,256,128},gemm-plan-pipeline{stages=4}`.
"""

from __future__ import annotations

from collections.abc import Callable

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass, PassPipeline
from xdsl.utils.exceptions import ArgSpecParseError, DiagnosticException, PassFailedException

from gemmir.errors import GemmirError, IRError
from gemmir.ir_text import make_context, verify_module
from gemmir.universe import GEMMIR_UNIVERSE, PASSES

DEFAULT_PIPELINE = ",".join(PASSES)

AfterPass = Callable[[ModulePass, ModuleOp], None]


class Observer:
    """Is told how a program comes down, and does nothing about it; times are in seconds."""

    def starts(self, passes: tuple[ModulePass, ...], text: str) -> None:
        """These passes will run on this IR."""

    def ran(self, pass_: ModulePass, text: str, seconds: float) -> None:
        """A pass has made this IR."""

    def printed(self, source: str, seconds: float) -> None:
        """The kernel was printed as CUDA source and compared with it; a kernel that no pass proved, was proven."""


def parse_pipeline(spec: str | None) -> tuple[ModulePass, ...]:
    """The passes that `spec` names; `IRError` (GMR-R004) if it does not parse or names an unknown pass or option."""
    try:
        return tuple(PassPipeline.parse_spec(GEMMIR_UNIVERSE.all_passes, spec or DEFAULT_PIPELINE).passes)
    except (ArgSpecParseError, DiagnosticException, ValueError, TypeError) as error:
        message = str(error).strip().splitlines() or ["it does not parse"]
        raise IRError(
            "GMR-R004",
            f"pipeline {(spec or '')[:80]!r}: {message[-1].strip()[:200]}",
            rule="passes separated by commas, options as name{option=value}",
            fix=f"passes: {', '.join(PASSES)}",
        ) from None


def run_passes(
    module: ModuleOp, passes: tuple[ModulePass, ...], after: AfterPass | None = None, verify_each: bool = False
) -> None:
    """Apply `passes` to `module` in place; `after` sees the module after each."""
    ctx = make_context()
    for pass_ in passes:
        _apply(ctx, pass_, module)
        if verify_each:
            verify_module(module)
        if after is not None:
            after(pass_, module)


def _apply(ctx: Context, pass_: ModulePass, module: ModuleOp) -> None:
    try:
        pass_.apply(ctx, module)
    except GemmirError:
        raise
    except (PassFailedException, DiagnosticException) as error:
        raise IRError("GMR-R004", f"{pass_.name}: {str(error).splitlines()[0][:300]}") from error
