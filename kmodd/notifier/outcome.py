# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an attempt to deliver came to, and what a channel is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kmodd.notifier.outbox import Delivery


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attempt's end. The sentence is for status and journal: it holds no URL and no secret."""

    kind: str
    """`delivered`, `retry`, `refused` (the receiver is well and does not take this very message) or `gone` (it wants no
    more)."""
    sentence: str = ""
    retry_after: float = 0.0
    """Seconds the receiver asked to be left alone."""


class Channel(Protocol):
    """A way to somebody."""

    most: int
    """Notices that go together."""

    def wait(self, oldest: int, sent: Sequence[int], now: int) -> float:
        """Seconds to collect before sending, by when the oldest was queued and what was sent within an hour."""

    async def send(self, deliveries: Sequence[Delivery]) -> Outcome:
        """Make one attempt, bounded in time."""
