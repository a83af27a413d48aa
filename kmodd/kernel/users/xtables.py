# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules of iptables-legacy, ip6tables-legacy and arptables-legacy in this network namespace, by the modules that they hold.

The structures are those of linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h, netfilter_arp/arp_tables.h and
netfilter/x_tables.h. The kernel copies a table to getsockopt(2) on any socket of the family, with CAP_NET_ADMIN. Queried for a
table that is not in use it makes one, so only those are read that /proc/net/ip_tables_names and its like list.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from kmodd.fast_dataclass import dataclass
from kmodd.kernel.files import value_if_there
from kmodd.kernel.users.extensions import further_aliases, modules_of_extension, referred_sets
from kmodd.kernel.users.tasks import Budget
from kmodd.model import Remedy, User
from kmodd.names import canonical
from kmodd.text import shown

_EXTENSION_MAX = 29
_GET_ENTRIES = struct.Struct("@32sI0Q")
"""struct ipt_get_entries, up to the entries."""
_EXTENSION = struct.Struct(f"@H{_EXTENSION_MAX}sB")
"""struct xt_entry_match and xt_entry_target: size, name, revision."""
_OFFSETS = struct.Struct("@HH")
_ERROR = "ERROR"
"""The target of the entry in front of a chain that a user made; the chain's name follows it."""
BYTES_MAX = 4 << 20
"""Bytes of one table."""
RULES_MAX = 8192
_SETS_MAX = 32
"""Sets that one rule names."""
TABLES_MAX = 16
"""Tables of one program that are read."""
_ARP_HOOKS = ("INPUT", "OUTPUT", "FORWARD")
_HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the three programs, and how the kernel lays out its tables."""

    program: str
    names: str
    """The file in /proc/net that lists the tables in use."""
    family: int
    level: int
    option: int
    """The option that asks about a table; the next one asks for its entries."""
    offsets: int
    """Where an entry says where its target and the next entry begin."""
    matches: int
    """Where its matches begin."""
    hooks: tuple[str, ...]
    prefix: str
    """Modules of its extensions, beside `xt_`."""
    netfilter: int
    """The family's number of netfilter (NFPROTO_IPV4 and its like)."""

    @property
    def info(self) -> struct.Struct:
        """struct ipt_getinfo: name, valid hooks, where the chain of each begins and ends, entries, bytes."""
        return struct.Struct(f"@32sI{len(self.hooks)}I{len(self.hooks)}III")


_SOL_IPV6 = 41
KINDS = (
    Kind("iptables-legacy", "ip_tables_names", socket.AF_INET, 0, 64, 88, 112, _HOOKS, "ipt", 2),
    Kind("ip6tables-legacy", "ip6_tables_names", socket.AF_INET6, _SOL_IPV6, 64, 140, 168, _HOOKS, "ip6t", 10),
    Kind("arptables-legacy", "arp_tables_names", socket.AF_INET, 0, 96, 164, 192, _ARP_HOOKS, "arpt", 3),
)

ReadTable = Callable[[Kind, str], tuple[bytes, bytes]]
"""The kernel's answers about a table of this name: what it is, and its entries; OSError."""


@dataclass(frozen=True, slots=True)
class LegacyRule:
    """A rule, as its program numbers it."""

    program: str
    table: str
    chain: str
    number: int
    """0 for the head of a chain that a user made."""
    extensions: tuple[str, ...] = ()
    """Names of its matches and of its target, where they are extensions."""
    aliases: tuple[str, ...] = ()
    """Of the modules that these take besides their own."""
    sets: tuple[int, ...] = ()
    """The sets of ipset that it names, by their indices."""


def read_table(kind: Kind, name: str) -> tuple[bytes, bytes]:
    """Ask the kernel; OSError without CAP_NET_ADMIN, and for a table that changed meanwhile."""
    with socket.socket(kind.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        info = _query(channel, kind.level, kind.option, name.encode().ljust(kind.info.size, b"\0"))
        size = kind.info.unpack(info)[-1]
        if size > BYTES_MAX:
            raise OSError(errno.EFBIG, "a table is too long")
        question = _GET_ENTRIES.pack(name.encode(), size)
        return info, _query(channel, kind.level, kind.option + 1, question + bytes(size))[len(question) :]


_LIBC = ctypes.CDLL(None, use_errno=True)


def getsockopt(
    channel: socket.socket, option: int, question: ctypes.Array[ctypes.c_char], size: int, level: int = 0
) -> int:
    """getsockopt(2) with a question in the buffer, which the module `socket` has no way to pass; the size of the answer."""
    length = ctypes.c_uint32(size)
    if _LIBC.getsockopt(channel.fileno(), level, option, question, ctypes.byref(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return length.value


def _query(channel: socket.socket, level: int, option: int, question: bytes) -> bytes:
    buffer = ctypes.create_string_buffer(question, len(question))
    length = getsockopt(channel, option, buffer, len(question), level)
    return buffer.raw[:length]


def legacy_users(
    root: Path,
    loaded: Collection[str],
    resolve: Callable[[str], tuple[str, ...]],
    read: ReadTable,
    budget: Budget,
    names: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[tuple[frozenset[str], User]]:
    """Rules, of each chain the last one first: the others keep their numbers when it is deleted. Then the tables with something in
    them, each of which holds its own module (__do_replace in net/ipv4/netfilter/ip_tables.c), and the chains that users made.

    `loaded` are the modules that are looked for, `resolve` answers the modules with an alias. `names` are the tables in use by the
    file that lists them, where that cannot be read.
    """
    for kind in KINDS:
        # Built in, it has rules whose extensions may be modules.
        try:
            tables = (
                (value_if_there(root / "proc/net" / kind.names) or "").split() if names is None else names[kind.names]
            )
        except OSError:
            budget.met(f"the rules of {kind.program} cannot be read")
            continue
        for table in tables[:TABLES_MAX]:
            try:
                rules = tuple(rules_of(kind, table, *read(kind, table)))
            except OSError:
                budget.met(f"the rules of {kind.program} cannot be read")
                continue
            if len(rules) >= RULES_MAX:
                budget.met(f"{kind.program} has more rules than are examined")
            yield from users_of(kind.program, kind.prefix, table, rules, loaded, resolve)
            if not budget.in_time_for_rules():
                return


def users_of(
    program: str,
    prefix: str,
    table: str,
    rules: Sequence[LegacyRule],
    loaded: Collection[str],
    resolve: Callable[[str], tuple[str, ...]],
) -> Iterator[tuple[frozenset[str], User]]:
    """What `legacy_users` answers, of one table."""
    known: dict[str, frozenset[str]] = {}
    for rule in reversed(rules):
        for name in rule.extensions:
            if name not in known:
                known[name] = _modules(prefix, name, loaded, resolve)
        further = (module for alias in rule.aliases for module in resolve(alias) if module in loaded)
        if modules := frozenset(further).union(*(known[name] for name in rule.extensions)):
            yield modules, _user(rule)
    own = frozenset({canonical(f"{prefix}able_{table}")} & set(loaded))
    if rules and own:
        yield from ((own, user) for user in _contents(program, table, rules))


def rules_of(kind: Kind, table: str, info: bytes, entries: bytes) -> Iterator[LegacyRule]:
    """The rules in the kernel's answers; OSError (EBADMSG) where they are not what they have to be."""
    if len(info) != kind.info.size:
        raise OSError(errno.EBADMSG, "a table is cut off")
    valid, *places = kind.info.unpack(info)[1:-2]
    begins = {places[hook]: hook for hook in range(len(kind.hooks)) if valid >> hook & 1}
    ends = {places[len(kind.hooks) + hook] for hook in begins.values()}
    chain, number, position, count = "", 0, 0, 0
    while position < len(entries):
        if position + kind.matches > len(entries):
            raise OSError(errno.EBADMSG, "a table is cut off")
        target, following = _OFFSETS.unpack_from(entries, position + kind.offsets)
        if not kind.matches <= target < following or position + following > len(entries):
            raise OSError(errno.EBADMSG, "a table is cut off")
        extensions = list(_extensions(entries[position + kind.matches : position + target]))
        extensions += list(_extensions(entries[position + target : position + following]))[:1]
        names = [name for name, _ in extensions]
        if position in begins:
            chain, number = kind.hooks[begins[position]], 0
        if names[-1:] == [_ERROR]:
            chain, number = _text(entries[position + target + _EXTENSION.size : position + following]), 0
            # The last entry of all is the end of the table.
            if position + following < len(entries):
                yield LegacyRule(kind.program, table, chain, 0)
        else:
            number += 1
            # The last entry of a chain of the kernel's own is its policy.
            if position not in ends:
                further = [alias for name, data in extensions for alias in further_aliases(name, kind.netfilter, data)]
                sets = [index for name, data in extensions for index in referred_sets(name, data)]
                yield LegacyRule(
                    *(kind.program, table, chain, number, tuple(filter(None, names))),
                    aliases=tuple(further),
                    sets=tuple(sets),
                )
                count += 1
                if count == RULES_MAX:
                    return
        position += following


def _extensions(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and arguments of each."""
    position = 0
    while position + _EXTENSION.size <= len(data):
        size, name, _ = _EXTENSION.unpack_from(data, position)
        if size < _EXTENSION.size:
            raise OSError(errno.EBADMSG, "a table is cut off")
        yield _text(name), data[position + _EXTENSION.size : position + size]
        position += size


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode(errors="replace")


def _modules(
    prefix: str, extension: str, loaded: Collection[str], resolve: Callable[[str], tuple[str, ...]]
) -> frozenset[str]:
    def loaded_of(alias: str) -> frozenset[str]:
        return frozenset(name for name in (canonical(alias), *resolve(alias)) if name in loaded)

    return modules_of_extension(extension, (prefix,), loaded_of)


def _user(rule: LegacyRule) -> User:
    return User(
        "rule",
        shown(f"{rule.program} {rule.table} {rule.chain} {rule.number}"),
        shown(", ".join(dict.fromkeys(rule.extensions))),
        remedy=Remedy.DELETE_LEGACY_RULE,
        words=(rule.program, rule.table, rule.chain, str(rule.number)),
        sets=rule.sets[:_SETS_MAX],
    )


def _contents(program: str, table: str, rules: Sequence[LegacyRule]) -> Iterator[User]:
    """A table, which is emptied, and then its chains that users made, which are deleted."""
    chains = [rule.chain for rule in rules if not rule.number]
    # Each of these ends in an entry that returns.
    number = sum(1 for rule in rules if rule.number) - len(chains)
    words = (program, table)
    detail = f"{number} rules, which go with it"
    yield User("table", shown(" ".join(words)), detail, remedy=Remedy.FLUSH_LEGACY_TABLE, words=words)
    for chain in chains:
        name = shown(" ".join((*words, chain)))
        yield User("chain", name, "without rules", remedy=Remedy.DELETE_LEGACY_CHAIN, words=(*words, chain))
