# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lets a call through, or raises. Every decision that is not about a public member is written down.

Whoever may read the history does it again and again (the dashboard after every event): that is one decision for a connection and
those it speaks for, until it is decided otherwise. A record for each reading would push what is read out of the journal.
"""

from collections.abc import Callable
from dataclasses import replace

from kmodd.bus.authority import Authority
from kmodd.bus.call import Call, Refusal
from kmodd.bus.contract import Method
from kmodd.bus.quota import Quota
from kmodd.core.api import Audit
from kmodd.errors import AccessDenied, InteractiveAuthorizationRequired, KmoddError
from kmodd.model import Caller, Record

_READING = "org.kmodd1.read-history"
_READERS_MAX = 64
"""Names one connection speaks for that are remembered; of further ones each reading is recorded."""

Count = Callable[[str, str], None]
"""Counts for the metrics: (what, member); what is `denied`, `granted`, `limited`, `refused` or `failed`."""


class Gate:
    """Asks the authority for every action a call needs."""

    def __init__(self, authority: Authority, quota: Quota, audit: Audit, count: Count) -> None:
        self._authority = authority
        self._quota = quota
        self._audit = audit
        self._count = count
        self._readers: dict[str, set[str]] = {}
        """By connection: for whom it was granted to read, as recorded."""

    def forget(self, sender: str) -> None:
        """The connection is gone."""
        self._readers.pop(sender, None)

    def speaker(self, caller: Caller, call: Call | Refusal) -> Caller:
        """The caller with whom it speaks for, to be written down; nothing is decided by that."""
        if not call.on_behalf_of or not self._authority.may_speak_for_others(caller.uid):
            return caller
        return replace(caller, on_behalf_of=call.on_behalf_of)

    async def pass_through(self, row: Method, call: Call, caller: Caller) -> None:
        """Return when every action is granted; otherwise the first refusal, recorded."""
        actions = (*row.actions, *(one for one in call.actions if one not in row.actions))
        if not actions:
            raise AssertionError(f"{row.interface}.{row.name} names no action")
        if row.owner and call.owner and call.owner == caller.sender:
            return
        for action in actions:
            try:
                await self._ask(caller, action, call)
            except (AccessDenied, InteractiveAuthorizationRequired) as error:
                self._count("denied", row.name)
                self.forget(caller.sender)
                self._audit.record(
                    _record("authorization.denied", f"refused: {error.message}", row, action, call, caller, error)
                )
                raise
        if caller.uid != 0:
            self._count("granted", row.name)
            for action in actions:
                if action != _READING or self._begins_to_read(caller):
                    self._audit.record(_record("authorization.granted", "authorized", row, action, call, caller, None))

    def _begins_to_read(self, caller: Caller) -> bool:
        known = self._readers.setdefault(caller.sender, set())
        if caller.on_behalf_of in known:
            return False
        if len(known) < _READERS_MAX:
            known.add(caller.on_behalf_of)
        return True

    async def _ask(self, caller: Caller, action: str, call: Call) -> None:
        if call.on_behalf_of and not self._authority.may_speak_for_others(caller.uid):
            raise AccessDenied("only root and the gateway may say for whom they ask")
        if not caller.interactive or caller.uid == 0:
            await self._authority.check(caller, action, call.details)
            return
        # Most answers need no prompt, so only those that do count as one: first without, then with.
        try:
            await self._authority.check(replace(caller, interactive=False), action, call.details)
        except InteractiveAuthorizationRequired:
            slot = self._quota.prompt(caller.uid)
            try:
                await self._authority.check(caller, action, call.details)
            finally:
                slot.release()


def _record(
    event: str, message: str, row: Method, action: str, call: Call, caller: Caller, error: KmoddError | None
) -> Record:
    modules = call.details.get("modules", call.details.get("module", ""))
    asked = call.details.get("action", row.name)
    return Record(
        event=event,
        message=f"{asked} {modules}: {message}" if modules else f"{asked}: {message}",
        module=modules,
        action=asked,
        result="denied" if error else "granted",
        error=error.name() if error else "",
        uid=caller.uid,
        sender=caller.sender,
        exe=caller.exe,
        on_behalf_of=caller.on_behalf_of,
        priority=4 if error else 6,
        extra={"POLKIT_ACTION": action},
    )
