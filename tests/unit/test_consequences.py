# SPDX-License-Identifier: LGPL-2.1-or-later
"""What goes with a module that holds no reference: told, refused while it is live, and taken when the caller says so."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.core.audit.redaction import View, is_withheld, redact, redact_plan
from kmodd.core.diagnosis.explain import LIVE
from kmodd.core.planning.consequence_text import disconnecting, phrase, public, sentence, told_to
from kmodd.core.planning.planner import Planner, PlanReadings
from kmodd.errors import Conflict, Evidence, InUse, KmoddError
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import SimulatedModule, parameter
from kmodd.kernel.users.inspector_client import read_consequence
from kmodd.model import Consequence, ConsequenceKind, Operation, Plan, Request, Result, State, Verb
from kmodd.names import ModuleName
from tests.unit.fakes import SeenValues, load, machine, names, reload, request, unload
from tests.unit.test_explain import Bench as ExplainBench
from tests.unit.test_operations import CALLER, Bench, make_bench

M = ModuleName
UP = Consequence(ConsequenceKind.INTERFACE, "wg9", up=True, addresses=("10.9.0.1/24",))
DOWN = Consequence(ConsequenceKind.INTERFACE, "wg8")
ELSEWHERE = Consequence(ConsequenceKind.INTERFACE, "d0", netns="x", owner=0)
HIS = Consequence(ConsequenceKind.INTERFACE, "mine", netns="pid 7", owner=1000)
MOUNTED = Consequence(ConsequenceKind.DISK, "/dev/sda", uses=("is mounted at /mnt",))
DEVICE = Consequence(ConsequenceKind.DEVICE, "0000:00:05.0", detail="virtio_rng")
UNKNOWN = Consequence(ConsequenceKind.UNKNOWN, "", detail="the interfaces of 1 network namespace cannot be listed")
LIVE_ROWS = (UP, ELSEWHERE, HIS, MOUNTED, DEVICE, UNKNOWN)


@pytest.fixture
def bench() -> Bench:
    modules = (
        SimulatedModule("udp_tunnel"),
        SimulatedModule("wireguard", depends=("udp_tunnel",)),
        SimulatedModule("dummy", parameters=(parameter("n", "int", "1"),)),
        SimulatedModule("above", depends=("dummy",)),
    )
    return make_bench(machine(*modules, loaded=("udp_tunnel", "wireguard", "dummy", "above")))


async def looked(bench: Bench, asked: Request) -> Plan:
    """The plan as a caller is answered it."""
    plan = bench.operations.plan(asked)
    return bench.operations.plan(asked, await bench.operations.look(plan)) if plan.unseen else plan


# --- what is live ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "live"),
    [
        *((row, True) for row in LIVE_ROWS),
        (DOWN, False),
        (replace(DOWN, addresses=("192.0.2.1/24",)), True),
        (replace(DOWN, default_route=True), True),
        (replace(DOWN, carries=("br0",)), True),
        (replace(DOWN, ports=("eth1",)), True),
        (Consequence(ConsequenceKind.INTERFACE, "tunl0", netns="x", automatic=True), False),
        (Consequence(ConsequenceKind.INTERFACE, "tunl0", netns="x", automatic=True, up=True), True),
        (Consequence(ConsequenceKind.DISK, "/dev/ram0"), False),
        (Consequence(ConsequenceKind.SOUND, "card0"), False),
        (Consequence(ConsequenceKind.WATCHDOG, "/dev/watchdog0", uses=("is active",)), True),
    ],
)
def test_what_is_live(row: Consequence, live: bool) -> None:
    assert row.live is live


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (UP, "Network interface wg9 goes with it: it is up and has 10.9.0.1/24."),
        (DOWN, "Network interface wg8 goes with it: it is down and has no address."),
        (ELSEWHERE, "Network interface d0 in network namespace x goes with it."),
        (HIS, "Network interface mine in the network namespace of pid 7 goes with it."),
        (MOUNTED, "Disk /dev/sda goes with it: it is mounted at /mnt."),
        (DEVICE, "Device 0000:00:05.0 loses its driver virtio_rng."),
        (UNKNOWN, "More may go with it: the interfaces of 1 network namespace cannot be listed."),
        (
            replace(UP, name="eth0", carries=("br0",), default_route=True),
            "Network interface eth0 goes with it: it is up and has 10.9.0.1/24 and carries br0 and carries the default route.",
        ),
    ],
)
def test_it_is_said_in_a_sentence(row: Consequence, said: str) -> None:
    assert sentence(row) == said


# --- refused, unless the caller says so -------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", LIVE_ROWS, ids=lambda row: str(row.kind))
async def test_a_module_without_references_is_not_removed_with_what_is_live(bench: Bench, row: Consequence) -> None:
    bench.kernel.attach("wireguard", DOWN, row)
    with pytest.raises(InUse) as found:
        await bench.run(unload("wireguard"))
    assert found.value.evidence.hint == "kmodctl unload wireguard --disconnect"
    assert "wireguard" in bench.live()
    plan = bench.operations.plan(replace(request(unload("wireguard")), disconnect=True))
    assert await bench.operations.run(plan, CALLER) == names("wireguard")


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        (unload("dummy", dependents=True), "kmodctl unload dummy --dependents --disconnect"),
        (unload("above", unused=True), "kmodctl unload above --unused-dependencies --disconnect"),
        (reload("above"), "kmodctl reload above --disconnect"),
        (reload("wireguard", n="secret"), "kmodctl reload wireguard NAME=VALUE --disconnect"),
    ],
)
def test_the_hint_is_the_command_with_disconnect(asked: Operation, hint: str) -> None:
    assert disconnecting(M("dummy"), (UP,), asked).evidence.hint == hint


async def test_what_was_taken_away_stands_in_the_journal(bench: Bench) -> None:
    bench.kernel.attach("wireguard", DOWN, UP)
    plan = bench.operations.plan(replace(request(unload("wireguard")), disconnect=True))
    await bench.operations.execute(plan, CALLER)
    bench.operations.flush()
    (record,) = bench.journal.records
    assert record.extra["CONSEQUENCES"] == "network interface wg9, which is up and has 10.9.0.1/24"


async def test_the_interface_is_named(bench: Bench) -> None:
    bench.kernel.attach("wireguard", UP)
    with pytest.raises(
        InUse, match=r"^unloading wireguard takes away network interface wg9, which is up and has 10.9.0.1/24$"
    ):
        await bench.run(unload("wireguard"))


async def test_what_is_down_and_empty_is_listed_and_taken(bench: Bench) -> None:
    bench.kernel.attach("wireguard", DOWN)
    plan = await looked(bench, request(unload("wireguard")))
    assert [step.consequences for step in plan.steps] == [(DOWN,)]
    assert await bench.run(unload("wireguard")) == names("wireguard")


@pytest.mark.parametrize(
    "asked",
    [
        reload("dummy", n="2", dependents=True),
        unload("dummy", dependents=True),
        unload("above", unused=True),
        unload("above", dependents=True, unused=True),
    ],
)
@pytest.mark.parametrize("where", ["above", "dummy"])
async def test_every_module_of_the_plan_counts(bench: Bench, asked: Operation, where: str) -> None:
    before = bench.live()
    bench.kernel.attach(where, ELSEWHERE)
    for atomic in (True, False):
        (result,) = await bench.do(asked, atomic=atomic)
        assert result.result is Result.FAILED
        assert isinstance(result.error, InUse)
        assert result.error.module == where
    assert bench.live() == before


async def test_a_batch_tells_which_operation_it_is_about_and_does_nothing(bench: Bench) -> None:
    bench.kernel.attach("wireguard", UP)
    first, second = await bench.do(unload("above"), unload("wireguard"))
    assert (first.result, second.result) == (Result.SKIPPED, Result.FAILED)
    assert bench.live() == ["above", "dummy", "udp_tunnel", "wireguard"]
    first, second = await bench.do(unload("above"), unload("wireguard"), atomic=False)
    assert (first.result, second.result) == (Result.CHANGED, Result.FAILED)


async def test_a_dry_run_finds_it_too(bench: Bench) -> None:
    bench.kernel.attach("wireguard", UP)
    plan = bench.operations.plan(request(unload("wireguard"), dry_run=True))
    (result,) = await bench.operations.execute(plan, CALLER)
    assert isinstance(result.error, InUse)


async def test_loading_looks_for_no_consequences(bench: Bench) -> None:
    async def never(names: object) -> dict[ModuleName, tuple[Consequence, ...]]:
        raise AssertionError(names)

    bench.kernel.inspection.consequences = never  # type: ignore[method-assign]
    assert bench.operations.plan(request(load("dummy"))).unseen == ()
    await bench.run(load("wireguard"))


async def test_it_is_looked_at_again_under_the_locks(bench: Bench) -> None:
    """It came up between the plan and its turn."""
    plan = await looked(bench, request(unload("wireguard")))
    assert plan.error is None
    bench.kernel.attach("wireguard", UP)
    (result,) = await bench.operations.execute(plan, CALLER)
    assert isinstance(result.error, InUse)
    assert "wireguard" in bench.live()


async def test_more_than_was_consented_to_is_a_conflict(bench: Bench) -> None:
    bench.kernel.attach("wireguard", UP)
    plan = await looked(bench, replace(request(unload("wireguard")), disconnect=True))
    bench.kernel.attach("wireguard", ELSEWHERE)
    with pytest.raises(Conflict, match="goes with wireguard"):
        await bench.operations.execute(plan, CALLER)
    assert "wireguard" in bench.live()


async def test_a_module_that_was_not_looked_at_is_not_removed(bench: Bench) -> None:
    look = await bench.operations.look(bench.operations.plan(request(unload("wireguard"))))
    plan = bench.operations.plan(request(unload("above")), look)
    assert isinstance(plan.error, InUse)


# --- what an explanation says -------------------------------------------------------------------------------------------------


async def test_explain_does_not_call_it_removable() -> None:
    bench = ExplainBench()
    bench.kernel.modprobe("dummy")
    assert (await bench.explain("dummy")).removable
    bench.kernel.attach("dummy", ELSEWHERE)
    answer = await bench.explain("dummy")
    assert (answer.state, answer.references, answer.removable) == (State.LIVE, 0, False)
    assert answer.blockers == (LIVE,)
    assert (answer.consequences, answer.disconnects) == ((ELSEWHERE,), True)
    assert answer.free == ("kmodctl unload dummy --disconnect",)


async def test_explain_lists_what_is_not_live_and_calls_it_removable() -> None:
    bench = ExplainBench()
    bench.kernel.modprobe("dummy")
    bench.kernel.attach("dummy", DOWN)
    answer = await bench.explain("dummy")
    assert (answer.removable, answer.consequences, answer.free) == (True, (DOWN,), ("kmodctl unload dummy",))


async def test_explain_lists_what_goes_with_its_holders() -> None:
    bench = ExplainBench()
    bench.kernel.attach("ext4", UP)
    answer = await bench.explain("jbd2")
    assert answer.consequences == (UP,)
    assert answer.disconnects


# --- what others may know -----------------------------------------------------------------------------------------------------


def test_names_in_other_namespaces_are_root_and_their_owners_alone() -> None:
    error = disconnecting(M("dummy"), (ELSEWHERE, HIS, UP), Operation(Verb.UNLOAD, M("dummy")))
    assert "d0" not in error.message
    assert "mine" not in error.message
    assert "wg9" in error.message
    assert "2 network interfaces of other network namespaces" in error.message
    assert "d0 in network namespace x" in told_to(error, 0).message
    assert "mine" in told_to(error, 1000).message
    assert "d0" not in told_to(error, 1000).message
    assert told_to(error, None) is told_to(error, 33) is error


def test_the_aftermath_stays_behind_the_sentence() -> None:
    error = disconnecting(M("dummy"), (ELSEWHERE,), Operation(Verb.UNLOAD, M("dummy"))).after(
        (("a", "a stays loaded"),)
    )
    assert told_to(error, 0).message.endswith("; a stays loaded")
    assert "d0" in told_to(error, 0).message


async def test_a_plan_and_an_explanation_hide_them(bench: Bench) -> None:
    bench.kernel.attach("dummy", ELSEWHERE)
    plan = await looked(bench, request(unload("dummy", dependents=True)))
    assert is_withheld(plan, 1000)
    assert not is_withheld(plan, 0)
    assert "d0" not in repr([(step.consequences, str(step.error)) for step in redact_plan(plan, 1000).steps])
    assert "d0" in str(redact_plan(plan, 0).steps[-1].error)
    explaining = ExplainBench()
    explaining.kernel.modprobe("dummy")
    explaining.kernel.attach("dummy", ELSEWHERE)
    shown = redact(await explaining.explain("dummy"), View(1000))
    assert shown.withheld == ("consequences",)
    assert [sentence(row) for row in shown.consequences] == [
        "1 network interface of other network namespaces goes with it."
    ]
    assert shown.disconnects


TEXT = st.text("abcxyz-0", min_size=1, max_size=8)
ROWS = st.lists(
    st.builds(
        Consequence,
        kind=st.sampled_from(ConsequenceKind),
        name=TEXT,
        detail=TEXT,
        uses=st.lists(TEXT, max_size=2).map(tuple),
        up=st.booleans(),
        netns=st.sampled_from(["", "x", "pid 7"]),
        automatic=st.booleans(),
        owner=st.sampled_from([None, 0, 1000, 1001]),
    ),
    max_size=8,
)


@given(rows=ROWS, uid=st.sampled_from([None, 0, 1000, 33]))
def test_nothing_hidden_is_named_and_nothing_live_is_lost(rows: list[Consequence], uid: int | None) -> None:
    """Whatever goes with a module, everybody learns whether something live does, and nobody a name that is not theirs."""
    hidden = [row.owner not in (None, uid) and uid != 0 for row in rows]
    marked = [replace(row, name=f"secret{n}") if hidden[n] else row for n, row in enumerate(rows)]
    shown = public(marked, uid)
    said = " ".join([*map(sentence, shown), *map(phrase, shown)])
    assert "secret" not in said
    assert any(row.live for row in shown) == any(row.live for row in marked)
    assert sum(row.count or 1 for row in shown) == len(marked)
    assert public(shown, uid) == shown


@given(rows=ROWS)
def test_what_is_refused_is_what_is_live(rows: list[Consequence]) -> None:
    modules = (SimulatedModule("m"),)
    kernel = machine(*modules, loaded=("m",))
    error = error_of(rows, kernel)
    assert (error is not None) == any(row.live for row in rows)
    if error is not None:
        assert error.evidence == Evidence(hint="kmodctl unload m --disconnect", consequences=tuple(rows))


def error_of(rows: list[Consequence], kernel: SimulatedKernel) -> KmoddError | None:
    """The error of a plan that was made with these rows."""
    planner = Planner(kernel.index, kernel.loaded, kernel.facts, SeenValues(kernel))
    plan = planner.plan(request(unload("m")), look=PlanReadings(0.0, {M("m"): tuple(rows)}))
    assert plan.steps[0].consequences == tuple(rows)
    return plan.error


def test_every_field_of_the_model_is_read_from_the_inspector() -> None:
    """A field that is added and not read back would be lost between the processes."""
    full = Consequence(
        ConsequenceKind.INTERFACE, "a", "b", ("c",), True, ("192.0.2.1/24",), True, ("d",), ("e",), "f", True, 5
    )
    values = {field.name: getattr(full, field.name) for field in fields(full)}
    read = read_consequence(
        {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    )
    assert read == full
