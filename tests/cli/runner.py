# SPDX-License-Identifier: LGPL-2.1-or-later
"""Running kmodctl in tests."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any, Protocol, TextIO

import pytest

from kmodd.cli.main import main
from kmodd.cli.output.screen import Screen

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Ended:
    """How a run of kmodctl ended."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


@dataclass
class Runner:
    """Calls main()."""

    address: str
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> Ended:
        self.capsys.readouterr()
        self.monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        try:
            status = main(arguments, {"KMODD_BUS_ADDRESS": self.address, "TERM": "xterm", **environment})
        except SystemExit as leaving:  # argparse
            status = int(leaving.code or 0)
        captured = self.capsys.readouterr()
        return Ended(status, captured.out, captured.err)


class Program(Protocol):
    """Starts kmodctl as a process."""

    def __call__(self, *arguments: str) -> Popen[str]: ...


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def screen(width: int = 0, *, colour: bool = False, encoding: str = "utf-8", **environment: str) -> Screen:
    """A screen to render on; a width makes it a terminal."""
    stream: TextIO = Terminal()
    if not colour:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Screen(io.StringIO(), stream, stream, {"TERM": "xterm", **environment}, width, 24)


def assert_golden(name: str, lines: list[str]) -> None:
    """Compare with `golden/NAME`; to accept a change on purpose, write `golden/NAME.new` over it."""
    text = "\n".join(lines) + "\n"
    file = GOLDEN / name
    wanted = file.read_text(encoding="utf-8") if file.exists() else ""
    if text != wanted:
        file.with_name(name + ".new").write_text(text, encoding="utf-8")
    assert text == wanted
