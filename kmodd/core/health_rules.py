# SPDX-License-Identifier: LGPL-2.1-or-later
"""Health of modprobe.d and modules-load.d: the findings of `Show`."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

from kmodd.core.sentences import ended
from kmodd.model import HealthCheck, HealthStatus
from kmodd.model.configuration import Finding, ShownRule

_OK, _DEGRADED = HealthStatus.OK, HealthStatus.DEGRADED
# The others are worth knowing, and part of many a distribution's own files.
_WRONG = frozenset({"edited", "foreign", "ignored-line", "unknown-parameter"})
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
        told = [pair for pair in self._found if _is_worth_telling(*pair)]
        for shown, finding in told[:TOLD_MAX]:
            status = _DEGRADED if finding.kind in _WRONG else _OK
            rule = shown.rule
            where = f"{rule.file}, line {rule.line}" if rule.line else rule.file
            named = f"{where}: " if not finding.message.startswith(f"{rule.file} ") else ""
            message = ended(named + finding.message)
            yield HealthCheck("rules", status, message, rule.module, _HINT)
        if len(told) < len(self._found):
            message = f"{len(self._found) - len(told)} remarks about files of the distribution."
            yield HealthCheck("rules", _OK, message, "", _HINT)
        if not self._found:
            yield HealthCheck("rules", _OK, "Nothing is wrong with the rules about modules.")

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
        found = [(rule, finding) for rule in rules for finding in rule.findings]
        # What is wrong goes first, so that it is told where there is much to tell.
        self._found = tuple(sorted(found, key=lambda pair: pair[1].kind not in _WRONG))
        if self._found != before:
            self._on_news()


def _is_worth_telling(shown: ShownRule, finding: Finding) -> bool:
    """What distributions ship is theirs to mend, and depmod's file of soft dependencies alone causes dozens of remarks."""
    return finding.kind in _WRONG or shown.rule.file.startswith(("/etc/", "/run/", "/proc/"))
