# SPDX-License-Identifier: LGPL-2.1-or-later
"""What there is to tell: one notice, made from a record of the daemon's history or from a condition that came or went."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

SEVERITIES = ("info", "notice", "warning", "error")
KINDS = ("load", "unload", "failure", "crash", "stuck", "health", "drift", "unsigned", "store", "denied", "test")
"""What a rule may name under `events`; `test` is sent by hand."""

_KINDS: Mapping[str, tuple[str, str]] = {
    "module.loaded": ("load", "info"),
    "module.reloaded": ("load", "info"),
    "module.appeared": ("load", "info"),
    "module.unloaded": ("unload", "info"),
    "module.disappeared": ("unload", "info"),
    "module.unsigned": ("unsigned", "warning"),
    "operation.failed": ("failure", "warning"),
    "operation.crashed": ("crash", "error"),
    "operation.stuck": ("stuck", "error"),
    "operation.released": ("stuck", "notice"),
    "desired.failed": ("failure", "warning"),
    "health.changed": ("health", "warning"),
    "authorization.denied": ("denied", "warning"),
    "refusals.collapsed": ("denied", "warning"),
}
"""Kind and severity by the event's name in the journal."""
_HEALTH = {"ok": "notice", "degraded": "warning", "failing": "error"}
LOG_MAX = 20
"""Lines of the kernel's log that are passed on."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One event, in plain values: it is kept as JSON until everyone has it."""

    id: str
    """Stays the same over retries, restarts and endpoints."""
    time: int
    """Microseconds since the epoch."""
    kind: str
    severity: str
    event: str
    """As in the journal, such as `module.loaded`."""
    message: str
    module: str = ""
    """Canonical names, separated by spaces."""
    action: str = ""
    result: str = ""
    error: str = ""
    uid: int | None = None
    on_behalf_of: str = ""
    reason: str = ""
    job: str = ""
    """Empty for what was refused before it became an operation."""
    errno: int | None = None
    kernel_log: tuple[str, ...] = ()
    hint: str = ""

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules it is about."""
        return tuple(self.module.split())

    def dump(self) -> str:
        """As JSON, without what is empty."""
        values = {key: value for key, value in asdict(self).items() if value not in ("", None, ())}
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Undo `dump`. What a newer version wrote besides is passed over: a queue outlives the return to an older one."""
        known = {one.name for one in fields(cls)}
        values = {name: value for name, value in json.loads(text).items() if name in known}
        values["kernel_log"] = tuple(values.get("kernel_log", ()))
        return cls(**{"message": "", **values})


def identifier(key: str) -> str:
    """The id of a message, from what makes the event this one and no other."""
    return "msg_" + hashlib.sha256(key.encode()).hexdigest()[:32]


def record_key(row: Mapping[str, Any], nth: int = 0) -> str:
    """What tells one record of the history from all others; `nth` counts equal ones."""
    return json.dumps([nth, row], sort_keys=True, separators=(",", ":"))


def from_record(row: Mapping[str, Any], key: str) -> Notice | None:
    """The notice that a row of `GetHistory` is worth; None for most of the daemon's own affairs."""
    event = _text(row, "event")
    kind, severity = _KINDS.get(event, ("", ""))
    if event.startswith("store."):
        kind, severity = "store", "notice"
    elif event.startswith("drift."):
        kind, severity = "drift", "warning"
    if not kind:
        return None
    if kind == "health":
        severity = next((_HEALTH[s] for s in _HEALTH if _text(row, "message").startswith(f"health is {s}")), severity)
    log = row.get("kernel-log", ())
    return Notice(
        id=identifier(key),
        time=_number(row, "time") or 0,
        kind=kind,
        severity=severity,
        event=event,
        message=_text(row, "message"),
        module=_text(row, "module"),
        action=_text(row, "action"),
        result=_text(row, "result"),
        error=_text(row, "error"),
        uid=_number(row, "uid"),
        on_behalf_of=_text(row, "on-behalf-of"),
        reason=_text(row, "reason"),
        job=_text(row, "job"),
        errno=_number(row, "errno"),
        kernel_log=tuple(str(line) for line in log[:LOG_MAX]) if isinstance(log, list | tuple) else (),
        hint=_text(row, "hint"),
    )


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key, "")
    return value if isinstance(value, str) else ""


def _number(row: Mapping[str, Any], key: str) -> int | None:
    value = row.get(key)
    return value if isinstance(value, int) else None
