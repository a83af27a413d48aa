# SPDX-License-Identifier: LGPL-2.1-or-later
"""Commands that end the uses of a module, and sentences about its users: pure functions of typed facts.

Root runs these commands as printed. So programs and options are fixed, no command enters a namespace that another user
made, and names chosen by others (paths, names) are one quoted word that cannot be taken for an option. Where that is
impossible, no command is printed.
"""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from shlex import quote
from typing import Self

from kmodd.model import Remedy, User

_TEXT_MAX = 4096
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9:_.@+\\-]{0,254}")
"""Names of units, machines, containers and mappings, in what systemd and libdevmapper allow, without `-` in front."""
_DEVICE = re.compile(r"/dev/[A-Za-z0-9_!-]{1,64}(/[A-Za-z0-9_!-]{1,64})*")
_PROGRAMS = {
    Remedy.STOP_UNIT: "systemctl stop",
    Remedy.RESTART_UNIT: "systemctl restart",
    Remedy.TERMINATE_MACHINE: "machinectl terminate",
    Remedy.STOP_PODMAN: "podman stop",
    Remedy.STOP_DOCKER: "docker stop",
    Remedy.DELETE_CRUN: "crun delete --force",
    Remedy.DELETE_RUNC: "runc delete --force",
    Remedy.REMOVE_MAPPING: "dmsetup remove",
}
_DEVICE_PROGRAMS = {
    Remedy.DETACH_LOOP: "losetup --detach",
    Remedy.STOP_ARRAY: "mdadm --stop",
    Remedy.DISCONNECT_DISK: "nbd-client --disconnect",
    Remedy.RESET_DISK: "zramctl --reset",
}
_INTERFACE = re.compile(r"(?!-)[^\s/]{1,15}")
"""dev_valid_name in net/core/dev.c."""
_TC_WORD = re.compile(r"[a-z_]{1,15}|[0-9]{1,10}|[0-9a-f]{0,4}:[0-9a-f]{0,4}")
_NFT_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]{0,254}|[0-9]{1,20}")
"""nft puts its words together and parses them as a script: what is no plain name could be a command there."""
_SETTING = re.compile(r"net\.[a-z0-9_.]{1,64}=[a-z0-9_]{1,31}")
_ITEM = re.compile(r"/sys/kernel/config(/(?!\.{1,2}(/|$))[^/]{1,255}){1,16}")
_SET = re.compile(r"(?!-).{1,31}")
_PHRASES = {
    Remedy.SET_SYSCTL: ("sysctl", _SETTING),
    Remedy.DELETE_FILTER: ("tc filter del dev", _INTERFACE),
    Remedy.DELETE_QDISC: ("tc qdisc del dev", _INTERFACE),
    Remedy.REPLACE_QDISC: ("tc qdisc replace dev", _INTERFACE),
    Remedy.DELETE_ACTION: ("tc actions del action", _TC_WORD),
    Remedy.DELETE_RULE: ("nft delete rule", _NFT_WORD),
    Remedy.DELETE_SET: ("nft delete set", _NFT_WORD),
    Remedy.DELETE_OBJECT: ("nft delete", _NFT_WORD),
    Remedy.DELETE_FLOWTABLE: ("nft delete flowtable", _NFT_WORD),
    Remedy.DELETE_CHAIN: ("nft delete chain", _NFT_WORD),
    Remedy.DELETE_TABLE: ("nft delete table", _NFT_WORD),
    Remedy.DESTROY_SET: ("ipset destroy", _SET),
    Remedy.UNLINK: ("unlink", _ITEM),
    Remedy.REMOVE_FOLDER: ("rmdir", _ITEM),
}
"""The program, and what its first word has to be; further words are tc's or nft's."""
_WATCHDOG = re.compile(r"/dev/watchdog[0-9]{1,3}")
_SETTINGS = (
    (re.compile(r"/sys/block/[A-Za-z0-9_!-]{1,64}/queue/scheduler"), re.compile(r"none")),
    (re.compile(r"/sys/devices/system/cpu/cpufreq/policy[0-9]{1,5}/scaling_governor"), re.compile(r"[a-z]{1,15}")),
    (re.compile(r"/sys/kernel/livepatch/[A-Za-z0-9_]{1,64}/enabled"), re.compile(r"0")),
    (re.compile(r"/proc/fs/nfsd/threads"), re.compile(r"0")),
    (re.compile(r"/sys/kernel/tracing/events/[A-Za-z0-9_]{1,64}/[A-Za-z0-9_]{1,64}/enable"), re.compile(r"0")),
    (re.compile(r"/proc/sys/fs/binfmt_misc/(?!\.{1,2}$|register$|status$)[^/]{1,255}"), re.compile(r"-1")),
)
"""Files of the kernel that commands write into, with what they write."""
_CACHE = re.compile(r"/sys/block/bcache[0-9]{1,5}/bcache/stop|/sys/fs/bcache/[0-9a-f-]{36}/stop")
_TRACE_FILE = re.compile(
    r"/sys/kernel/tracing(/instances/[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?"
    r"/(set_ftrace_filter|dynamic_events|events/[A-Za-z0-9_]{1,64}/[A-Za-z0-9_]{1,128}/trigger)"
)
_PROBE = re.compile(r"![A-Za-z0-9_.*]{1,128}:[ -~]{1,512}|-:[A-Za-z0-9_]{1,64}/[A-Za-z0-9_]{1,64}")
_LEGACY_PROGRAMS = {"iptables-legacy", "ip6tables-legacy", "arptables-legacy", "ebtables-legacy"}
_LEGACY_TABLE, _LEGACY_CHAIN, _NUMBER = (
    re.compile(r"[a-z]{1,31}"),
    re.compile(r"(?![-!])\S{1,30}"),
    re.compile(r"[1-9][0-9]{0,5}"),
)
_ADDRESS = re.compile(r"[0-9]{1,10}|[0-9.]{7,15}:[0-9]{1,5}|\[[0-9a-f:.]{2,45}\]:[0-9]{1,5}")
_CLIENT = re.compile(r"(?!-)[A-Za-z0-9.*?@_/-]{1,255}")
"""A host, a network, a wildcard or a netgroup (exports(5)), written as exportfs(8) takes it: an IPv6 address has colons."""
_TARGET = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,222}")
"""Names of targets (RFC 3720, 3.2.6.3)."""
_PORTAL = re.compile(r"[0-9.]{7,15}:[0-9]{1,5}|\[[0-9a-f:.]{2,45}\]:[0-9]{1,5}")
_SERVICES = {"--tcp-service", "--udp-service", "--sctp-service", "--fwmark-service"}
_STATE_WORDS = ("src", "dst", "proto", "spi", "mark", "mask")
_STATE_VALUE = re.compile(r"[0-9a-f:.]{2,45}|esp|ah|comp|0x[0-9a-f]{1,8}")
_FURTHER = {"tc": _TC_WORD, "nft": _NFT_WORD}
_LINK_PROGRAMS = {
    Remedy.DELETE_LINK: "ip link delete dev {}",
    Remedy.SET_LINK_DOWN: "ip link set dev {} down",
}
_OF_NETWORK = {
    *(Remedy.SET_SYSCTL, Remedy.DELETE_LINK, Remedy.SET_LINK_DOWN),
    *(Remedy.DELETE_FILTER, Remedy.DELETE_QDISC, Remedy.REPLACE_QDISC, Remedy.DELETE_ACTION),
    *(Remedy.DELETE_RULE, Remedy.DELETE_SET, Remedy.DELETE_OBJECT, Remedy.DELETE_FLOWTABLE, Remedy.DELETE_CHAIN),
    *(Remedy.DELETE_TABLE, Remedy.DESTROY_SET, Remedy.DELETE_SERVICE, Remedy.DELETE_STATE),
    *(Remedy.DELETE_LEGACY_RULE, Remedy.FLUSH_LEGACY_TABLE, Remedy.DELETE_LEGACY_CHAIN),
}
"""What is ended by a program that is run in its network namespace."""
_NAMED_ENTRY = re.compile(r"/run/netns/([A-Za-z0-9_][A-Za-z0-9_.@+-]{0,254})")
_PROCESS_ENTRY = re.compile(r"/proc/[1-9][0-9]{0,9}/ns/net")
_SIGNALS = {"HUP", "KILL"}
"""For processes that ignore SIGTERM."""
SETTLE = "udevadm settle"
"""Waits for udev, between devices on top of each other."""
_LAYERS = {
    *(Remedy.DETACH_LOOP, Remedy.REMOVE_MAPPING, Remedy.STOP_ARRAY),
    *(Remedy.STOP_CACHE, Remedy.DISCONNECT_DISK, Remedy.RESET_DISK),
}
_UNMOUNTING = {Remedy.UNMOUNT, Remedy.UNMOUNT_TREE}
_CLOSING = {*_LAYERS, *_UNMOUNTING, Remedy.SWAP_OFF}
_ORDER = (
    {Remedy.WRITE_SETTING},
    {Remedy.SET_SYSCTL, *_UNMOUNTING, Remedy.SWAP_OFF},
    {Remedy.DELETE_LINK, Remedy.SET_LINK_DOWN},
    {
        *(Remedy.KILL, Remedy.STOP_UNIT, Remedy.RESTART_UNIT),
        *(Remedy.TERMINATE_MACHINE, Remedy.STOP_PODMAN, Remedy.STOP_DOCKER, Remedy.DELETE_CRUN, Remedy.DELETE_RUNC),
    },
    {
        *(Remedy.DELETE_FILTER, Remedy.DELETE_RULE, Remedy.DELETE_LEGACY_RULE, Remedy.FLUSH_LEGACY_TABLE),
        *(Remedy.DELETE_SERVICE, Remedy.DELETE_STATE, Remedy.UNLINK),
    },
    {Remedy.DELETE_ACTION, Remedy.DELETE_QDISC, Remedy.REPLACE_QDISC},
    {Remedy.DELETE_SET, Remedy.DELETE_OBJECT, Remedy.DELETE_FLOWTABLE},
    {Remedy.DELETE_CHAIN, Remedy.DELETE_LEGACY_CHAIN},
    {Remedy.DELETE_TABLE, Remedy.DESTROY_SET, Remedy.REMOVE_FOLDER},
)
"""What has to go before what: a file system before the loop device below it. Everything else comes last, and what stands in
one group stays in the order in which it was found: the upper of two block devices before the lower. Of rules with numbers the
last goes first."""


def command(user: User) -> str:
    """The command that ends this use; empty where none is known, or none that is safe to print."""
    plain = _command(user)
    if not user.entry or not plain:
        return plain
    if user.remedy not in _OF_NETWORK:
        return ""
    # Neither runs anything but the host's program: a network namespace has no files.
    if name := _NAMED_ENTRY.fullmatch(user.entry):
        return f"ip netns exec {name[1]} {plain}"
    return f"nsenter --net={user.entry} {plain}" if _PROCESS_ENTRY.fullmatch(user.entry) else ""


def _command(user: User) -> str:
    target, remedy = user.target, user.remedy
    if remedy is Remedy.KILL:
        pids = user.pids or ((user.pid,) if user.pid is not None else ())
        signal = f"-{target} " if target in _SIGNALS else ""
        return f"kill {signal}{' '.join(map(str, pids))}" if pids and all(pid > 1 for pid in pids) else ""
    if remedy is Remedy.UNMOUNT:
        return _unmount(target, user.pid)
    if remedy is Remedy.UNMOUNT_TREE:
        return _unmount(target, None, "--recursive ")
    if remedy is Remedy.SWAP_OFF:
        return f"swapoff {shlex.quote(target)}" if target.startswith("/") and _is_word(target) else ""
    if remedy in _PROGRAMS and _NAME.fullmatch(target):
        return f"{_PROGRAMS[remedy]} {shlex.quote(target)}"
    if remedy in _DEVICE_PROGRAMS and _DEVICE.fullmatch(target):
        return f"{_DEVICE_PROGRAMS[remedy]} {shlex.quote(target)}"
    if remedy in _PHRASES:
        return _phrase(remedy, user.words)
    if remedy is Remedy.STOP_WATCHDOG:
        # The shell takes the path as a parameter, not as a part of its script.
        return f"""sh -c 'echo V >"$1"' sh {user.words[0]}""" if _is_watchdog(user.words) else ""
    if remedy in _WORDED and all(map(_is_word, user.words)):
        return _WORDED[remedy](user.words)
    if remedy in _LINK_PROGRAMS and _is_word(target) and not target.startswith("-"):
        return _LINK_PROGRAMS[remedy].format(shlex.quote(target))
    return ""


def advised(users: Iterable[User]) -> tuple[User, ...]:
    """The users with their commands.

    What takes disks away goes last and has none where another use has none: it does not fail while they are in use.
    """
    made = tuple(replace(user, command=command(user)) for user in users)
    if all(user.command or user.remedy is Remedy.NOT_NEEDED for user in made):
        return made
    return tuple(replace(user, command="") if user.remedy is Remedy.LOG_OUT else user for user in made)


def free(module: str, users: Sequence[User], *, dependents: bool, disconnect: bool = False) -> tuple[str, ...]:
    """Commands that end all these uses and then unload the module, in order.

    `users` are those of the modules that hold it too, outermost first, with their commands; `dependents` says that there
    are such modules, `disconnect` that something live goes with them. Empty where a use is left that no command is known for.
    """
    steps: dict[str, User] = {}
    for user in sorted(users, key=_rank):
        if user.kind == "module" or user.remedy is Remedy.NOT_NEEDED:
            continue
        if not user.command:
            return ()
        steps[user.command] = user
    # udev looks into a device that was just closed, and until it is done the device below is busy.
    closing = [step for step, user in steps.items() if user.remedy in _CLOSING]
    layers = [step for step in closing if steps[step].remedy in _LAYERS]
    # An umount after a layer: the layer's device had a file of it.
    below = (
        [step for step in closing[1:] if step in layers or step in closing[closing.index(layers[0]) :]]
        if layers
        else []
    )
    lines = [line for step in steps for line in ((SETTLE, step) if step in below else (step,))]
    options = (" --dependents" if dependents else "") + (" --disconnect" if disconnect else "")
    return (*lines, *([SETTLE] if below else []), f"kmodctl unload {module}{options}")


def _unmount(point: str, pid: int | None, options: str = "") -> str:
    if not point.startswith("/") or point == "/" or not _is_word(point):
        return ""
    if pid is None:
        return f"umount {options}{shlex.quote(point)}"
    # The host's umount, and without its helpers: what lies in the namespace is not run (--namespace in umount(8)).
    return f"umount --internal-only --namespace {pid} {shlex.quote(point)}" if pid > 1 else ""


def _phrase(remedy: Remedy, words: tuple[str, ...]) -> str:
    program, first = _PHRASES[remedy]
    further = _FURTHER.get(program.partition(" ")[0])
    if not words or not all(map(_is_word, words)) or not first.fullmatch(words[0]):
        return ""
    if words[1:] and not (further and all(further.fullmatch(word) for word in words[1:])):
        return ""
    return f"{program} {shlex.join(words)}"


def _write(words: tuple[str, ...]) -> str:
    if len(words) != 2 or not any(file.fullmatch(words[0]) and value.fullmatch(words[1]) for file, value in _SETTINGS):
        return ""
    # The shell takes the path as a parameter, not as a part of its script.
    return f"""sh -c 'echo {words[1]} >"$1"' sh {shlex.quote(words[0])}"""


def _remove_probe(words: tuple[str, ...]) -> str:
    if len(words) != 2 or not _TRACE_FILE.fullmatch(words[0]) or not _PROBE.fullmatch(words[1]):
        return ""
    # Added: a file of tracefs that is opened to be overwritten loses all else that is in it.
    return f"""sh -c 'echo "$1" >>"$2"' sh {shlex.quote(words[1])} {words[0]}"""


def _stop_cache(words: tuple[str, ...]) -> str:
    return f"""sh -c 'echo 1 >"$1"' sh {words[0]}""" if len(words) == 1 and _CACHE.fullmatch(words[0]) else ""


def _delete_legacy_rule(words: tuple[str, ...]) -> str:
    if len(words) != 4 or words[0] not in _LEGACY_PROGRAMS:
        return ""
    program, table, chain, number = words
    if not (_LEGACY_TABLE.fullmatch(table) and _LEGACY_CHAIN.fullmatch(chain) and _NUMBER.fullmatch(number)):
        return ""
    return f"{program} -t {table} -D {shlex.quote(chain)} {number}"


def _flush_legacy_table(words: tuple[str, ...]) -> str:
    if len(words) != 2 or words[0] not in _LEGACY_PROGRAMS or not _LEGACY_TABLE.fullmatch(words[1]):
        return ""
    return f"{words[0]} -t {words[1]} -F"


def _delete_legacy_chain(words: tuple[str, ...]) -> str:
    if len(words) != 3 or words[0] not in _LEGACY_PROGRAMS:
        return ""
    program, table, chain = words
    if not (_LEGACY_TABLE.fullmatch(table) and _LEGACY_CHAIN.fullmatch(chain)):
        return ""
    return f"{program} -t {table} -X {shlex.quote(chain)}"


def _delete_service(words: tuple[str, ...]) -> str:
    if len(words) != 2 or words[0] not in _SERVICES or not _ADDRESS.fullmatch(words[1]):
        return ""
    return f"ipvsadm --delete-service {words[0]} {shlex.quote(words[1])}"


def _delete_state(words: tuple[str, ...]) -> str:
    if words[::2] not in (_STATE_WORDS, _STATE_WORDS[:4]) or not all(map(_STATE_VALUE.fullmatch, words[1::2])):
        return ""
    return f"ip xfrm state delete {' '.join(words)}"


def _unexport(words: tuple[str, ...]) -> str:
    if len(words) != 2 or not _CLIENT.fullmatch(words[0]) or not words[1].startswith("/"):
        return ""
    return f"exportfs -u {shlex.quote(':'.join(words))}"


def _log_out(words: tuple[str, ...]) -> str:
    if len(words) != 2 or not _TARGET.fullmatch(words[0]) or not _PORTAL.fullmatch(words[1]):
        return ""
    return f"iscsiadm --mode node --targetname {words[0]} --portal {shlex.quote(words[1])} --logout"


_WORDED = {
    Remedy.LOG_OUT: _log_out,
    Remedy.UNEXPORT: _unexport,
    Remedy.WRITE_SETTING: _write,
    Remedy.STOP_CACHE: _stop_cache,
    Remedy.REMOVE_PROBE: _remove_probe,
    Remedy.DELETE_LEGACY_RULE: _delete_legacy_rule,
    Remedy.FLUSH_LEGACY_TABLE: _flush_legacy_table,
    Remedy.DELETE_LEGACY_CHAIN: _delete_legacy_chain,
    Remedy.DELETE_SERVICE: _delete_service,
    Remedy.DELETE_STATE: _delete_state,
}


def _is_watchdog(words: tuple[str, ...]) -> bool:
    return len(words) == 1 and _WATCHDOG.fullmatch(words[0]) is not None


def _is_word(text: str) -> bool:
    """It can be printed as it is: a terminal shows all of it, in this order, and the command means what it shows."""
    return 0 < len(text) <= _TEXT_MAX and text.isprintable()


def _rank(user: User) -> tuple[int, int, int]:
    group = next((rank for rank, group in enumerate(_ORDER) if user.remedy in group), len(_ORDER))
    # Of the rules of a chain the last one goes first: those behind it get new numbers. Of mounts the lowest in the tree.
    within = 0
    if user.remedy is Remedy.DELETE_LEGACY_RULE and user.command:
        within = -int(user.words[3])
    elif user.remedy in _UNMOUNTING:
        within = -user.target.count("/")
    return -user.level, group, within


_LOOKED_AT = (
    "Mounts, devices, interfaces, traffic control, netfilter, IPVS, IPsec, configfs, open files, mappings, sockets, tracing "
    "and kernel settings"
)


def ended(text: str) -> str:
    """With a full stop, unless the clause ends in another mark, as "did you mean …?" does."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


def shown_name(name: str) -> str:
    """A name or alias as a part of a sentence: in quotes where it holds blanks or what a shell would take in hand."""
    return quote(name)


class UserSentence(str):
    """A sentence that is about one user, and knows which: redaction asks it, and reads nothing."""

    __slots__ = ("user",)
    user: User

    def __new__(cls, text: str, user: User) -> Self:
        made = super().__new__(cls, text)
        made.user = user
        return made


def sentence(user: User) -> UserSentence:
    """What keeps a module busy, as a blocker says it."""
    return UserSentence(_sentence(user), user)


def _sentence(user: User) -> str:
    if user.count:
        return f"It is in use by {user.detail}."
    match user.kind:
        case "mount":
            return f"It is mounted at {user.name} ({user.detail})."
        case "loop":
            return f"Loop device {user.name} is set up ({user.detail})."
        case "lease":
            return f"{user.name} holds it by a lease ({user.detail})."
        case "process":
            return f"{user.name} has it open ({user.detail})."
        case "netdev":
            return f"Network interface {user.name} uses it ({user.detail})."
        case "block":
            return f"Block device {user.name} uses it ({user.detail})."
        case "array":
            return f"Array {user.name} uses it (level {user.detail})."
        case "qdisc" | "filter" | "action":
            return f"Traffic control uses it: {user.kind} {user.name} ({user.detail})."
        case "rule" | "chain" | "set" | "object" | "table":
            return f"{user.kind.capitalize()} {user.name} of netfilter uses it ({user.detail})."
        case "configfs":
            return f"{user.name} in configfs uses it ({user.detail})."
        case "namespace":
            return f"Network namespace {user.name} may use it ({user.detail})."
        case "sysctl":
            return f"The setting {user.name} is {user.detail}."
        case "watchdog":
            return f"Watchdog {user.name} is running ({user.detail})."
        case "trigger":
            return f"Tracing holds it: {user.name} ({user.detail})."
        case "pin" | "candidate":
            return f"{user.name} may hold it ({user.detail})."
        case "crypto":
            return f"Its algorithm {user.name} is in use ({user.detail})."
        case "kernel":
            return f"{_LOOKED_AT} do not explain what uses it: {user.detail}."
        case _:
            return f"{user.name} uses it ({user.detail})."


def drives(users: Iterable[User]) -> str:
    """Which interfaces and devices the module drives; empty for none."""
    names = sorted({user.name for user in users if user.kind in {"netdev", "block", "device"}})
    return f"drives {', '.join(names)}" if names else ""
