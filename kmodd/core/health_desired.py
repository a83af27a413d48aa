# SPDX-License-Identifier: LGPL-2.1-or-later
"""Health of the wanted state: files that do not count, wishes that failed, and drift."""

from collections import Counter
from collections.abc import Iterator

from kmodd.core.desired import DesiredState
from kmodd.core.drift import APPLY, Comparison
from kmodd.core.reconcile import Reconciler
from kmodd.core.sentences import ended
from kmodd.model import HealthCheck, HealthStatus, Metric
from kmodd.names import ModuleName

_OK, _DEGRADED = HealthStatus.OK, HealthStatus.DEGRADED
ROWS_MAX = 64
"""Differences told one by one."""
_NOTHING_WANTED = "No file in /etc/kmodd/modules.d says what is wanted of a module."

KINDS = ("presence", "parameter", "blacklist", "autoload", "options", "store-version", "initramfs")


class DesiredHealth:
    """Looks at the wanted state; under a millisecond for each wish, and for nothing where nothing is wanted."""

    def __init__(self, desired: DesiredState, comparison: Comparison, reconciler: Reconciler) -> None:
        self._desired = desired
        self._comparison = comparison
        self._reconciler = reconciler

    def checks(self) -> Iterator[HealthCheck]:
        """Every finding."""
        if self._desired.refresh():
            self._reconciler.files_changed()
        yield self._settings()
        yield from self._failed()
        yield from self._drift()

    def metrics(self) -> Iterator[Metric]:
        """How far the machine is from what is wanted."""
        kinds = Counter(row.kind for row in self._comparison.find().rows)
        for kind in KINDS:
            yield Metric("kmodd_drift", "gauge", (("kind", kind),), float(kinds[kind]))
        yield Metric("kmodd_desired_modules", "gauge", (), float(len(self._desired.wishes)))
        yield Metric("kmodd_desired_failures", "gauge", (), float(len(self._reconciler.failures)))
        yield Metric("kmodd_settings_valid", "gauge", (), float(self._desired.fault is None))

    def _settings(self) -> HealthCheck:
        fault = self._desired.fault
        if fault is None:
            return HealthCheck("settings", _OK, "Every settings file is in force.")
        message = ended(f"The settings from before stay in force: {fault.message}")
        return HealthCheck("settings", _DEGRADED, message, "", fault.evidence.hint)

    def _failed(self) -> Iterator[HealthCheck]:
        failures = self._reconciler.failures
        for name, error in failures.items():
            hint = error.evidence.hint or f"kmodctl why {name}"
            message = ended(f"{name} is not as it is wanted to be ({error.name()}): {error.message}")
            yield HealthCheck("desired-state", _DEGRADED, message, name, hint)
        if not failures:
            yield HealthCheck("desired-state", _OK, self._nothing_failed())

    def _nothing_failed(self) -> str:
        if not self._desired.wishes:
            return _NOTHING_WANTED
        waiting = self._reconciler.waiting()
        if not waiting:
            return "Nothing that is wanted has failed."
        told = "; ".join(f"{name}, as {why}" for name, why in list(waiting.items())[:ROWS_MAX])
        return f"Not due yet: {told}."

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
            message = f"{row.module} has drifted ({row.kind}): wanted {wanted}, found {actual}."
            yield HealthCheck("drift", _DEGRADED, message, row.module, row.hint)
        if not rows:
            message = "The machine is as it is wanted to be." if self._desired.wishes else _NOTHING_WANTED
            yield HealthCheck("drift", _OK, message)
        elif len(rows) > ROWS_MAX:
            yield HealthCheck("drift", _DEGRADED, f"And {len(rows) - ROWS_MAX} differences more.", "", APPLY)
