# SPDX-License-Identifier: LGPL-2.1-or-later
"""The enumerations of the API."""

from enum import StrEnum


class Verb(StrEnum):
    """What a caller asks for."""

    LOAD = "load"
    UNLOAD = "unload"
    RELOAD = "reload"
    SET_PARAMETER = "set-parameter"
    RESET_FAILED = "reset-failed"


class StepAction(StrEnum):
    """What one step does."""

    INSERT = "insert"
    REMOVE = "remove"
    SET_PARAMETER = "set-parameter"
    RESET_FAILED = "reset-failed"
    """Not the kernel's doing: what kmodd remembers of a module is forgotten."""


class State(StrEnum):
    """The state of a module as `Explain` answers it."""

    LIVE = "live"
    COMING = "coming"
    GOING = "going"
    BUILTIN = "builtin"
    AVAILABLE = "available"
    ABSENT = "absent"
    DISABLED = "disabled"


class Result(StrEnum):
    """The result of one operation of a batch."""

    CHANGED = "changed"
    UNCHANGED = "unchanged"
    FAILED = "failed"
    ROLLED_BACK = "rolled-back"
    SKIPPED = "skipped"


class Origin(StrEnum):
    """Where a loaded module's file came from."""

    IN_TREE = "in-tree"
    OUT_OF_TREE = "out-of-tree"
    STORE = "store"
    UNKNOWN = "unknown"


class HealthStatus(StrEnum):
    """A check's status; the whole is as bad as its worst check."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILING = "failing"


class Remedy(StrEnum):
    """What ends one use of a module; the program and its form are chosen by kmodd alone, see `core.advice`."""

    NONE = ""
    """Nothing is known that does."""
    NOT_NEEDED = "not-needed"
    """It holds no reference, or ends with another use."""
    UNMOUNT = "unmount"
    """Unmount the path `target`, in the namespace of process `pid` where there is one."""
    UNMOUNT_TREE = "unmount-tree"
    """Unmount the path `target` with all that is mounted below it."""
    SWAP_OFF = "swap-off"
    DETACH_LOOP = "detach-loop"
    DELETE_LINK = "delete-link"
    SET_LINK_DOWN = "set-link-down"
    REMOVE_MAPPING = "remove-mapping"
    """Remove the device-mapper device of the name `target`."""
    STOP_ARRAY = "stop-array"
    KILL = "kill"
    """End the processes `pids`."""
    STOP_UNIT = "stop-unit"
    RESTART_UNIT = "restart-unit"
    TERMINATE_MACHINE = "terminate-machine"
    STOP_PODMAN = "stop-podman"
    STOP_DOCKER = "stop-docker"
    DELETE_CRUN = "delete-crun"
    DELETE_RUNC = "delete-runc"
    SET_SYSCTL = "set-sysctl"
    """Of this and the following, `words` are what the command is about."""
    DELETE_FILTER = "delete-filter"
    DELETE_QDISC = "delete-qdisc"
    REPLACE_QDISC = "replace-qdisc"
    DELETE_ACTION = "delete-action"
    DELETE_RULE = "delete-rule"
    DELETE_SET = "delete-set"
    DELETE_OBJECT = "delete-object"
    DELETE_FLOWTABLE = "delete-flowtable"
    DELETE_LEGACY_RULE = "delete-legacy-rule"
    """Program, table, chain and number; those behind it get new numbers."""
    FLUSH_LEGACY_TABLE = "flush-legacy-table"
    """Program and table: all rules go."""
    DELETE_LEGACY_CHAIN = "delete-legacy-chain"
    """Program, table and chain."""
    DELETE_CHAIN = "delete-chain"
    DELETE_TABLE = "delete-table"
    DESTROY_SET = "destroy-set"
    """A set of ipset."""
    UNLINK = "unlink"
    REMOVE_FOLDER = "remove-folder"
    """A link or an item of configfs."""
    STOP_WATCHDOG = "stop-watchdog"
    WRITE_SETTING = "write-setting"
    """Write the second word into the file that the first one names."""
    DELETE_SERVICE = "delete-service"
    """A service of IPVS."""
    DELETE_STATE = "delete-state"
    """A state of IPsec."""
    REMOVE_PROBE = "remove-probe"
    """A trigger or a probe of tracefs: the file, and the text that is added to it."""
    STOP_CACHE = "stop-cache"
    """A device or a set of bcache, by the file that stops it."""
    DISCONNECT_DISK = "disconnect-disk"
    """A disk of nbd, by its device."""
    RESET_DISK = "reset-disk"
    """A disk of zram, whose content goes."""
    LOG_OUT = "log-out"
    """A session of iSCSI: its target and portal."""
    UNEXPORT = "unexport"
    """A folder that the NFS server exports: the client, and its path."""
