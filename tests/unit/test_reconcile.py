# SPDX-License-Identifier: LGPL-2.1-or-later
"""The wanted state on a simulated kernel: what is loaded by itself, and when."""

import pytest

from kmodd.core.health.rules import DesiredHealth
from kmodd.model import HealthStatus, Result, Uevent
from kmodd.names import ModuleName
from tests.unit.desired_bench import CALLER, Known, Make, benches, wanted

pytestmark = pytest.mark.usefixtures("virtual_time")

bench = pytest.fixture(benches)


async def test_boot_loads_what_is_wanted_and_unloads_what_is_not(bench: Make) -> None:
    b = bench(wanted("vfat") + wanted("unix") + '[module.c]\nstate = "absent"\n', "c")
    await b.boot()
    assert b.live() == {"fat", "vfat"}
    assert await b.drift() == []


async def test_one_that_fails_stops_no_other_and_is_reported(bench: Make) -> None:
    b = bench(wanted("broken") + wanted("nowhere") + wanted("a"))
    await b.boot()
    assert b.live() == {"a"}
    assert {name: error.name() for name, error in b.reconciler.failures.items()} == {
        "broken": "InitFailed",
        "nowhere": "NoSuchModule",
    }
    told = [record for record in b.journal.records if record.event == "desired.failed"]
    assert {record.module for record in told} == {"broken", "nowhere"}
    checks = list(DesiredHealth(b.desired, b.comparison, b.reconciler).checks())
    assert {c.module for c in checks if c.name == "desired-state"} == {"broken", "nowhere"}
    assert all(c.status is HealthStatus.DEGRADED for c in checks if c.name in {"desired-state", "drift"})


async def test_after_is_loaded_once_all_are_live(bench: Make) -> None:
    b = bench(wanted("c", 'after = ["a", "b", "unix"]') + wanted("vfat", 'when = { kernel = "<5" }'))
    await b.boot()
    assert b.live() == set()
    assert b.reconciler.waiting().keys() == {"c", "vfat"}
    assert b.reconciler.pending().keys() == {"c"}, "no other kernel comes before the next boot"
    assert "a and b are not loaded" in b.reconciler.waiting()[ModuleName("c")]
    await b.modprobe("a")
    assert b.live() == {"a"}
    assert await b.drift() == [], "its time has not come"
    await b.modprobe("b")
    assert b.live() == {"a", "b", "c"}
    await b.rmmod("c")
    assert b.live() == {"a", "b"}, "an administrator at the keyboard is right"
    assert await b.drift() == [("c", "presence", "loaded", "absent")]
    await b.rmmod("a")
    await b.modprobe("a")
    assert b.live() == {"a", "b", "c"}, "it came anew"


async def test_chains_load_by_themselves(bench: Make) -> None:
    b = bench(wanted("c", 'after = ["b"]') + wanted("b", 'after = ["a"]'))
    await b.boot()
    await b.modprobe("a")
    assert b.live() == {"a", "b", "c"}


async def test_unload_when_gone(bench: Make) -> None:
    b = bench(wanted("c", 'after = ["a"]', "unload-when-gone = true") + wanted("b", 'after = ["a"]'))
    await b.boot()
    await b.modprobe("a")
    assert b.live() == {"a", "b", "c"}
    await b.rmmod("a")
    assert b.live() == {"b"}


async def test_what_goes_while_the_kernel_is_busy_counts(bench: Make) -> None:
    b = bench(wanted("c", 'after = ["a"]', "unload-when-gone = true"))
    await b.boot()
    b.kernel.modprobe("a")
    b.registry.take(Uevent("add", ModuleName("a")))
    b.registry.look()
    b.reconciler.reconcile()
    b.kernel.rmmod("a")
    b.registry.take(Uevent("remove", ModuleName("a")))
    b.registry.look()
    await b.settle()
    assert b.live() == set()
    assert [call[0] for call in b.kernel.executor.calls] == ["insert", "remove"], "each once"
    await b.modprobe("a")
    assert b.live() == {"a", "c"}


async def test_conditions(bench: Make) -> None:
    text = wanted("a", 'when = { kernel = ">=7" }') + wanted("b", 'when = { alias = "pci:v8086*" }') + wanted("c")
    b = bench(text)
    await b.boot()
    assert b.live() == {"c"}
    assert await b.drift() == []
    b.aliases = ["pci:v8086d1"]
    await b.plug("pci:v10de")
    assert b.live() == {"c"}, "another device is no reason to look"
    await b.plug("pci:v8086d1")
    assert b.live() == {"b", "c"}


async def test_devices_are_read_once_until_one_comes_or_goes(bench: Make) -> None:
    b = bench("".join(wanted(name, 'when = { alias = "usb:*" }') for name in "abc"))
    read: list[int] = []

    def aliases() -> list[str]:
        read.append(1)
        return ["pci:x"]

    b.desired._aliases = aliases
    await b.boot()
    await b.drift()
    assert await b.apply() == {}
    assert len(read) == 1
    await b.plug("pci:x")
    await b.drift()
    assert len(read) == 2


async def test_a_device_that_is_plugged_in_again_loads_its_module_again(bench: Make) -> None:
    b = bench(wanted("b", 'when = { alias = "usb:v1d6b*" }') + wanted("broken", 'when = { alias = "usb:v1d6b*" }'))
    await b.boot()
    b.aliases = ["usb:v1d6bp2"]
    await b.plug("usb:v1d6bp2")
    assert b.live() == {"b"}
    assert set(b.reconciler.failures) == {"broken"}
    await b.rmmod("b")
    await b.plug("usb:v1d6bp2")
    assert b.live() == set(), "an administrator at the keyboard is right as long as it is there"
    calls = len(b.kernel.executor.calls)
    b.aliases = []
    await b.plug("usb:v1d6bp2", "remove")
    assert b.reconciler.failures == {}, "nobody misses it now"
    b.aliases = ["usb:v1d6bp2"]
    await b.plug("", "overflow")
    assert b.live() == {"b"}, "events were lost: any device may have come"
    assert len(b.kernel.executor.calls) == calls + 2
    await b.rmmod("b")
    await b.plug("usb:v1d6bp2", "remove")
    assert b.live() == set(), "another one of its kind is still there"
    await b.plug("usb:v1d6bp2", "remove", "add")
    assert b.live() == {"b"}, "gone and back before anybody looked"


async def test_a_failure_is_retried_when_what_could_help_happens(bench: Make) -> None:
    b = bench(wanted("broken", 'after = ["a"]'), "a")
    await b.boot()
    calls = len(b.kernel.executor.calls)
    await b.modprobe("b")
    assert len(b.kernel.executor.calls) == calls, "nothing to do with it"
    b.convergence.read_again(CALLER)
    await b.settle()
    assert len(b.kernel.executor.calls) == calls + 1
    b.files.text = wanted("broken", 'after = ["a"]', "retry = false")
    b.convergence.read_again(CALLER)
    await b.settle()
    assert len(b.kernel.executor.calls) == calls + 1
    b.files.text = "#"
    b.convergence.read_again(CALLER)
    assert b.reconciler.failures == {}


async def test_what_could_not_be_unloaded_is_tried_again_when_its_holder_goes(bench: Make) -> None:
    b = bench('[module.fat]\nstate = "absent"\n', "fat", "vfat")
    await b.boot()
    assert {name: error.name() for name, error in b.reconciler.failures.items()} == {"fat": "InUse"}
    await b.modprobe("a")
    assert b.live() == {"a", "fat", "vfat"}
    await b.rmmod("vfat")
    assert b.live() == {"a"}
    assert b.reconciler.failures == {}


async def test_a_failure_is_forgotten_when_it_came_about_after_all(bench: Make) -> None:
    b = bench('[module.fat]\nstate = "absent"\n' + wanted("broken") + wanted("nowhere"), "fat", "vfat")
    await b.boot()
    assert set(b.reconciler.failures) == {"fat", "broken", "nowhere"}
    b.kernel.rmmod("vfat")
    await b.rmmod("fat")
    assert set(b.reconciler.failures) == {"broken", "nowhere"}
    b.files.text = wanted("broken") + '[module.nowhere]\nstate = "absent"\n'
    b.convergence.read_again(CALLER)
    assert set(b.reconciler.failures) == {"broken"}


async def test_changed_settings_are_applied_by_the_first_reader(bench: Make) -> None:
    b = bench(wanted("a"))
    await b.boot()
    assert b.taken_over == [30]
    b.settings.text = "[operations]\ntimeout = 7\n"
    list(DesiredHealth(b.desired, b.comparison, b.reconciler).checks())
    assert b.taken_over == [30, 7]
    b.settings.text = "[operations]\ntimeout = 8\n"
    await b.modprobe("b")
    assert b.taken_over == [30, 7, 8]
    b.settings.text = "[operations]\ntimeout = bad\n"
    await b.modprobe("c")
    assert b.taken_over == [30, 7, 8]
    b.settings.text = "[operations]\ntimeout = 9\n"
    await b.convergence.drift()
    assert b.taken_over == [30, 7, 8, 9]


async def test_a_restart_of_the_daemon_is_no_boot(bench: Make) -> None:
    known = Known()
    b = bench(wanted("a") + wanted("c", 'after = ["b"]'), known=known)
    await b.boot()
    assert known.names == frozenset({"a"})
    again = bench(wanted("a") + wanted("c", 'after = ["b"]'), "b", known=known)
    await again.boot()
    assert again.live() == {"b", "c"}, "a was unloaded by somebody; b came while nobody looked"
    edited = bench(wanted("a") + wanted("tuned") + wanted("c", 'after = ["b"]'), "b", known=known)
    await edited.boot()
    assert edited.live() == {"b"}, "an edit waits for Apply, over a restart too"
    assert set(await edited.apply()) == {"a", "tuned", "c"}


@pytest.mark.parametrize("at_boot", ["", '[module.a]\nstate = "absent"\n', wanted("c", 'after = ["b"]')])
async def test_a_restart_is_no_boot_where_no_wish_was_met_at_boot(bench: Make, at_boot: str) -> None:
    known = Known()
    first = bench(at_boot, known=known)
    await first.boot()
    text = '[module.a]\nstate = "absent"\n' + wanted("tuned")
    again = bench(text, "a", known=known)
    await again.boot()
    assert again.live() == {"a"}, "loaded by somebody since, and an edit that waits for Apply"


async def test_reconciliation_can_be_off(bench: Make) -> None:
    b = bench(wanted("a") + wanted("c", 'after = ["b"]'))
    b.settings.text = "[desired-state]\nreconcile = false\n"
    await b.boot()
    await b.modprobe("b")
    assert b.live() == {"b"}
    assert {row[0] for row in await b.drift()} == {"a", "c"}
    assert await b.apply() == {"a": Result.CHANGED, "c": Result.CHANGED}


async def test_what_is_being_loaded_has_not_drifted(bench: Make) -> None:
    b = bench(wanted("a") + wanted("broken"))

    def drifted() -> list[str]:
        checks = DesiredHealth(b.desired, b.comparison, b.reconciler).checks()
        return [check.module for check in checks if check.name == "drift" and check.module]

    b.desired.reload()
    assert drifted() == []  # kmodd has not begun yet
    await b.boot()
    assert drifted() == ["broken"]
    await b.rmmod("a")
    assert drifted() == ["a", "broken"]
    b.settings.text = "[desired-state]\nreconcile = false\n"
    b.desired.reload()
    assert drifted() == ["a", "broken"]


async def test_a_device_that_was_replugged_between_two_reads_is_new(bench: Make) -> None:
    b = bench(wanted("b", 'when = { alias = "usb:v1d6b*" }'))
    b.aliases = ["usb:v1d6bp2"]
    await b.boot()
    await b.rmmod("b")
    await b.plug("usb:v1d6bp2", "remove")  # it is back already when that is looked at
    assert b.live() == set()
    await b.plug("usb:v1d6bp2")
    assert b.live() == {"b"}
