# SPDX-License-Identifier: LGPL-2.1-or-later
"""Leases over the end of one daemon and the start of the next, with real pipes."""

import asyncio
import os
import select
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kmodd.core.leases import SETTLE, Leases, LeaseTable
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.model import Caller, Plan, User
from kmodd.model.settings import DaemonSettings
from kmodd.names import ModuleName
from tests.unit.fakes import Ticks, load, machine, request
from tests.unit.test_operations import MODULES, Bench, make_bench

CALLER = Caller(":1.7", 1000, exe="/usr/bin/agent", pid=77)
VFAT = ModuleName("vfat")


@dataclass
class Systemd:
    """What is kept over a restart: the state file, and copies of descriptors."""

    state: Mapping[str, Any] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)

    def write(self, state: Mapping[str, Any]) -> None:
        self.state = state

    def keep(self, name: str, file: int) -> None:
        self.files[name] = os.dup(file)

    def drop(self, name: str) -> None:
        os.close(self.files.pop(name))

    def hand_over(self) -> dict[str, int]:
        """As the next daemon gets them; systemd closes those whose other end is gone."""
        return {name: os.dup(file) for name, file in self.files.items()}

    def poll(self) -> None:
        """Close what nobody has the other end of, as systemd does by itself."""
        poll = select.poll()
        for file in self.files.values():
            poll.register(file, 0)
        over = {file for file, _ in poll.poll(0)}
        for name, file in list(self.files.items()):
            if file in over:
                self.drop(name)


def begin(
    kernel: SimulatedKernel, systemd: Systemd, begun: Callable[[int], int] = lambda pid: 5
) -> tuple[Bench, Leases]:
    bench = make_bench(kernel)
    leases = Leases(
        LeaseTable(lambda pid: ("agent", begun(pid))), bench.operations,
        kernel.loaded, kernel.index, audit=bench.journal, events=bench.hub, clock=Ticks(),
        daemon_settings=lambda: DaemonSettings(lease_grace=0), desired=lambda name: None, read=lambda: systemd.state, write=systemd.write,
        keep=systemd.keep, drop=systemd.drop,
    )  # fmt: skip
    leases.start(systemd.hand_over())
    return bench, leases


async def hold(bench: Bench, leases: Leases, name: str) -> int:
    return await leases.hold(bench.operations.plan(request(load(name))), CALLER)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    before = set(Path("/proc/self/fd").iterdir())
    yield
    assert len(set(Path("/proc/self/fd").iterdir())) <= len(before)


async def test_the_next_daemon_goes_on_with_a_lease() -> None:
    kernel, systemd = machine(*MODULES), Systemd()
    with no_descriptor_left():
        bench, leases = begin(kernel, systemd)
        lease = await hold(bench, leases, "vfat")
        await leases.close()
        await asyncio.sleep(0.05)
        assert bench.live() == ["fat", "vfat"]
        bench, leases = begin(kernel, systemd)
        await asyncio.sleep(0.05)
        assert bench.live() == ["fat", "vfat"]
        (user,) = leases.table.holders(VFAT)
        assert (user.name, user.pid, user.owner, user.exe) == ("agent", 77, 1000, "/usr/bin/agent")
        os.close(lease)
        await until(lambda: bench.live() == [])
        assert systemd.files == {}
        assert systemd.state == {"leases": [], "owned": []}
        await leases.close()


async def test_what_was_released_while_no_daemon_ran_is_unloaded_by_the_next() -> None:
    kernel, systemd = machine(*MODULES), Systemd()
    bench, leases = begin(kernel, systemd)
    lease, other = await hold(bench, leases, "vfat"), await hold(bench, leases, "plain")
    await leases.close()
    os.close(lease)
    systemd.poll()
    bench, leases = begin(kernel, systemd)
    await until(lambda: bench.live() == ["plain"])
    assert [record.message for record in bench.journal.records if record.event == "lease.ended"] == [
        "vfat is not held any more: released while kmodd was away"
    ]
    os.close(other)
    await until(lambda: bench.live() == [])
    await leases.close()


async def test_a_lease_of_a_module_that_went_meanwhile_is_over() -> None:
    kernel, systemd = machine(*MODULES), Systemd()
    bench, leases = begin(kernel, systemd)
    lease = await hold(bench, leases, "vfat")
    await leases.close()
    kernel.rmmod("vfat")
    bench, leases = begin(kernel, systemd)
    assert os.read(lease, 1) == b""
    os.close(lease)
    assert leases.table.holders(VFAT) == ()
    await until(lambda: bench.live() == [])
    await leases.close()


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"leases": "x", "owned": 7},
        {"leases": [None, 7, {"number": "x"}, {"modules": 3}], "owned": [3, "vfat"]},
        {"leases": [{"number": 1, "modules": ["vfat"], "needs": [], "more": 1}]},
    ],
)
async def test_a_descriptor_that_nobody_knows_is_closed(state: Mapping[str, Any]) -> None:
    kernel, systemd = machine(*MODULES), Systemd()
    with no_descriptor_left():
        bench, leases = begin(kernel, systemd)
        lease = await hold(bench, leases, "vfat")
        await leases.close()
        systemd.state = state
        bench, leases = begin(kernel, systemd)
        assert os.read(lease, 1) == b""
        os.close(lease)
        assert (systemd.files, leases.table.holders(VFAT)) == ({}, ())
        await leases.close()
        await bench.operations.close()


async def test_no_command_ends_a_process_that_only_has_the_number_of_the_holder() -> None:
    kernel, systemd = machine(*MODULES), Systemd()
    begun = {77: 5}
    bench, leases = begin(kernel, systemd, begun.__getitem__)
    lease = await hold(bench, leases, "vfat")
    begun[77] = 6
    (user,) = leases.table.holders(VFAT)
    assert (user.name, user.pid, user.remedy.value) == ("agent", None, "")
    os.close(lease)
    await until(lambda: bench.live() == [])
    await leases.close()


async def test_soft_dependencies_of_what_is_held_stay() -> None:
    kernel, systemd = machine(*MODULES), Systemd()
    bench, leases = begin(kernel, systemd)
    lease = await hold(bench, leases, "soft")
    other = await hold(bench, leases, "plain")
    assert bench.live() == ["plain", "soft"]
    os.close(other)
    await asyncio.sleep(0.05)
    assert bench.live() == ["plain", "soft"]
    os.close(lease)
    await until(lambda: bench.live() == [])
    await leases.close()


async def test_a_lease_counts_for_what_it_found_loaded_for_another() -> None:
    """The first lease brought the soft dependency in; the second needs it too, and stays longer."""
    kernel, systemd = machine(*MODULES), Systemd()
    bench, leases = begin(kernel, systemd)
    first, second = await hold(bench, leases, "soft"), await hold(bench, leases, "soft")
    os.close(first)
    await asyncio.sleep(0.05)
    assert bench.live() == ["plain", "soft"]
    os.close(second)
    await until(lambda: bench.live() == [])
    await leases.close()


async def test_what_happens_while_it_is_tried_counts_as_well() -> None:
    """The last user goes right after the kernel said that there is one, and the device of it before kmodd heard that."""
    kernel, systemd = machine(*MODULES), Systemd()
    bench, leases = begin(kernel, systemd)
    lease = await hold(bench, leases, "plain")
    kernel.hold("plain", User("process", "cat", "pid 7"))
    run = bench.operations.run

    async def crossed(plan: Plan, caller: Caller) -> tuple[ModuleName, ...]:
        try:
            return await run(plan, caller)
        finally:
            kernel.end_hang("plain")
            leases.something_happened("remove", "pci:v1")

    bench.operations.run = crossed  # type: ignore[method-assign]
    os.close(lease)
    await until(lambda: bench.live() == [])
    await leases.close()


async def test_devices_that_come_and_go_all_the_time_do_not_postpone_it() -> None:
    kernel, systemd = machine(*MODULES), Systemd()
    bench, leases = begin(kernel, systemd)
    lease = await hold(bench, leases, "plain")
    kernel.hold("plain", User("process", "cat", "pid 7"))
    os.close(lease)
    await until(lambda: bench.journal.records[-1].error == "InUse")
    kernel.end_hang("plain")
    for _ in range(60):
        leases.something_happened("add", "usb:v1")
        await asyncio.sleep(SETTLE / 10)
    assert bench.live() == []
    await leases.close()
