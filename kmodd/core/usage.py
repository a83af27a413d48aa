# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why a loaded module cannot be removed: who holds it, what uses it, or that it has no exit."""

from collections import Counter

from kmodd.errors import Evidence, InUse, NotRemovable
from kmodd.model import LoadedModule, User
from kmodd.names import ModuleName

_HINTS = {
    "mount": "umount what is mounted with it",
    "loop": "losetup --detach its loop devices",
    "process": "end the processes that have its devices open",
    "netdev": "ip link delete its interfaces, or set them down",
    "block": "release its block devices (umount, swapoff, dmsetup remove)",
    "device": "unbind its devices through their driver's unbind file",
    "kernel": "nothing in user space explains it: the kernel itself holds the module",
}
_PLURALS = {"process": "processes", "netdev": "network interfaces", "block": "block devices", "loop": "loop devices"}
_SINGULARS = {"netdev": "network interface", "block": "block device", "loop": "loop device", "kernel": "kernel user"}


def in_use(
    module: LoadedModule,
    users: tuple[User, ...] = (),
    *,
    errno: int | None = None,
    kernel_log: tuple[str, ...] = (),
) -> InUse:
    """Make the error from what was found; paths and process names stay in the evidence."""
    name = module.name
    beside = max(0, module.references - len(module.holders))
    reasons = []
    if module.holders:
        reasons.append(f"used by {', '.join(module.holders)}")
    if users:
        counts = Counter(user.kind for user in users)
        reasons.append(f"kept busy by {', '.join(_count(kind, n) for kind, n in counts.items())}")
    elif beside:
        counted = "1 reference" if beside == 1 else f"{beside} references"
        reasons.append(f"held by {counted}" + (" beside its holders" if module.holders else ""))
    hint = f"kmodctl unload {name} --dependents" if module.holders and not beside else ""
    if users:
        hint = "; ".join(dict.fromkeys(_HINTS[user.kind] for user in users if user.kind in _HINTS))
    return InUse(
        f"{name} is {' and '.join(reasons)}" if reasons else f"{name} is in use",
        module=name,
        evidence=Evidence(
            errno=errno,
            kernel_log=kernel_log,
            hint=hint or f"kmodctl why {name}",
            holders=tuple(module.holders),
            users=tuple((user.kind, user.name, user.detail) for user in users),
        ),
    )


def not_removable(name: ModuleName, *, errno: int | None = None, kernel_log: tuple[str, ...] = ()) -> NotRemovable:
    """Make the error for a module that has an init but no exit."""
    return NotRemovable(
        f"{name} has no exit function, so it stays until the next boot",
        module=name,
        evidence=Evidence(errno=errno, kernel_log=kernel_log, hint="reboot without loading it"),
    )


def unloading_not_built_in(name: ModuleName, *, errno: int | None = None) -> NotRemovable:
    """Make the error for a kernel without CONFIG_MODULE_UNLOAD."""
    return NotRemovable(
        f"{name} stays until the next boot: this kernel was built without unloading of modules",
        module=name,
        evidence=Evidence(errno=errno, hint="grep CONFIG_MODULE_UNLOAD /boot/config-$(uname -r)"),
    )


def _count(kind: str, number: int) -> str:
    if number == 1:
        return f"1 {_SINGULARS.get(kind, kind)}"
    return f"{number} {_PLURALS.get(kind, kind + 's')}"
