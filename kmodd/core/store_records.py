# SPDX-License-Identifier: LGPL-2.1-or-later
"""Journal records about the store."""

from dataclasses import replace

from kmodd.core.records import attempt_record
from kmodd.errors import KmoddError
from kmodd.model import Attempt, Caller, Record, Result
from kmodd.model.store import StoredModule

_EVENTS = {
    "import": ("store.imported", "imported"),
    "activate": ("store.activated", "activated"),
    "deactivate": ("store.deactivated", "deactivated"),
    "remove": ("store.removed", "removed"),
}


def stored(
    action: str, entry: StoredModule, caller: Caller, *, changed: bool = True, touched: tuple[str, ...] = ()
) -> Record:
    """A version was imported, activated, deactivated or removed, or was so already."""
    event, done = _EVENTS[action]
    said = done if changed else f"{done} already"
    return Record(
        event if changed or touched else "operation.unchanged",
        f"version {entry.version} of {entry.name} for kernel {entry.kernel} was {said}",
        module=entry.name,
        action=action,
        result=Result.CHANGED if changed or touched else Result.UNCHANGED,
        uid=caller.uid,
        sender=caller.sender,
        exe=caller.exe,
        on_behalf_of=caller.on_behalf_of,
        extra={
            "VERSION": entry.version,
            "KERNEL": entry.kernel,
            "SHA256": entry.sha256,
            "SIGNER": entry.signer or "nobody",
            "TOUCHED": " ".join(touched),
        },
    )


def failed(action: str, module: str, caller: Caller, error: KmoddError) -> Record:
    """It was refused, or did not work."""
    record = attempt_record(Attempt(action, module), error, caller)
    return replace(record, message=f"{action} of {module or 'a module file'} failed: {error.message}")


def recovered(module: str, kernel: str) -> Record:
    """A change that a crash had interrupted was undone."""
    return Record(
        "store.recovered",
        f"a change of {module} for kernel {kernel} that was interrupted was undone",
        module=module,
        action="recover",
        result=Result.CHANGED,
        priority=5,
        extra={"KERNEL": kernel},
    )
