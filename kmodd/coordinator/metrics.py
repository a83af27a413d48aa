# SPDX-License-Identifier: LGPL-2.1-or-later
"""Metrics of the coordinator, in Prometheus naming: `kmodd_fleet_…` is about the fleet, `kmodd_coordinator_…` about the program."""

from collections import Counter as Tally
from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from kmodd.coordinator.planning import Member, Phase, Plan, Standing
from kmodd.fleet.resources import ModuleState

SHOWN: Final = tuple(each for each in Standing if each is not Standing.ABSENT)


class Metrics:
    """All of them, in a registry of this process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.nodes = Gauge(
            "kmodd_fleet_nodes",
            "Nodes that a module set selects, by what the set is like there.",
            ("set", "standing"),
            registry=registry,
        )
        self.updated = Gauge(
            "kmodd_fleet_nodes_updated",
            "Nodes whose spec is what the module set says.",
            ("set",),
            registry=registry,
        )
        self.reasons = Gauge(
            "kmodd_fleet_nodes_by_reason",
            "Nodes on which a module set is not ready, by the name of kmodd's error.",
            ("set", "reason"),
            registry=registry,
        )
        self.phase = Gauge(
            "kmodd_fleet_rollout",
            "1 for the phase in which the rollout of a module set is.",
            ("set", "phase"),
            registry=registry,
        )
        self.modules = Gauge(
            "kmodd_fleet_modules",
            "Modules of all nodes, by the state that the nodes' agents report.",
            ("state",),
            registry=registry,
        )
        self.agents = Gauge(
            "kmodd_fleet_agents",
            "Nodes by the versions of their agent and their kmodd.",
            ("agent", "daemon"),
            registry=registry,
        )
        self.silent = Gauge("kmodd_fleet_agents_silent", "Nodes whose agent does not respond.", registry=registry)
        self.unreadable = Gauge(
            "kmodd_fleet_unreadable_objects", "Objects that this version cannot read.", ("kind",), registry=registry
        )
        self.leader = Gauge(
            "kmodd_coordinator_leader", "1 while this replica holds the lease and writes.", registry=registry
        )
        self.api_up = Gauge(
            "kmodd_coordinator_api_up", "1 while the watches of the Kubernetes API run.", registry=registry
        )
        self.writes = Counter(
            "kmodd_coordinator_writes_total",
            "Writes to the Kubernetes API, by what was written and by their result.",
            ("what", "result"),
            registry=registry,
        )
        self.events_dropped = Counter(
            "kmodd_coordinator_events_dropped_total",
            "Events that were not written because there were too many at a time.",
            registry=registry,
        )
        self.passes = Histogram(
            "kmodd_coordinator_pass_seconds",
            "Duration of a pass: a decision about every node and set, and its writes.",
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60),
            registry=registry,
        )

    def clear(self) -> None:
        """Show nothing of the fleet: another replica has newer numbers."""
        for gauge in (self.nodes, self.updated, self.reasons, self.phase, self.modules, self.agents, self.unreadable):
            gauge.clear()
        self.silent.set(0)

    def show(self, plan: Plan, members: Mapping[str, Member], reasons: Mapping[str, Mapping[str, int]]) -> None:
        """Show what a pass found; what is gone goes."""
        self.clear()
        for name, about in plan.sets.items():
            counts = Tally(members[node].standing(name) for node in about.members)
            # A node that was not given the set yet is on its way to it.
            counts[Standing.MOVING] += counts.pop(Standing.ABSENT, 0)
            for standing in SHOWN:
                self.nodes.labels(name, standing).set(counts[standing])
            self.updated.labels(name).set(about.updated)
            for phase in Phase:
                self.phase.labels(name, phase).set(about.phase is phase)
            for reason, number in reasons.get(name, {}).items():
                self.reasons.labels(name, reason).set(number)
        statuses = [member.modules.status for member in members.values() if member.modules is not None]
        states = Tally(module.state for status in statuses for module in status.modules)
        for state in ModuleState:
            self.modules.labels(state).set(states[state])
        for versions, number in Tally((status.agent_version, status.kmodd_version) for status in statuses).items():
            self.agents.labels(*versions).set(number)
        self.silent.set(sum(member.silent and member.modules is not None for member in members.values()))
