# SPDX-License-Identifier: LGPL-2.1-or-later
"""Limits the evidence of a failure to what `Explain` would show the same caller."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from kmodd.api import replies as rows
from kmodd.core.audit.redaction import LOG, View, redact_evidence
from kmodd.core.planning.consequence_text import told_to
from kmodd.dbus.authorizer import INSPECT, READ_HISTORY
from kmodd.dbus.call import ON_BEHALF_OF, Permits
from kmodd.errors import Evidence, KmoddError
from kmodd.model import Caller, OperationResult

Shown = tuple[Evidence, tuple[str, ...]]
"""Evidence, and the names of the parts that it lacks."""


class Disclosure:
    """Makes the arguments of error replies, and the rows of `Batch` and `Apply`.

    polkit is consulted only where something would be left out, and never with a prompt. What it cannot answer is withheld: the
    operation is over, and its result is returned in every case.
    """

    def __init__(self, permits: Permits, log_restricted: Callable[[], bool]) -> None:
        """`log_restricted` tells whether only CAP_SYSLOG may read the kernel's log."""
        self._permits = permits
        self._log_restricted = log_restricted

    def message(self, error: KmoddError, uid: int | None) -> str:
        """The sentence with the names that the user `uid` could find without kmodd (None: everyone)."""
        return told_to(error, uid).message

    def at_once(self, error: KmoddError, uid: int | None) -> rows.Row:
        """The evidence that the user `uid` could find without kmodd (None: everyone)."""
        evidence, _ = redact_evidence(error.evidence, self._view(uid))
        return rows.error(error, evidence)

    async def whole(self, error: KmoddError, caller: Caller, member: str) -> rows.Row:
        """The evidence with what polkit authorises the caller to see."""
        ((evidence, _),) = await self._shown([error.evidence], caller, member, error.module)
        return rows.error(error, evidence)

    async def outcomes(
        self, results: Sequence[OperationResult], caller: Caller, member: str, *, public: bool
    ) -> list[rows.Row]:
        """The rows of `Batch` and `Apply`; with `public`, as everyone may see them."""
        failed = [result for result in results if result.error is not None]
        evidence = [result.error.evidence for result in failed if result.error is not None]
        if public:
            shown = [redact_evidence(each, self._view(None)) for each in evidence]
        else:
            shown = await self._shown(
                evidence, caller, member, " ".join(dict.fromkeys(result.module for result in failed))
            )
        parts = iter(shown)
        uid = None if public else caller.uid
        return [
            rows.result(result, Evidence())
            if result.error is None
            else rows.result(replace(result, error=told_to(result.error, uid)), *next(parts))
            for result in results
        ]

    async def _shown(self, evidence: Sequence[Evidence], caller: Caller, member: str, modules: str) -> list[Shown]:
        """`modules` are named to polkit's rules."""
        view = self._view(caller.uid)
        shown = [redact_evidence(each, view) for each in evidence]
        withheld = {part for _, parts in shown for part in parts}
        if not withheld:
            return shown
        quiet = replace(caller, interactive=False)
        details = {"module": modules, "modules": modules, "action": "inspect"}
        if caller.on_behalf_of:
            details[ON_BEHALF_OF] = caller.on_behalf_of
        try:
            if await self._permits(quiet, member, INSPECT, details):
                return [(each, ()) for each in evidence]
            if LOG in withheld and await self._permits(
                quiet, member, READ_HISTORY, {**details, "action": "read-history"}
            ):
                return [redact_evidence(each, replace(view, log=True)) for each in evidence]
        except KmoddError:
            pass  # neither polkit nor the bus could say: what everyone may see is left
        return shown

    def _view(self, uid: int | None) -> View:
        try:
            return View(uid, log=not self._log_restricted())
        except OSError:
            return View(uid)  # who may read the log is not known: only the authorised
