# SPDX-License-Identifier: LGPL-2.1-or-later
"""At most one coordinator writes: any order of delays, pauses, lost answers and clocks that disagree, against a store as the API server is
one; and the real one. What the cache does with what arrives late."""

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from kmodd.coordinator.cache import CONTACT_AFTER, NODES, SILENT_AFTER, Cache
from kmodd.coordinator.election import (
    DURATION,
    LEASES,
    RENEW_DEADLINE,
    REQUEST,
    Election,
    Leadership,
    Step,
    boottime,
    renewal,
)
from kmodd.coordinator.planning import plan
from kmodd.errors import InvalidArgs, Unavailable
from kmodd.fleet.exposition import CONNECTIONS, HEAD, Exposition, parse_address
from kmodd.fleet.kubernetes import MODULE_SETS, NODE_MODULES, Access, Api, Listing
from kmodd.fleet.resources import Metadata, ModuleSet, ModuleSetSpec, NodeModulesSpec, NodeSet, WantedModule, as_json
from kmodd.names import parse_module
from tests.fleet.cluster import Cluster

# --- one at a time ---------------------------------------------------------------------------------------------------


@dataclass
class Store:
    """One Lease, written under its resourceVersion alone."""

    lease: dict[str, Any] | None = None
    version: int = 0

    def write(self, document: dict[str, Any]) -> dict[str, Any] | None:
        present = self.lease["metadata"]["resourceVersion"] if self.lease else None
        if document["metadata"].get("resourceVersion") != present:
            return None
        self.version += 1
        metadata = {**document["metadata"], "resourceVersion": str(self.version)}
        self.lease = {**document, "metadata": metadata}
        return self.lease


@dataclass
class Candidate:
    """One replica, with a clock of its own."""

    election: Election
    offset: float
    phase: str = "idle"
    read: dict[str, Any] | None = None
    sent: float = 0.0
    document: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, Any] | None = None

    def clock(self, now: float) -> float:
        return now + self.offset


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    offsets=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=3),
    # Mostly whole attempts without a loss, so that one leads often, and pauses as long as the times that matter.
    moves=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.tuples(*[st.sampled_from((0.0,) * 8 + (2.0, 3.9, 5.0, 9.9, 15.1))] * 3),
            st.sampled_from((3, 3, 3, 2, 1)),
            st.sampled_from((False,) * 7 + (True,)),
        ),
        min_size=5,
        max_size=30,
    ).map(lambda rows: [(number, each, lost) for number, times, count, lost in rows for each in times[:count]]),
)
def test_two_candidates_never_lead_at_the_same_time(offsets: list[float], moves: list[tuple[int, float, bool]]) -> None:
    """Each move is a part of an attempt (read, send, be written, take the answer) after some time; an answer may be lost, and a
    replica may stand still for any time between two parts. An answer counts by when its request was sent."""
    store, now = Store(), 0.0
    candidates = [Candidate(Election(f"c{number}"), offset) for number, offset in enumerate(offsets)]
    for number, seconds, lost in moves:
        now += seconds
        one = candidates[number % len(candidates)]
        match one.phase:
            case "idle":
                one.read = store.lease
                step = one.election.see(one.read, one.clock(now))
                if step is Step.WAIT:
                    one.election.lost()
                else:
                    one.sent = one.clock(now)
                    one.document = renewal(one.read, "lease", one.election.identity, "")
                    one.phase = "sent"
            case "sent":
                one.answer = store.write(one.document)
                one.phase = "idle" if lost or one.answer is None else "answered"
            case "answered":
                assert one.answer is not None
                # The client gives a request up after this time, whatever comes later.
                if one.clock(now) - one.sent <= REQUEST:
                    one.election.renewed(one.answer, one.sent)
                one.phase = "idle"
        leading = [each.election.identity for each in candidates if each.election.leading(each.clock(now))]
        assert len(leading) <= 1, leading


def test_the_holder_stops_before_another_may_take_over() -> None:
    assert RENEW_DEADLINE + REQUEST < DURATION
    election = Election("one")
    election.renewed({"metadata": {"resourceVersion": "1"}}, 100.0)
    assert election.leading(100.0 + RENEW_DEADLINE - 0.1)
    assert not election.leading(100.0 + RENEW_DEADLINE)


def test_a_lease_that_changes_is_not_taken_whatever_its_times_say() -> None:
    election = Election("two")

    def lease(version: int) -> dict[str, Any]:
        spec = {"holderIdentity": "one", "leaseDurationSeconds": 15, "renewTime": "1970-01-01T00:00:00.000000Z"}
        return {"metadata": {"resourceVersion": str(version)}, "spec": spec}

    for version in range(100):
        assert election.see(lease(version), version * 14.0) is Step.WAIT
    assert election.see(lease(99), 99 * 14.0 + 14.9) is Step.WAIT
    assert election.see(lease(99), 99 * 14.0 + 15.1) is Step.TAKE
    assert election.see({"metadata": {"resourceVersion": "5"}, "spec": {"holderIdentity": ""}}, 0.0) is Step.TAKE
    assert election.see({"metadata": {"resourceVersion": "6"}}, 0.0) is Step.TAKE
    assert election.see(None, 0.0) is Step.CREATE


def test_a_lease_longer_than_ours_is_respected() -> None:
    election = Election("two")
    lease = {"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": "one", "leaseDurationSeconds": 60}}
    assert election.see(lease, 0.0) is Step.WAIT
    assert election.see(lease, 59.0) is Step.WAIT
    assert election.see(lease, 61.0) is Step.TAKE


def test_the_clock_is_not_one_that_can_be_set() -> None:
    with open("/proc/uptime") as file:  # noqa: PTH123 - no path of ours
        assert abs(float(file.read().split()[0]) - boottime()) < 5


async def test_on_the_real_server_one_of_three_gets_it_and_the_next_when_it_ends(kubernetes: Cluster) -> None:
    apis = [Api(Access(kubernetes.kubeconfig), "tests") for _ in range(3)]
    now = 1000.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        await asyncio.sleep(0)

    replicas = [
        Leadership(api, "default", "three", f"r{number}", clock=lambda: now, sleep=sleep)
        for number, api in enumerate(apis)
    ]
    try:
        waiting = [asyncio.ensure_future(each.acquire()) for each in replicas]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=20)
        assert len(done) == 1
        holder = waiting.index(done.pop())
        assert [each.leading for each in replicas] == [number == holder for number in range(3)]
        # It never renews: its right ends by its own clock, and another one takes the lease.
        done, _ = await asyncio.wait(
            [each for each in waiting if not each.done()], return_when=asyncio.FIRST_COMPLETED, timeout=20
        )
        assert done
        assert not replicas[holder].leading
        with pytest.raises(Unavailable):
            replicas[holder].require()
        lease = await apis[0].get(LEASES, "three", "default")
        assert lease["spec"]["leaseTransitions"] == 1
        # keep() of the old one ends: it does not take the lease back.
        await asyncio.wait_for(replicas[holder].keep(), 5)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for api in apis:
            await api.close()


# --- what arrives ----------------------------------------------------------------------------------------------------


def node_modules(generation: int, observed: int = 0, *, uid: str = "u1", version: str = "1") -> dict[str, Any]:
    metadata = {"name": "a", "uid": uid, "generation": generation, "resourceVersion": version}
    status = {"observedGeneration": observed, "lastContact": "2026-01-01T00:00:00Z"}
    return {"metadata": metadata, "spec": {"sets": []}, "status": status}


def node(name: str = "a", boot: str = "", ready: str = "True") -> dict[str, Any]:
    status = {"nodeInfo": {"bootID": boot}, "conditions": [{"type": "Ready", "status": ready}]}
    return {"metadata": {"name": name, "uid": f"uid-{name}", "labels": {}}, "status": status}


def test_a_watch_that_is_behind_a_write_of_ours_changes_nothing() -> None:
    cache = Cache(lambda: 0.0)
    cache.put(NODE_MODULES, node_modules(1))
    cache.put(NODE_MODULES, node_modules(2, version="2"))  # the answer to a write
    assert not cache.put(NODE_MODULES, node_modules(1, 1, version="1.5"))  # what the watch delivers after it
    cache.replace(NODE_MODULES, Listing((node_modules(1, 1, version="1.5"),), "9"))
    assert cache.modules["a"].metadata.generation == 2
    assert cache.put(NODE_MODULES, node_modules(1, uid="u2", version="3")), "another object of the same name"
    assert cache.modules["a"].metadata.generation == 1


def test_a_deletion_of_an_older_object_deletes_no_newer_one() -> None:
    cache = Cache(lambda: 0.0)
    cache.put(NODE_MODULES, node_modules(1, uid="u2"))
    cache.drop(NODE_MODULES, node_modules(1, uid="u1"))
    assert "a" in cache.modules
    cache.drop(NODE_MODULES, node_modules(1, uid="u2"))
    assert "a" not in cache.modules


def test_a_spec_that_is_being_written_counts_as_given() -> None:
    """A pass between a write and its answer must not take another node in place of this one."""
    wanted = ModuleSet(Metadata("s", "u", 2), ModuleSetSpec((WantedModule(parse_module("dummy")),)))
    before = NodeSet("s", (WantedModule(parse_module("loop")),), 1)
    cache = Cache(lambda: 0.0)
    for name in ("a", "b", "c"):
        cache.put(NODES, node(name))
        document = node_modules(1, 1)
        document["metadata"]["name"] = name
        document["spec"] = as_json(NodeModulesSpec((before,)))
        document["status"]["sets"] = [{"name": "s", "state": "Ready", "generation": 1}]
        cache.put(NODE_MODULES, document)
    cache.nodes["a"].node = replace(cache.nodes["a"].node, lost=True)
    first = plan([wanted], cache.members(), {}).specs
    assert set(first) == {"b"}
    cache.under_way["b"] = first["b"]
    cache.nodes["a"].node = replace(cache.nodes["a"].node, lost=False)
    assert not plan([wanted], cache.members(), {}).specs
    del cache.under_way["b"]  # it failed
    assert set(plan([wanted], cache.members(), {}).specs) == {"a"}


def test_a_set_that_was_reported_about_stays_settled_until_it_is_taken_back() -> None:
    one = NodeSet("s", (WantedModule(parse_module("loop")),), 1)
    two = NodeSet("t", (WantedModule(parse_module("dummy")),), 1)
    cache = Cache(lambda: 0.0)
    cache.put(NODES, node())

    def seen(*sets: NodeSet, generation: int, observed: int, uid: str = "u1") -> tuple[NodeSet, ...]:
        document = node_modules(generation, observed, uid=uid)
        document["spec"] = as_json(NodeModulesSpec(sets))
        cache.put(NODE_MODULES, document)
        return cache.members()[0].settled

    assert seen(one, generation=2, observed=1) == ()
    assert seen(one, generation=2, observed=2) == (one,)
    assert seen(one, two, generation=3, observed=2) == (one,), "the one that is added was not reported about"
    assert seen(two, generation=4, observed=2) == (), "taken back"
    assert seen(one, two, generation=5, observed=2) == (), "given again, and not reported about since"
    assert seen(one, two, generation=5, observed=5) == (one, two)
    assert seen(one, generation=6, observed=5, uid="u2") == (), "another object of the same name"
    assert seen(generation=6, observed=6, uid="u2") == ()


def test_contact_and_the_kubelets_heartbeat_are_no_reason_for_a_pass() -> None:
    cache = Cache(lambda: 0.0)
    assert cache.put(NODES, node())
    assert not cache.put(NODES, node())
    assert cache.put(NODE_MODULES, node_modules(1, 1))
    later = node_modules(1, 1, version="2")
    later["status"]["lastContact"] = "2026-01-01T01:00:00Z"
    assert not cache.put(NODE_MODULES, later)
    assert cache.modules["a"].metadata.resource_version == "2", "the next write needs it"
    assert cache.put(NODES, node(ready="Unknown"))
    assert cache.members()[0].silent


def test_what_cannot_be_read_is_marked_and_heals() -> None:
    cache = Cache(lambda: 0.0)
    cache.put(NODES, node())
    bad = node_modules(1)
    bad["status"]["sets"] = "nonsense"
    assert cache.put(NODE_MODULES, bad)
    assert cache.members()[0].unreadable
    assert cache.put(NODE_MODULES, node_modules(1))
    assert not cache.members()[0].unreadable
    document = {"metadata": {"name": "s", "generation": 3}, "spec": {"modules": []}}
    assert cache.put(MODULE_SETS, document)
    assert cache.bad_sets["s"][0] == 3
    document["spec"] = {"modules": [{"name": "loop"}]}
    assert cache.put(MODULE_SETS, document)
    assert not cache.bad_sets


def test_an_agent_that_does_not_follow_becomes_silent_and_is_heard_again() -> None:
    now = 0.0
    cache = Cache(lambda: now)
    cache.put(NODES, node())
    cache.put(NODE_MODULES, node_modules(2, 1))
    assert not cache.members()[0].silent
    assert cache.next_silence() == pytest.approx(SILENT_AFTER, abs=1)
    now = SILENT_AFTER + 1
    assert cache.members()[0].silent
    cache.put(NODE_MODULES, node_modules(2, 2))
    assert not cache.members()[0].silent
    now = CONTACT_AFTER - 1
    again = node_modules(2, 2, version="9")
    again["status"]["lastContact"] = "2026-01-01T02:00:00Z"
    assert not cache.put(NODE_MODULES, again)
    now += 2
    assert not cache.members()[0].silent
    now += cache.next_silence()
    assert cache.members()[0].silent, "an agent writes at each new watch"
    again["status"]["lastContact"] = "1999-01-01T02:00:00Z"
    assert cache.put(NODE_MODULES, again), "its clock may be anything, and this is news"
    assert not cache.members()[0].silent


# --- the metrics' server ---------------------------------------------------------------------------------------------


async def test_the_exposition_bounds_what_strangers_send(tmp_path: Path) -> None:
    del tmp_path
    exposition = Exposition(CollectorRegistry(), lambda: False)
    port = await exposition.start(("127.0.0.1", 0))

    async def send(data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(data)
            return await asyncio.wait_for(reader.read(), 10)
        except ConnectionError:
            return b""
        finally:
            writer.close()

    try:
        assert (await send(b"GET /healthz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
        assert (await send(b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert (await send(b"POST /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405 ")
        assert (await send(b"GET /../etc/passwd HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        assert await send(b"GET /" + b"x" * 2 * HEAD + b"\r\n\r\n") == b""
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS)]
        await asyncio.sleep(0.1)
        assert await send(b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        for _, writer in idle:
            writer.close()
        await asyncio.sleep(0.2)
        assert (await send(b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    finally:
        await exposition.close()


@pytest.mark.parametrize("text", ["", "9470", ":9470", "host:", "host:x", "host:70000", "host:-1"])
def test_an_address_has_host_and_port(text: str) -> None:
    with pytest.raises(InvalidArgs):
        parse_address(text)


def test_an_address_may_be_ipv6() -> None:
    assert parse_address("[::]:9470") == ("::", 9470)
