# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the coordinator knows of the cluster: objects as values, and what of a change may matter to a decision."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kmodd.coordinator.planning import Member, Node
from kmodd.coordinator.summary import CONDITION
from kmodd.errors import InvalidArgs
from kmodd.fleet.kubernetes import MODULE_SETS, NODE_MODULES, Kind, Listing, Object
from kmodd.fleet.resources import (
    Condition,
    ConditionStatus,
    Metadata,
    ModuleSet,
    NodeModules,
    NodeModulesSpec,
    NodeSet,
    parse_metadata,
    parse_module_set,
    parse_node_modules,
)

if TYPE_CHECKING:
    import asyncio

NODES = Kind("", "v1", "Node", "nodes")

SILENT_AFTER = 300.0
"""Seconds after which an agent that did not take note of its spec counts as silent, by this process's clock."""
CONTACT_AFTER = 1500.0
"""Seconds after which an agent that wrote nothing does: it writes `lastContact` at each new watch, at least each 660 seconds."""
ENDED = ("Succeeded", "Failed")
"""Phases in which a pod needs no modules any more."""


@dataclass(slots=True)
class SeenNode:
    """A Node as it was read."""

    node: Node
    condition: Condition | None = None


@dataclass(slots=True)
class Pods:
    """The pods that need one set."""

    key: tuple[object, ...]
    """What was watched for: another key is another watch."""
    nodes: dict[str, str] = field(default_factory=dict)
    """Node of each pod, by uid."""
    synced: bool = False
    task: "asyncio.Task[None] | None" = None

    def put(self, pod: Object, namespaces: tuple[str, ...], *, gone: bool) -> bool:
        """Take note of one; whether something changed."""
        metadata = pod["metadata"]
        uid, node = str(metadata.get("uid", "")), str((pod.get("spec") or {}).get("nodeName") or "")
        over = (pod.get("status") or {}).get("phase") in ENDED
        if gone or over or not node or (namespaces and metadata.get("namespace") not in namespaces):
            return self.nodes.pop(uid, None) is not None
        before = self.nodes.get(uid)
        self.nodes[uid] = node
        return before != node


class Cache:
    """What is known of the cluster. What takes note of an object answers whether a decision may depend on the difference."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.sets: dict[str, ModuleSet] = {}
        self.bad_sets: dict[str, tuple[int, InvalidArgs]] = {}
        """Generation and error of those that cannot be read."""
        self.nodes: dict[str, SeenNode] = {}
        self.modules: dict[str, NodeModules] = {}
        self.bad_modules: set[str] = set()
        self.settled: dict[str, tuple[NodeSet, ...]] = {}
        """By node: the sets of the last specification that its agent reported about."""
        self.behind: dict[str, float] = {}
        """Since when a node's agent has not taken note of its spec, by the clock."""
        self.contacts: dict[str, tuple[str, float]] = {}
        """What a node's agent gave as its last contact, and since when, by the clock: the two clocks are not compared."""
        self.pods: dict[str, Pods] = {}
        self.synced: set[Kind] = set()
        self.under_way: dict[str, NodeModulesSpec] = {}
        """By node: the spec that is being written to it."""

    def put(self, kind: Kind, document: Object) -> bool:
        """Take note of an object."""
        return {MODULE_SETS: self._put_set, NODES: self._put_node, NODE_MODULES: self._put_modules}[kind](document)

    def _put_set(self, document: Object) -> bool:
        name = str(document["metadata"]["name"])
        before = self.sets.pop(name, None)
        self.bad_sets.pop(name, None)
        try:
            module_set = self.sets[name] = parse_module_set(document)
        except InvalidArgs as error:
            self.bad_sets[name] = (int(document["metadata"].get("generation") or 0), error)
            return True
        return (
            before is None
            or before.spec != module_set.spec
            or before.metadata.generation != module_set.metadata.generation
        )

    def _put_node(self, document: Object) -> bool:
        metadata = document["metadata"]
        labels = {str(key): str(value) for key, value in (metadata.get("labels") or {}).items()}
        status = document.get("status") or {}
        conditions = {row.get("type"): row for row in status.get("conditions") or ()}
        node = Node(
            str(metadata["name"]),
            str(metadata.get("uid", "")),
            labels,
            str((status.get("nodeInfo") or {}).get("bootID") or ""),
            (conditions.get("Ready") or {}).get("status") == "Unknown",
        )
        before, own = self.nodes.get(node.name), conditions.get(CONDITION)
        entry = self.nodes[node.name] = SeenNode(node, _condition(own) if own else None)
        self._look(node.name)
        return entry != before

    def _put_modules(self, document: Object) -> bool:
        """A NodeModules as the API server sent it, or answered to a write of ours. What is older than what is known is not news: a
        watch may deliver a state from before that write after it."""
        name = str(document["metadata"]["name"])
        try:
            metadata = parse_metadata(document)
            before = self.modules.get(name)
            if (
                before is not None
                and before.metadata.uid == metadata.uid
                and before.metadata.generation > metadata.generation
            ):
                return False
            modules = parse_node_modules(document)
        except InvalidArgs:
            self.modules.pop(name, None)
            news = name not in self.bad_modules
            self.bad_modules.add(name)
            return news
        self.modules[name] = modules
        self.bad_modules.discard(name)
        if modules.status.observed_generation == metadata.generation:
            self.settled[name] = modules.spec.sets
        else:
            # What was taken back since, even if it is given again, is no longer what was reported about.
            same = before is not None and before.metadata.uid == metadata.uid
            earlier = self.settled.get(name, ()) if same else ()
            self.settled[name] = tuple(each for each in earlier if each in modules.spec.sets)
        was_silent = self._quiet(name)
        contact = modules.status.last_contact
        if self.contacts.get(name, ("", 0.0))[0] != contact or name not in self.contacts:
            self.contacts[name] = (contact, self._clock())
        self._look(name)
        return before is None or was_silent or _decisive(before) != _decisive(modules)

    def _look(self, name: str) -> None:
        entry = self.nodes.get(name)
        if entry is not None and Member(entry.node, self.modules.get(name)).behind:
            self.behind.setdefault(name, self._clock())
        else:
            self.behind.pop(name, None)

    def _quiet(self, name: str) -> bool:
        return any(self._clock() > end for end in self._ends(name))

    def _ends(self, name: str) -> list[float]:
        """When the agent counts as silent, unless something comes from it."""
        ends = [self.behind[name] + SILENT_AFTER] if name in self.behind else []
        return ends + ([self.contacts[name][1] + CONTACT_AFTER] if name in self.contacts else [])

    def drop(self, kind: Kind, document: Object) -> bool:
        """An object is gone."""
        metadata = document["metadata"]
        name, uid = str(metadata["name"]), str(metadata.get("uid", ""))
        if kind is MODULE_SETS:
            self.sets.pop(name, None)
            self.bad_sets.pop(name, None)
        elif kind is NODES:
            self.nodes.pop(name, None)
            self.behind.pop(name, None)
        elif name in self.bad_modules or (name in self.modules and self.modules[name].metadata.uid == uid):
            self.modules.pop(name, None)
            self.settled.pop(name, None)
            self.bad_modules.discard(name)
            self.behind.pop(name, None)
            self.contacts.pop(name, None)
        return True

    def replace(self, kind: Kind, listing: Listing) -> None:
        """All there is of a kind."""
        present = {str(item["metadata"]["name"]) for item in listing.items}
        tables: tuple[dict[str, Any], ...] = {
            MODULE_SETS: (self.sets, self.bad_sets),
            NODES: (self.nodes,),
            NODE_MODULES: (self.modules, self.settled, self.behind, self.contacts),
        }[kind]
        for table in tables:
            for name in [name for name in table if name not in present]:
                del table[name]
        if kind is NODE_MODULES:
            self.bad_modules &= present
        for item in listing.items:
            self.put(kind, item)
        self.synced.add(kind)

    @property
    def complete(self) -> bool:
        """Everything was listed once."""
        return self.synced == {MODULE_SETS, NODES, NODE_MODULES}

    def members(self) -> list[Member]:
        """Every node with what is known of it."""
        return [
            Member(
                entry.node,
                self._given(name),
                entry.node.lost or self._quiet(name),
                name in self.bad_modules,
                self.settled.get(name, ()),
            )
            for name, entry in self.nodes.items()
        ]

    def _given(self, name: str) -> NodeModules | None:
        modules, spec = self.modules.get(name), self.under_way.get(name)
        if spec is None:
            return modules
        if modules is None:
            return NodeModules(Metadata(name, generation=1), spec)
        return replace(
            modules, metadata=replace(modules.metadata, generation=modules.metadata.generation + 1), spec=spec
        )

    def next_silence(self) -> float:
        """Seconds until the next agent would count as silent; SILENT_AFTER where there is none."""
        now = self._clock()
        ends = [end for name in self.contacts for end in self._ends(name) if end > now]
        return min(ends, default=now + SILENT_AFTER) - now + 0.1

    def demand(self) -> dict[str, frozenset[str]]:
        """Nodes with pods that need a set, for each set whose pods are known."""
        return {name: frozenset(pods.nodes.values()) for name, pods in self.pods.items() if pods.synced}


def _decisive(modules: NodeModules) -> NodeModules:
    """Without what changes at every contact."""
    return replace(
        modules,
        metadata=replace(modules.metadata, resource_version=""),
        status=replace(modules.status, last_contact="", modules=()),
    )


def _condition(row: Mapping[str, Any]) -> Condition:
    statuses = {each.value for each in ConditionStatus}
    status = row.get("status")
    return Condition(
        CONDITION,
        ConditionStatus(status) if status in statuses else ConditionStatus.UNKNOWN,
        str(row.get("reason") or ""),
        str(row.get("message") or ""),
        str(row.get("lastTransitionTime") or ""),
    )
