# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the coordinator decides, without an API: any history of changes, failures and outages, against a model of the nodes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kmodd.coordinator import summary
from kmodd.coordinator.planning import (
    DOWN,
    UP,
    Member,
    Node,
    Phase,
    Standing,
    disruptive,
    ordered,
    plan,
    resolve,
    same,
    selects,
)
from kmodd.errors import InvalidArgs
from kmodd.fleet.resources import (
    Condition,
    ConditionStatus,
    Demand,
    Foreign,
    Metadata,
    Mode,
    ModuleSet,
    ModuleSetSpec,
    ModuleState,
    NodeModules,
    NodeModulesSpec,
    NodeModulesStatus,
    NodeSet,
    Rollout,
    SetStatus,
    WantedModule,
)
from kmodd.names import parse_module

DEMAND = Demand((("app", "x"),))
ONE_AT_A_TIME = Rollout()
NOW = "2026-01-01T00:00:00Z"


def module(name: str, version: str = "", required: bool = True, **parameters: str) -> WantedModule:
    return WantedModule(parse_module(name), tuple(sorted(parameters.items())), version, required)


def module_set(
    name: str,
    *modules: WantedModule,
    generation: int = 1,
    selector: tuple[tuple[str, str], ...] = (),
    rollout: Rollout = ONE_AT_A_TIME,
    after: tuple[str, ...] = (),
    on_demand: bool = False,
    foreign: Foreign = Foreign.REPORT,
) -> ModuleSet:
    mode, demand = (Mode.ON_DEMAND, DEMAND) if on_demand else (Mode.ALWAYS, None)
    spec = ModuleSetSpec(modules or (module("loop"),), selector, mode, after, demand, rollout, foreign)
    return ModuleSet(Metadata(name, f"uid-{name}", generation), spec)


@dataclass
class Machine:
    """A node and its agent, as far as the coordinator can see: a spec that was written, and what the agent says of it."""

    name: str
    labels: dict[str, str]
    spec: NodeModulesSpec | None = None
    generation: int = 0
    status: NodeModulesStatus = field(default_factory=NodeModulesStatus)
    silent: bool = False
    settled: tuple[NodeSet, ...] = ()

    def member(self) -> Member:
        modules = None
        if self.spec is not None:
            modules = NodeModules(Metadata(self.name, "uid", self.generation), self.spec, self.status)
        return Member(Node(self.name, "uid", dict(self.labels)), modules, self.silent, settled=self.settled)

    def write(self, spec: NodeModulesSpec) -> None:
        self.spec = spec
        self.generation += 1

    def report(self, state: ModuleState = ModuleState.READY, reason: str = "", message: str = "") -> None:
        """The agent brings the node to its spec, or does not, and says so about every set."""
        assert self.spec is not None
        self.settled = self.spec.sets
        self.status = NodeModulesStatus(
            observed_generation=self.generation,
            sets=tuple(
                SetStatus(
                    one.name,
                    ModuleState.LOADABLE if state is ModuleState.READY and not one.wanted else state,
                    reason,
                    message,
                    one.generation,
                )
                for one in self.spec.sets
            ),
        )

    def entry(self, name: str) -> NodeSet | None:
        return self.member().entry(name)


def fleet(count: int, **labels: str) -> list[Machine]:
    return [Machine(f"node-{number}", dict(labels)) for number in range(count)]


def step(machines: Sequence[Machine], *sets: ModuleSet, demand: dict[str, set[str]] | None = None) -> set[str]:
    """One decision, written; the nodes whose spec changed."""
    decided = plan(sets, [machine.member() for machine in machines], demand or {})
    for machine in machines:
        if machine.name in decided.specs:
            machine.write(decided.specs[machine.name])
    return set(decided.specs)


def settled(count: int, *sets: ModuleSet) -> list[Machine]:
    machines = fleet(count)
    step(machines, *sets, demand={one.metadata.name: set() for one in sets})
    for machine in machines:
        machine.report()
    return machines


def test_a_new_set_goes_to_every_node_it_selects_at_once() -> None:
    machines = [*fleet(3), Machine("gpu-1", {"gpu": "true"})]
    assert step(machines, module_set("gpu", selector=(("gpu", "true"),))) == {"gpu-1"}
    assert step(machines, module_set("gpu", selector=(("gpu", "true"),)), module_set("all")) == {
        "gpu-1",
        "node-0",
        "node-1",
        "node-2",
    }
    assert step(machines, module_set("gpu", selector=(("gpu", "true"),)), module_set("all")) == set()


def test_a_change_that_reloads_goes_one_node_at_a_time_and_waits_for_each() -> None:
    machines = settled(3, module_set("a"))
    changed = module_set("a", module("loop", max_loop="8"), generation=2)
    assert step(machines, changed) == {"node-0"}
    assert step(machines, changed) == set()
    machines[0].report(ModuleState.BLOCKED, "InUse")
    assert step(machines, changed) == set()
    machines[0].report()
    assert step(machines, changed) == {"node-1"}
    machines[1].report()
    assert step(machines, changed) == {"node-2"}


def test_a_change_stops_at_failures_and_goes_on_with_the_next_generation() -> None:
    machines = settled(4, module_set("a"))
    bad = module_set("a", module("loop", max_loop="x"), generation=2, rollout=Rollout(2, 1))
    assert step(machines, bad) == {"node-0", "node-1"}
    machines[0].report(ModuleState.FAILED, "BadParameter")
    machines[1].report()
    assert step(machines, bad) == set()
    about = plan([bad], [machine.member() for machine in machines], {}).sets["a"]
    assert (about.phase, about.updated, about.failures) == (Phase.STOPPED, 2, 1)
    good = module_set("a", module("loop", max_loop="8"), generation=3, rollout=Rollout(2, 1))
    assert step(machines, good) == {"node-0", "node-1"}  # the failed one cannot lose anything; one of those that work


def test_a_change_that_only_adds_goes_everywhere_at_once() -> None:
    machines = settled(3, module_set("a"))
    assert len(step(machines, module_set("a", module("loop"), module("dummy"), generation=2))) == 3


def test_a_change_of_the_rollout_alone_is_nothing_to_a_node() -> None:
    machines = settled(3, module_set("a"))
    assert step(machines, module_set("a", generation=2, rollout=Rollout(3, 0))) == set()
    decided = plan([module_set("a", generation=2, rollout=Rollout(3, 0))], [m.member() for m in machines], {})
    assert decided.sets["a"].updated == 3


def test_paused_keeps_nodes_as_they_are_and_lets_pods_bring_modules() -> None:
    machines = settled(2, module_set("a", on_demand=True))
    paused = module_set("a", module("dummy"), generation=2, on_demand=True, rollout=Rollout(paused=True))
    machines.append(Machine("new", {}))
    assert step(machines, paused, demand={"a": {"node-1"}}) == {"node-1"}
    entry = machines[1].entry("a")
    assert entry is not None
    assert entry.demanded
    assert [each.name for each in entry.modules] == ["loop"]
    machines[1].report()
    assert step(machines, paused, demand={"a": set()}) == set()
    assert (
        step(machines, replace(paused, spec=replace(paused.spec, node_selector=(("x", "y"),))), demand={"a": set()})
        == set()
    )


def test_demand_comes_and_goes_on_its_node_alone() -> None:
    wanted = module_set("nbd", module("nbd"), on_demand=True)
    assert step(fleet(2), wanted) == set(), "nothing is written before the pods are known"
    machines = settled(2, wanted)
    assert [m.member().standing("nbd") for m in machines] == [Standing.IDLE, Standing.IDLE]
    assert step(machines, wanted, demand={"nbd": {"node-1"}}) == {"node-1"}
    assert step(machines, wanted) == set(), "pods that are not known again are no pods that went"
    assert step(machines, wanted, demand={"nbd": set()}) == {"node-1"}


def test_a_silent_node_is_not_changed_and_does_not_hold_up_the_others() -> None:
    machines = settled(3, module_set("a"))
    machines[0].silent = True
    changed = module_set("a", module("loop", max_loop="8"), generation=2)
    assert step(machines, changed) == {"node-1"}
    machines[1].silent = True
    assert step(machines, changed) == set(), "it was lost on the way, and may be without the set"


def test_a_report_from_before_the_node_started_says_nothing() -> None:
    machines = settled(2, module_set("a"))
    members = [machine.member() for machine in machines]
    modules = members[0].modules
    assert modules is not None
    booted = replace(modules, status=replace(modules.status, boot_id="before"))
    members[0] = Member(Node("node-0", "uid", {"modules.kmodd.org/a": "ready"}, boot_id="after"), booted)
    assert members[0].standing("a") is Standing.MOVING
    assert summary.node_labels(members[0], ["a"]) == {"modules.kmodd.org/a": "unavailable"}
    changed = module_set("a", module("loop", max_loop="8"), generation=2)
    assert set(plan([changed], members, {}).specs) == {"node-0"}, "it is down already; no other one is taken"


def test_what_could_be_loaded_is_not_loaded() -> None:
    machines = settled(1, module_set("a"))
    machines[0].report(ModuleState.LOADABLE)
    assert machines[0].member().standing("a") is Standing.PENDING


def test_what_cannot_be_read_stays_as_it_is() -> None:
    machines = settled(2, module_set("a"), module_set("b"))
    members = [machines[0].member(), replace(machines[1].member(), unreadable=True)]
    decided = plan([module_set("b", module("dummy"), generation=2)], members, {}, unreadable={"a"})
    assert set(decided.specs) == {"node-0"}
    assert {each.name for each in decided.specs["node-0"].sets} == {"a", "b"}


def test_sets_come_after_those_they_name() -> None:
    sets = [module_set("a", after=("c",)), module_set("b"), module_set("c", after=("b", "missing"))]
    assert ordered(sets) == (("b", "c", "a"), frozenset())
    circle = [
        module_set("a", after=("b",)),
        module_set("b", after=("a",)),
        module_set("c", after=("a",)),
        module_set("d"),
    ]
    assert ordered(circle) == (("d", "a", "b", "c"), frozenset("abc"))


def test_more_sets_than_a_node_may_have_leave_it_as_it_is() -> None:
    machines = settled(1, module_set("a"))
    decided = plan([module_set(f"s{number}") for number in range(65)], [machines[0].member()], {})
    assert decided.overfull == {"node-0"}
    assert not decided.specs


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (module_set("a"), module_set("a", module("loop"), module("dummy")), False),
        (module_set("a", module("loop"), module("dummy")), module_set("a"), True),
        (module_set("a"), module_set("a", module("loop", version="2")), True),
        (module_set("a", module("loop", version="2")), module_set("a"), False),
        (module_set("a"), module_set("a", module("loop", max_loop="8")), True),
        (module_set("a"), module_set("a", module("loop", required=False)), False),
        (module_set("a"), module_set("a", foreign=Foreign.RELOAD), True),
        (module_set("a", foreign=Foreign.RELOAD), module_set("a"), False),
        (module_set("a"), module_set("a", on_demand=True), True),
        (module_set("a", on_demand=True), module_set("a"), False),
        (module_set("a"), module_set("a", after=("b",)), False),
    ],
)
def test_disruptive_is_what_may_unload_or_reload(old: ModuleSet, new: ModuleSet, expected: bool) -> None:
    assert disruptive(resolve(old, demanded=False), resolve(new, demanded=False)) is expected


# --- what is said --------------------------------------------------------------------------------------------------------------


def test_a_status_says_how_many_nodes_and_why_the_others_are_not_ready() -> None:
    machines = settled(6, module_set("a"))
    machines[1].report(ModuleState.FAILED, "NoSuchModule", "module loop does not exist")
    machines[2].report(ModuleState.FAILED, "NoSuchModule", "module loop does not exist")
    machines[3].report(ModuleState.BLOCKED, "InUse", "module loop is in use by /dev/loop0")
    machines[4].silent = True
    members = {machine.name: machine.member() for machine in machines}
    wanted = module_set("a")
    status = summary.set_status(wanted, plan([wanted], list(members.values()), {}), members, NOW)
    assert (status.nodes, status.ready, status.failed, status.blocked, status.updated) == (6, 2, 2, 1, 6)
    assert [(each.reason, each.nodes, each.example) for each in status.top_reasons] == [
        ("NoSuchModule", 2, "node-1"),
        ("InUse", 1, "node-3"),
        ("Unavailable", 1, "node-4"),
    ]
    ready = status.conditions[0]
    assert (ready.status, ready.reason) == (ConditionStatus.FALSE, "NoSuchModule")
    assert ready.message == ("2 of 6 nodes ready; NoSuchModule on 2 nodes, such as node-1: module loop does not exist")


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    machines = settled(1, module_set("a"))
    members = {"node-0": machines[0].member()}
    wanted = module_set("a")
    first = summary.set_status(wanted, plan([wanted], list(members.values()), {}), members, NOW)
    later = "2026-01-02T00:00:00Z"
    again = replace(wanted, status=first)
    assert summary.set_status(again, plan([again], list(members.values()), {}), members, later) == first
    machines[0].report(ModuleState.FAILED, "NoSuchModule", "gone")
    members = {"node-0": machines[0].member()}
    status = summary.set_status(again, plan([again], list(members.values()), {}), members, later)
    assert status.conditions[0].last_transition_time == later


def test_a_set_without_nodes_is_not_ready() -> None:
    wanted = module_set("a", selector=(("x", "y"),))
    status = summary.set_status(wanted, plan([wanted], [], {}), {}, NOW)
    assert (status.conditions[0].status, status.conditions[0].reason) == (ConditionStatus.FALSE, "NoNodes")


def test_a_set_that_cannot_be_read_says_so() -> None:
    status = summary.unreadable_status(InvalidArgs("field spec.modules is missing"), 4, NOW, module_set("a").status)
    assert status.conditions[0].message == "field spec.modules is missing; nodes keep what they were given before"


@pytest.mark.parametrize(
    ("state", "label"),
    [
        (ModuleState.READY, "ready"),
        (ModuleState.LOADABLE, "loadable"),
        (ModuleState.PENDING, "unavailable"),
        (ModuleState.DRIFTED, "unavailable"),
        (ModuleState.BLOCKED, "unavailable"),
        (ModuleState.FAILED, "unavailable"),
    ],
)
def test_a_label_says_what_pods_may_count_on(state: ModuleState, label: str) -> None:
    machines = settled(1, module_set("a", on_demand=state is ModuleState.LOADABLE))
    machines[0].report(state)
    assert summary.node_labels(machines[0].member(), ["a"]) == {"modules.kmodd.org/a": label}
    machines[0].labels["modules.kmodd.org/a"] = label
    assert summary.node_labels(machines[0].member(), ["a"]) == {}
    assert summary.node_labels(machines[0].member(), []) == {"modules.kmodd.org/a": None}


def test_a_label_stays_while_another_set_changes_and_goes_before_this_one_is_reloaded() -> None:
    machines = settled(1, module_set("a"))
    machines[0].labels["modules.kmodd.org/a"] = "ready"
    step(machines, module_set("a"), module_set("b"))
    assert summary.node_labels(machines[0].member(), ["a"]) == {}
    machines[0].report()
    step(machines, module_set("a", module("loop", max_loop="8"), generation=2), module_set("b"))
    assert summary.node_labels(machines[0].member(), ["a"]) == {"modules.kmodd.org/a": "unavailable"}


def test_a_set_stays_ready_while_another_one_changes() -> None:
    """Pods that come and go change nodes all the time; the sets that they do not need are not less ready for that."""
    base, disk = module_set("a"), module_set("disk", on_demand=True)
    machines = settled(2, base, disk)
    step(machines, base, disk, demand={"disk": {"node-1"}})
    members = {machine.name: machine.member() for machine in machines}
    assert members["node-1"].behind
    decided = plan([base, disk], list(members.values()), {"disk": {"node-1"}})
    assert summary.set_status(base, decided, members, NOW).conditions[0].message == "2 nodes ready"
    assert members["node-1"].standing("disk") is Standing.MOVING
    # A set of the same name and generation that is another one is not what was reported about.
    step(machines, module_set("a", module("dummy")), disk, demand={"disk": {"node-1"}})
    assert machines[0].member().standing("a") is Standing.MOVING
    # Nor does a report from before the node started count, or one that this process did not see together with its specification.
    machines = settled(1, base)
    step(machines, base, module_set("b"))
    assert machines[0].member().standing("a") is Standing.READY
    assert replace(machines[0].member(), settled=()).standing("a") is Standing.MOVING
    started = replace(machines[0].member(), node=Node("node-0", boot_id="2"))
    status = replace(machines[0].status, boot_id="1")
    assert started.modules is not None
    assert replace(started, modules=replace(started.modules, status=status)).standing("a") is Standing.MOVING


def test_a_silent_node_is_unavailable_and_its_condition_unknown() -> None:
    machines = settled(1, module_set("a"))
    machines[0].silent = True
    assert summary.node_labels(machines[0].member(), ["a"]) == {"modules.kmodd.org/a": "unavailable"}
    told = summary.node_condition(machines[0].member(), ["a"], NOW, None)
    assert told is not None
    assert (told.status, told.reason) == (ConditionStatus.UNKNOWN, "AgentSilent")


def test_a_node_condition_names_the_worst_set() -> None:
    machines = settled(1, module_set("a"), module_set("b"))
    spec = machines[0].spec
    assert spec is not None
    machines[0].status = replace(
        machines[0].status,
        sets=(
            SetStatus("a", ModuleState.BLOCKED, "InUse", "busy", 1),
            SetStatus("b", ModuleState.FAILED, "NoDevice", "no device", 1),
        ),
    )
    told = summary.node_condition(machines[0].member(), ["a", "b"], NOW, None)
    assert told == Condition("KernelModulesReady", ConditionStatus.FALSE, "NoDevice", "module set b: no device", NOW)


# --- any history ---------------------------------------------------------------------------------------------------------------

MODULES = st.lists(
    st.builds(
        lambda name, value, version: module(name, version, **({"p": value} if value else {})),
        st.sampled_from(["loop", "dummy", "nbd"]),
        st.sampled_from(["", "1", "2"]),
        st.sampled_from(["", "1.0", "2.0"]),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda each: each.name,
).map(tuple)


class Rollouts(RuleBasedStateMachine):
    """Administrators, pods, agents, failures and restarts of the coordinator in any order: it has no memory, so a restart is every step.

    A node is available while its agent says so of what it was last given; what a change takes away must fit into maxUnavailable.
    """

    def __init__(self) -> None:
        super().__init__()
        self.machines: list[Machine] = []
        self.set = module_set("a")
        self.pods: set[str] = set()

    @initialize(count=st.integers(1, 7), on_demand=st.booleans())
    def start(self, count: int, on_demand: bool) -> None:
        self.set = module_set("a", on_demand=on_demand)
        self.machines = fleet(count, zone="a")
        self.decide()

    def down(self) -> set[str]:
        return {machine.name for machine in self.machines if machine.member().standing("a") in DOWN}

    @rule()
    def decide(self) -> None:
        before = {machine.name: machine.entry("a") for machine in self.machines}
        down = self.down()
        step(self.machines, self.set, demand={"a": self.pods} if self.set.spec.mode is Mode.ON_DEMAND else {})
        rollout = self.set.spec.rollout
        taken = set()
        for machine in self.machines:
            old, new = before[machine.name], machine.entry("a")
            if old is not None and new is None:
                assert not rollout.paused, "nothing is deleted while paused"
                assert not selects(self.set, machine.member().node)
            if old is not None and new is not None and not same(replace(old, demanded=new.demanded), new):
                assert not rollout.paused
                idle = not old.demanded and old.mode is Mode.ON_DEMAND
                if disruptive(old, new) and not idle and machine.name not in down:
                    taken.add(machine.name)
                    assert not machine.silent
            if rollout.paused and old is not None and old.demanded:
                assert new is not None
                assert new.demanded
        assert not taken or len(down | taken) <= rollout.max_unavailable, (down, taken)

    @rule(modules=MODULES, unavailable=st.integers(1, 3), stop=st.integers(0, 2), paused=st.booleans())
    def administrator(self, modules: tuple[WantedModule, ...], unavailable: int, stop: int, paused: bool) -> None:
        spec = replace(self.set.spec, modules=modules, rollout=Rollout(unavailable, stop, paused))
        self.set = ModuleSet(replace(self.set.metadata, generation=self.set.metadata.generation + 1), spec)

    @rule(zone=st.sampled_from(["", "a", "b"]))
    def reselect(self, zone: str) -> None:
        spec = replace(self.set.spec, node_selector=(("zone", zone),) if zone else ())
        self.set = ModuleSet(replace(self.set.metadata, generation=self.set.metadata.generation + 1), spec)

    @rule(data=st.data(), zone=st.sampled_from(["a", "b"]))
    def relabel(self, data: st.DataObject, zone: str) -> None:
        self.machines[data.draw(st.integers(0, len(self.machines) - 1))].labels["zone"] = zone

    @rule(data=st.data())
    def pod(self, data: st.DataObject) -> None:
        self.pods ^= {self.machines[data.draw(st.integers(0, len(self.machines) - 1))].name}

    @rule(data=st.data(), state=st.sampled_from([*ModuleState]))
    def agent(self, data: st.DataObject, state: ModuleState) -> None:
        machine = self.machines[data.draw(st.integers(0, len(self.machines) - 1))]
        if machine.spec is not None and not machine.silent:
            machine.report(state)

    @rule(data=st.data())
    def contact(self, data: st.DataObject) -> None:
        machine = self.machines[data.draw(st.integers(0, len(self.machines) - 1))]
        machine.silent = not machine.silent

    @precondition(lambda self: self.machines)
    @rule()
    def everything_works(self) -> None:
        """Agents that work bring every history to its end, unless the administrator holds it."""
        spec = replace(self.set.spec, rollout=replace(self.set.spec.rollout, paused=False))
        self.set = ModuleSet(replace(self.set.metadata, generation=self.set.metadata.generation + 1), spec)
        # The failed ones of this very generation stop it until a node recovers: agents try again of themselves.
        for machine in self.machines:
            machine.silent = False
        for _ in range(4 * len(self.machines) + 4):
            for machine in self.machines:
                if machine.spec is not None:
                    machine.report()
            self.decide()
        demand = {"a": self.pods}
        for machine in self.machines:
            chosen = selects(self.set, machine.member().node)
            on_demand = self.set.spec.mode is Mode.ON_DEMAND
            wanted = resolve(self.set, demanded=on_demand and machine.name in self.pods) if chosen else None
            assert same(machine.entry("a"), wanted)
        assert not plan([self.set], [m.member() for m in self.machines], demand).specs

    @invariant()
    def labels_follow(self) -> None:
        for machine in self.machines:
            member = machine.member()
            label = summary.verdict(member, "a").label
            assert (label == "unavailable") == (member.standing("a") not in UP)


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(
    max_examples=150, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), max_size=3)), unique_by=lambda x: x[0]
    )
)
def test_the_order_is_total_and_right_outside_circles(rows: list[tuple[str, list[str]]]) -> None:
    sets = [module_set(name, after=tuple(dict.fromkeys(after))) for name, after in rows]
    order, circular = ordered(sets)
    assert sorted(order) == sorted(name for name, _ in rows)
    for name, after in rows:
        for other in set(after) & set(order):
            assert name in circular or order.index(other) < order.index(name)
