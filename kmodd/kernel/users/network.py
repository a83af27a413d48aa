# SPDX-License-Identifier: LGPL-2.1-or-later
"""Network interfaces of a module, traffic control, and network defaults, by the modules that they hold."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from kmodd.kernel.files import listdir, note, read_text, readlink
from kmodd.kernel.proc.crypto import Algorithm, Algorithms
from kmodd.kernel.users.netlink import MACSEC
from kmodd.kernel.users.rtnetlink import Link, Qdisc, Traffic
from kmodd.kernel.users.tasks import Budget
from kmodd.model import Remedy, User
from kmodd.names import canonical
from kmodd.text import shown

_SCHEDULERS, _CLASSIFIERS, _ACTIONS = "sch_", "cls_", "act_"
_FALLBACK = "pfifo_fast"
"""The qdisc that is always part of the kernel, as `noqueue` and `mq` (net/sched/sch_generic.c)."""
_MACSEC_CIPHER = "gcm(aes)"
"""drivers/net/macsec.c."""
_TEAM, _TEAM_MODES = "team", "team_mode_"
_QDISC, _CONGESTION = "net.core.default_qdisc", "net.ipv4.tcp_congestion_control"


ReadTraffic = Callable[[bool, Collection[str], Callable[[], bool]], Traffic]
"""`rtnetlink.traffic_control`: whether filters are needed, of which kinds the actions, and whether there is time."""


def traffic_users(
    root: Path, loaded: Collection[str], resolve: Callable[[str], tuple[str, ...]], read: ReadTraffic, budget: Budget
) -> Iterator[tuple[frozenset[str], User]]:
    """Filters before the qdiscs they hang on, qdiscs below others before those, of this network namespace.

    `loaded` are the modules that are looked for, `resolve` answers the modules with an alias. The kernel is queried for nothing
    that no loaded module could be behind.
    """

    def known(prefix: str, kind: str) -> frozenset[str]:
        # Since 6.8 the kernel asks for `net-sch-fq`, before it for the module's name itself.
        name = f"{prefix}{kind}"
        alias = f"net-{name.replace('_', '-', 1)}"
        return frozenset(each for each in (canonical(name), *resolve(name), *resolve(alias)) if each in loaded)

    yield from _defaults(root, known, loaded)
    kinds = [name.removeprefix(_ACTIONS) for name in loaded if name.startswith(_ACTIONS)]
    filters = bool(kinds) or any(name.startswith(_CLASSIFIERS) for name in loaded)
    if not filters and not any(name.startswith(_SCHEDULERS) for name in loaded):
        return
    try:
        traffic = read(filters, kinds, budget.in_time)
    except OSError:
        budget.met("traffic control cannot be read")
        return
    for each in traffic.filters:
        modules = known(_CLASSIFIERS, each.kind).union(*(known(_ACTIONS, action) for action in each.actions))
        if modules:
            chain = ("chain", str(each.chain)) if each.chain else ()
            words = (each.device, *each.place, *chain, "pref", str(each.preference))
            with_actions = f", actions {', '.join(sorted(each.actions))}" if each.actions else ""
            yield (
                modules,
                User(
                    "filter",
                    shown(f"{each.kind} on {each.device}"),
                    shown(" ".join(words[1:]) + with_actions),
                    remedy=Remedy.DELETE_FILTER,
                    words=words,
                ),
            )
    for action in traffic.actions:
        if modules := known(_ACTIONS, action.kind):
            words = (action.kind, "index", str(action.index))
            yield modules, User("action", shown(action.kind), words[2], remedy=Remedy.DELETE_ACTION, words=words)
    handles = {(qdisc.device, qdisc.handle >> 16): qdisc for qdisc in traffic.qdiscs if qdisc.handle}
    for qdisc in sorted(traffic.qdiscs, key=lambda each: -_depth(each, handles)):
        if modules := known(_SCHEDULERS, qdisc.kind):
            yield modules, _qdisc(qdisc)


def _qdisc(qdisc: Qdisc) -> User:
    remedy, words = Remedy.DELETE_QDISC, (qdisc.device, *qdisc.place)
    detail = " ".join(qdisc.place)
    if not qdisc.handle:
        # The kernel's own, which cannot be deleted ("with handle of zero"): another one takes its place.
        root = _FALLBACK if qdisc.place == ("root",) else "mq"
        remedy, words, detail = Remedy.REPLACE_QDISC, (qdisc.device, "root", root), f"{detail}, the default"
    return User("qdisc", shown(f"{qdisc.kind} on {qdisc.device}"), shown(detail), remedy=remedy, words=words)


def _depth(qdisc: Qdisc, handles: dict[tuple[str, int], Qdisc]) -> int:
    """How many others it hangs below."""
    seen: list[Qdisc] = []
    above: Qdisc | None = qdisc
    while above is not None and above not in seen:
        seen.append(above)
        above = handles.get((above.device, above.parent >> 16))
    return len(seen)


def _defaults(
    root: Path, known: Callable[[str, str], frozenset[str]], loaded: Collection[str]
) -> Iterator[tuple[frozenset[str], User]]:
    """What the kernel takes for new interfaces and sockets: each setting holds its module."""
    kind = read_text(root / "proc/sys/net/core/default_qdisc") or ""
    if kind and (modules := known(_SCHEDULERS, kind)):
        yield modules, _setting(_QDISC, kind, _FALLBACK)
    kind = read_text(root / "proc/sys/net/ipv4/tcp_congestion_control") or ""
    if kind and (module := canonical(f"tcp_{kind}")) in loaded:
        available = (read_text(root / "proc/sys/net/ipv4/tcp_available_congestion_control") or "").split()
        cubic = "cubic" in available and kind != "cubic" and "tcp_cubic" not in loaded
        yield frozenset({module}), _setting(_CONGESTION, kind, "cubic" if cubic else "reno")


def _setting(name: str, value: str, other: str) -> User:
    return User("sysctl", name, shown(value), remedy=Remedy.SET_SYSCTL, words=(f"{name}={other}",))


# What sysfs shows of a link's kind if rtnetlink fails: a file or directory specific to the kind.
_SIGNS = {"bridge": "bridge", "bonding": "bond", "tun_flags": "tun"}


def interfaces(
    root: Path,
    modules_of: Callable[[str], frozenset[str]],
    kinds: Callable[[], dict[str, str]],
    loaded: Mapping[str, int],
    macsec: "MacsecCiphers",
) -> Iterator[tuple[frozenset[str], User]]:
    """Interfaces of this network namespace, with driver or link kind (`ip link add … type KIND`) and state as detail.

    `modules_of` answers the loaded modules behind a link kind. `loaded` are those that are looked for, with their references.
    """
    folder = root / "sys/class/net"
    try:
        kind_of = kinds()
    except OSError as error:
        note(error)
        kind_of = {interface: _sign(folder / interface) for interface in listdir(folder)}
    known: dict[str, frozenset[str]] = {"": frozenset()}
    modes = frozenset(name for name, count in loaded.items() if name.startswith(_TEAM_MODES) and count > 0)
    teams = [interface for interface, kind in kind_of.items() if kind == _TEAM] if modes else []
    for interface in teams:
        # The mode of a team holds its module (team_mode_get in drivers/net/team/team.c); which it is, only its administrator may see.
        # A team of another network namespace holds a mode as well: each has one.
        certain = len(teams) == 1 and sum(loaded[mode] for mode in modes) == 1
        detail = "mode of the team" if certain else "mode of the team, or of another one (teamnl)"
        yield modes, _user(interface, detail, Remedy.DELETE_LINK if certain else Remedy.NONE)
    for interface in listdir(folder):
        state = read_text(folder / interface / "operstate") or "unknown"
        driver = canonical(readlink(folder / interface / "device/driver/module").rpartition("/")[2])
        kind = kind_of.get(interface, "")
        if kind not in known:
            known[kind] = modules_of(kind)
        if driver:
            yield frozenset({driver}), _user(interface, f"driver {driver}, state {state}", Remedy.SET_LINK_DOWN)
        if others := known[kind] - {driver}:
            yield others, _user(interface, f"link kind {kind}, state {state}", Remedy.DELETE_LINK)
        if kind == MACSEC and (index := read_text(folder / interface / "ifindex") or "").isdecimal():
            yield from macsec.users(int(index), interface)


def link_users(
    links: Iterable[Link], modules_of: Callable[[str], frozenset[str]], macsec: "MacsecCiphers"
) -> Iterator[tuple[frozenset[str], User]]:
    """As `interfaces`, of a network namespace that sysfs does not show, by link kind alone."""
    for link in links:
        if link.kind and (modules := modules_of(link.kind)):
            state = "up" if link.up else "down"
            yield modules, _user(link.name, f"link kind {link.kind}, state {state}", Remedy.DELETE_LINK)
        if link.kind == MACSEC:
            yield from macsec.users(link.index, link.name)


class MacsecCiphers:
    """The cipher of interfaces with MACsec in one network namespace: one without an association holds none.

    The kernel is queried for the first of them.
    """

    def __init__(self, algorithms: Algorithms, read: Callable[[], Mapping[int, int]], budget: Budget) -> None:
        """`read` answers how many associations each interface has, by its index; OSError where the kernel does not."""
        self._algorithms = algorithms
        self._read = read
        self._budget = budget
        self._uses = 0

    def users(self, index: int, interface: str) -> Iterator[tuple[frozenset[str], User]]:
        """The interface, if it holds the cipher, whose only driver in use is known."""
        count = self._associations.get(index, 0)
        if count and (modules := self._algorithms.of_name(_MACSEC_CIPHER)):
            self._uses += count
            plural = "s" if count > 1 else ""
            yield modules, _user(interface, f"{_MACSEC_CIPHER} of {count} association{plural}", Remedy.DELETE_LINK)

    def explains(self, algorithm: Algorithm) -> bool:
        """All uses of this algorithm are by the interfaces that were listed."""
        return algorithm.uses <= self._uses and self._algorithms.is_with(algorithm, _MACSEC_CIPHER)

    @cached_property
    def _associations(self) -> Mapping[int, int]:
        try:
            return self._read()
        except OSError:
            self._budget.met("the associations of MACsec cannot be read")
            return {}


def modules_of_kind(kind: str, resolve_alias: Callable[[str], tuple[str, ...]]) -> Iterator[str]:
    """The kind's own name as a module's, and the modules with an alias `rtnl-link-KIND`."""
    yield canonical(kind)
    yield from resolve_alias(f"rtnl-link-{kind}")


def _user(interface: str, detail: str, remedy: Remedy) -> User:
    return User("netdev", shown(interface), shown(detail), remedy=remedy, target=interface)


def _sign(folder: Path) -> str:
    for line in (read_text(folder / "uevent") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "DEVTYPE":
            return value
    return next((kind for sign, kind in _SIGNS.items() if (folder / sign).exists()), "")
