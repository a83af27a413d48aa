# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests that cannot succeed: refused before anybody is asked for a password, completed with who is to blame, recorded."""

import asyncio

from kmodd.core.api import Audit
from kmodd.core.records import attempt_record, failure_record
from kmodd.core.usage import in_use
from kmodd.errors import InUse, KmoddError
from kmodd.kernel.ports import Kernel
from kmodd.model import Attempt, Caller, Plan
from kmodd.names import ModuleName

SEARCHES = 4
"""Searches for users at once; each reads all of /proc in a thread."""


class Refusals:
    """Tells why a plan cannot be carried out."""

    def __init__(self, kernel: Kernel, audit: Audit) -> None:
        self._kernel = kernel
        self._audit = audit
        self._searches = 0

    async def tell(self, plan: Plan, caller: Caller) -> KmoddError:
        """Answer the plan's first known error, with what keeps a busy module so, and record it once."""
        step = next((step for step in plan.steps if step.error is not None), None)
        if step is None or step.error is None:
            raise ValueError("nothing is known to fail in this plan")
        error = step.error
        if isinstance(error, InUse) and not error.evidence.users:
            error = await self._completed(error)
        if not plan.request.dry_run:
            operation = plan.request.operations[step.operation]
            named = " ".join(plan.targets[step.operation]) or operation.module
            self._audit.record(failure_record(plan, caller, 0, operation, named, error))
        return error

    async def note(self, attempt: Attempt, error: KmoddError, caller: Caller) -> KmoddError:
        """Answer the error of a request that is no plan, and record it once."""
        if not attempt.dry_run:
            self._audit.record(attempt_record(attempt, error, caller))
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
