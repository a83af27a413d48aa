# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why a loaded module cannot be removed: its holders, its users, or a missing exit function."""

from collections import Counter

from kmodd.core.diagnosis.advice import advised
from kmodd.errors import Evidence, InUse, NotRemovable
from kmodd.model import LoadedModule, User
from kmodd.names import ModuleName

_HINTS = {
    "mount": "umount what is mounted with it",
    "loop": "losetup --detach its loop devices",
    "process": "end the processes that have its devices open",
    "netdev": "ip link delete its interfaces, or set them down",
    "file": "swapoff its swap files",
    "block": "release its block devices (umount, swapoff, dmsetup remove)",
    "device": "unbind its devices through their driver's unbind file",
    "array": "mdadm --stop its arrays",
    "qdisc": "tc qdisc delete what it schedules",
    "filter": "tc filter delete its filters",
    "action": "tc actions delete its actions",
    "rule": "delete its rules with nft, iptables-legacy or ebtables-legacy",
    "chain": "nft delete its chains",
    "set": "delete its sets with nft or ipset",
    "object": "nft delete its objects",
    "table": "nft delete the tables",
    "configfs": "rmdir its items in /sys/kernel/config",
    "sysctl": "set another default with sysctl",
    "watchdog": "stop the watchdog",
    "socket": "reboot without loading it",
    "service": "stop its services (ipvsadm, nfsd)",
    "export": "exportfs -u what the NFS server exports of it",
    "session": "unmount what is on its iSCSI disks, then log out with iscsiadm",
    "state": "ip xfrm state delete its states",
    "scheduler": "choose another scheduler in /sys/block/*/queue/scheduler",
    "governor": "choose another governor with cpupower frequency-set",
    "patch": "disable the live patch in /sys/kernel/livepatch",
    "format": "remove its formats from /proc/sys/fs/binfmt_misc",
    "namespace": "look into the network namespaces that kmodctl why lists",
    "trigger": "remove the triggers from tracefs",
    "candidate": "look at the processes that kmodctl why lists",
    "pin": "look into /sys/fs/bpf (bpftool link)",
    "crypto": "stop what uses its algorithms",
    "lease": "end what holds its lease",
    "kernel": "no known user holds it: see kmodctl why",
}
_NAMES = {
    "process": ("process", "processes"),
    "netdev": ("network interface", "network interfaces"),
    "block": ("block device", "block devices"),
    "loop": ("loop device", "loop devices"),
    "rule": ("rule of netfilter", "rules of netfilter"),
    "configfs": ("item in configfs", "items in configfs"),
    "watchdog": ("running watchdog", "running watchdogs"),
    "scheduler": ("I/O scheduler", "I/O schedulers"),
    "governor": ("CPU frequency governor", "CPU frequency governors"),
    "service": ("service of the kernel", "services of the kernel"),
    "export": ("NFS export", "NFS exports"),
    "session": ("iSCSI session", "iSCSI sessions"),
    "state": ("state of IPsec", "states of IPsec"),
    "patch": ("live patch", "live patches"),
    "socket": ("control socket", "control sockets"),
    "format": ("binary format", "binary formats"),
    "namespace": ("network namespace that may use it", "network namespaces that may use it"),
    "sysctl": ("kernel setting", "kernel settings"),
    "trigger": ("trigger of tracefs", "triggers of tracefs"),
    "candidate": ("process that may use it", "processes that may use it"),
    "pin": ("pinned object of BPF that may use it", "pinned objects of BPF that may use it"),
    "crypto": ("algorithm in use", "algorithms in use"),
    "kernel": ("kernel user", "kernel users"),
}
"""One and several of a kind, where the word is not the kind's own."""
_MAY_BE = (
    (("dm_",), "a device-mapper table may (dmsetup table)"),
    (("tcp_",), "open TCP sockets may (ss --tcp --info)"),
    (
        ("sch_", "cls_", "act_", "nft_", "nf_", "ip_set", "ip_vs"),
        "what is set up in a network namespace that only an open file keeps may",
    ),
    (("binfmt_misc",), "a binary format that is registered may (mount it, and kmodctl why lists them)"),
    (("bpf", "xsk", "act_bpf", "cls_bpf"), "a program of BPF may (bpftool link)"),
    (("n_", "slip", "slcan", "ppp_async", "ppp_synctty", "pps_ldisc"), "the line discipline of a terminal may"),
    (("algif_", "sha", "aes", "ghash", "crc", "poly1305", "chacha"), "encryption of disks or of the network may"),
)
"""What is not looked at, by the beginning of a module's name."""


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
        verb = "by" if reasons else "in use by"
        reasons.append(f"{verb} {', '.join(counted(kind, n) for kind, n in counts.items())}")
    elif beside:
        reasons.append(f"held by {_references(beside)}" + (" beside its holders" if module.holders else ""))
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
            users=advised(users),
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


def unexplained(module: LoadedModule, partial: str = "") -> User:
    """What holds the module where nothing was found: the count, what was left out, and what is not looked at."""
    beside = module.references - len(module.holders)
    left = f" ({partial})" if partial else ""
    guess = next((words for starts, words in _MAY_BE if module.name.startswith(starts)), "")
    detail = f"{_references(beside)} that nothing in user space explains{left}"
    return User("kernel", "kernel", f"{detail}; {guess}" if guess else detail)


def counted(kind: str, number: int) -> str:
    """So many users of a kind, as a sentence has them."""
    singular, several = _NAMES.get(kind, (kind, f"{kind}s"))
    return f"{number} {singular if number == 1 else several}"


def _references(number: int) -> str:
    return "1 reference" if number == 1 else f"{number} references"
