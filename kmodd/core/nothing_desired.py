# SPDX-License-Identifier: LGPL-2.1-or-later
"""The wanted state of a machine that nobody wants anything of: it never drifts."""

from collections.abc import Sequence

from kmodd.kernel.ports import ModuleIndex
from kmodd.model import Caller, OperationResult, Plan, Request
from kmodd.model.configuration import Drift


class NothingDesired:
    """Stands in where no files say what is wanted, as on a simulated machine."""

    def __init__(self, index: ModuleIndex) -> None:
        self._index = index

    async def drift(self) -> Sequence[Drift]:
        """None."""
        return ()

    def plan(self, *, dry_run: bool, reason: str) -> Plan:
        """No steps."""
        return Plan(Request((), dry_run=dry_run, reason=reason), (), ())

    async def apply(self, plan: Plan, caller: Caller) -> Sequence[OperationResult]:
        """Nothing to do."""
        return ()

    async def reload(self, caller: Caller) -> None:
        """Read the module index and modprobe.d again."""
        self._index.refresh()
