# SPDX-License-Identifier: LGPL-2.1-or-later
"""From what holds a module to the commands that would free it. A pure function of explanations."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from kmodd.model import Explanation, State, User

_NAMESPACE = re.compile(r", in the mount namespace of pid (\d+)$")
_PID = re.compile(r"(?:pid )?(\d+)\b")
_ORDER = ("mount", "block", "netdev", "process", "device", "loop")
"""What has to go before what: a file system before the loop device below it."""


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to do: a command to copy, or words where there is none."""

    command: str = ""
    words: str = ""


ROOT = Advice(words="not while the system runs: its root file system is on it")


def to_remove(explanation: Explanation, holders: Mapping[str, Explanation]) -> list[Advice]:
    """What frees the module and then removes it, in order; empty when it cannot be removed at all.

    `holders` explains the modules that hold it, directly or through others, by name.
    """
    if explanation.state is not State.LIVE or explanation.removable:
        return []
    held = [explanation, *(holders[name] for name in _below(explanation, holders))]
    users = sorted((user for found in reversed(held) for user in found.users), key=_rank)
    steps = list(dict.fromkeys(step for step in map(_free, users) if step is not None))
    if ROOT in steps:
        return [ROOT]
    steps += [Advice(words=_unexplained(found.name)) for found in held if any(u.kind == "kernel" for u in found.users)]
    if not explanation.holders and all(user.kind == "kernel" for user in explanation.users):
        return steps
    switch = " --dependents" if explanation.holders else ""
    return [*steps, Advice(f"kmodctl unload {explanation.name}{switch}")]


def _below(explanation: Explanation, holders: Mapping[str, Explanation]) -> list[str]:
    """Names of known holders, nearest first, each once."""
    order: list[str] = []
    queue = list(explanation.holders)
    while queue:
        name = queue.pop(0)
        if name in holders and name not in order:
            order.append(name)
            queue += holders[name].holders
    return order


def _rank(user: User) -> int:
    return _ORDER.index(user.kind) if user.kind in _ORDER else len(_ORDER)


def _free(user: User) -> Advice | None:
    name, detail = shlex.quote(user.name), user.detail
    match user.kind:
        case "mount":
            return _unmount(user.name, detail)
        case "loop":
            itself = detail.endswith(", detaches itself")  # with the mount or the process that is told beside it
            return None if itself else Advice(f"losetup --detach {_device(user.name)}")
        case "process":
            found = _PID.search(detail)
            return Advice(f"kill {found[1]}" if found else "", f"stop {user.name}")
        case "netdev":
            made = "link kind" in detail  # by `ip link add`, so that it can be deleted
            return Advice(f"ip link delete {name}" if made else f"ip link set {name} down")
        case "block":
            return _free_block(user)
        case "device":
            return Advice(words=f"the device {user.name} is driven by it ({detail})")
        case _:
            return None  # a module is freed by --dependents, the kernel by nobody


def _unmount(point: str, detail: str) -> Advice:
    elsewhere = _NAMESPACE.search(detail)
    if elsewhere:
        command = f"nsenter --mount --target {elsewhere[1]} umount {shlex.quote(point)}"
        return Advice(command, "or stop what is in there")
    return ROOT if point == "/" else Advice(f"umount {shlex.quote(point)}")


def _free_block(user: User) -> Advice:
    device = _device(user.name)
    if user.detail == "swap":
        return Advice(f"swapoff {device}")
    point = user.detail.removeprefix("mounted at ")
    if point != user.detail:
        return _unmount(_NAMESPACE.split(point)[0], user.detail)
    return Advice(
        f"lsblk {device}", f"shows what to stop: it is {user.detail}" if user.detail else "shows what to stop"
    )


def _unexplained(module: str) -> str:
    return f"the kernel itself uses {module}: no command frees it, try again later"


def _device(name: str) -> str:
    return shlex.quote(name if name.startswith("/") else f"/dev/{name}")
