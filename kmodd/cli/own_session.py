# SPDX-License-Identifier: LGPL-2.1-or-later
"""Recognizes the interface that carries kmodctl's own ssh session, to ask before it is removed."""

import os
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_interface
from pathlib import Path

from kmodd.cli.output.text import clean
from kmodd.cli.session import Session
from kmodd.client import Operation
from kmodd.errors import Conflict

_VARIABLE = "SSH_CONNECTION"
_ENVIRONMENT_MAX = 1 << 20
_PARENTS_MAX = 32


def may_ask(session: Session) -> bool:
    """There is a person at a terminal, and the session came over the network."""
    screen = session.screen
    return screen.stdin.isatty() and screen.stderr.isatty() and bool(address(screen.environment))


async def confirm(session: Session, operations: Sequence[Operation], options: Mapping[str, object]) -> None:
    """Ask once where these operations take away the interface that this session runs over; Conflict unless it is confirmed."""
    if not operations or not may_ask(session):
        return
    local = address(session.screen.environment)
    steps = await session.client.data("Plan", operations, options=options)
    if not any(_cuts(step, local) for step in steps):
        return
    screen = session.screen
    screen.stderr.write(f"This session runs over {clean(local)}, which goes with it. Disconnect it? [y/N] ")
    screen.stderr.flush()
    if screen.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Conflict("the end of this session was not confirmed, so nothing was changed")


def address(environment: Mapping[str, str], proc: Path = Path("/proc"), process: int | None = None) -> str:
    """This machine's address in the ssh connection of the session; empty where there is none.

    sudo does not pass SSH_CONNECTION on (env_reset in sudoers(5)), so the processes above are looked at too.
    """
    for given in (environment.get(_VARIABLE, ""), *_of_parents(proc, os.getpid() if process is None else process)):
        words = given.split()
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
