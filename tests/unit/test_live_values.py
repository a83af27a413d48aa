# SPDX-License-Identifier: LGPL-2.1-or-later
"""Values of live parameters: read by workers alone, shared by those who ask at once, and withheld while reading hangs."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import pytest

from kmodd.core.events import EventHub, ModuleAdded, ModuleChanged, ModuleRemoved
from kmodd.core.operations.live_values import HUNG_MAX, LiveValues
from kmodd.kernel.simulated.modules import SimulatedModule, SimulatedParameter
from kmodd.model import Outcome, ParameterValue
from kmodd.names import ModuleName
from tests.unit.fakes import machine

pytestmark = pytest.mark.usefixtures("virtual_time")

M = ModuleName("m")
N = ModuleName("n")
DONE = Outcome("done")
HANGS = Outcome("timed-out", worker=7)
FILES = (
    SimulatedParameter("level", value="4", mode=0o644),
    SimulatedParameter("secret", value="7", mode=0o600),
    SimulatedParameter("hidden", value="1", mode=0),
)


class Getters:
    """A machine whose getters answer, hang or crash as they are told."""

    def __init__(self, *further: str) -> None:
        self.kernel = machine(
            *(SimulatedModule(name, parameters=FILES) for name in ("m", "n", *further)), loaded=["m", "n"]
        )
        self.outcome: dict[str, Outcome] = {}
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.gate: asyncio.Event | None = None
        self.stuck: list[Callable[[Outcome], None]] = []
        self.clock = 100.0
        read = self.kernel.executor.read_parameters

        async def answer(
            name: ModuleName, parameters: Sequence[str], *, timeout: float
        ) -> tuple[Outcome, Mapping[str, str]]:
            self.asked.append((name, tuple(parameters)))
            if self.gate is not None:
                await self.gate.wait()
            outcome = self.outcome.get(name, DONE)
            return (await read(name, parameters, timeout=timeout)) if outcome is DONE else (outcome, {})

        self.kernel.executor.read_parameters = answer  # type: ignore[method-assign]
        self.kernel.executor.on_return = lambda worker, callback: self.stuck.append(callback)  # type: ignore[method-assign]
        self.values = LiveValues(
            self.kernel.loaded, self.kernel.executor, timeout=0.05, settle=0.0, now=lambda: self.clock
        )


@pytest.fixture
def getters() -> Getters:
    return Getters()


def told(values: Sequence[ParameterValue]) -> dict[str, str | None]:
    return {value.name: value.value for value in values}


async def test_reading_asks_for_what_everyone_may_read_and_no_more(getters: Getters) -> None:
    assert told(await getters.values.read(M)) == {"level": "4", "secret": None}
    assert told(await getters.values.read(M, private=True)) == {"level": "4", "secret": "7"}
    assert getters.asked == [("m", ("level",)), ("m", ("level", "secret"))]


async def test_what_was_read_for_root_is_shown_to_no_other_user(getters: Getters) -> None:
    await getters.values.read(M, private=True)
    assert told(getters.values.known(M)) == {"level": "4", "secret": None}
    assert told(getters.values.known(M, private=True)) == {"level": "4", "secret": "7"}
    assert getters.values.is_fresh(M)


async def test_nothing_is_known_before_it_is_read(getters: Getters) -> None:
    assert told(getters.values.known(M)) == {"level": None, "secret": None}
    assert not getters.values.is_fresh(M)
    await getters.values.refresh((M,))
    assert told(getters.values.known(M))["level"] == "4"


async def test_a_reading_counts_for_a_second(getters: Getters) -> None:
    for later in (0.0, 0.9, 1.1):
        getters.clock = 100.0 + later
        await getters.values.refresh((M,))
    assert len(getters.asked) == 2
    assert not getters.values.is_fresh(M, private=True)


async def test_those_who_ask_at_once_share_one_order(getters: Getters) -> None:
    getters.gate = asyncio.Event()
    asking = [asyncio.create_task(getters.values.read(M)) for _ in range(50)]
    await asyncio.sleep(0)
    asking[0].cancel()  # who leaves does not end it for the others
    await asyncio.sleep(0)
    getters.gate.set()
    answers = await asyncio.gather(*asking[1:])
    assert len(getters.asked) == 1
    assert {told(answer)["level"] for answer in answers} == {"4"}


async def test_module_without_readable_files_costs_no_order(getters: Getters) -> None:
    assert await getters.values.read(ModuleName("absent")) == ()
    assert getters.values.is_fresh(ModuleName("absent"))
    assert getters.asked == []


# --- what hangs ---------------------------------------------------------------------------------------------------------


async def test_values_of_a_getter_that_hangs_are_withheld_and_not_read_again(getters: Getters) -> None:
    getters.outcome["m"] = HANGS
    for _ in range(5):
        assert told(await getters.values.read(M)) == {"level": None, "secret": None}
    assert len(getters.asked) == 1
    assert getters.values.is_hung(M)
    assert told(await getters.values.read(N))["level"] == "4"
    del getters.outcome["m"]
    getters.stuck.pop()(DONE)
    assert told(await getters.values.read(M))["level"] == "4"


async def test_getter_that_crashed_is_not_called_again_until_its_module_is_gone(getters: Getters) -> None:
    """The kernel killed the reader with the mutex locked: whoever comes next hangs forever."""
    hub = EventHub(lambda *_: None)
    stop = getters.values.follow(hub)
    getters.outcome["m"] = Outcome("crashed", worker=7)
    for _ in range(3):
        assert told(await getters.values.read(M))["level"] is None
    assert len(getters.asked) == 1
    del getters.outcome["m"]
    hub.publish(ModuleRemoved(M))
    assert told(await getters.values.read(M))["level"] == "4"
    stop()


async def test_only_so_many_getters_may_hang_at_once() -> None:
    names = [f"x{number}" for number in range(HUNG_MAX + 5)]
    getters = Getters(*names)
    for name in names:
        getters.kernel.insmod(name)
        getters.outcome[name] = HANGS
        await getters.values.read(ModuleName(name))
    assert len(getters.asked) == HUNG_MAX
    assert told(await getters.values.read(M))["level"] is None


async def test_reader_waits_for_a_writer_and_not_for_ever(getters: Getters) -> None:
    write, gate = getters.kernel.executor.write_parameter, asyncio.Event()

    async def slow(name: ModuleName, parameter: str, value: str, *, timeout: float) -> Outcome:
        await gate.wait()
        return await write(name, parameter, value, timeout=timeout)

    getters.kernel.executor.write_parameter = slow  # type: ignore[method-assign]
    writing = asyncio.create_task(getters.values.write(M, "level", "6", timeout=9, released=lambda: None))
    await asyncio.sleep(0)
    assert told(await getters.values.read(M))["level"] is None
    assert getters.asked == []  # it would hang in the kernel behind the setter
    reading = asyncio.create_task(getters.values.read(M))
    await asyncio.sleep(0)
    gate.set()
    assert (await writing).errno == 0
    assert told(await reading)["level"] == "6"


async def test_setter_that_hangs_withholds_the_values_until_it_lets_go(getters: Getters) -> None:
    async def hang(name: ModuleName, parameter: str, value: str, *, timeout: float) -> Outcome:
        return HANGS

    getters.kernel.executor.write_parameter = hang  # type: ignore[method-assign]
    await getters.values.read(M)
    ended: list[str] = []
    await getters.values.write(M, "level", "6", timeout=0.1, released=lambda: ended.append("yes"))
    assert told(await getters.values.read(M))["level"] is None
    assert len(getters.asked) == 1
    getters.stuck.pop()(DONE)
    assert ended == ["yes"]
    assert told(await getters.values.read(M))["level"] == "4"


async def test_no_worker_to_be_had_is_no_value_and_no_hang(getters: Getters) -> None:
    async def fail(*_: object, **__: object) -> tuple[Outcome, Mapping[str, str]]:
        raise FileNotFoundError

    getters.kernel.executor.read_parameters = fail  # type: ignore[method-assign]
    assert told(await getters.values.read(M))["level"] is None
    assert not getters.values.is_hung(M)


# --- events -------------------------------------------------------------------------------------------------------------


async def test_values_of_a_new_module_are_read_and_announced_one_module_after_the_other(getters: Getters) -> None:
    hub, events = EventHub(lambda *_: None), []
    hub.subscribe(lambda event: events.append(event) if isinstance(event, ModuleChanged) else None)
    stop = getters.values.follow(hub)
    getters.gate = asyncio.Event()
    hub.publish(ModuleAdded(M))
    hub.publish(ModuleAdded(N))
    hub.publish(ModuleAdded(ModuleName("absent")))
    await asyncio.sleep(0.01)
    assert len(getters.asked) == 1
    getters.gate.set()
    await asyncio.sleep(0.01)
    assert events == [ModuleChanged(M, ("Parameters",)), ModuleChanged(N, ("Parameters",))]
    stop()


async def test_values_of_a_module_that_went_are_forgotten(getters: Getters) -> None:
    hub = EventHub(lambda *_: None)
    stop = getters.values.follow(hub)
    await getters.values.read(M)
    hub.publish(ModuleRemoved(M))
    assert not getters.values.is_fresh(M)
    assert told(getters.values.known(M))["level"] is None
    stop()


async def test_many_readings_count_as_of_when_the_first_of_them_began(getters: Getters) -> None:
    """Reading many modules takes longer than one reading stays fresh."""
    since = await getters.values.look([M, N])
    getters.clock += 2.0
    assert not getters.values.is_fresh(M)
    assert getters.values.is_fresh(M, since=since)
    assert not getters.values.is_fresh(M, since=since + 1.0)
