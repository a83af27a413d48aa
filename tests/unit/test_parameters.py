# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writing live parameters."""

import asyncio
import errno
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from kmodd.core.events import ModuleChanged
from kmodd.core.operations.jobs import ModuleLocks
from kmodd.core.operations.live_values import GivenValues, LiveValues
from kmodd.core.operations.parameters import ParameterCalls, Parameters, ParameterWrite
from kmodd.errors import (
    BadParameter,
    Builtin,
    Busy,
    Crashed,
    KmoddError,
    Lockdown,
    NoSuchModule,
    NoSuchParameter,
    NotLoaded,
    NotPermitted,
    ReadOnlyParameter,
    Stuck,
    TimedOut,
)
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import Fault, FaultKind, SimulatedModule, SimulatedParameter, parameter
from kmodd.model import Caller, Outcome
from kmodd.names import ModuleName
from tests.unit.fakes import Broadcaster, Journal, Ticks, facts, machine, owner

CALLER = Caller(":1.7", 0)
M = ModuleName("m")
MODULES = (
    SimulatedModule(
        "m",
        parameters=(
            SimulatedParameter("level", "int", "", "4", 0o644, limit=(0, 9), multiple_of=2),
            parameter("flag", "bool", "N", mode=0o644),
            parameter("fixed", "int", "1", mode=0o444),
            parameter("secret", "int", "7", mode=0o600),
            parameter("hidden", "int", "1", mode=0),
            parameter("mode", "charp", "(null)", mode=0o644),
        ),
    ),
    SimulatedModule("absent"),
    SimulatedModule("slow", init=Fault(FaultKind.HANG)),
    SimulatedModule("sig", builtin=True, parameters=(parameter("enforce", "bool", "N", mode=0o644),)),
)


@dataclass
class Bench:
    kernel: SimulatedKernel
    parameters: Parameters
    locks: ModuleLocks
    journal: Journal
    hub: Broadcaster


@pytest.fixture
def bench() -> Bench:
    kernel = machine(*MODULES, loaded=["m"])
    locks, journal, hub = ModuleLocks(), Journal(), Broadcaster()
    calls = ParameterCalls(
        kernel.index,
        kernel.loaded,
        kernel.facts,
        LiveValues(kernel.loaded, kernel.executor, timeout=0.05),
        given=GivenValues(),
        timeout=0.05,
    )
    made = Parameters(calls, locks=locks, audit=journal, events=hub, clock=Ticks())
    return Bench(kernel, made, locks, journal, hub)


async def put(bench: Bench, name: str, value: str) -> str:
    answer = await bench.parameters.write(bench.parameters.prepare(M, name, value), CALLER)
    bench.parameters.flush()
    return answer


def refuse(bench: Bench, code: int) -> None:
    async def write(name: ModuleName, parameter: str, value: str, *, timeout: float) -> Outcome:
        return Outcome("done", code)

    bench.kernel.executor.write_parameter = write  # type: ignore[method-assign]


async def test_answer_is_what_the_kernel_made_of_it(bench: Bench) -> None:
    assert await put(bench, "level", "5") == "4"
    assert await put(bench, "level", "8") == "8"
    assert await put(bench, "flag", "on") == "Y"
    assert owner(bench.locks, M) is None


async def test_change_is_announced_and_recorded_once(bench: Bench) -> None:
    await put(bench, "flag", "1")
    assert bench.hub.published == [ModuleChanged(M, ("Parameters",))]
    (record,) = bench.journal.records
    assert (record.event, record.module, record.action, record.uid) == ("parameter.set", "m", "set-parameter", 0)
    assert dict(record.extra) == {"PARAMETER": "flag", "VALUE": "1", "HELD": "Y"}


async def test_the_opposite_writes_what_was_there(bench: Bench) -> None:
    secret = bench.parameters.prepare(M, "secret", "8", reason="try")
    opposite = await bench.parameters.opposite(secret)
    assert opposite == ParameterWrite(M, "secret", "7", "try")
    await bench.parameters.write(secret, CALLER)
    assert await bench.parameters.write(opposite, CALLER) == "7"


async def test_what_was_never_set_has_no_opposite(bench: Bench) -> None:
    write = bench.parameters.prepare(M, "mode", "4")
    assert await bench.parameters.opposite(write) is None
    assert await bench.parameters.opposite(ParameterWrite(M, "gone", "1")) is None


async def test_value_that_was_so_already_changes_nothing(bench: Bench) -> None:
    assert await put(bench, "flag", "0") == "N"
    assert bench.hub.published == []
    assert bench.journal.events == ["parameter.set"]


async def test_value_only_root_may_read_stays_out_of_the_journal(bench: Bench) -> None:
    assert await put(bench, "secret", "9") == "9"
    assert dict(bench.journal.records[0].extra) == {"PARAMETER": "secret"}


@pytest.mark.parametrize(
    ("module", "name", "value", "wanted"),
    [
        ("sig", "enforce", "1", Builtin),
        ("sig", "nosuch", "1", Builtin),
        ("absent", "x", "1", NotLoaded),
        ("nowhere", "x", "1", NoSuchModule),
        ("m", "nosuch", "1", NoSuchParameter),
        ("m", "..", "1", NoSuchParameter),
        ("m", "fixed", "2", ReadOnlyParameter),
        ("m", "hidden", "2", ReadOnlyParameter),
        ("m", "level", "many", BadParameter),
        ("m", "flag", "2", BadParameter),
    ],
)
def test_what_cannot_succeed_is_refused_before_the_prompt(
    bench: Bench, module: str, name: str, value: str, wanted: type[KmoddError]
) -> None:
    with pytest.raises(wanted) as caught:
        bench.parameters.prepare(ModuleName(module), name, value)
    assert type(caught.value) is wanted


def test_close_names_are_offered(bench: Bench) -> None:
    with pytest.raises(NoSuchParameter) as caught:
        bench.parameters.prepare(M, "levle", "1")
    assert caught.value.evidence.hint == "did you mean level?"


def test_module_that_is_coming_is_busy(bench: Bench) -> None:
    bench.kernel.machine.start_insert(bench.kernel.index.path(ModuleName("slow")), "")
    with pytest.raises(Busy):
        bench.parameters.prepare(ModuleName("slow"), "x", "1")


def test_module_without_a_file_is_judged_by_the_kernel_alone(bench: Bench) -> None:
    def gone(name: ModuleName) -> object:
        raise NoSuchModule("gone", module=name)

    bench.kernel.index.info = gone  # type: ignore[method-assign, assignment]
    assert bench.parameters.prepare(M, "level", "many") == ParameterWrite(M, "level", "many", public=True)


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        (errno.EINVAL, BadParameter),
        (errno.ERANGE, BadParameter),
        (errno.ENOSPC, BadParameter),
        (errno.EACCES, ReadOnlyParameter),
        (errno.EROFS, ReadOnlyParameter),
        (errno.ENOENT, NotLoaded),
        (errno.EPERM, NotPermitted),
        (errno.EBUSY, Busy),
        (errno.EIO, BadParameter),
    ],
)
async def test_refusal_of_the_setter(bench: Bench, code: int, wanted: type[KmoddError]) -> None:
    refuse(bench, code)
    with pytest.raises(wanted) as caught:
        await put(bench, "flag", "1")
    assert type(caught.value) is wanted
    assert caught.value.evidence.errno == code
    bench.parameters.flush()
    assert [(r.event, r.error, r.errno) for r in bench.journal.records] == [("operation.failed", wanted.name(), code)]
    assert owner(bench.locks, M) is None


async def test_refusal_under_lockdown(bench: Bench) -> None:
    bench.kernel.machine.facts = facts(lockdown="integrity")
    refuse(bench, errno.EPERM)
    with pytest.raises(Lockdown):
        await put(bench, "flag", "1")


async def test_value_the_module_refuses(bench: Bench) -> None:
    with pytest.raises(BadParameter, match="does not accept this value for parameter level"):
        await put(bench, "level", "99")


async def test_module_that_went_after_authorisation(bench: Bench) -> None:
    write = bench.parameters.prepare(M, "flag", "1")
    bench.kernel.rmmod("m")
    with pytest.raises(NotLoaded):
        await bench.parameters.write(write, CALLER)


async def test_write_waits_for_an_operation_on_the_module(bench: Bench) -> None:
    bench.locks.take_now((M,), 1)
    task = asyncio.create_task(put(bench, "flag", "1"))
    await asyncio.sleep(0.01)
    assert not task.done()
    bench.locks.release((M,), 1)
    assert await task == "Y"


async def test_write_to_a_stuck_module(bench: Bench) -> None:
    bench.locks.take_now((M,), 1)
    bench.locks.mark_stuck(M, 1)
    with pytest.raises(Stuck):
        await put(bench, "flag", "1")
    assert owner(bench.locks, M) == 1


def script(bench: Bench, *outcomes: Outcome) -> list[Callable[[Outcome], None]]:
    """Have the next writes end so; the answer gets the call backs of those that are given up."""
    left, waiting = list(outcomes), []

    async def write(name: ModuleName, parameter: str, value: str, *, timeout: float) -> Outcome:
        return left.pop(0)

    bench.kernel.executor.write_parameter = write  # type: ignore[method-assign]
    bench.kernel.executor.on_return = lambda worker, callback: waiting.append(callback)  # type: ignore[method-assign]
    return waiting


async def test_setter_that_hangs_locks_its_module_until_it_ends(bench: Bench) -> None:
    waiting = script(bench, Outcome("timed-out", 0, 50_000, 4711))
    with pytest.raises(TimedOut, match="setter of parameter flag of m has not returned"):
        await put(bench, "flag", "1")
    assert bench.locks.is_stuck(M)
    with pytest.raises(Stuck):
        await put(bench, "flag", "1")
    for callback in waiting:
        callback(Outcome("crashed", 0, 0, 4711))
    assert owner(bench.locks, M) is None
    assert len(waiting) == 1


async def test_nothing_is_written_to_a_module_whose_parameters_cannot_be_read(bench: Bench) -> None:
    """A setter that somebody else called, or a daemon before this one, has the mutex."""
    waiting = script(bench)  # no write is expected

    async def hang(*_: object, **__: object) -> tuple[Outcome, dict[str, str]]:
        return Outcome("timed-out", worker=7), {}

    bench.kernel.executor.read_parameters = hang  # type: ignore[method-assign]
    with pytest.raises(Stuck):
        await put(bench, "flag", "1")
    assert owner(bench.locks, M) is None
    assert len(waiting) == 1


async def test_setter_that_oopses_is_a_crash_and_the_module_can_still_be_unloaded(bench: Bench) -> None:
    script(bench, Outcome("crashed", 0, 50_000, 4711))
    with pytest.raises(Crashed, match="crashed the kernel"):
        await put(bench, "flag", "1")
    assert owner(bench.locks, M) is None
    with pytest.raises(Stuck):  # the kernel's mutex stays locked: nobody else is sent in
        await put(bench, "flag", "1")
    assert owner(bench.locks, M) is None


async def test_caller_that_leaves_does_not_stop_the_write(bench: Bench) -> None:
    task = asyncio.create_task(put(bench, "flag", "1"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    bench.parameters.flush()
    assert owner(bench.locks, M) is None
    assert bench.journal.events == ["parameter.set"]
