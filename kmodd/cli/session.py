# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every command gets: the daemon's client, the screen, and the way to print results.

Also whether a change would cut the caller's own ssh session, to ask before.
"""

import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kmodd.cli.output.screen import Screen
from kmodd.cli.output.text import clean
from kmodd.errors import Conflict

if TYPE_CHECKING:  # the D-Bus library costs more time than all of kmodctl; --help does without it
    from kmodd.client import CallerOptions, Client, Operation


_VARIABLE = "SSH_CONNECTION"
_ENVIRONMENT_MAX = 1 << 20
_PARENTS_MAX = 32


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


def is_remote_terminal(session: Session) -> bool:
    """There is a person at a terminal, and the session came over the network."""
    screen = session.screen
    return screen.stdin.isatty() and screen.stderr.isatty() and bool(ssh_address(screen.environment))


async def confirm_disconnect(
    session: Session, operations: Sequence["Operation"], options: Mapping[str, object]
) -> None:
    """Ask once where these operations take away the interface that this session runs over; Conflict unless it is confirmed."""
    if not operations or not is_remote_terminal(session):
        return
    local = ssh_address(session.screen.environment)
    steps = await session.client.data("Plan", operations, options=options)
    if not any(_cuts(step, local) for step in steps):
        return
    screen = session.screen
    screen.stderr.write(f"This session runs over {clean(local)}, which goes with it. Disconnect it? [y/N] ")
    screen.stderr.flush()
    if screen.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Conflict("the end of this session was not confirmed, so nothing was changed")


def ssh_address(environment: Mapping[str, str], proc: Path = Path("/proc"), process: int | None = None) -> str:
    """This machine's address in the ssh connection of the session; empty where there is none.

    sudo does not pass SSH_CONNECTION on (env_reset in sudoers(5)), so the processes above are looked at too.
    """
    for connection in (environment.get(_VARIABLE, ""), *_of_parents(proc, os.getpid() if process is None else process)):
        words = connection.split()
        if len(words) == 4:  # the client's address and port, ours and our port (ssh(1))
            return words[2]
    return ""


def _of_parents(proc: Path, process: int) -> Iterator[str]:
    for _ in range(_PARENTS_MAX):
        try:
            # The name of a process, in parentheses, may hold anything.
            process = int((proc / str(process) / "stat").read_bytes().rpartition(b")")[2].split()[1])
            if process <= 1:
                return
            with (proc / str(process) / "environ").open("rb") as file:
                variables = file.read(_ENVIRONMENT_MAX).split(b"\0")
        except (OSError, ValueError, IndexError):
            continue  # another user's: the one above may be ours again
        prefix = f"{_VARIABLE}=".encode()
        yield from (os.fsdecode(each.removeprefix(prefix)) for each in variables if each.startswith(prefix))


def _cuts(step: Mapping[str, object], local: str) -> bool:
    """A row of `Plan` takes the address away; link-local addresses are distinguished by their interface."""
    from ipaddress import ip_address, ip_interface  # only where it is needed

    name, _, zone = local.partition("%")
    if zone:
        return zone in _texts(step, "interfaces")
    try:
        wanted = ip_address(name)
        return any(ip_interface(each).ip == wanted for each in _texts(step, "addresses"))
    except ValueError:
        return True  # not comparable: better to ask than to lose the session


def _texts(step: Mapping[str, object], key: str) -> list[str]:
    value = step.get(key, [])
    return [str(each) for each in value] if isinstance(value, list) else []
