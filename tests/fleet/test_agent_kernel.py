# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent beside a kernel that is not as usual: it forbids loading, hangs, is another boot; and leases of what pods need."""

import errno
import os
import time
from pathlib import Path

import pytest

from kmodd.client import Client
from kmodd.errors import InUse, LimitsExceeded
from kmodd.model import Explanation, HistoryEntry, User
from tests.fleet.cluster import Cluster
from tests.fleet.other_kernel import other_daemon
from tests.fleet.running import Node, module, new_node, one_set
from tests.fleet.test_agent import conditions, states

FIRST, SECOND = "aaaaaaaa-2222-3333-4444-555555555555", "bbbbbbbb-2222-3333-4444-555555555555"


@pytest.fixture
def node(kubernetes: Cluster, bus: str, tmp_path: Path) -> Node:
    """A node without kmodd."""
    return new_node(kubernetes, bus, tmp_path)


# --- reasons ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "name", "reason"),
    [
        ({"facts": {"modules_disabled": True}}, "loop", "ModulesDisabled"),
        ({"facts": {"lockdown": "integrity"}}, "kmodd_test_good", "Lockdown"),
        ({"facts": {"tree_present": False}}, "nowhere", "ModuleTreeMissing"),
        ({"refused": {"loop": errno.EPERM}}, "loop", "NotPermitted"),
        ({"refused": {"loop": errno.ETXTBSY}}, "loop", "Busy"),
        ({"denies": True}, "loop", "AccessDenied"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_kernel_or_polkit_forbids_is_a_reason(
    node: Node, kernel: dict[str, object], name: str, reason: str
) -> None:
    with other_daemon(node.address, **kernel):  # type: ignore[arg-type] # one of its options
        node.want(one_set("a", name))
        with node.agent():
            status = node.reaches(name, "Failed", reason)
            assert status.message
            assert name not in node.loaded()
            found = node.wait(lambda seen: conditions(seen).get("Ready") == ("False", reason))
            assert found.status.sets[0].reason == reason


def test_a_call_that_does_not_return_is_timed_out_and_then_stuck(node: Node) -> None:
    """With a new record, as after a reinstallation, the agent learns it from kmodd."""
    with other_daemon(node.address, pace=0.02):
        node.want(one_set("a", "kmodd_test_init_hang"), one_set("b", "loop"))
        with node.agent():
            status = node.reaches("kmodd_test_init_hang", "Failed", "TimedOut")
            assert not status.next_try
            assert node.reaches("loop", "Ready").owned_by_agent
        (node.state / "record.json").unlink()
        with node.agent():
            node.reaches("kmodd_test_init_hang", "Failed", "Stuck")


def test_nothing_is_begun_where_too_much_is_stuck(node: Node) -> None:
    hanging = ("dummy", "veth", "tun", "vfat")
    with other_daemon(node.address, pace=0.02, hanging=hanging, stuck_max=3):
        node.want(*(one_set(name, name) for name in (*hanging[:3], "loop")))
        with node.agent():
            status = node.reaches("loop", "Failed", "LimitsExceeded")
            assert status.next_try
            assert {states(node.read())[name] for name in hanging[:3]} == {("Failed", "TimedOut")}


# --- for whom ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "named"),
    [
        (("storage",), "ModuleSet/storage"),
        (("network", "storage"), "ModuleSet/network ModuleSet/storage"),
        # As many as there is room for: 256 bytes.
        (tuple(letter * 63 for letter in "abcdef"), " ".join(f"ModuleSet/{letter * 63}" for letter in "abc")),
    ],
    ids=["one", "two", "many"],
)
def test_kmodd_is_given_the_sets_that_a_step_is_for(node: Node, sets: tuple[str, ...], named: str) -> None:
    async def history(client: Client) -> tuple[HistoryEntry, ...]:
        return await client.history("loop")

    with other_daemon(node.address), node.agent():
        node.want(*(one_set(name, "loop") for name in sets))
        node.reaches("loop", "Ready")
        node.want()
        node.until_gone("loop")
        # The daemon writes a record when it knows the program of who asked.
        deadline = time.monotonic() + 20
        while len(entries := node.call(history)) < 2:
            assert time.monotonic() < deadline, entries
            time.sleep(0.1)
    loaded, unloaded = (entry.record for entry in entries)
    assert (loaded.event, loaded.on_behalf_of) == ("module.loaded", named)
    assert loaded.reason == f"ModuleSet {', '.join(sets)}"
    assert (unloaded.event, unloaded.on_behalf_of) == ("module.unloaded", "")


# --- another boot -----------------------------------------------------------------------------------------------------


def test_kmodd_says_which_boot_it_is(node: Node) -> None:
    """Also where the agent's own view is an old one, as of a container that was moved."""
    node.want(one_set("storage", "loop"))
    with other_daemon(node.address, boot_id=FIRST), node.agent():
        assert node.reaches("loop", "Ready").owned_by_agent
        assert node.read().status.boot_id == FIRST
    with other_daemon(node.address, boot_id=SECOND):
        node.load("loop")
        with node.agent():
            found = node.wait(lambda seen: seen.status.boot_id == SECOND)
            assert not found.status.modules[0].owned_by_agent
            node.settled(node.want())
            time.sleep(0.5)
            assert "loop" in node.loaded()


# --- leases -----------------------------------------------------------------------------------------------------------


def demand(node: Node, *, now: bool = True, name: str = "vfat") -> int:
    """Pods need it, or no more."""
    return node.want(one_set("disk", name, mode="OnDemand", demanded=now, unloadAfterSeconds=1))


def users(node: Node, name: str) -> tuple[User, ...]:
    """What holds the module."""

    async def explained(client: Client) -> Explanation:
        return await client.explain(name)

    return node.call(explained).users


def holders(node: Node, name: str = "vfat") -> list[str]:
    """Kinds of what holds the module."""
    return [user.kind for user in users(node, name)]


def until_held(node: Node, *, held: bool = True) -> None:
    node.wait(lambda _: (holders(node) == ["lease"]) is held)


def test_what_pods_need_is_held_and_released_when_they_are_gone(node: Node) -> None:
    with other_daemon(node.address, lease_grace=0), node.agent():
        demand(node)
        assert node.reaches("vfat", "Ready").owned_by_agent
        until_held(node)
        assert [user.name for user in users(node, "vfat")] == ["kmodd-agent"]
        with pytest.raises(InUse, match="1 lease"):
            node.unload("vfat")
        demand(node, now=False)
        until_held(node, held=False)
        node.until_gone("vfat", "fat")
        node.reaches("vfat", "Loadable")


def test_the_end_of_the_agent_unloads_nothing_and_the_next_one_holds_again(node: Node) -> None:
    with other_daemon(node.address, lease_grace=0):
        demand(node)
        with node.agent(ends=(-9,)) as process:
            node.reaches("vfat", "Ready")
            until_held(node)
            process.kill()
            process.wait()
        until_held(node, held=False)
        time.sleep(1)
        assert {"vfat", "fat"} <= node.loaded()
        with node.agent():
            until_held(node)
            assert node.reaches("vfat", "Ready").owned_by_agent
            demand(node, now=False)
            node.until_gone("vfat", "fat")


def test_a_module_of_others_is_held_and_stays(node: Node) -> None:
    with other_daemon(node.address, lease_grace=0):
        node.load("vfat")
        with node.agent():
            demand(node)
            until_held(node)
            demand(node, now=False)
            until_held(node, held=False)
            time.sleep(2)
            assert "vfat" in node.loaded()


def test_our_lease_is_not_in_the_way_of_a_reload(node: Node) -> None:
    def wanted(number: str) -> dict[str, object]:
        return one_set("disk", module("loop", max_loop=number), mode="OnDemand", demanded=True)

    with other_daemon(node.address), node.agent():
        node.want(wanted("4"))
        node.wait(lambda _: holders(node, "loop") == ["lease"])
        node.settled(node.want(wanted("16")))
        node.wait(lambda seen: dict(seen.status.modules[0].parameters) == {"max_loop": "16"})
        node.wait(lambda _: holders(node, "loop") == ["lease"])


def test_a_lease_that_is_refused_is_reported_once_and_the_module_is_ready(node: Node) -> None:
    taken: list[int] = []

    async def take_all(client: Client) -> None:
        while True:  # root may have several times the limit
            taken.append(await client.hold("dummy"))

    with other_daemon(node.address, leases_per_user=1), node.agent():
        try:
            with pytest.raises(LimitsExceeded):
                node.call(take_all)
            demand(node)
            node.reaches("vfat", "Ready")
            node.wait(lambda _: node.log.read_text().count("cannot hold vfat") == 1)
            node.load("tun")
            time.sleep(1)
            assert node.log.read_text().count("cannot hold") == 1
            assert holders(node) == []
        finally:
            for file in taken:
                os.close(file)
        node.load("veth")
        until_held(node)
