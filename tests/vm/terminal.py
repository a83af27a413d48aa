"""A person's terminal, connected to a shell in the machine."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.machine import Machine

# Ctrl-], as telnet has it: for a shell that hangs in the kernel.
ESCAPE = b"\x1d"


def attach(machine: Machine, *, user: str = "root") -> int:
    """Run a login shell until it ends, or Ctrl-] is typed; its exit code."""
    terminal = sys.stdin.fileno()
    size = os.get_terminal_size(terminal)
    environment = {"TERM": os.environ.get("TERM", "linux")}
    argv = ["login", "-p", "-f", user]
    shell = machine.start(argv, env=environment, window=(size.lines, size.columns), on_output=_show)

    def resized(*_: object) -> None:
        now = os.get_terminal_size(terminal)
        shell.resize(now.lines, now.columns)

    with _raw(terminal):
        before = signal.signal(signal.SIGWINCH, resized)
        try:
            while shell.code is None:
                readable, _, _ = select.select([terminal], [], [], 0.1)
                if not readable:
                    machine.check_alive()
                    continue
                typed = os.read(terminal, 4096)
                if ESCAPE in typed or not typed:
                    return 0
                shell.write(typed)
        finally:
            signal.signal(signal.SIGWINCH, before)
    return shell.code


@contextlib.contextmanager
def _raw(terminal: int) -> Iterator[None]:
    before = termios.tcgetattr(terminal)
    tty.setraw(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _show(_: str, data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
