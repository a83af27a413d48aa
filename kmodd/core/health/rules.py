# SPDX-License-Identifier: LGPL-2.1-or-later
"""Health of module rules (the findings of `Show`) and of the desired state: invalid files, failures and drift."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence

from kmodd.core.desired.drift import APPLY, Comparison
from kmodd.core.desired.reconciler import Reconciler
from kmodd.core.desired.state import DesiredState
from kmodd.core.diagnosis.advice import ended
from kmodd.model import HealthCheck, HealthStatus, Metric
from kmodd.model.rules import Finding, Severity, ShownRule
from kmodd.names import ModuleName

_OK, _DEGRADED = HealthStatus.OK, HealthStatus.DEGRADED
_HINT = "kmodctl config show --findings"
TOLD_MAX = 32


class RulesHealth:
    """Findings as of the last reading; read again, beside everything else, when a rule changed."""

    def __init__(
        self,
        show: Callable[[], Awaitable[Sequence[ShownRule]]],
        stamp: Callable[[], object],
        on_news: Callable[[], None],
    ) -> None:
        """`stamp` answers the same object as long as no rule changed; `on_news` is called when findings did."""
        self._show = show
        self._stamp_now = stamp
        self._on_news = on_news
        self._stamp: object = None
        self._found: tuple[tuple[ShownRule, Finding], ...] = ()
        self._reading: asyncio.Task[None] | None = None

    def checks(self) -> Iterator[HealthCheck]:
        """One for each finding."""
        stamp = self._stamp_now()
        if stamp is not self._stamp and self._reading is None:
            self._stamp = stamp
            self._reading = asyncio.get_running_loop().create_task(self._look())
        listed = [pair for pair in self._found if _is_worth_telling(*pair)]
        for shown, finding in listed[:TOLD_MAX]:
            status = _DEGRADED if finding.severity is Severity.WARNING else _OK
            file, line = finding.file or shown.rule.file, finding.line or shown.rule.line
            where = f"{file}, line {line}" if line else file
            message = ended(finding.message if finding.names_file else f"{where}: {finding.message}")
            yield HealthCheck("rules", status, message, shown.rule.module, _hint(finding), finding)
        if len(listed) < len(self._found):
            message = f"{len(self._found) - len(listed)} findings in vendor files."
            yield HealthCheck("rules", _OK, message, "", _HINT)
        if not self._found:
            yield HealthCheck("rules", _OK, "No findings in module rules.")

    def reading(self) -> asyncio.Task[None] | None:
        """What is being read."""
        return self._reading

    async def close(self) -> None:
        """Wait for a reading that is under way: its thread cannot be stopped."""
        if self._reading is not None:
            await asyncio.wait({self._reading})

    async def _look(self) -> None:
        before = self._found
        try:
            rules = await self._show()
        finally:
            self._reading = None
        findings = [(rule, finding) for rule in rules for finding in rule.findings]
        # Findings with the highest severity first, as the list is limited.
        self._found = tuple(sorted(findings, key=lambda pair: pair[1].severity is not Severity.WARNING))
        if self._found != before:
            self._on_news()


def _hint(finding: Finding) -> str:
    if len(finding.instead) != 1:
        return _HINT
    (line,) = finding.instead
    return f"write in {line.file}: {line.text}"


def _is_worth_telling(shown: ShownRule, finding: Finding) -> bool:
    """What distributions ship is theirs to change, and depmod's file of soft dependencies alone causes dozens of remarks."""
    return finding.severity is Severity.WARNING or shown.rule.file.startswith(("/etc/", "/run/", "/proc/"))


ROWS_MAX = 64
"""Differences listed individually."""
_NO_DESIRED_STATE = "No desired state is configured in /etc/kmodd/modules.d."

KINDS = ("presence", "parameter", "blacklist", "autoload", "options", "store-version", "initramfs")


class DesiredHealth:
    """Checks the desired state; under a millisecond per module, and nothing without a desired state."""

    def __init__(self, desired: DesiredState, comparison: Comparison, reconciler: Reconciler) -> None:
        self._desired = desired
        self._comparison = comparison
        self._reconciler = reconciler

    def checks(self) -> Iterator[HealthCheck]:
        """Every finding."""
        if self._desired.refresh():
            self._reconciler.files_changed()
        yield self._settings()
        yield from self._names()
        yield from self._failed()
        yield from self._drift()

    def metrics(self) -> Iterator[Metric]:
        """The drift from the desired state."""
        kinds = Counter(row.kind for row in self._comparison.find().rows)
        for kind in KINDS:
            yield Metric("kmodd_drift", "gauge", (("kind", kind),), float(kinds[kind]))
        yield Metric("kmodd_desired_modules", "gauge", (), float(len(self._desired.desired_modules)))
        yield Metric("kmodd_desired_failures", "gauge", (), float(len(self._reconciler.failures)))
        yield Metric("kmodd_settings_valid", "gauge", (), float(self._desired.fault is None))

    def _settings(self) -> HealthCheck:
        fault = self._desired.fault
        if fault is None:
            return HealthCheck("settings", _OK, "Every configuration file is in effect.")
        message = ended(f"The previous settings stay in effect: {fault.message}")
        return HealthCheck("settings", _DEGRADED, message, "", fault.evidence.hint)

    def _names(self) -> Iterator[HealthCheck]:
        """Tables that name an alias: it may stand for other modules with the next kernel."""
        for entry, modules in self._desired.aliases():
            message = f"{entry.module} is an alias of {' and '.join(modules)}"
            hint = f"write [module.{modules[0]}] in {entry.file}, line {entry.line}"
            if len(modules) > 1:
                message, status = f"{message}, so it cannot have a desired state.", _DEGRADED
            elif (
                in_force := self._desired.desired_modules.get(modules[0])
            ) is None or in_force.written != entry.module:
                message, status = f"{message}, which another table describes: this one is ignored.", _DEGRADED
            else:
                message, status = f"{message}, whose desired state it sets.", _OK
            yield HealthCheck("desired-name", status, message, entry.module, hint)

    def _failed(self) -> Iterator[HealthCheck]:
        failures = self._reconciler.failures
        for name, error in failures.items():
            hint = error.evidence.hint or f"kmodctl why {name}"
            message = ended(f"{name} deviates from the desired state ({error.name()}): {error.message}")
            yield HealthCheck("desired-state", _DEGRADED, message, name, hint, error=error.name(), cause=error.message)
        if not failures:
            yield HealthCheck("desired-state", _OK, self._nothing_failed())

    def _nothing_failed(self) -> str:
        if not self._desired.desired_modules:
            return _NO_DESIRED_STATE
        waiting = self._reconciler.waiting()
        if not waiting:
            return "No module failed to reach the desired state."
        listed = "; ".join(f"{name} ({why})" for name, why in list(waiting.items())[:ROWS_MAX])
        return f"Waiting: {listed}."

    def _drift(self) -> Iterator[HealthCheck]:
        # What is being loaded or unloaded at this moment, as much is at boot, has not drifted.
        rows = [
            row
            for row in self._comparison.find().rows
            if row.kind != "initramfs"
            and not (row.kind == "presence" and self._reconciler.is_busy_with(ModuleName(row.module)))
        ]
        for row in rows[:ROWS_MAX]:
            wanted, actual = row.wanted or "none", row.actual or "none"
            message = f"{row.module} deviates from the desired state ({row.kind}): desired {wanted}, actual {actual}."
            yield HealthCheck("drift", _DEGRADED, message, row.module, row.hint)
        if not rows:
            message = "The system matches the desired state." if self._desired.desired_modules else _NO_DESIRED_STATE
            yield HealthCheck("drift", _OK, message)
        elif len(rows) > ROWS_MAX:
            yield HealthCheck("drift", _DEGRADED, f"And {len(rows) - ROWS_MAX} more differences.", "", APPLY)
