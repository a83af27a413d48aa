# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hub keeps order, survives subscribers that raise, and forgets those that left."""

from kmodd.core.events import Event, EventHub, JobAdded, ModuleAdded, ModuleRemoved, Subscriber
from kmodd.names import ModuleName


def silent_hub() -> EventHub:
    def complain(_subscriber: Subscriber, _event: Event, error: Exception) -> None:
        raise AssertionError(f"unexpected complaint: {error!r}")

    return EventHub(complain)


def test_subscribers_are_called_in_order() -> None:
    hub, first, second = silent_hub(), list[Event](), list[Event]()
    hub.subscribe(first.append)
    hub.subscribe(second.append)
    hub.publish(JobAdded(1))
    hub.publish(JobAdded(2))
    assert first == second == [JobAdded(1), JobAdded(2)]


def test_a_subscriber_that_raises_stops_no_other_and_is_logged() -> None:
    complaints: list[tuple[Subscriber, Event, Exception]] = []
    hub = EventHub(lambda *complaint: complaints.append(complaint))
    told: list[Event] = []
    error = ValueError("broken")

    def broken(_event: Event) -> None:
        raise error

    hub.subscribe(broken)
    hub.subscribe(told.append)
    hub.publish(JobAdded(1))
    assert told == [JobAdded(1)]
    assert complaints == [(broken, JobAdded(1), error)]


def test_an_event_published_while_telling_comes_after_the_present_one_for_all() -> None:
    hub, told = silent_hub(), list[Event]()

    def answering(event: Event) -> None:
        if event == JobAdded(1):
            hub.publish(JobAdded(2))

    hub.subscribe(answering)
    hub.subscribe(told.append)
    hub.publish(JobAdded(1))
    assert told == [JobAdded(1), JobAdded(2)]


def test_an_unsubscribed_callback_misses_even_the_present_event() -> None:
    hub, told = silent_hub(), list[Event]()
    hub.subscribe(lambda _: leave())
    leave = hub.subscribe(told.append)
    hub.publish(JobAdded(1))
    leave()
    assert told == []


def test_a_subscriber_gets_the_kinds_of_events_it_named() -> None:
    hub, jobs, modules = silent_hub(), list[Event](), list[Event]()
    hub.subscribe(jobs.append, JobAdded)
    leave = hub.subscribe(modules.append, ModuleAdded, ModuleRemoved)
    for event in (JobAdded(1), ModuleAdded(ModuleName("a")), ModuleRemoved(ModuleName("a"))):
        hub.publish(event)
    leave()
    hub.publish(ModuleAdded(ModuleName("b")))
    assert jobs == [JobAdded(1)]
    assert modules == [ModuleAdded(ModuleName("a")), ModuleRemoved(ModuleName("a"))]


def test_one_function_may_subscribe_twice() -> None:
    hub, told = silent_hub(), list[Event]()
    leave = hub.subscribe(told.append)
    hub.subscribe(told.append)
    leave()
    hub.publish(JobAdded(1))
    assert told == [JobAdded(1)]
