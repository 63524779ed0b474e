"""
The errors that gemmir raises: one tree, each with a stable code.

Every message says what was found, the rule that it breaks and the cheapest fix:

    GMR-I003: w: stride of dimension 0 is 20 bytes
      rule: TMA needs strides that are multiples of 16 bytes
      fix: pad K to 32, or pass w.contiguous()

Codes are `GMR-<letter><number>`: I input, U unsupported, R IR text and IR, S schedule, Y synchronisation,
C compilation, K cache, B bundle, D device. `gemmir.error_codes` is the one table of them.
"""

from __future__ import annotations

from gemmir.error_codes import ERROR_CODES
from gemmir.records import dataclass

CODES: dict[str, str] = {code: entry.title for code, entry in ERROR_CODES.items()}
"""What each code means, in a few words."""


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """A place in IR text. `line` and `column` count from 1; `text` is that whole line."""

    file: str
    line: int
    column: int
    text: str = ""
    length: int = 1


class GemmirError(Exception):
    """
    Base of everything that gemmir raises on purpose.

    `code` is one of `CODES`, `what` says what was found, `rule` what was broken, `fix` the cheapest way out,
    `location` where in the IR text. `exit_code` is what the `gemmir` command returns.
    """

    exit_code = 1

    def __init__(
        self,
        code: str,
        what: str,
        *,
        rule: str | None = None,
        fix: str | None = None,
        location: SourceLocation | None = None,
    ):
        if code not in CODES:
            raise ValueError(f"unknown error code {code}")
        self.code = code
        self.what = what
        self.rule = rule
        self.fix = fix
        self.location = location
        super().__init__(self.render())

    def render(self) -> str:
        """The message as text: `what`, a caret if the place is known, then `rule` and `fix`."""
        lines = [f"{self.code}: {self.what}"]
        if (at := self.location) is not None:
            lines.append(f"  --> {at.file}:{at.line}:{at.column}")
            if at.text:
                number = str(at.line)
                pad = " " * len(number)
                caret = " " * (at.column - 1) + "^" * max(1, at.length)
                lines += [f"{pad} |", f"{number} | {at.text}", f"{pad} | {caret}"]
        if self.rule is not None:
            lines.append(f"  rule: {self.rule}")
        if self.fix is not None:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by fields: the default would call `__init__` with the rendered text alone."""
        return (_rebuild, (type(self), self.code, self.what, self.rule, self.fix, self.location))


def _rebuild(
    kind: type[GemmirError],
    code: str,
    what: str,
    rule: str | None,
    fix: str | None,
    location: SourceLocation | None,
) -> GemmirError:
    return kind(code, what, rule=rule, fix=fix, location=location)


class InputError(GemmirError):
    """An argument of a call is wrong (`GMR-I...`)."""


class UnsupportedError(GemmirError):
    """Legal, but not implemented for this stage, backend or target (`GMR-U...`)."""


class IRError(GemmirError):
    """IR text or IR that is malformed (`GMR-R...`)."""


class ScheduleError(GemmirError):
    """A schedule that breaks a hardware limit; the arithmetic is in `what` (`GMR-S...`)."""


class SyncError(GemmirError):
    """A kernel whose synchronisation cannot be proven (`GMR-Y...`)."""


class CompileError(GemmirError):
    """The CUDA compiler failed or made something unacceptable (`GMR-C...`)."""

    exit_code = 1


class ToolMissingError(CompileError):
    """NVRTC or another tool is not installed (`GMR-C003`, `GMR-C004`)."""

    exit_code = 3


class CacheError(GemmirError):
    """The kernel cache cannot be used (`GMR-K...`); raised only where the user asked for the cache itself."""


class BundleError(GemmirError):
    """A bundle that cannot be read, written or trusted (`GMR-B...`)."""


class DeviceError(GemmirError):
    """No driver, no suitable GPU, or a failed CUDA call (`GMR-D...`)."""

    exit_code = 3


class DeviceLostError(DeviceError):
    """A sticky CUDA error: this process cannot use the device any more (`GMR-D004`, `GMR-D007`, `GMR-D010`)."""


class OutOfMemoryError(DeviceError):
    """
    A device has not enough memory (`GMR-D009`).

    Where torch's allocator has none for a result, it is a `torch.OutOfMemoryError` as well.
    """


class CaptureError(DeviceError):
    """A kernel would have to be loaded while a CUDA graph is being captured (`GMR-D005`)."""


class ForkError(DeviceError):
    """This process was forked off one that had used CUDA (`GMR-D006`)."""
