# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every command is given: the daemon, the screen, and how to answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kmodd.cli.screen import Screen

if TYPE_CHECKING:  # the D-Bus library costs more time than all of kmodctl; --help does without it
    from kmodd.client import Client


@dataclass(slots=True)
class Session:
    """One run of kmodctl."""

    client: "Client"
    screen: Screen
    json: bool
    authorize: Callable[[], None]
    """To be called before a request that polkit may ask a password for; starts the agent where one is wanted."""

    def document(self, value: object) -> None:
        """Print one JSON document."""
        from json import dumps  # only with --json

        self.screen.stdout.write(dumps(value, indent=2, ensure_ascii=True) + "\n")
        self.screen.stdout.flush()

    def json_line(self, value: object) -> None:
        """Print one JSON document on a line of its own, as commands that follow events do."""
        from json import dumps  # only with --json

        self.screen.tell(dumps(value, ensure_ascii=True))
