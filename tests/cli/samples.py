# SPDX-License-Identifier: LGPL-2.1-or-later
"""A small machine as the daemon would tell it."""

from typing import Any

from tests.cli.fake_daemon import Answer, Refusal

NOW = 1_700_000_000_000_000
ERROR = "org.kmodd1.Error."

VFAT: dict[str, Any] = {
    "name": "vfat",
    "state": "live",
    "because": "",
    "loaded-by": {"uid": 0, "client": "kmodctl", "reason": "mount the backup disk", "time": NOW - 190_000_000},
    "holders": [],
    "references": 3,
    "users": [
        {"kind": "mount", "name": "/boot/efi", "detail": "/dev/vda15"},
        {"kind": "mount", "name": "/mnt/My Disk", "detail": "/dev/loop0"},
        {"kind": "process", "name": "/usr/bin/qemu-system-x86_64", "detail": "pid 4312, /srv/disk.img"},
    ],
    "removable": False,
    "blockers": ["2 mounts use it", "1 process uses it"],
    "free": ["umount /boot/efi", "umount '/mnt/My Disk'", "kill 4312", "kmodctl unload vfat"],
    "partial": "",
    "loadable": True,
    "policy": "",
}
FAT: dict[str, Any] = {
    "name": "fat",
    "state": "live",
    "because": "needed by vfat",
    "holders": ["vfat", "msdos"],
    "references": 2,
    "users": [{"kind": "module", "name": "vfat", "detail": ""}, {"kind": "module", "name": "msdos", "detail": ""}],
    "removable": False,
    "blockers": ["vfat and msdos use it"],
    "loadable": True,
    "policy": "",
}
MSDOS: dict[str, Any] = {
    **VFAT,
    "name": "msdos",
    "references": 1,
    "users": [{"kind": "kernel", "name": "", "detail": "1 reference that nothing in user space explains"}],
    "blockers": ["the kernel itself uses it"],
    "free": [],
}
del MSDOS["loaded-by"]
PCSPKR: dict[str, Any] = {
    "name": "pcspkr",
    "state": "disabled",
    "because": "",
    "holders": [],
    "references": 0,
    "users": [],
    "removable": False,
    "blockers": ["it is blacklisted"],
    "loadable": False,
    "policy": "/etc/modprobe.d/nobeep.conf:3: blacklist pcspkr",
    "policy-kind": "blacklist",
    "policy-file": "/etc/modprobe.d/nobeep.conf",
    "policy-line": 3,
    "policy-rule": "blacklist pcspkr",
}
I6300: dict[str, Any] = {
    "name": "i6300esb",
    "state": "available",
    "because": "",
    "holders": [],
    "references": 0,
    "users": [],
    "removable": False,
    "blockers": [],
    "loadable": True,
    "policy": "",
    "failure": {
        "action": "load",
        "error": "NoDevice",
        "message": "i6300esb found no device it can drive.",
        "errno": 19,
        "kernel-log": ["i6300esb: Unexpected close, not stopping watchdog!", "i6300esb: \x1b[31mno device\u202e"],
        "hint": "look for the device with lspci",
        "time": NOW - 60_000_000,
        "stuck": False,
    },
}
NO_DEVICE: dict[str, Any] = {key: I6300["failure"][key] for key in ("errno", "kernel-log", "hint")}
IN_USE: dict[str, Any] = {"users": VFAT["users"]}
DISABLED: dict[str, Any] = {
    "file": "/etc/modprobe.d/nobeep.conf",
    "line": 3,
    "rule": "blacklist pcspkr",
    "rule-kind": "blacklist",
    "hint": "change the rule in /etc/modprobe.d/nobeep.conf, line 3, or try once with --override-policy",
}
LOOP: dict[str, Any] = {
    "name": "loop",
    "filename": "/lib/modules/6.1.0-18-amd64/kernel/drivers/block/loop.ko",
    "description": "",
    "license": "GPL",
    "author": "",
    "version": "",
    "srcversion": "",
    "vermagic": "6.1.0-18-amd64 SMP preempt mod_unload modversions ",
    "signer": "Debian Secure Boot CA",
    "signed": True,
    "intree": True,
    "firmware": [],
    "depends": [],
    "softdep-pre": [],
    "softdep-post": [],
    "aliases": ["devname:loop-control", "char-major-10-237", "block-major-7-*"],
    "parameters": [
        ["max_loop", "int", "Maximum number of loop devices", False],
        ["max_part", "int", "Maximum number of partitions per loop device", False],
        ["hw_queue_depth", "", "Queue depth for each hardware queue. Default: 128", True],
    ],
}
LOADED: list[dict[str, Any]] = [
    {"name": "vfat", "state": "live", "size": 24576, "references": 3, "holders": [], "taint": ""},
    {"name": "msdos", "state": "live", "size": 20480, "references": 1, "holders": [], "taint": ""},
    {"name": "fat", "state": "live", "size": 90112, "references": 2, "holders": ["vfat", "msdos"], "taint": ""},
    {"name": "zfs", "state": "live", "size": 5_033_164, "references": 9, "holders": [], "taint": "POE"},
    {"name": "kmodd_test_init_hang", "state": "coming", "size": 16384, "references": 1, "holders": [], "taint": "OE"},
]
HEALTH: dict[str, Any] = {
    "status": "degraded",
    "checks": [
        {"name": "worker", "status": "ok", "message": "answers", "module": "", "hint": ""},
        {
            "name": "unsigned",
            "status": "degraded",
            "message": "zfs is loaded without a signature the kernel trusts",
            "module": "zfs",
            "hint": "sign it, or enrol its key",
        },
    ],
    "release": "6.1.0-18-amd64",
    "lockdown": "none",
    "signature-enforced": False,
    "modules-disabled": False,
    "secure-boot": False,
    "taint": 12289,
    "taint-flags": [
        "P: proprietary module was loaded",
        "O: out-of-tree module was loaded",
        "E: unsigned module was loaded",
    ],
}
HISTORY: list[dict[str, Any]] = [
    {
        "time": NOW - 190_000_000,
        "event": "module.loaded",
        "message": "Loaded vfat",
        "module": "vfat",
        "action": "load",
        "result": "done",
        "uid": 0,
        "reason": "mount the backup disk",
        "duration-usec": 24_300,
    },
    {
        "time": NOW - 60_000_000,
        "event": "module.failed",
        "message": "i6300esb found no device it can drive",
        "module": "i6300esb",
        "action": "load",
        "result": "failed",
        "error": "NoDevice",
        "uid": 0,
        "kernel-log": ["i6300esb: no device"],
        "hint": "look for the device with lspci",
    },
]
NEITHER_DONE_NOR_FAILED: list[dict[str, Any]] = [
    {
        "time": NOW - 55_000_000,
        "event": "module.unsigned",
        "message": "Module vfat was loaded without a valid signature.",
        "module": "vfat",
        "action": "load",
    },
    {
        "time": NOW - 50_000_000,
        "event": "batch.rolled-back",
        "message": "the batch failed, changes to vfat were rolled back",
        "module": "vfat",
        "action": "batch",
        "result": "rolled-back",
        "uid": 0,
    },
    {
        "time": NOW - 40_000_000,
        "event": "refusals.collapsed",
        "message": "7 more requests of this user were refused within a minute, which are not recorded individually",
        "result": "denied",
        "uid": 0,
    },
]
ABSENT: dict[str, Any] = {
    "name": "nosuch",
    "state": "absent",
    "because": "",
    "holders": [],
    "references": 0,
    "users": [],
    "removable": False,
    "blockers": ["No module nosuch for kernel 6.1.0-18-amd64."],
    "loadable": False,
    "policy": "",
}
PLAN_VFAT: list[dict[str, Any]] = [
    {
        "action": "insert",
        "module": "fat",
        "path": "/lib/modules/x/fat.ko",
        "parameters": "",
        "because": "dependency of vfat",
        "operation": 0,
    },
    {
        "action": "insert",
        "module": "vfat",
        "path": "/lib/modules/x/vfat.ko",
        "parameters": "debug=1",
        "because": "requested",
        "operation": 0,
    },
]


def answers() -> dict[tuple[str, str], Answer]:
    """What the fake daemon answers unless a test says otherwise."""
    return {
        ("Explain", "vfat"): VFAT,
        ("Explain", "fat"): FAT,
        ("Explain", "msdos"): MSDOS,
        ("Explain", "pcspkr"): PCSPKR,
        ("Explain", "i6300esb"): I6300,
        ("Explain", ""): lambda call: {**ABSENT, "name": call.arguments[0]},
        ("Describe", "loop"): LOOP,
        ("Describe", "vfat"): {**LOOP, "name": "vfat", "description": "VFAT filesystem support", "parameters": []},
        ("Describe", ""): Refusal(ERROR + "NoSuchModule", "There is no such module."),
        ("ListModules", ""): LOADED,
        ("GetHealth", ""): HEALTH,
        ("GetHistory", ""): HISTORY,
        ("GetAll", "/org/kmodd1"): {"Version": "0.1.0", "LoadedCount": 5, "Health": "degraded"},
        ("GetAll", "/org/kmodd1/module/loop"): {
            "Name": "loop",
            "State": "live",
            "Size": 40960,
            "References": 2,
            "Holders": [],
            "LoadedAt": NOW,
            "LoadDurationUSec": 3200,
            "Origin": "in-tree",
            "Taint": "",
            "Parameters": {"max_loop": "8", "max_part": "3"},
        },
        ("GetAll", ""): Refusal("org.freedesktop.DBus.Error.UnknownObject", "no such object"),
        ("Plan", ""): PLAN_VFAT,
        ("Load", "vfat"): ["fat", "vfat"],
        ("Load", "loop"): [],
        ("Load", "i6300esb"): Refusal(ERROR + "NoDevice", "i6300esb found no device it can drive.", NO_DEVICE),
        ("Load", "pcspkr"): Refusal(ERROR + "DisabledByPolicy", "pcspkr is blacklisted.", DISABLED),
        ("Load", "vfta"): Refusal(
            ERROR + "NoSuchModule", "There is no module vfta for this kernel.", {"hint": "did you mean vfat?"}
        ),
        ("Unload", "vfat"): Refusal(ERROR + "InUse", "vfat is used by 2 mounts and 1 process.", IN_USE),
        ("Unload", "loop"): ["loop"],
        ("Reload", "loop"): ["loop"],
        ("SetParameter", "loop"): "3",
        ("ResetFailed", ""): None,
    }
