# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program that examines other users' processes and namespaces, the only one of kmodd with the capabilities for it.

CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH would allow it to write into any process. Without CAP_NET_ADMIN the kernel lists the
interfaces of no other network namespace; with it, any could be changed. So it is a separate process that only the daemon can
reach, it takes four kinds of orders with process ids and module names only, and the daemon treats its answers as untrusted.

Protocol on descriptor 3 (SOCK_SEQPACKET), JSON: `ready 0` from here, then for each order any number of answers and a last one.

    {"search": true}            users of modules
      {"modules": […], "user": {…}}          one for each user, with the fields of `kmodd.model.User`
      {"end": true, "partial": "…", "crowded": [MODULE, …]}
    {"tables": true}            users of modules that iptables-legacy and its like know of; the same answers
    {"consequences": [MODULE, …]}   what goes with these modules when they are removed
      {"modules": [MODULE], "consequence": {…}}   one for each thing, with the fields of `kmodd.model.Consequence`
      {"end": true, "partial": "", "crowded": []}
    {"executables": [PID, …]}   the programs of these processes
      {"pid": PID, "executable": "…"}
      {"end": true, "partial": "", "crowded": []}

It exits on end of file. Orders about tables go to another unit: they need an internet socket, and no access to processes.

Run as `python3 -I -S /path/of/this/file`: it finds the package by its own path.
"""

import ctypes
import json
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kmodd.kernel.modules.alias_text import AliasText
    from kmodd.kernel.users.tasks import Budget, Sighting

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from kmodd.kernel.files import readlink
from kmodd.kernel.worker.worker import READY, SOCKET
from kmodd.text import shown

ORDER_MAX = 128 << 10
ANSWER_MAX = 32 << 10
"""Bytes of one answer; what does not fit is left out."""
EXECUTABLES_MAX = 64
CONSEQUENCES_MAX = 2048
"""Modules of one order: as many as a plan has steps. Their names fit into ORDER_MAX."""
CROWDED_MAX = 64
_MEMORY = 384 << 20
_PATH_MAX = 1024


def answers(order: Any, root: Path) -> Iterator[dict[str, Any]]:
    """The answers to one order, the last one included; ValueError for what is none."""
    match order:
        case {"search": True}:
            yield from _search(root)
        case {"tables": True}:
            yield from _tables(root)
        case {"consequences": [*names]}:
            yield from _consequences(root, names[:CONSEQUENCES_MAX])
        case {"executables": [*pids]}:
            for pid in pids[:EXECUTABLES_MAX]:
                if type(pid) is int and pid > 0:
                    yield {"pid": pid, "executable": shown(readlink(root / f"proc/{pid}/exe"), _PATH_MAX)}
            yield {"end": True, "partial": "", "crowded": []}
        case _:
            raise ValueError("no such order")


def _search(root: Path) -> Iterator[dict[str, Any]]:
    # Imported here: who only asks for an executable need not wait for it.
    from kmodd.kernel.users.usage import ProcUsage

    return _users(root, lambda aliases, budget: ProcUsage(root, aliases).search(budget))


def _tables(root: Path) -> Iterator[dict[str, Any]]:
    from kmodd.kernel.users.tasks import bounded, references
    from kmodd.kernel.users.xtables import legacy_users, read_table

    def search(aliases: "AliasText", budget: "Budget") -> "Iterator[Sighting]":
        return bounded(legacy_users(root, references(root), aliases, read_table, budget), budget, set())

    return _users(root, search)


def _users(root: Path, search: "Callable[[AliasText, Budget], Iterator[Sighting]]") -> Iterator[dict[str, Any]]:
    from dataclasses import asdict

    from kmodd.kernel.users.tasks import Budget

    aliases = _aliases(root)
    aliases("")  # The index is root's own and read once: it takes nothing of a search's time.
    budget = Budget()
    for modules, user in search(aliases, budget):
        yield {"modules": sorted(modules), "user": asdict(user)}
    yield {"end": True, "partial": budget.partial, "crowded": list(budget.crowded)[:CROWDED_MAX]}


def _consequences(root: Path, names: list[Any]) -> Iterator[dict[str, Any]]:
    from dataclasses import asdict

    from kmodd.kernel.users.consequences import LIMITS, Consequences
    from kmodd.kernel.users.tasks import Budget
    from kmodd.names import is_module_name

    modules = [name for name in names if isinstance(name, str) and is_module_name(name)]
    for module, row in Consequences(root, modules, _aliases(root), Budget(LIMITS)).search():
        yield {"modules": [module], "consequence": asdict(row)}
    yield {"end": True, "partial": "", "crowded": []}


@cache
def _aliases(root: Path) -> "AliasText":
    """Read for the first order that needs it, and again when depmod has changed it."""
    from kmodd.kernel.modules.alias_text import AliasText

    return AliasText(root, os.uname().release)


def main() -> None:
    """Serve orders until the daemon has no more."""
    # For where nothing else limits this process.
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(15, ctypes.c_char_p(b"kmodd-inspector"), *[ctypes.c_ulong(0)] * 3)  # PR_SET_NAME
    with socket.socket(fileno=SOCKET) as channel:
        try:
            channel.send(READY)
            while order := channel.recv(ORDER_MAX):
                for answer in answers(json.loads(order), Path("/")):
                    # Surrogates stand for bytes that are no text; they are escaped, and the daemon does not take them.
                    data = json.dumps(answer, separators=(",", ":")).encode()
                    if len(data) <= ANSWER_MAX:
                        channel.send(data)
        except (BrokenPipeError, ConnectionResetError):
            return  # the daemon does not wait any more


if __name__ == "__main__":
    main()
