# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each node's spec is to be now. Pure: from what the cluster looks like to what to write, without an API, a clock or a memory.

A change of a set that unloads or reloads modules is disruptive, and goes over the nodes by the set's `rollout`. Everything that
the decision needs is in the cluster: the set's entry in a node's spec is what that node was last given, and the node's status says
whether the agent has brought the node there. So a coordinator that starts, or that missed any number of events, decides the same.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import field, replace
from enum import StrEnum

from kmodd.fast_dataclass import dataclass
from kmodd.fleet.resources import (
    SETS_MAX,
    Foreign,
    Mode,
    ModuleSet,
    ModuleState,
    NodeModules,
    NodeModulesSpec,
    NodeSet,
    SetStatus,
)


class Standing(StrEnum):
    """What a set is like on a node, as far as its agent has reported."""

    ABSENT = "absent"
    """The node was not given the set."""
    MOVING = "moving"
    """The agent has not reported about the set as the node has it now, or not since the node started."""
    READY = "ready"
    IDLE = "idle"
    """On demand, not demanded, and loadable."""
    PENDING = "pending"
    BLOCKED = "blocked"
    FAILED = "failed"
    SILENT = "silent"
    """The agent reported about this spec, and cannot be relied on to follow another one now."""


UP = frozenset({Standing.READY, Standing.IDLE})
DOWN = frozenset({Standing.MOVING, Standing.PENDING, Standing.BLOCKED, Standing.FAILED})
"""Without the set, or about to be. A silent node is not: no change of ours ended its contact."""

_STANDINGS = {
    ModuleState.READY: Standing.READY,
    ModuleState.LOADABLE: Standing.IDLE,
    ModuleState.PENDING: Standing.PENDING,
    ModuleState.DRIFTED: Standing.PENDING,
    ModuleState.BLOCKED: Standing.BLOCKED,
    ModuleState.FAILED: Standing.FAILED,
}


@dataclass(frozen=True, slots=True)
class Node:
    """What is used of a Node."""

    name: str
    uid: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    boot_id: str = ""
    """Of the running kernel, as the kubelet says; empty where it does not."""
    lost: bool = False
    """The kubelet is not heard of (condition Ready is Unknown)."""


@dataclass(frozen=True, slots=True)
class Member:
    """A node, its NodeModules, and whether its agent follows."""

    node: Node
    modules: NodeModules | None = None
    silent: bool = False
    """The node is lost, or its agent has written nothing, or taken no note of a spec, for too long."""
    unreadable: bool = False
    """There is a NodeModules that this version cannot read: nothing is written to it."""
    settled: tuple[NodeSet, ...] = ()
    """The sets of the last specification that the agent reported about, as far as this process saw it."""

    def entry(self, name: str) -> NodeSet | None:
        """The set as the node was last given it."""
        if self.modules is None:
            return None
        return next((each for each in self.modules.spec.sets if each.name == name), None)

    def report(self, name: str) -> SetStatus | None:
        """What the agent says about the set, about whichever version of it."""
        if self.modules is None:
            return None
        return next((each for each in self.modules.status.sets if each.name == name), None)

    @property
    def rebooted(self) -> bool:
        """The node was started again since its agent reported: what was loaded is not."""
        if self.modules is None or not self.node.boot_id or not self.modules.status.boot_id:
            return False
        return self.node.boot_id != self.modules.status.boot_id

    @property
    def behind(self) -> bool:
        """The agent has not reported about the spec that the node has now."""
        if self.modules is None:
            return False
        return self.rebooted or self.modules.status.observed_generation != self.modules.metadata.generation

    def standing(self, name: str) -> Standing:
        """What the set is like on the node. While other sets of the node change, what was reported about this one holds."""
        entry, report = self.entry(name), self.report(name)
        if entry is None or self.modules is None:
            return Standing.ABSENT
        if report is None or self.rebooted or report.generation != entry.generation:
            return Standing.MOVING
        if self.behind and entry not in self.settled:
            return Standing.MOVING
        if self.silent:
            return Standing.SILENT
        if report.state is ModuleState.LOADABLE and entry.wanted:
            return Standing.PENDING  # what the node needs now is not there, whatever could be
        return _STANDINGS[report.state]


def selects(module_set: ModuleSet, node: Node) -> bool:
    """The node has all the labels that the set's nodeSelector names."""
    return all(node.labels.get(key) == value for key, value in module_set.spec.node_selector)


def resolve(module_set: ModuleSet, *, demanded: bool) -> NodeSet:
    """The set as a node is given it."""
    spec = module_set.spec
    return NodeSet(
        name=module_set.metadata.name,
        modules=spec.modules,
        generation=module_set.metadata.generation,
        mode=spec.mode,
        demanded=demanded and spec.mode is Mode.ON_DEMAND,
        unload_after_seconds=spec.demand.unload_after_seconds if spec.demand else 60,
        after=spec.after,
        when_foreign_parameters=spec.when_foreign_parameters,
    )


def same(one: NodeSet | None, other: NodeSet | None) -> bool:
    """They say the same to the agent: a change of `rollout` alone raises the generation, and is nothing to a node."""
    if one is None or other is None:
        return one is other
    return one == other or replace(one, generation=other.generation) == other


def disruptive(old: NodeSet, new: NodeSet) -> bool:
    """Going from one to the other may unload or reload a module that is not idle. Demand is not a change: it follows the pods."""
    later = {module.name: module for module in new.modules}
    for module in old.modules:
        if module.name not in later:
            return True
        if later[module.name].parameters != module.parameters:
            return True
        if later[module.name].version not in ("", module.version):
            return True
    if new.when_foreign_parameters is Foreign.RELOAD and old.when_foreign_parameters is not Foreign.RELOAD:
        return True
    return old.wanted and new.mode is Mode.ON_DEMAND and old.mode is not Mode.ON_DEMAND and not new.demanded


def ordered(sets: Sequence[ModuleSet]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Names of the sets, each after those that it names in `after`, otherwise by name; and those in or behind a circle of `after`."""
    waiting = {each.metadata.name: set(each.spec.after) for each in sets}
    waiting = {name: {other for other in after if other in waiting} for name, after in waiting.items()}
    order: list[str] = []
    while free := sorted(name for name, after in waiting.items() if not after):
        # One at a time, so that the order depends on names alone and not on when a set became free.
        name = free[0]
        order.append(name)
        del waiting[name]
        for after in waiting.values():
            after.discard(name)
    return (*order, *sorted(waiting)), frozenset(waiting)


class Phase(StrEnum):
    """Where a set's change is."""

    COMPLETE = "Complete"
    ROLLING = "RollingOut"
    STOPPED = "Stopped"
    PAUSED = "Paused"


@dataclass(frozen=True, slots=True)
class SetPlan:
    """What becomes of one set."""

    entries: Mapping[str, NodeSet | None]
    """By node: what it is to have now; None for nothing. Every node that the set selects, or that has it."""
    members: tuple[str, ...]
    """Nodes that the set selects, sorted."""
    updated: int
    """Of these, how many have what the set says."""
    failures: int
    """Of the updated ones, how many failed."""
    phase: Phase


def plan_set(module_set: ModuleSet, members: Sequence[Member], demand: Collection[str] | None) -> SetPlan:
    """Decide for one set; `demand` has the nodes with pods that need it, None where that is not known yet.

    At most `maxUnavailable` nodes are down at a time because of the set's changes: a node counts from the moment its spec changes
    until its agent reports the set ready. A node that is down already may be changed, for it cannot lose what it has not; a silent
    one is not, for its change would become real at a time that nothing here chooses.
    """
    name, rollout = module_set.metadata.name, module_set.spec.rollout
    on_demand = module_set.spec.mode is Mode.ON_DEMAND
    entries: dict[str, NodeSet | None] = {}
    selected: list[str] = []
    candidates: list[tuple[bool, str, NodeSet]] = []
    down = updated = failures = 0
    for member in sorted(members, key=lambda each: each.node.name):
        node, current, standing = member.node.name, member.entry(name), member.standing(name)
        chosen = selects(module_set, member.node)
        if not chosen and current is None:
            continue
        demanded = (current is not None and current.demanded) if demand is None else node in demand
        wanted = resolve(module_set, demanded=demanded) if chosen else None
        if chosen:
            selected.append(node)
        down += standing in DOWN
        if wanted is not None and same(current, wanted):
            updated += 1
            failures += standing is Standing.FAILED
        if member.unreadable or (chosen and on_demand and demand is None):
            entries[node] = current
        elif rollout.paused:
            # Pods may still bring modules that the node was given before; nothing else changes, and nothing goes.
            more = current is not None and wanted is not None and wanted.demanded and current.mode is Mode.ON_DEMAND
            entries[node] = replace(current, demanded=True) if more and current is not None else current
        elif wanted is None or current is None:
            entries[node] = wanted
        elif same(current, wanted):
            entries[node] = current
        elif standing is Standing.IDLE:
            entries[node] = wanted  # nothing is loaded that a change could take away
        elif not disruptive(current, wanted):
            entries[node] = wanted
        else:
            follows = current.mode is Mode.ON_DEMAND and wanted.mode is Mode.ON_DEMAND
            entries[node] = replace(current, demanded=wanted.demanded) if follows else current
            if not member.silent:
                candidates.append((standing not in DOWN, node, wanted))
    stopped = 0 < rollout.stop_after_failures <= failures
    room = rollout.max_unavailable - down
    if not stopped:
        for up, node, wanted in sorted(candidates, key=lambda each: each[:2]):
            if up:
                if room <= 0:
                    break
                room -= 1
            entries[node] = wanted
    if updated == len(selected):
        phase = Phase.COMPLETE
    elif rollout.paused:
        phase = Phase.PAUSED
    else:
        phase = Phase.STOPPED if stopped and candidates else Phase.ROLLING
    return SetPlan(entries, tuple(selected), updated, failures, phase)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write, and what becomes of each set."""

    specs: Mapping[str, NodeModulesSpec]
    """By node: the spec to write, where it differs from what the node has."""
    sets: Mapping[str, SetPlan]
    overfull: frozenset[str]
    """Nodes that more sets select than a NodeModules may have: their spec is left as it is."""
    circular: frozenset[str]
    """Sets in or behind a circle of `after`: no agent can start with any of them."""


def plan(
    sets: Sequence[ModuleSet],
    members: Sequence[Member],
    demand: Mapping[str, Collection[str]],
    unreadable: Collection[str] = (),
) -> Plan:
    """Decide for everything. `demand` has the nodes by set, and no entry for a set whose pods are not known yet; the entries of sets
    that cannot be read stay on the nodes as they are."""
    plans = {each.metadata.name: plan_set(each, members, demand.get(each.metadata.name)) for each in sets}
    order, circular = ordered(sets)
    specs: dict[str, NodeModulesSpec] = {}
    overfull = set()
    for member in members:
        if member.unreadable:
            continue
        node = member.node.name
        current = member.modules.spec if member.modules is not None else NodeModulesSpec()
        wanted = [entry for name in order if (entry := plans[name].entries.get(node)) is not None]
        wanted += [entry for entry in current.sets if entry.name in unreadable and entry.name not in plans]
        if len(wanted) > SETS_MAX:
            overfull.add(node)
        elif tuple(wanted) != current.sets:
            specs[node] = NodeModulesSpec(tuple(wanted))
    return Plan(specs, plans, frozenset(overfull), circular)
