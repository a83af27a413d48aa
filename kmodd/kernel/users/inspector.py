# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program that examines other users' processes and namespaces, the only one of kmodd with the capabilities for it.

CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH would allow it to write into any process. Without CAP_NET_ADMIN the kernel lists the
interfaces of no other network namespace; with it, any could be changed. So it is a separate process that only the daemon can
reach, it takes orders with process ids and module names only, and the daemon treats its answers as untrusted.

Protocol on descriptor 3 (SOCK_SEQPACKET), JSON: `ready 0` from here, then for each order any number of answers and a last one.

    {"search": true}            users of modules
      {"namespace": {…}, "tables": {…}}      first, one for each other network namespace, with a descriptor of it
      {"namespaces": true}                   those were all; left out where there is none
      {"modules": […], "user": {…}}          one for each user, with the fields of `kmodd.model.User`
      {"end": true, "partial": "…", "crowded": [MODULE, …]}
    {"tables": true}            users of modules that iptables-legacy, ebtables-legacy and their like know of; the same answers
    {"namespaces": [TABLES, …]}     users of modules in these network namespaces, of which the order has descriptors; the same answers,
                                with the number of the namespace as `netns`
    {"consequences": [MODULE, …]}   what goes with these modules when they are removed
      {"modules": [MODULE], "consequence": {…}}   one for each thing, with the fields of `kmodd.model.Consequence`
      {"end": true, "partial": "", "crowded": []}
    {"executables": [PID, …]}   the programs of these processes
      {"pid": PID, "executable": "…"}
      {"end": true, "partial": "", "crowded": []}

It exits on end of file. Orders about tables and namespaces go to two other units. The first kind needs an internet socket, the
second CAP_SYS_ADMIN too, and neither access to processes.

Run as `python3 -I -S /path/of/this/file`: it finds the package by its own path.
"""

import ctypes
import json
import os
import resource
import socket
import sys
from collections.abc import Iterator, Sequence
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
NAMESPACES_MAX = 128
"""Network namespaces of one order."""
_MEMORY = 384 << 20
_PATH_MAX = 1024


def answers(order: Any, root: Path, files: Sequence[int] = ()) -> Iterator[dict[str, Any]]:
    """The answers to one order, the last one included; ValueError for what is none.

    `files` are the descriptors that came with it. An answer with a `file` goes with that descriptor, which is closed then.
    """
    match order:
        case {"search": True}:
            yield from _search(root)
        case {"tables": True}:
            yield from _tables(root)
        case {"namespaces": [*tables]} if len(tables) == len(files):
            yield from _elsewhere(root, files, tables)
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
    from dataclasses import asdict

    from kmodd.kernel.users.search import ProcUsage
    from kmodd.kernel.users.tasks import Budget, faults_noted

    usage = ProcUsage(root, _read_aliases(root))
    budget = Budget()
    namespaces = usage.namespaces(budget)
    with faults_noted(budget):
        for each in namespaces.opened():
            yield {"namespace": asdict(each.place), "tables": each.tables, "file": each.file}
    if namespaces.all:
        yield {"namespaces": True}
    yield from _users(usage.search(budget, namespaces), budget)


def _tables(root: Path) -> Iterator[dict[str, Any]]:
    from itertools import chain

    from kmodd.kernel.users.ebtables import bridge_users, read_bridge_table, tables_in_use
    from kmodd.kernel.users.tasks import Budget, bounded, references
    from kmodd.kernel.users.xtables import legacy_users, read_table

    aliases, budget, loaded = _read_aliases(root), Budget(), references(root)
    found = chain(
        legacy_users(root, loaded, aliases, read_table, budget),
        bridge_users(tables_in_use(loaded), loaded, aliases, read_bridge_table, budget),
    )
    return _users(bounded(found, budget, set()), budget)


def _elsewhere(root: Path, files: Sequence[int], tables: Sequence[Any]) -> Iterator[dict[str, Any]]:
    from kmodd.kernel.users.namespaces import users_elsewhere
    from kmodd.kernel.users.tasks import Budget, bounded

    aliases, budget = _read_aliases(root), Budget()
    return _users(bounded(users_elsewhere(root, files, tables, aliases, budget), budget, set()), budget)


def _users(search: "Iterator[Sighting]", budget: "Budget") -> Iterator[dict[str, Any]]:
    from dataclasses import asdict

    for modules, user in search:
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


def _read_aliases(root: Path) -> "AliasText":
    """The index is root's own and read once: it takes nothing of a search's time."""
    aliases = _aliases(root)
    aliases("")
    return aliases


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
            while True:
                order, files, _, _ = socket.recv_fds(channel, ORDER_MAX, NAMESPACES_MAX)
                if not order:
                    return
                try:
                    for answer in answers(json.loads(order), Path("/"), files):
                        _send(channel, answer)
                finally:
                    for file in files:
                        os.close(file)
        except (BrokenPipeError, ConnectionResetError):
            return  # the daemon does not wait any more


def _send(channel: socket.socket, answer: dict[str, Any]) -> None:
    file = answer.pop("file", None)
    try:
        # Surrogates stand for bytes that are no text; they are escaped, and the daemon does not take them.
        data = json.dumps(answer, separators=(",", ":")).encode()
        if len(data) > ANSWER_MAX:
            return
        if file is None:
            channel.send(data)
        else:
            socket.send_fds(channel, [data], [file])
    finally:
        if file is not None:
            os.close(file)


if __name__ == "__main__":
    main()
