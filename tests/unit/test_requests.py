# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests of the kernel for modules: their outcome, what is recorded of them, and the bounds of both."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kmodd.api.replies import history
from kmodd.core.events import EventHub, ModuleRemoved
from kmodd.core.module_requests import DEVICES_AGE, KINDS_MAX, PENDING_MAX, REMEMBERED_MAX, ModuleRequests, reason
from kmodd.core.planning.policy import Policy
from kmodd.kernel.proc.facts import ProcFacts
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.model import HistoryEntry, ModuleLoad, ModuleRequest, Record, Requester
from kmodd.names import ModuleName
from tests.unit.fakes import Journal, rule

MOUNT = Requester(812, 1000, "mount", "/usr/bin/mount", "session-3.scope")


class Timers:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []
        self.now: list[Callable[[], None]] = []
        """What is to be done in the next turn of the loop."""

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        (self.due if seconds else self.now).append(call)

    def turn(self) -> None:
        now, self.now = self.now, []
        for call in now:
            call()

    def pass_by(self) -> None:
        due, self.due = self.due, []
        for call in due:
            call()
        while self.now:
            self.turn()


class World:
    def __init__(self, *rules: object) -> None:
        self.kernel = SimulatedKernel(pace=0, rules_in_force=rules or None)  # type: ignore[arg-type]
        self.now = 7
        self.time = 5
        self.audit, self.timers = Journal(), Timers()
        self.events = EventHub(lambda *_: None)
        self.requests = ModuleRequests(
            self.kernel.index,
            self.kernel.loaded,
            self.kernel.facts,
            Policy(self.kernel.index),
            self.audit,
            self.events,
            lambda: self.now,
            self.timers.later,
            off=lambda: self.kernel.requests.off,
        )

    def ask(self, alias: str, by: Requester = MOUNT, times: int = 1) -> None:
        for _ in range(times):
            self.requests.requested(ModuleRequest(alias, by, "load_nls", self.time))

    @property
    def records(self) -> list[Record]:
        return self.audit.records


def test_a_request_that_no_module_answers_is_recorded_as_absent() -> None:
    world = World()
    world.ask("net-pf-99")
    assert world.records == []
    world.timers.pass_by()
    (record,) = world.records
    assert (record.event, record.result, record.uid, record.exe) == (
        "module.requested",
        "absent",
        1000,
        "/usr/bin/mount",
    )
    assert record.message == "/usr/bin/mount needed alias net-pf-99: there is no such module"
    assert record.extra["PID"] == "812"
    assert record.extra["UNIT"] == "session-3.scope"
    assert record.extra["CALL_SITE"] == "load_nls"


def test_history_has_the_facts_of_a_request_as_keys() -> None:
    world = World()
    world.ask("net-pf-99", times=3)
    world.timers.pass_by()
    world.requests.flush()
    first, counted = (history(HistoryEntry(7, record)) for record in world.records)
    expected = {
        "alias": ("s", "net-pf-99"),
        "pid": ("u", 812),
        "comm": ("s", "mount"),
        "unit": ("s", "session-3.scope"),
        "call-site": ("s", "load_nls"),
    }
    assert expected.items() <= first.items()
    assert "container" not in first
    assert "count" not in first
    assert counted["count"] == ("u", 2)


@pytest.mark.parametrize("text", ["-1", "1.5", "²", "", "many"])
def test_history_leaves_out_a_number_that_is_none(text: str) -> None:
    assert "pid" not in history(HistoryEntry(7, Record("module.requested", "", extra={"PID": text})))


def test_a_request_is_loaded_or_failed_by_what_is_live_afterwards() -> None:
    world = World()
    world.ask("vfat")
    world.ask("dummy")
    world.kernel.modprobe("dummy")
    world.timers.pass_by()
    assert [(record.module, record.result) for record in world.records] == [("vfat", "failed"), ("dummy", "loaded")]


def test_a_request_that_a_rule_refuses_names_the_rule() -> None:
    world = World(rule("install", "dummy", "/bin/false", line=4))
    world.ask("dummy")
    world.timers.pass_by()
    (record,) = world.records
    assert (record.event, record.result, record.error) == ("module.refused", "refused", "DisabledByPolicy")
    assert record.extra["LINE"] == "4"
    assert record.extra["FILE"]
    assert "refused by" in record.message


def test_a_blacklist_is_no_reason_for_a_request_by_name() -> None:
    # `modprobe -q -- dummy` loads it in spite of the line; what kept it out was something else.
    world = World(rule("blacklist", "dummy"))
    world.ask("dummy")
    world.timers.pass_by()
    assert [(record.event, record.result) for record in world.records] == [("module.requested", "failed")]


def test_what_cannot_be_read_is_no_outcome_of_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(rule("install", "dummy", "/bin/false"))

    def closed() -> None:
        raise PermissionError(13, "closed")

    monkeypatch.setattr(world.kernel.facts, "read", closed)
    world.ask("dummy")
    world.timers.pass_by()
    assert [(record.event, record.result) for record in world.records] == [("module.requested", "unknown")]
    assert "cannot be read" in world.records[0].message


def test_requests_that_are_alike_are_one_record_and_a_number() -> None:
    world = World()
    world.ask("net-pf-99", times=5)
    world.timers.pass_by()
    assert len(world.records) == 1
    world.timers.pass_by()  # the period
    assert [record.extra.get("COUNT") for record in world.records] == [None, "4"]
    world.ask("net-pf-99")
    world.timers.pass_by()
    assert len(world.records) == 3


def test_one_user_cannot_flood_the_journal_nor_take_the_room_of_others() -> None:
    world = World()
    for number in range(500):
        world.ask(f"net-pf-{number + 100}")
    world.ask("net-pf-99", Requester(9, 0, "root", "/bin/root"))
    world.timers.pass_by()
    assert len([record for record in world.records if record.uid == 1000]) == KINDS_MAX
    assert len([record for record in world.records if record.uid == 0]) == 1
    world.timers.pass_by()
    rest = world.records[-1]
    assert (rest.uid, rest.extra["COUNT"]) == (1000, str(500 - KINDS_MAX))


def test_each_turn_of_the_loop_looks_at_the_outcome_of_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    # With all that were due in one turn, the turn of a flood took longer than the watchdog waits.
    world = World()
    looked: list[None] = []
    monkeypatch.setattr(world.kernel.index, "refresh", lambda: looked.append(None))
    for number in range(5):
        world.ask(f"net-pf-{number + 100}")
    due, world.timers.due = world.timers.due, []
    for call in due:
        call()
    assert looked == []
    for number in range(5):
        world.timers.turn()
        assert len(looked) == number + 1
    assert world.timers.now == []
    assert len(world.records) == 5


def test_an_error_with_one_request_does_not_leave_the_next_without_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.ask("net-pf-99")
    world.ask("net-pf-98")
    with monkeypatch.context() as patch:
        patch.setattr(world.kernel.index, "refresh", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.timers.pass_by()
    for call in world.timers.due:
        call()
    world.timers.pass_by()
    assert [record.extra["ALIAS"] for record in world.records] == ["net-pf-98"]


def test_requests_that_are_alike_are_looked_at_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(rule("install", "dummy", "/bin/false"))
    looked: list[None] = []
    monkeypatch.setattr(world.kernel.index, "refresh", lambda: looked.append(None))
    for _ in range(30):
        world.ask("dummy")
        world.time += 100_000
    world.timers.pass_by()
    assert len(looked) == 3
    assert {(row.labels, row.value) for row in world.requests.metrics() if row.value} == {
        ((("result", "refused"),), 30.0)
    }
    world.requests.flush()
    assert [record.extra.get("COUNT") for record in world.records] == [None, "29"]


def test_the_outcome_of_what_is_counted_only_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    looked: list[None] = []
    monkeypatch.setattr(world.kernel.index, "refresh", lambda: looked.append(None))
    for number in range(500):
        world.ask(f"net-pf-{number + 100}")
    world.timers.pass_by()
    assert len(looked) == KINDS_MAX
    assert {row.labels[0][1]: row.value for row in world.requests.metrics() if row.value} == {
        "absent": KINDS_MAX,
        "unknown": 500 - KINDS_MAX,
    }


def test_no_number_of_requests_takes_more_than_so_much_memory() -> None:
    world = World()
    for number in range(REMEMBERED_MAX + PENDING_MAX):
        world.ask(f"net-pf-{number}")
    assert len(world.timers.due) <= PENDING_MAX + 1
    assert len(world.requests._requests) == REMEMBERED_MAX


def test_a_load_by_the_kernels_modprobe_is_told_by_who_needed_it() -> None:
    world = World()
    world.ask("dummy")
    world.requests.loaded(ModuleLoad(ModuleName("dummy"), Requester(813, 0, "modprobe"), alias="dummy", time=6))
    load = world.requests.load_of(ModuleName("dummy"))
    assert load is not None
    assert (
        reason(load, details=True) == "loaded for alias dummy, requested by mount (pid 812, uid 1000, session-3.scope)"
    )
    assert reason(load, details=False) == "loaded for alias dummy, which the kernel requested"
    world.events.publish(ModuleRemoved(ModuleName("dummy")))
    assert world.requests.load_of(ModuleName("dummy")) is None


def test_a_modprobe_that_has_ended_is_matched_with_the_request_of_that_moment() -> None:
    world = World()
    world.ask("vfat")
    world.requests.loaded(ModuleLoad(ModuleName("fat"), Requester(813, 0, "modprobe"), time=6))
    load = world.requests.load_of(ModuleName("fat"))
    assert load is not None
    assert load.alias == "vfat"
    world.timers.pass_by()
    world.requests.loaded(ModuleLoad(ModuleName("vfat"), Requester(814, 0, "modprobe"), time=7))
    later = world.requests.load_of(ModuleName("vfat"))
    assert later is not None
    assert later.alias == ""


@pytest.mark.parametrize(
    ("by", "detailed", "public"),
    [
        (Requester(9, 0, "modprobe", "/usr/bin/kmod", "cron.service"), "loaded by kmod (pid 9, uid 0, cron.service)",
         "loaded by something other than kmodd"),
        (Requester(9, 0, "(udev-worker)", "/usr/lib/systemd/systemd-udevd"), "loaded by udev, for a device",
         "loaded by udev, for a device"),
        (Requester(9, None, "x"), "loaded by x (pid 9)", "loaded by something other than kmodd"),
        (Requester(9, 0, "x", "/bin/x", "docker-0123456789abcdef.scope", "0123456789abcdef"),
         "loaded by x (pid 9, uid 0, container 0123456789ab)", "loaded by something other than kmodd"),
    ],
)  # fmt: skip
def test_a_load_of_another_program(by: Requester, detailed: str, public: str) -> None:
    load = ModuleLoad(ModuleName("dummy"), by)
    assert reason(load, details=True) == detailed
    assert reason(load, details=False) == public


UDEV = Requester(9, 0, "(udev-worker)", "/usr/bin/udevadm", "systemd-udevd.service")


def test_a_load_by_udev_names_the_device_that_came_and_that_the_module_serves() -> None:
    world = World()
    world.requests.announced("dummy", "pci 0000:00:05.0")
    world.requests.announced("vfat", "/dev/other")
    world.requests.announced("nothing-has-this", "usb 1-1")
    world.requests.loaded(ModuleLoad(ModuleName("dummy"), UDEV))
    load = world.requests.load_of(ModuleName("dummy"))
    assert load is not None
    assert load.devices == ("pci 0000:00:05.0",)
    for details in (True, False):
        assert reason(load, details=details) == "loaded by udev, for pci 0000:00:05.0"


def test_a_load_of_a_dependency_by_udev_names_the_device_of_what_needs_it() -> None:
    world = World()
    world.requests.announced("vfat", "/dev/vdb")
    world.requests.loaded(ModuleLoad(ModuleName("fat"), UDEV))
    load = world.requests.load_of(ModuleName("fat"))
    assert load is not None
    assert load.devices == ("/dev/vdb",)


def test_several_devices_that_udev_may_have_loaded_for_are_all_said_to_be() -> None:
    world = World()
    for number in range(6):
        world.requests.announced("dummy", f"cpu cpu{number}")
        world.requests.announced("dummy", f"cpu cpu{number}")
    world.requests.loaded(ModuleLoad(ModuleName("dummy"), UDEV))
    load = world.requests.load_of(ModuleName("dummy"))
    assert load is not None
    assert len(load.devices) == 6
    assert reason(load, details=False) == (
        "loaded by udev, for one of 6 devices (cpu cpu0, cpu cpu1, cpu cpu2, cpu cpu3, …)"
    )


def test_devices_of_long_ago_are_not_taken_for_the_reason() -> None:
    world = World()
    world.requests.announced("dummy", "pci 0000:00:05.0")
    world.now += (DEVICES_AGE + 1) * 1_000_000
    world.requests.loaded(ModuleLoad(ModuleName("dummy"), UDEV))
    load = world.requests.load_of(ModuleName("dummy"))
    assert load is not None
    assert reason(load, details=True) == "loaded by udev, for a device"


def test_a_request_of_udev_names_the_disk_that_it_has_open() -> None:
    world = World()
    world.requests.announced("dummy", "pci 0000:00:05.0")
    world.ask("dummy", replace(UDEV, device="/dev/vdb"))
    world.requests.loaded(ModuleLoad(ModuleName("dummy"), Requester(813, 0, "modprobe"), alias="dummy", time=6))
    load = world.requests.load_of(ModuleName("dummy"))
    assert load is not None
    assert reason(load, details=False) == "loaded for alias dummy, requested by udev, for /dev/vdb"


def test_a_program_that_calls_itself_udev_is_not_udev() -> None:
    world = World()
    world.requests.announced("dummy", "pci 0000:00:05.0")
    world.requests.loaded(ModuleLoad(ModuleName("dummy"), Requester(9, 1000, "(udev-worker)", "/home/x/udevadm")))
    load = world.requests.load_of(ModuleName("dummy"))
    assert load is not None
    assert (load.devices, reason(load, details=False)) == ((), "loaded by something other than kmodd")


def test_health_says_when_nothing_is_traced() -> None:
    world = World()
    assert world.requests.health() == []
    world.kernel.requests.off = "Operation not permitted"
    (check,) = world.requests.health()
    assert "Operation not permitted" in check.message


def test_health_names_the_lockdown_that_closes_tracefs(tmp_path: Path) -> None:
    world = World()
    world.kernel.requests.off = "Operation not permitted: /sys/kernel/tracing/instances/kmodd/trace_pipe"
    lockdown = tmp_path / "sys/kernel/security/lockdown"
    lockdown.parent.mkdir(parents=True)
    lockdown.write_text("none integrity [confidentiality]\n")
    world.kernel.change_facts(lockdown=ProcFacts(tmp_path, "6.1").read().lockdown)
    (check,) = world.requests.health()
    assert check.message == (
        "Module requests are not traced: lockdown=confidentiality closes tracefs to every process."
    )


def test_metrics_count_by_outcome() -> None:
    world = World()
    world.ask("net-pf-99", times=2)
    world.timers.pass_by()
    assert {(row.labels, row.value) for row in world.requests.metrics() if row.value} == {
        ((("result", "absent"),), 2.0)
    }
