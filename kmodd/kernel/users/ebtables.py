# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules of ebtables-legacy in this network namespace, by the modules that they hold.

The structures are those of linux/netfilter_bridge/ebtables.h. The kernel copies a table to getsockopt(2) on any internet socket,
with CAP_NET_ADMIN. No file lists the tables in use, and since Linux 5.15 the kernel makes the table it is queried for in a network
namespace that has none (find_table_lock in net/bridge/netfilter/ebtables.c): an empty one that lets everything pass, whose hooks see
each packet of a bridge there until the namespace or the module goes. So only those are read whose module is held: a table with
rules holds it (do_replace_finish), an empty one does not.
"""

import ctypes
import errno
import socket
import struct
from collections.abc import Callable, Iterator, Mapping

from kmodd.kernel.users.tasks import Budget
from kmodd.kernel.users.xtables import BYTES_MAX, RULES_MAX, LegacyRule, getsockopt, users_of
from kmodd.model import User

PROGRAM = "ebtables-legacy"
_PREFIX, _MODULE = "ebt", "ebtable_"
_TABLES = ("filter", "nat", "broute")
_GET_INFO, _GET_ENTRIES = 128, 129
_INFO = struct.Struct("@32sIII6PIPP")
"""struct ebt_replace: name, valid hooks, entries, bytes of these, chains of the hooks, counters and where they go, where entries go."""
_CHAIN = struct.Struct("@I32sIiI")
"""struct ebt_entries: 0, name, counters before it, policy, entries."""
_ENTRY = struct.Struct("@II2x64s24x3I")
"""struct ebt_entry: bits, inverted bits, protocol, interfaces, addresses, where watchers, target and the next entry begin."""
_STANDARD = "standard"
"""The target of a rule that has no extension as its target."""
_ENTRY_BIT = 1
"""EBT_ENTRY_OR_ENTRIES: set in an entry, and not in a chain."""
_EXTENSION = struct.Struct("@31sBI4x")
"""struct ebt_entry_match and its like: name, revision, bytes of arguments."""

ReadBridgeTable = Callable[[str], tuple[int, bytes]]
"""The kernel's answer about a table of this name: how many rules it has, and its chains with these; OSError."""


def read_bridge_table(name: str) -> tuple[int, bytes]:
    """Query the kernel; OSError without CAP_NET_ADMIN, and for a table that changed meanwhile."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        question = ctypes.create_string_buffer(name.encode(), _INFO.size)
        getsockopt(channel, _GET_INFO, question, _INFO.size)
        _, hooks, count, size, *_ = _INFO.unpack(question.raw)
        if size > BYTES_MAX:
            raise OSError(errno.EFBIG, "a table is too long")
        entries = ctypes.create_string_buffer(size)
        request = _INFO.pack(name.encode(), hooks, count, size, *[0] * 8, ctypes.addressof(entries))
        # The length counts both, though the entries go where the question says.
        getsockopt(channel, _GET_ENTRIES, ctypes.create_string_buffer(request, _INFO.size + size), _INFO.size + size)
        return count, entries.raw


def tables_in_use(loaded: Mapping[str, int]) -> tuple[str, ...]:
    """Those that have rules in some network namespace; `loaded` are the loaded modules, with their references."""
    return tuple(table for table in _TABLES if loaded.get(f"{_MODULE}{table}", 0) > 0)


def tables_elsewhere(loaded: Mapping[str, int], read: ReadBridgeTable) -> tuple[str, ...]:
    """Those that have rules in a network namespace other than this one: each with rules holds the module once."""
    return tuple(table for table in tables_in_use(loaded) if loaded[f"{_MODULE}{table}"] > _count_here(table, read))


def _count_here(table: str, read: ReadBridgeTable) -> int:
    try:
        return int(read(table)[0] > 0)
    except OSError:
        return 0


def bridge_users(
    tables: tuple[str, ...],
    loaded: Mapping[str, int],
    resolve: Callable[[str], tuple[str, ...]],
    read: ReadBridgeTable,
    budget: Budget,
) -> Iterator[tuple[frozenset[str], User]]:
    """As `xtables.legacy_users`, of these tables; chains that a user made hold nothing."""
    for table in tables:
        if not budget.in_time_for_rules():
            return
        try:
            rules = tuple(bridge_rules(table, read(table)[1]))
        except OSError:
            budget.met(f"the rules of {PROGRAM} cannot be read")
            continue
        if len(rules) >= RULES_MAX:
            budget.met(f"{PROGRAM} has more rules than are examined")
        yield from users_of(PROGRAM, _PREFIX, table, rules, loaded, resolve)


def bridge_rules(table: str, entries: bytes) -> Iterator[LegacyRule]:
    """The rules in the kernel's answer; OSError (EBADMSG) where they are not what they have to be."""
    chain, number, position, count = "", 0, 0, 0
    while position < len(entries):
        if position + _CHAIN.size > len(entries):
            raise _cut_off()
        bits, name, *_ = _CHAIN.unpack_from(entries, position)
        if not bits & _ENTRY_BIT:
            chain, number = _text(name), 0
            position += _CHAIN.size
            continue
        if position + _ENTRY.size > len(entries):
            raise _cut_off()
        watchers, target, following = _ENTRY.unpack_from(entries, position)[-3:]
        if not _ENTRY.size <= watchers <= target < following or position + following > len(entries):
            raise _cut_off()
        number += 1
        names = tuple(_extensions(entries[position + _ENTRY.size : position + following]))
        yield LegacyRule(PROGRAM, table, chain, number, names)
        count += 1
        if count == RULES_MAX:
            return
        position += following


def _extensions(data: bytes) -> Iterator[str]:
    """Names of matches, watchers and the target, which are laid out alike."""
    position = 0
    while position + _EXTENSION.size <= len(data):
        name, _, size = _EXTENSION.unpack_from(data, position)
        if (each := _text(name)) != _STANDARD:
            yield each
        position += _EXTENSION.size + size


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode(errors="replace")


def _cut_off() -> OSError:
    return OSError(errno.EBADMSG, "a table is cut off")
