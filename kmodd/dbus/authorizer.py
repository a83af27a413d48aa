# SPDX-License-Identifier: LGPL-2.1-or-later
"""Authorizes a call or raises, and records every decision about a member that is not public.

A granted check for a read or a dry run is recorded once per connection, on-behalf-of and modules until the next denial:
a record of each read of the dashboard would displace the records of operations from the journal.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from kmodd.dbus.admission import Quota
from kmodd.dbus.call import Call, Refusal
from kmodd.dbus.interface_xml import Method
from kmodd.errors import AccessDenied, InteractiveAuthorizationRequired, KmoddError
from kmodd.model import Caller, Record


class Authority(Protocol):
    """Decides; returning is the only way to say yes."""

    async def check(self, caller: Caller, action: str, details: Mapping[str, str]) -> None:
        """Return when the caller may; AccessDenied or InteractiveAuthorizationRequired otherwise, never anything else."""

    def may_speak_for_others(self, uid: int | None) -> bool:
        """What this user says about whom it asks for is worth being written down; nothing else follows from it."""
        ...


class InsecureSameUserAuthority:
    """FOR A BUS OF ONE'S OWN ONLY: the user who runs this program is allowed everything, without asking polkit.

    All other users are denied. Never to be used on the system bus, nor with a real kernel behind it.
    """

    def __init__(self, uid: int) -> None:
        """`uid` is the user that runs the program."""
        self._uid = uid

    async def check(self, caller: Caller, action: str, details: Mapping[str, str]) -> None:
        """Compare user ids."""
        if caller.uid is None or caller.uid != self._uid:
            raise AccessDenied(f"only the user who runs kmodd may do this ({action})")

    def may_speak_for_others(self, uid: int | None) -> bool:
        """As for everything."""
        return uid is not None and uid == self._uid


READ_HISTORY = "org.kmodd1.read-history"
INSPECT = "org.kmodd1.inspect"
_READING = frozenset({READ_HISTORY, INSPECT})
_HARMLESS_MAX = 64
"""Grants of one connection and action for what changes nothing that are remembered; further ones are each recorded."""

Count = Callable[[str, str], None]
"""Counts for the metrics: (what, member); what is `denied`, `granted`, `limited`, `refused` or `failed`."""


class Authorizer:
    """Asks the authority for every action a call needs."""

    def __init__(self, authority: Authority, quota: Quota, record: Callable[[Record], None], count: Count) -> None:
        """`record` writes a decision to the journal; it never raises."""
        self._authority = authority
        self._quota = quota
        self._write_record = record
        self._count = count
        self._harmless: dict[str, set[tuple[str, ...]]] = {}
        """By connection: what was granted that changes nothing, as recorded."""

    def forget(self, sender: str) -> None:
        """The connection is gone."""
        self._harmless.pop(sender, None)

    def speaker(self, caller: Caller, call: Call | Refusal) -> Caller:
        """The caller with whom it speaks for, to be written down; nothing is decided by that."""
        if not call.on_behalf_of or not self._authority.may_speak_for_others(caller.uid):
            return caller
        return replace(caller, on_behalf_of=call.on_behalf_of)

    async def authorize(self, row: Method, call: Call, caller: Caller) -> None:
        """Return when every action is granted; otherwise the first refusal, recorded."""
        actions = (*row.actions, *(action for action in call.actions if action not in row.actions))
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
                self._write_record(
                    _record("authorization.denied", f"refused: {error.message}", row.name, action, call, caller, error)
                )
                raise
        if caller.uid != 0:
            self._count("granted", row.name)
            for action in actions:
                if self._is_news(caller, action, call):
                    self._write_record(
                        _record("authorization.granted", "authorized", row.name, action, call, caller, None)
                    )

    async def permits(self, caller: Caller, member: str, action: str, details: Mapping[str, str]) -> bool:
        """Tell whether the caller may have more of a public member's answer than everyone; a no is no error.

        A caller is prompted only if the call allows it, and only then is a denial recorded: most callers are denied.
        AccessDenied when the caller may not say for whom it asks, LimitsExceeded when it has too many prompts open.
        """
        call = Call(lambda _: None, details)
        if call.on_behalf_of and not self._authority.may_speak_for_others(caller.uid):
            raise AccessDenied("this user may not use on-behalf-of")
        caller = self.speaker(caller, call)
        try:
            await self._ask(caller, action, call)
        except (AccessDenied, InteractiveAuthorizationRequired) as error:
            if caller.interactive:
                self._count("denied", member)
                self._write_record(
                    _record("authorization.denied", f"refused: {error.message}", member, action, call, caller, error)
                )
            return False
        if caller.uid != 0 and self._is_news(caller, action, call):
            self._count("granted", member)
            self._write_record(_record("authorization.granted", "authorized", member, action, call, caller, None))
        return True

    def _is_news(self, caller: Caller, action: str, call: Call) -> bool:
        """Tell whether a grant has to be recorded: always, but for what changes nothing and was recorded before."""
        if action not in _READING and not call.dry_run:
            return True
        recorded = self._harmless.setdefault(caller.sender, set())
        grant = (action, caller.on_behalf_of, "" if action in _READING else call.details.get("modules", ""))
        if grant in recorded:
            return False
        if sum(each[0] == action for each in recorded) < _HARMLESS_MAX:
            recorded.add(grant)
        return True

    async def foresee(self, row: Method, call: Call, caller: Caller) -> None:
        """Raise the recorded denial of what polkit denies whatever the details are, checked without a prompt.

        That authentication would be required is no refusal: a prompt, or a rule that looks at the details, may still grant it.
        """
        for action in row.actions:
            try:
                await self._ask(replace(caller, interactive=False), action, call)
            except InteractiveAuthorizationRequired:
                continue
            except AccessDenied as error:
                self._count("denied", row.name)
                self.forget(caller.sender)
                self._write_record(
                    _record("authorization.denied", f"refused: {error.message}", row.name, action, call, caller, error)
                )
                raise

    async def _ask(self, caller: Caller, action: str, call: Call) -> None:
        if call.on_behalf_of and not self._authority.may_speak_for_others(caller.uid):
            raise AccessDenied("this user may not use on-behalf-of")
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
    event: str, message: str, member: str, action: str, call: Call, caller: Caller, error: KmoddError | None
) -> Record:
    modules = call.details.get("modules", call.details.get("module", ""))
    asked_action = call.details.get("action", member)
    about = modules or call.details.get("endpoint", "")
    record = Record(
        event=event,
        message=f"{asked_action} {about}: {message}" if about else f"{asked_action}: {message}",
        action=asked_action,
        result="denied" if error else "granted",
        error=error.name() if error else "",
        reason=caller.reason,
        priority=4 if error else 6,
        extra={"POLKIT_ACTION": action},
    )
    return record.by(caller).about(modules.split())  # polkit's details are texts: canonical names, separated by spaces
