# SPDX-License-Identifier: LGPL-2.1-or-later
"""Delivers the queue of one endpoint in order, with retries over days as Standard Webhooks 1.0.0 advises.

Each endpoint has its own worker, so that none waits for another.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from typing import Protocol

from kmodd.fast_dataclass import dataclass
from kmodd.journal.writer import Logger
from kmodd.notifier.outbox import DUE_MAX, Delivery, Outbox


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attempt's end. The sentence is for status and journal: it holds no URL and no secret."""

    kind: str
    """`delivered`, `retry`, `refused` (the receiver is well and does not take this very message) or `gone` (it wants no
    more)."""
    sentence: str = ""
    retry_after: float = 0.0
    """Seconds to wait as requested by the receiver."""


class Channel(Protocol):
    """A way to deliver notices."""

    most: int
    """Notices that go together."""

    def wait(self, oldest: int, sent: Sequence[int], now: int) -> float:
        """Seconds to collect before sending, by when the oldest was queued and what was sent within an hour."""

    async def send(self, deliveries: Sequence[Delivery]) -> Outcome:
        """Make one attempt, bounded in time."""


SCHEDULE = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
"""Seconds to wait after the first, second, … failure in a row; the last one repeats as long as there is something to send."""
JITTER = 0.2
"""So much of the wait is left to chance, so that many machines do not come back at one moment."""
EXPIRY = sum(SCHEDULE) + 4 * 3600
"""Seconds after which a message is given up: a little more than three days."""
RETRY_AFTER_MAX = 24 * 3600


def delay(failures: int, random: Callable[[], float], retry_after: float = 0.0) -> float:
    """Seconds to wait after so many failures in a row (at least 1); never less than the receiver requested."""
    base = SCHEDULE[min(max(failures, 1), len(SCHEDULE)) - 1]
    wanted = base * (1 - JITTER / 2 + JITTER * random())
    return max(wanted, min(retry_after, RETRY_AFTER_MAX))


SLEEP_MAX = 600.0
"""Seconds after which the clock is looked at again, for it may have been set."""
RETRY_DELAY = 30.0
"""Seconds until a queue that could not be used is tried again."""


class DeliveryWorker:
    """One endpoint's deliveries, one attempt at a time."""

    def __init__(
        self,
        name: str,
        channel: Channel,
        outbox: Outbox,
        logger: Logger,
        *,
        clock: Callable[[], int],
        random: Callable[[], float],
    ) -> None:
        self.name = name
        self._channel = channel
        self._outbox = outbox
        self._logger = logger
        self._clock = clock
        self._random = random
        self._news = asyncio.Event()

    def wake(self) -> None:
        """Something was queued, or the endpoint's state was changed."""
        self._news.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            self._news.clear()
            try:
                seconds = self.pause()
                if seconds == 0:
                    await self.attempt()
                    continue
            except sqlite3.Error as error:
                # What was sent but could not be recorded is sent once more: the guarantee is at least once.
                self._logger.error("notifier.trouble", message=f"the queue cannot be used: {error}")  # noqa: TRY400 - no bug: no trace
                seconds = RETRY_DELAY
            except Exception as error:  # noqa: BLE001 - a bug must not silence an endpoint until the service is restarted
                self._logger.error("notifier.trouble", message=f"{self.name}: internal error: {type(error).__name__}")  # noqa: TRY400 - may hold secrets
                seconds = RETRY_DELAY
            try:
                async with asyncio.timeout(seconds):
                    await self._news.wait()
            except TimeoutError:
                continue

    def pause(self) -> float | None:
        """Seconds until the next attempt; None when there is nothing to do, 0 for now."""
        state = self._outbox.state(self.name)
        waiting = self._outbox.waiting(self.name)
        if not waiting.count or not state.enabled:
            return None
        now = self._clock()
        # The clock may have been set back since `due` was computed: no wait gets longer than it was meant to be.
        left = min((state.due - now) / 1_000_000, float(state.wait))
        if left <= 0 and now < waiting.due <= now + DUE_MAX:
            left = (waiting.due - now) / 1_000_000
        if left <= 0:
            left = self._channel.wait(waiting.oldest, self._outbox.sent_since(self.name, now - 3_600_000_000), now)
        return min(max(left, 0.0), SLEEP_MAX)

    async def attempt(self) -> None:
        """Send the oldest, and note what came of it."""
        deliveries = self._outbox.begin(self.name, self._channel.most, self._clock())
        if not deliveries:
            return
        try:
            outcome = await self._channel.send(deliveries)
        except Exception as error:  # noqa: BLE001 - a bug in one channel stops neither the others nor this one for good
            outcome = Outcome("retry", f"internal error: {type(error).__name__}")
        self._note(deliveries, outcome)

    def _note(self, deliveries: Sequence[Delivery], outcome: Outcome) -> None:
        now = self._clock()
        before = self._outbox.state(self.name)
        if outcome.kind == "delivered":
            self._outbox.finish(self.name, deliveries, now)
            if outcome.sentence:
                self._logger.warning("notifier.trouble", message=f"{self.name}: {outcome.sentence}")
            if before.failures:
                self._logger.info("notifier.recovered", message=f"{self.name}: delivery recovered")
            return
        if outcome.kind == "gone":
            self._outbox.enable(self.name, enabled=False, why=outcome.sentence)
            self._logger.warning("notifier.disabled", message=f"{self.name} is disabled: {outcome.sentence}")
            return
        expired = now - EXPIRY * 1_000_000
        if outcome.kind == "refused":
            (delivery,) = deliveries
            wait = delay(delivery.attempts + 1, self._random)
            self._outbox.set_aside(self.name, delivery, outcome.sentence, now + int(wait * 1_000_000))
            if delivery.attempts == 0:
                self._logger.warning(
                    "notifier.delayed", message=f"{self.name}: {outcome.sentence}; {delivery.notice.id} will be retried"
                )
            self._drop_overdue(expired, outcome.sentence, delivery)
            return
        # Not before the schedule was gone through: a machine that slept for days has had no chance yet.
        if before.failures + 1 >= len(SCHEDULE):
            self._drop_overdue(expired, outcome.sentence)
        wait = delay(before.failures + 1, self._random, outcome.retry_after)
        self._outbox.postpone(self.name, deliveries, outcome.sentence, now + int(wait * 1_000_000), int(wait) + 1)
        if before.failures == 0:  # the first of a row; status tells of the others
            self._logger.warning(
                "notifier.delayed", message=f"{self.name}: {outcome.sentence}; retrying for three days"
            )

    def _drop_overdue(self, before: int, sentence: str, only: Delivery | None = None) -> None:
        if count := self._outbox.drop_overdue(self.name, before, only):
            self._logger.error(
                "notifier.dropped", message=f"{self.name}: {count} dropped after days of retries: {sentence}"
            )
