# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make demo`: from nothing to the tour, in a virtual machine that is thrown away afterwards.

In a terminal the machine stays until Enter is pressed, and its dashboard with it.
"""

import argparse
import contextlib
import shutil
import signal
import sys
import time

from tests.demo.scenes import TOUR, Line
from tests.vm import gateway, host
from tests.vm.machine import Machine
from tests.vm.progress import say


class Stage:
    """Types lines into the machine and shows what they print."""

    def __init__(self, machine: Machine, *, colour: bool) -> None:
        self._machine = machine
        self._colour = colour
        self._width = min(shutil.get_terminal_size((100, 40)).columns, 120)
        self.surprises: list[str] = []

    def paint(self, style: str, text: str) -> str:
        """The text in a style, where there are colours."""
        return f"\x1b[{style}m{text}\x1b[0m" if self._colour else text

    def headline(self, number: int, title: str) -> None:
        """Announce a scene."""
        print(f"\n{self.paint('1;36', f'── {number}. {title} ')}\n")

    def play(self, line: Line) -> None:
        """Type one line and print all it says."""
        sign = "#" if line.user == "root" else "$"
        print(self.paint("1", f"{line.user}@kmodd-vm{sign} ") + line.text, flush=True)
        # A terminal where we have one, so that colours and widths are those a person gets.
        window = (40, self._width) if self._colour else None
        environment = {
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "COLUMNS": str(self._width),
            "PAGER": "cat",
            "SYSTEMD_PAGER": "cat",
        }
        command = self._machine.start(line.text, user=line.user, env=environment, window=window)
        command.end_input()
        result = command.wait(60)
        sys.stdout.write((result.stdout + result.stderr).replace("\r\n", "\n"))
        if result.code != line.code:
            self.surprises.append(f"{line.text!r} ended with {result.code}, not {line.code}")
        elif line.code:
            print(self.paint("2", f"(exit code {result.code})"))
        print(flush=True)


def main() -> int:
    """0 when every command of the tour ended as it should."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--colour", choices=["auto", "always", "never"], default="auto")
    parser.add_argument("--stay", action="store_true", help="keep the machine until interrupted, in no terminal either")
    arguments = parser.parse_args()
    colour = arguments.colour
    begin = time.monotonic()
    try:
        host.install_missing()
        machine, address = gateway.start()
    except host.HostError as error:
        print(error, file=sys.stderr)
        return 1
    with machine:
        stage = Stage(machine, colour=colour == "always" or (colour == "auto" and sys.stdout.isatty()))
        say(f"{machine.image.suite.title}, Linux {machine.check('uname -r').strip()}, kmodd running as a service")
        for number, scene in enumerate(TOUR, 1):
            for command in scene.setup:
                machine.run(command, check=True)
            stage.headline(number, scene.title)
            for line in scene.lines:
                stage.play(line)
        for surprise in stage.surprises:
            print(f"demo: {surprise}", file=sys.stderr)
        print(f"The tour took {time.monotonic() - begin:.0f} s. `make shell` takes you into such a machine.\n")
        print(f"Its dashboard: {stage.paint('1', address.url)}\nIts token:     {address.token}", flush=True)
        _stay(always=arguments.stay)
    return 1 if stage.surprises else 0


def _stay(*, always: bool) -> None:
    """Keep the machine until a person at a terminal presses Enter; without one, until interrupted or not at all."""
    if not always and not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("Both are gone now; in a terminal they stay until Enter is pressed.")
        return
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        if always:
            print("Interrupt to end the machine.", flush=True)
            signal.pause()
        input("Press Enter to end the machine. ")


if __name__ == "__main__":
    sys.exit(main())
