# SPDX-License-Identifier: LGPL-2.1-or-later
"""Properties of the output: stream, width, colour, character set. A parameter of every command. Also the pager."""

import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import field
from typing import TextIO

from kmodd.fast_dataclass import dataclass

DEFAULT_PAGER = "less -FRSX"


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The few characters beyond ASCII that are used, with what stands for them where the locale has none."""

    arrow: str = "→"
    yes: str = "✓"
    no: str = "✗"
    undone: str = "↶"
    same: str = "="
    full: str = "●"
    empty: str = "○"
    dash: str = "—"
    ellipsis: str = "…"
    branch: str = "├─ "
    last: str = "└─ "
    trunk: str = "│  "
    warning: str = "!"


ASCII = Glyphs("->", "+", "x", "<", "=", "*", "o", "-", "...", "|- ", "`- ", "|  ", "!")


@dataclass(frozen=True, slots=True)
class Colors:
    """Colours, or none. Each method takes clean text."""

    on: bool

    def _sgr(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.on and text else text

    def bold(self, text: str) -> str:
        """What the eye should find first."""
        return self._sgr("1", text)

    def dim(self, text: str) -> str:
        """What may be skipped."""
        return self._sgr("2", text)

    def good(self, text: str) -> str:
        """As it should be."""
        return self._sgr("32", text)

    def warn(self, text: str) -> str:
        """Worth a look."""
        return self._sgr("33", text)

    def bad(self, text: str) -> str:
        """Wrong."""
        return self._sgr("1;31", text)

    def name(self, text: str) -> str:
        """A command or name to copy."""
        return self._sgr("36", text)


@dataclass(slots=True)
class Screen:
    """A command's three streams and the terminal behind them."""

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO
    environment: Mapping[str, str]
    width: int
    height: int
    use_pager: bool = True
    paint: Colors = field(init=False)
    error_paint: Colors = field(init=False)
    glyphs: Glyphs = field(init=False)

    def __post_init__(self) -> None:
        self.paint = Colors(self._colour(self.stdout))
        self.error_paint = Colors(self._colour(self.stderr))
        self.glyphs = Glyphs() if _has_unicode(self.stdout) and _has_unicode(self.stderr) else ASCII

    @classmethod
    def of_process(cls, stdin: TextIO, stdout: TextIO, stderr: TextIO, environment: Mapping[str, str]) -> "Screen":
        """The terminal of this process; 80 columns where the size is unknown, no limit where there is no terminal."""
        columns, lines = shutil.get_terminal_size((80, 24))
        has_width = "COLUMNS" in environment or stdout.isatty()
        return cls(stdin, stdout, stderr, environment, max(columns, 40) if has_width else 0, lines)

    def now(self) -> int:
        """Microseconds since the epoch."""
        return time.time_ns() // 1_000

    def fits(self, used: int) -> int | None:
        """Columns left after these; None when there is no limit."""
        return max(self.width - used, 8) if self.width else None

    def show(self, lines: list[str]) -> None:
        """Print what a command found; longer than the terminal it goes through a pager."""
        text = "\n".join(lines) + "\n" if lines else ""
        if (
            self.use_pager
            and self.stdout.isatty()
            and self.stdin.isatty()
            and len(lines) >= self.height
            and page(text, self.environment)
        ):
            return
        self.stdout.write(text)
        self.stdout.flush()

    def tell(self, line: str) -> None:
        """Print a line immediately, as commands that follow events do."""
        self.stdout.write(line + "\n")
        self.stdout.flush()

    def complain(self, lines: list[str]) -> None:
        """Print to standard error."""
        self.stderr.write("\n".join(lines) + "\n")
        self.stderr.flush()

    def _colour(self, stream: TextIO) -> bool:
        # https://no-color.org: set and not empty.
        plain = self.environment.get("NO_COLOR") or self.environment.get("TERM", "dumb") == "dumb"
        return stream.isatty() and not plain


def _has_unicode(stream: TextIO) -> bool:
    try:
        "→✓●├—…↶".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def discard(stream: TextIO) -> None:
    """Point a stream whose reader went away at nothing, so that the interpreter's last flush does not fail either."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def page(text: str, environment: Mapping[str, str]) -> bool:
    """Show the text in `$KMODD_PAGER`, `$PAGER` or less; False when there is none (empty or `cat` counts as none)."""
    import shlex  # only a terminal needs them
    import subprocess

    chosen = environment.get("KMODD_PAGER", environment.get("PAGER", DEFAULT_PAGER))
    try:
        command = shlex.split(chosen)
    except ValueError:  # an unbalanced quote
        return False
    if not command or command == ["cat"]:
        return False
    variables = {"LESS": "FRSX", **environment}
    if "SUDO_UID" in environment or "PKEXEC_UID" in environment:
        # A user who may run kmodctl with more privileges must not get a shell from less (less(1), SECURITY).
        variables["LESSSECURE"] = "1"
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=variables)
    except OSError:
        return False
    with suppress(BrokenPipeError):
        process.communicate(text.encode(errors="replace"))
    while True:
        try:
            return process.wait() != 127
        except KeyboardInterrupt:  # less handles ^C itself
            continue
