# SPDX-License-Identifier: LGPL-2.1-or-later
"""The words of the API, as enumerations."""

from enum import StrEnum


class Verb(StrEnum):
    """What a caller asks for."""

    LOAD = "load"
    UNLOAD = "unload"
    RELOAD = "reload"


class StepAction(StrEnum):
    """What one step does to the kernel."""

    INSERT = "insert"
    REMOVE = "remove"


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
