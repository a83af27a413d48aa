# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every command gets: the daemon's client, the screen, and the way to print results."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kmodd.cli.output.screen import Screen

if TYPE_CHECKING:  # the D-Bus library costs more time than all of kmodctl; --help does without it
    from kmodd.client import CallerOptions, Client


@dataclass(slots=True)
class Session:
    """One run of kmodctl."""

    client: "Client"
    screen: Screen
    json: bool
    authorize: Callable[[], None]
    """Call before a request for which polkit may ask a password; starts the agent if required."""

    @staticmethod
    def asking(arguments: Namespace) -> "CallerOptions":
        """Why the command is given, as the daemon takes it."""
        return {"reason": arguments.reason} if arguments.reason else {}

    def document(self, value: object) -> None:
        """Print one JSON document."""
        from json import dumps  # only with --json

        self.screen.stdout.write(dumps(value, indent=2, ensure_ascii=True) + "\n")
        self.screen.stdout.flush()

    def json_line(self, value: object) -> None:
        """Print one JSON document on a separate line, as commands that follow events do."""
        from json import dumps  # only with --json

        self.screen.tell(dumps(value, ensure_ascii=True))
