"""
The front gate for IR text: cheap limits on untrusted text, checked before any of it is parsed.

A parser that believes every number can be made to fill the memory with one line (`dense<0> : tensor<1000000000xi32>`,
`i99999999999`, ten thousand open brackets), or to take for ever (aliases that double one another, a string without an
end, which xDSL's lexer reads in exponential time). The gate reads the text once, token by token, and refuses such
things. What it lets pass is parsed and verified within 2 seconds and 512 MiB.
"""

from __future__ import annotations

import re

from gemmir.errors import IRError, SourceLocation

MAX_BYTES = 1 << 20
"""xDSL's lexer needs up to 200 bytes of memory for one of comments. A kernel's text has some 30,000."""

MAX_NESTING = 64
MAX_DIGITS = 40
MAX_WORD = 256

MAX_RANK = 5
"""The parser reads a shape such as `4x4xf32` anew at each `x`."""

MAX_TOKENS = 16_000
"""Parsing takes up to 100 microseconds a token: this, not the bytes, bounds the time. No kernel has half."""

MAX_STRING = 4096
MAX_STRINGS = 1 << 16
"""Characters of one string and of all: the parser decodes escapes one by one, and more than once."""

INTEGER_WIDTHS = (1, 4, 8, 16, 32, 64)
MAX_SHOWN_LINE = 240
"""Longer source lines are not repeated in messages."""

_TOKEN = re.compile(
    r"""(?P<skip>[ \t\r\n]+|//[^\n]*)
      | (?P<string>"(?:[^"\\\n\v\f]|\\(?:["nt\\]|[0-9A-Fa-f]{2}))*")
      | (?P<sigil>[%@\#!^][A-Za-z0-9_$.\-]*)
      | (?P<word>[A-Za-z_][A-Za-z0-9_$.]*)
      | (?P<number>[0-9]+)
      | (?P<mark>->|>=|<=|==|\{-\#|\#-\}|.)""",
    re.VERBOSE | re.DOTALL,
)
_INTEGER_TYPE = re.compile(r"(?:^|x)[su]?i([0-9]+)$")
_LONG_SHAPE = re.compile(rf"x(?:[0-9]+x){{{MAX_RANK}}}")
"""Of its shape, a word holds what follows the first number."""

_LONG_NUMBER = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
_DATA = ("dense", "dense_resource", "sparse")
_AFFINE = ("affine_map", "affine_set")
_OPENING = ("(", "[", "{", "<", "{-#")
_CLOSING = (")", "]", "}", ">", "#-}")


def location_at(text: str, position: int, name: str, length: int = 1) -> SourceLocation:
    """The place of a character in `text`; control characters of its line become blanks."""
    position = min(max(position, 0), len(text))
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    line = text[start : len(text) if end < 0 else end]
    shown = printable(line) if len(line) <= MAX_SHOWN_LINE else ""
    column = position - start + 1
    length = max(1, min(length, len(line) - column + 1))
    return SourceLocation(printable(name), text.count("\n", 0, position) + 1, column, shown, length)


def printable(text: str) -> str:
    """`text` with everything that a terminal might obey or hide replaced, character by character."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def check_text(text: str, name: str) -> None:
    """Raise `IRError` (GMR-R001 or GMR-R003) if the text cannot be IR or breaks a limit."""
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        what = "text that is not valid UTF-8"
        raise IRError("GMR-R001", what, fix="save it as UTF-8", location=location_at(text, error.start, name)) from None
    if size > MAX_BYTES:
        raise IRError("GMR-R003", f"{size} bytes of text", rule=f"at most {MAX_BYTES} bytes", fix="split the module")
    if (nul := text.find("\0")) >= 0:
        what = "a NUL character in the text"
        raise IRError("GMR-R001", what, fix="remove it", location=location_at(text, nul, name))
    _Scan(text, name).run()


class _Scan:
    """One pass over the tokens."""

    def __init__(self, text: str, name: str):
        self.text = text
        self.name = name
        self.depth = 0
        self.strings = 0
        """Characters of all strings so far."""

        self.last_sigil = ""
        """The token before, if it was a name with a sigil."""

    def run(self) -> None:
        tokens = (match for match in _TOKEN.finditer(self.text) if match.lastgroup != "skip")
        for count, match in enumerate(tokens, 1):
            kind, token, start = match.lastgroup, match.group(), match.start()
            if count > MAX_TOKENS:
                rule = f"at most {MAX_TOKENS} words, numbers and marks"
                self._refuse(f"more than {MAX_TOKENS} tokens", rule, "split the module", start)
            if kind == "mark":
                self._mark(token, start)
            elif kind == "string":
                self._string(token, start)
            else:
                self._word(token, start)
            self.last_sigil = token if kind == "sigil" else ""

    def _refuse(self, what: str, rule: str, fix: str, start: int, length: int = 1) -> None:
        raise IRError("GMR-R003", what, rule=rule, fix=fix, location=location_at(self.text, start, self.name, length))

    def _mark(self, token: str, start: int) -> None:
        if token == '"':
            place = location_at(self.text, start, self.name)
            rule = 'a string ends on its line; its escapes are \\\\, \\n, \\t, \\" and two hexadecimal digits'
            raise IRError("GMR-R001", "a string without an end", rule=rule, fix='write "..."', location=place)
        if token == "{-#" or (token == "=" and self.last_sigil[:1] in ("!", "#") and self.last_sigil):
            rule = "types and attributes are written out: an alias can stand for a text of any length"
            self._refuse("an alias or a resource", rule, "replace it by what it stands for", start, len(token))
        if token in _OPENING:
            self.depth += 1
        elif token in _CLOSING:
            self.depth = max(0, self.depth - 1)
        if self.depth > MAX_NESTING:
            rule = f"brackets nest at most {MAX_NESTING} deep"
            self._refuse(f"brackets {self.depth} deep", rule, "flatten the module", start)

    def _string(self, token: str, start: int) -> None:
        self.strings += len(token)
        if len(token) > MAX_STRING or self.strings > MAX_STRINGS:
            rule = f"strings have at most {MAX_STRING} characters, and {MAX_STRINGS} together"
            self._refuse(f"a string of {len(token)} characters", rule, "use shorter ones", start, len(token))

    def _word(self, token: str, start: int) -> None:
        if len(token) > MAX_WORD:
            rule = f"words have at most {MAX_WORD} characters"
            self._refuse(f"a word of {len(token)} characters", rule, "use a shorter name", start, len(token))
        if _LONG_SHAPE.match(token) is not None:
            rule = f"shapes have rank at most {MAX_RANK}"
            self._refuse(f"a shape of rank {token.count('x')} or more", rule, "use a smaller shape", start, len(token))
        if _LONG_NUMBER.search(token) is not None:
            rule = f"numbers have at most {MAX_DIGITS} digits"
            self._refuse(f"a number of {len(token)} digits", rule, "write a smaller number", start, len(token))
        if token in _DATA:
            rule = "IR text holds no arrays of data"
            self._refuse(f"'{token}' data", rule, "pass tensors as arguments", start, len(token))
        if token in _AFFINE:
            rule = "IR text holds no affine expressions: they are computed while they are parsed, to any size"
            self._refuse(f"an '{token}'", rule, "leave it out", start, len(token))
        if (width := _INTEGER_TYPE.search(token)) is not None and int(width.group(1)) not in INTEGER_WIDTHS:
            widths = ", ".join(f"i{w}" for w in INTEGER_WIDTHS)
            self._refuse(f"an integer type of {width.group(1)} bits", f"one of {widths}", "use i32", start, len(token))
