# SPDX-License-Identifier: LGPL-2.1-or-later
"""A plain machine is ok; what is wrong is named with what to do about it."""

import asyncio
from collections.abc import Iterator

import pytest

from kmodd.core.events import Event, EventHub, HealthChanged, ManagerChanged, ModuleAdded, StepFailed
from kmodd.core.health.monitor import STUCK_AFTER_USEC, HealthMonitor
from kmodd.core.listing import Listing
from kmodd.core.planning.policy import Policy
from kmodd.core.registry import Registry
from kmodd.errors import Evidence
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.model import Failure, HealthCheck, HealthStatus, Record, Rule, StepAction
from kmodd.names import ModuleName

pytestmark = pytest.mark.usefixtures("virtual_time")

M = ModuleName
OK, DEGRADED, FAILING = HealthStatus.OK, HealthStatus.DEGRADED, HealthStatus.FAILING


class Ward:
    """A health monitor over a simulated kernel."""

    def __init__(self) -> None:
        self.kernel = SimulatedKernel(pace=0)
        self.events: list[Event] = []
        self.records: list[Record] = []
        self.failures: tuple[Failure, ...] = ()
        self.trouble = ""
        self.now = 1_000_000_000
        self.hub = EventHub(lambda *_: None)
        self.hub.subscribe(self.events.append)
        self.registry = Registry(self.kernel.loaded, self.kernel.facts, self.hub, self, lambda: self.now)
        policy = Policy(self.kernel.index)
        self.monitor = HealthMonitor(
            loaded=self.kernel.loaded,
            facts=self.kernel.facts,
            listing=Listing(self.kernel.loaded, self.kernel.index, policy, ""),
            policy=policy,
            registry=self.registry,
            events=self.hub,
            audit=self,
            clock=lambda: self.now,
            failures=lambda: self.failures,
            abandoned=lambda: self.kernel.executor.abandoned,
            trouble=lambda: self.trouble,
        )

    def record(self, record: Record) -> None:
        self.records.append(record)

    def wrong(self) -> list[HealthCheck]:
        """What is not ok."""
        return [check for check in self.monitor.check().checks if check.status is not OK]


@pytest.fixture
def ward() -> Iterator[Ward]:
    ward = Ward()
    stop = ward.registry.start()
    yield ward
    stop()


def failure(name: str, error: str, *, stuck: bool = False) -> Failure:
    return Failure(M(name), "load", error, "It did not work.", Evidence(hint="do this"), 1, stuck)


def test_a_machine_with_nothing_wrong_is_ok(ward: Ward) -> None:
    health = ward.monitor.check()
    assert health.status is OK
    assert {check.name for check in health.checks} == {
        "daemon",
        "module-tree",
        "stuck-module",
        "stuck-calls",
        "failed-operation",
        "taint",
        "forbidden-module",
        "modules-disabled",
        "lockdown",
        "signatures",
        "events",
    }
    assert ward.events == []
    assert ward.records == []


def test_an_unsigned_module_degrades_and_is_named(ward: Ward) -> None:
    ward.kernel.modprobe("nvidia")
    health = ward.monitor.check()
    assert health.status is DEGRADED
    assert [flag[0] for flag in health.taint_flags] == ["P", "O", "E"]
    (taint,) = [check.message for check in health.checks if check.name == "taint"]
    assert taint.endswith(" Caused by nvidia (POE).")
    assert [(check.name, check.module) for check in ward.wrong()] == [("unsigned-module", "nvidia")]


def test_taint_left_by_what_is_gone_is_worth_a_line_only(ward: Ward) -> None:
    ward.kernel.modprobe("nvidia")
    ward.kernel.rmmod("nvidia")
    health = ward.monitor.check()
    assert health.status is OK
    (taint,) = [check.message for check in health.checks if check.name == "taint"]
    assert "tainted" in taint
    assert "Caused by" not in taint


async def test_a_crash_is_failing_and_its_module_stuck(ward: Ward) -> None:
    name = M("kmodd_test_init_oops")
    await ward.kernel.executor.insert(ward.kernel.index.path(name), "", timeout=1)
    ward.failures = (failure(name, "Crashed", stuck=True),)
    assert ward.monitor.check().status is FAILING
    assert {check.name for check in ward.wrong()} >= {"taint", "stuck-module", "failed-operation"}


async def test_hung_calls_degrade_and_four_of_them_fail(ward: Ward) -> None:
    for number in range(4):
        await ward.kernel.executor.insert(ward.kernel.index.path(M("kmodd_test_init_hang")), "", timeout=1)
        expected = FAILING if number == 3 else DEGRADED
        assert ward.monitor.check().status is expected
    assert "4 calls are stuck" in next(check.message for check in ward.wrong() if check.name == "stuck-calls")


async def test_a_module_that_others_hung_is_noticed_after_a_while(ward: Ward) -> None:
    name = M("kmodd_test_exit_wait")
    ward.kernel.modprobe(name)
    ward.kernel.machine.start_remove(name)
    assert not [check for check in ward.wrong() if check.name == "stuck-module"]
    ward.now += STUCK_AFTER_USEC
    assert [check.module for check in ward.wrong() if check.name == "stuck-module"] == [name]
    ward.kernel.release(name)
    assert not [check for check in ward.wrong() if check.name == "stuck-module"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("NoDevice", OK),
        ("DisabledByPolicy", OK),
        ("InitFailed", DEGRADED),
        ("TimedOut", DEGRADED),
        ("Crashed", FAILING),
    ],
)
def test_a_remembered_failure_counts_by_what_it_says_of_the_machine(
    ward: Ward, error: str, status: HealthStatus
) -> None:
    ward.failures = (failure("i8k", error),)
    health = ward.monitor.check()
    assert health.status is status
    finding = next(check for check in health.checks if check.name == "failed-operation")
    assert (finding.module, finding.hint) == ("i8k", "do this")


def test_a_module_loaded_against_a_rule(ward: Ward) -> None:
    ward.kernel.modprobe("pcspkr")
    (finding,) = ward.wrong()
    assert (finding.name, finding.module, finding.status) == ("forbidden-module", "pcspkr", DEGRADED)
    assert "/etc/modprobe.d/blacklist.conf:3: blacklist pcspkr" in finding.message
    ward.kernel.change_rules(Rule("blacklist", "other", "", "f", 1, "blacklist other"))
    assert ward.wrong() == []


@pytest.mark.parametrize(
    ("facts", "name", "status"),
    [
        ({"tree_present": False}, "module-tree", FAILING),
        ({"modules_disabled": True}, "modules-disabled", DEGRADED),
        ({"taint": 1 << 14}, "taint", DEGRADED),
    ],
)
def test_what_the_kernel_is_like(ward: Ward, facts: dict[str, object], name: str, status: HealthStatus) -> None:
    ward.kernel.change_facts(**facts)
    assert [(check.name, check.status) for check in ward.wrong()] == [(name, status)]
    assert all(check.hint for check in ward.wrong())


def test_lockdown_and_enforcement_are_no_fault(ward: Ward) -> None:
    ward.kernel.change_facts(lockdown="integrity", signature_enforced=True)
    assert ward.wrong() == []


def test_the_daemons_own_trouble_is_failing(ward: Ward) -> None:
    ward.trouble = "the bus does not answer"
    assert [(check.name, check.status) for check in ward.wrong()] == [("daemon", FAILING)]


def test_a_changed_status_is_announced_and_recorded_once(ward: Ward) -> None:
    ward.trouble = "x"
    ward.monitor.check()
    ward.monitor.check()
    assert ward.events == [HealthChanged(FAILING), ManagerChanged(("Health",))]
    assert [(record.event, record.priority) for record in ward.records] == [("health.changed", 3)]
    assert ward.monitor.status is FAILING


async def test_events_make_it_look_once_and_stopping_ends_that(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmodd.core.health.monitor.SETTLE", 0.01)
    stop = ward.monitor.start()
    ward.trouble = "x"
    for _ in range(3):
        ward.hub.publish(StepFailed(M("loop"), StepAction.INSERT, "NoDevice", 5))
    assert ward.monitor.status is OK, "replies go first"
    await asyncio.sleep(0.03)
    assert ward.monitor.status is FAILING
    ward.trouble = ""
    ward.hub.publish(StepFailed(M("loop"), StepAction.INSERT, "NoDevice", 5))
    stop()
    await asyncio.sleep(0.03)
    assert ward.monitor.status is FAILING


async def test_what_went_well_is_looked_at_when_there_is_time(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmodd.core.health.monitor.SETTLE", 0.01)
    monkeypatch.setattr("kmodd.core.health.monitor.HEALTH_DELAY", 0.1)
    stop = ward.monitor.start()
    ward.trouble = "x"
    ward.hub.publish(ModuleAdded(M("loop")))
    await asyncio.sleep(0.03)
    assert ward.monitor.status is OK
    await asyncio.sleep(0.12)
    assert ward.monitor.status is FAILING
    ward.trouble = ""
    ward.hub.publish(ModuleAdded(M("loop")))
    ward.monitor.look_soon()
    await asyncio.sleep(0.03)
    assert ward.monitor.status is OK, "trouble is not kept waiting by what went well before it"
    stop()


async def test_a_query_sees_what_was_just_written(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    reading: asyncio.Task[None] | None = None

    async def read(seconds: float) -> None:
        await asyncio.sleep(seconds)
        ward.trouble = "the file changed"

    ward.monitor.readings += (lambda: reading,)
    assert (await ward.monitor.now()).status is OK
    reading = asyncio.create_task(read(0.01))
    assert (await ward.monitor.now()).status is FAILING
    ward.trouble = ""
    monkeypatch.setattr("kmodd.core.health.monitor.READING", 0.01)
    reading = asyncio.create_task(read(1))
    assert (await ward.monitor.now()).status is OK, "it takes too long to be waited for"
    assert not reading.cancelled()
    reading.cancel()


def test_lost_events_are_worth_a_line(ward: Ward) -> None:
    ward.registry.overflows = 2
    assert "lost 2 times" in next(check.message for check in ward.monitor.check().checks if check.name == "events")
    assert ward.wrong() == []


async def test_a_machine_that_cannot_be_read_is_looked_at_again(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmodd.core.health.monitor.SETTLE", 0.0)
    monkeypatch.setattr("kmodd.core.health.monitor.RETRY", 0.01)
    stop = ward.monitor.start()
    real, fails = ward.kernel.loaded.snapshot, [OSError(24, "Too many open files"), OSError(24, "Too many open files")]

    def snapshot() -> object:
        if fails:
            raise fails.pop()
        return real()

    ward.trouble = "the loop lags"
    monkeypatch.setattr(ward.kernel.loaded, "snapshot", snapshot)
    ward.monitor.look_soon()
    for _ in range(100):
        await asyncio.sleep(0.01)
        if ward.monitor.status is not OK:
            break
    assert not fails
    assert ward.monitor.status is not OK
    stop()
