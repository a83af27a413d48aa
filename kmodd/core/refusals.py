# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests that cannot succeed: refused before anybody is asked for a password, completed with who is to blame, recorded."""

import asyncio
from dataclasses import replace

from kmodd.core.api import Audit, Clock
from kmodd.core.records import failure_record
from kmodd.core.usage import in_use
from kmodd.errors import InUse, KmoddError
from kmodd.kernel.ports import Kernel
from kmodd.model import Caller, Plan, Record
from kmodd.names import ModuleName

PERIOD = 60_000_000
"""Microseconds over which the records of one user are counted."""
RECORDS_MAX = 100
"""Records of one user in that time. Nobody had to authorise these requests, and journald drops everything of a service that
writes too much: nobody may be able to have the records of others dropped. root's are not counted."""
USERS_MAX = 256
SEARCHES = 4
"""Searches for users at once; each reads all of /proc in a thread."""


class Refusals:
    """Tells why a plan cannot be carried out."""

    def __init__(self, kernel: Kernel, audit: Audit, clock: Clock) -> None:
        self._kernel = kernel
        self._audit = audit
        self._clock = clock
        self._searches = 0
        self._written: dict[int | None, tuple[int, int]] = {}
        """(beginning of the period, records asked for in it) by user."""

    async def tell(self, plan: Plan, caller: Caller) -> KmoddError:
        """Answer the plan's first known error, with what keeps a busy module so, and record it once."""
        step = next((step for step in plan.steps if step.error is not None), None)
        if step is None or step.error is None:
            raise ValueError("nothing is known to fail in this plan")
        error = step.error
        if isinstance(error, InUse) and not error.evidence.users:
            error = await self._completed(error)
        if not plan.request.dry_run and (unwritten := self._admit(caller.uid)) is not None:
            operation = plan.request.operations[step.operation]
            named = " ".join(plan.targets[step.operation]) or operation.module
            record = failure_record(plan, caller, 0, operation, named, error)
            self._audit.record(_with(record, unwritten))
        return error

    async def _completed(self, error: InUse) -> InUse:
        """Look up what planning, which reads public facts that cost nothing, left out."""
        module = self._kernel.loaded.read(ModuleName(error.module))
        if module is None or module.references <= len(module.holders) or self._searches >= SEARCHES:
            return error
        self._searches += 1
        try:
            users = await asyncio.to_thread(self._kernel.usage.users, module.name)
        finally:
            self._searches -= 1
        return in_use(module, users)

    def _admit(self, uid: int | None) -> int | None:
        """How many records of this user were left out before this one; None when this one is left out too."""
        if uid == 0:
            return 0
        now = self._clock()
        begun, count = self._written.get(uid, (now, 0))
        if now - begun > PERIOD:
            self._written[uid] = (now, 1)
            return max(0, count - RECORDS_MAX)
        if uid not in self._written and len(self._written) >= USERS_MAX:
            self._written = {who: entry for who, entry in self._written.items() if now - entry[0] <= PERIOD}
            if len(self._written) >= USERS_MAX:
                return None
        self._written[uid] = (begun, count + 1)
        return 0 if count < RECORDS_MAX else None


def _with(record: Record, unwritten: int) -> Record:
    return replace(record, extra={**record.extra, "UNWRITTEN": str(unwritten)}) if unwritten else record
