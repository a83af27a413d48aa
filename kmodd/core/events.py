# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hub that carries core's events to whoever subscribed: bus, metrics, health."""

from collections import deque
from collections.abc import Callable

from kmodd.core.api import Event

Subscriber = Callable[[Event], None]
Complaint = Callable[[Subscriber, Event, Exception], None]


class EventHub:
    """Publishes events in order, on the event loop, to everyone who subscribed.

    An event that a subscriber publishes while it is being told one is delivered after the current one has reached
    everybody, so all subscribers see the same order.
    """

    def __init__(self, complain: Complaint) -> None:
        """`complain` is told of a subscriber that raised; it must not raise itself."""
        self._complain = complain
        # A dict keeps the order of subscription and makes ending one cheap; the key is unique even where one function
        # subscribes twice.
        self._subscribers: dict[int, Subscriber] = {}
        self._next = 0
        self._waiting: deque[Event] = deque()
        self._delivering = False

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Tell `subscriber` every event from now on; calling the answer ends it, a second call does nothing."""
        key = self._next
        self._next += 1
        self._subscribers[key] = subscriber

        def end() -> None:
            self._subscribers.pop(key, None)

        return end

    def publish(self, event: Event) -> None:
        """Tell every subscriber; one that raises is complained about and does not stop the others."""
        self._waiting.append(event)
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._waiting:
                self._deliver(self._waiting.popleft())
        finally:
            self._delivering = False

    def _deliver(self, event: Event) -> None:
        for key, subscriber in list(self._subscribers.items()):
            if key not in self._subscribers:
                continue  # ended by an earlier subscriber of this very event
            try:
                subscriber(event)
            except Exception as error:  # noqa: BLE001 - whatever one does wrong, it has happened and the others have to know
                self._complain(subscriber, event, error)
