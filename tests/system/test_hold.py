# SPDX-License-Identifier: LGPL-2.1-or-later
"""Leases on the real kernel, and over the end of the daemon: systemd keeps their descriptors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.system.client import BusError, Client, clear, loaded, soon
from tests.system.service import main_pid, serves, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.machine import Machine

T = "kmodd_test_"
HELD = f"{T}dep_b"
PATIENCE = 120.0
"""Seconds; an emulated machine that is shared takes half a minute to start a Python program."""


@pytest.fixture(scope="module", autouse=True)
def grace(vm: Machine, client: Client) -> None:
    """A grace of a second."""
    vm.write_file("/etc/kmodd/kmodd.toml", "[leases]\ngrace = 1\n")
    client.call("Reload", {}, interface="org.kmodd1.Configuration", signature="a{sv}")


@pytest.fixture(autouse=True)
def nothing_left(vm: Machine) -> Iterator[None]:
    """Each test ends without leases and test modules."""
    yield
    soon(lambda: stored(vm) == 0, "no lease is left", PATIENCE)
    clear(vm)


def stored(vm: Machine) -> int:
    """Descriptors that systemd keeps for the daemon."""
    return int(show(vm, "NFileDescriptorStore"))


def is_gone(vm: Machine, *, left: frozenset[str] = frozenset()) -> None:
    soon(lambda: loaded(vm) == left, "what was loaded for leases alone is gone", PATIENCE)


def restarted(vm: Machine, client: Client, before: int) -> None:
    """Wait for the next daemon."""
    soon(lambda: main_pid(vm) not in (0, before) and serves(vm), "the daemon is there again", PATIENCE)
    client.restarted = True


def test_a_module_is_there_while_it_is_held(vm: Machine, client: Client) -> None:
    first, second = client.hold(HELD), client.hold(HELD)
    assert loaded(vm) == {"dep_a", "dep_b"}
    assert stored(vm) == 2
    found = client.explain(HELD)
    assert [(user["kind"], user["name"]) for user in found["users"]] == [("lease", "python3")] * 2
    assert found["removable"] is False
    refused = client.refused("Unload", HELD, {})
    assert (refused.name, refused.message) == ("InUse", f"{HELD} is in use by 2 leases")
    assert client.refused("Reload", HELD, {}, {}).name == "InUse"
    assert client.refused("Unload", f"{T}dep_a", {"dependents": {"variant": ["b", True]}}).name == "InUse"
    client.release(first)
    soon(lambda: stored(vm) == 1, "one lease is left")
    vm.run("sleep 3")
    assert loaded(vm) == {"dep_a", "dep_b"}
    client.release(second)
    is_gone(vm)


def test_what_was_there_before_stays(vm: Machine, client: Client) -> None:
    vm.check(f"modprobe {T}dep_a")
    client.release(client.hold(HELD))
    is_gone(vm, left=frozenset({"dep_a"}))
    vm.run("sleep 3")
    assert loaded(vm) == {"dep_a"}


@pytest.mark.parametrize("end", ["systemctl restart kmodd", "kill -9 {pid}"])
def test_leases_survive_the_end_of_the_daemon(vm: Machine, client: Client, end: str) -> None:
    lease, before = client.hold(HELD), main_pid(vm)
    vm.check(end.format(pid=before), timeout=PATIENCE)
    restarted(vm, client, before)
    assert loaded(vm) == {"dep_a", "dep_b"}
    assert stored(vm) == 1
    assert client.refused("Unload", HELD, {}).message == f"{HELD} is in use by 1 lease"
    assert not client.is_over(lease)
    client.release(lease)
    is_gone(vm)


def test_a_lease_that_ends_while_the_daemon_is_away_is_over(vm: Machine, client: Client) -> None:
    lease, before = client.hold(HELD), main_pid(vm)
    vm.check(f"kill -STOP {before}")
    client.release(lease)
    vm.check(f"kill -9 {before}")
    restarted(vm, client, before)
    is_gone(vm)


def test_a_module_in_use_goes_with_what_used_it(vm: Machine, client: Client) -> None:
    lease = client.hold(f"{T}dep_a")
    vm.check(f"modprobe {T}dep_b")
    client.release(lease)
    vm.run("sleep 3")
    assert loaded(vm) == {"dep_a", "dep_b"}
    vm.check(f"rmmod {T}dep_b")
    is_gone(vm)


def test_a_holder_learns_that_the_module_went_all_the_same(vm: Machine, client: Client) -> None:
    lease = client.hold(HELD)
    vm.check(f"rmmod {HELD}")
    soon(lambda: client.is_over(lease), "the holder reads the end of the file")
    client.release(lease)
    is_gone(vm)


def test_a_stopped_daemon_ends_leases_and_unloads_nothing(vm: Machine, client: Client) -> None:
    lease, before = client.hold(HELD), main_pid(vm)
    vm.check("systemctl stop kmodd", timeout=PATIENCE)
    assert loaded(vm) == {"dep_a", "dep_b"}
    soon(lambda: client.is_over(lease), "the holder reads the end of the file")
    client.release(lease)
    vm.check("systemctl start kmodd", timeout=PATIENCE)
    restarted(vm, client, before)
    is_gone(vm)


def test_a_command_holds_a_module(vm: Machine, client: Client) -> None:
    command = "touch /run/held; exec sleep infinity"
    vm.check(f"systemd-run --quiet --unit=holder kmodctl hold {HELD} -- sh -c '{command}'")
    soon(lambda: vm.run("test -e /run/held").code == 0, "the command runs", PATIENCE)
    assert loaded(vm) == {"dep_a", "dep_b"}
    found = client.explain(HELD)
    assert [(user["kind"], user["name"]) for user in found["users"]] == [("lease", "kmodctl")]
    # The commands that kmodd prints work as they stand.
    assert found["free"] == [f"kill {show(vm, 'MainPID', 'holder.service')}", f"kmodctl unload {HELD}"]
    vm.check(found["free"][0])
    is_gone(vm)
    assert show(vm, "ExecMainStatus", "holder.service") == str(128 + 15)
    vm.run("systemctl reset-failed holder; rm /run/held")


def test_who_may_not_load_may_not_hold(vm: Machine) -> None:
    alice = Client(vm, user="alice")
    with pytest.raises(BusError) as refused:
        alice.hold(HELD)
    assert refused.value.name in {"AccessDenied", "InteractiveAuthorizationRequired"}
    alice.process.end()
    assert loaded(vm) == set()


def test_a_batch_that_fails_gives_parameters_their_old_values_back(vm: Machine, client: Client) -> None:
    vm.check(f"modprobe {T}params")
    read = f"cd /sys/module/{T}params/parameters; cat an_int secret a_bool"
    before = vm.check(read)
    first = ("set-parameter", f"{T}params", {"an_int": "41", "secret": "9"})
    second = ("set-parameter", f"{T}params", {"a_bool": "Y", "an_int": "42"})
    rows = client.batch(first, second, ("load", f"{T}fail", {}))
    assert [row["result"] for row in rows] == ["rolled-back", "rolled-back", "failed"]
    assert vm.check(read) == before
    rows = client.batch(first, second, ("reset-failed", f"{T}fail", {}))
    assert [row["result"] for row in rows] == ["changed"] * 3
    assert vm.check(read) == "42\n9\nY\n"
