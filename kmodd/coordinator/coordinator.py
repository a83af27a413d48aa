# SPDX-License-Identifier: LGPL-2.1-or-later
"""Follows the cluster, decides in passes, and writes what is decided.

Level-triggered: a pass looks at everything that is known and starts a write for every difference; what could not be written, a later
pass finds again. Passes do not wait for writes: there is one at a time for an object, and what is being written to a node counts as
given to it. Nothing is decided before each watch has delivered its first list. Each write is allowed by the lease at that moment.
"""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

from kmodd.coordinator.cache import NODES, Cache, Pods
from kmodd.coordinator.election import Leadership, boottime
from kmodd.coordinator.metrics import Metrics
from kmodd.coordinator.planning import Member, Node, Phase, Plan, plan
from kmodd.coordinator.summary import (
    Occurrence,
    node_condition,
    node_labels,
    node_occurrence,
    set_occurrence,
    set_status,
    trouble,
    unreadable_status,
)
from kmodd.errors import InvalidArgs, Unavailable
from kmodd.fleet.kubernetes import (
    CONFLICT,
    MODULE_SETS,
    NODE_MODULES,
    NOT_FOUND,
    Api,
    ApiFault,
    Kind,
    Listing,
    Object,
)
from kmodd.fleet.resources import (
    API_VERSION,
    SETS_MAX,
    Condition,
    Mode,
    ModuleSetStatus,
    NodeModulesSpec,
    as_json,
)
from kmodd.journal.writer import Logger

PODS = Kind("", "v1", "Pod", "pods", namespaced=True)
EVENTS = Kind("", "v1", "Event", "events", namespaced=True)
EVENTS_NAMESPACE = "default"
"""Where the API server wants events about objects without a namespace."""

PAUSE = 0.2
"""Seconds between passes at least: what arrives together is decided together."""
PARALLEL = {"spec": 32, "event": 2}
PARALLEL_OTHERS = 8
"""Writes under way at a time: modules wait for specs, labels for everything else, and nothing for events."""
STATUS_PAUSE = 1.0
"""Seconds between writes of one set's status at least: it changes with every node."""
RETRY_MAX = 30.0
"""Seconds until what could not be written is tried again, at most."""
EVENTS_BURST, EVENTS_RATE = 200.0, 10.0
"""Events written in one burst, and for each second after that."""
Key = tuple[str, str]
"""Kind and name of what is written to."""


class Coordinator:
    """The program."""

    def __init__(
        self,
        connect: Callable[[Callable[[ApiFault | None], None]], Api],
        leadership: Leadership,
        metrics: Metrics,
        logger: Logger,
        *,
        clock: Callable[[], float] = boottime,
        now: Callable[[], str] = lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    ) -> None:
        """`connect` makes an access to the API that passes its faults to a function. Each watch has its own: one that fails reads the
        configuration again and drops its connections, which must not be those of the others."""
        self._connect = connect
        self._api = connect(lambda _: None)
        self._leadership = leadership
        self._metrics = metrics
        self._logger = logger
        self._clock = clock
        self._now = now
        self.cache = Cache(clock)
        self._changed = asyncio.Event()
        self._limits = {what: asyncio.Semaphore(number) for what, number in PARALLEL.items()}
        self._others = asyncio.Semaphore(PARALLEL_OTHERS)
        self._jobs: set[Key] = set()
        """What is being written to."""
        self._failures: dict[Key, int] = {}
        """How often in a row a write failed."""
        self._not_before: dict[Key, float] = {}
        """When a write may be tried again, by the clock."""
        self._away: set[str] = set()
        """Watches that do not run."""
        self._complaints: dict[str, str] = {}
        """What failed last by what was written, so that the same is logged once."""
        self._reported: dict[tuple[str, str], Occurrence | None] | None = None
        """The last status of each set on each node; None before the first pass."""
        self._phases: dict[str, Phase] = {}
        self._allowance = EVENTS_BURST
        self._allowed_at = clock()

    async def run(self) -> None:
        """Work for as long as the lease is held: ends with `Unavailable` when it is lost."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for kind in (MODULE_SETS, NODES, NODE_MODULES):
                    tasks.create_task(self._follow(kind))
                await self._passes(tasks)
        except BaseExceptionGroup as group:
            lost, rest = group.split(Unavailable)
            if lost is None or rest is not None:
                raise
            raise Unavailable("another replica has the lease") from group
        finally:
            await self._api.close()

    # --- what is seen ------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _watch(self, what: str) -> AsyncIterator[Api]:
        def on_trouble(fault: ApiFault | None) -> None:
            if fault is None:
                self._away.discard(what)
                self._complaints.pop(f"watch of {what}", None)
            else:
                self._away.add(what)
                self._complain(f"watch of {what}", fault.message)
            self._metrics.api_up.set(not self._away)

        api = self._connect(on_trouble)
        try:
            yield api
        finally:
            self._away.discard(what)
            await api.close()

    async def _follow(self, kind: Kind) -> None:
        async with self._watch(kind.plural) as api, aclosing(api.follow(kind)) as changes:
            async for change in changes:
                if isinstance(change, Listing):
                    self.cache.replace(kind, change)
                elif not (self.cache.drop if change.type == "DELETED" else self.cache.put)(kind, change.object):
                    continue
                self._changed.set()

    def _follow_pods(self, tasks: asyncio.TaskGroup) -> None:
        """A watch for each set on demand, of the pods that its selector names and that are bound to a node."""
        wanted = {
            name: (each.spec.demand.pod_selector, each.spec.demand.namespaces)
            for name, each in self.cache.sets.items()
            if each.spec.mode is Mode.ON_DEMAND and each.spec.demand is not None
        }
        for name, pods in list(self.cache.pods.items()):
            if wanted.get(name) != pods.key and name not in self.cache.bad_sets:
                if pods.task is not None:
                    pods.task.cancel()
                del self.cache.pods[name]
        for name, key in wanted.items():
            if name not in self.cache.pods:
                pods = self.cache.pods[name] = Pods(key)
                pods.task = tasks.create_task(self._follow_pods_of(name, pods, dict(key[0]), key[1]))

    async def _follow_pods_of(self, name: str, pods: Pods, labels: dict[str, str], namespaces: tuple[str, ...]) -> None:
        # Metadata alone would do, had it the node's name. `name!` and a value is a selector's `name!=value`.
        bound = {"spec.nodeName!": ""}
        async with (
            self._watch(f"pods of {name}") as api,
            aclosing(api.follow(PODS, labels=labels, fields=bound)) as changes,
        ):
            async for change in changes:
                if isinstance(change, Listing):
                    pods.nodes.clear()
                    for item in change.items:
                        pods.put(item, namespaces, gone=False)
                    pods.synced = True
                elif not pods.put(change.object, namespaces, gone=change.type == "DELETED"):
                    continue
                self._changed.set()

    # --- what is done ------------------------------------------------------------------------------------------------

    async def _passes(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            again = self.cache.next_silence()
            if self._not_before:
                again = min(again, max(min(self._not_before.values()) - self._clock(), 0.0))
            with suppress(TimeoutError):
                async with asyncio.timeout(again):
                    await self._changed.wait()
            self._changed.clear()
            self._leadership.require()
            if not self.cache.complete:
                continue
            self._follow_pods(tasks)
            began = self._clock()
            self._pass(tasks)
            took = self._clock() - began
            self._metrics.passes.observe(took)
            await asyncio.sleep(max(PAUSE, 2 * took))

    def _pass(self, tasks: asyncio.TaskGroup) -> None:
        now = self._clock()
        self._not_before = {key: time for key, time in self._not_before.items() if time > now}
        members = self.cache.members()
        sets = list(self.cache.sets.values())
        decided = plan(sets, members, self.cache.demand(), self.cache.bad_sets)
        by_name = {member.node.name: member for member in members}
        time = self._now()
        selecting: dict[str, list[str]] = {}
        for name, about in decided.sets.items():
            for node in about.members:
                selecting.setdefault(node, []).append(name)
        self._metrics.show(decided, by_name, _reasons(decided, by_name))
        self._metrics.unreadable.labels("ModuleSet").set(len(self.cache.bad_sets))
        self._metrics.unreadable.labels("NodeModules").set(len(self.cache.bad_modules))
        for member in members:
            # A set that cannot be read keeps its labels, as it keeps its entries.
            kept = [name for name in self.cache.bad_sets if member.entry(name) is not None]
            names = [*selecting.get(member.node.name, []), *kept]
            self._node(tasks, member, names, decided.specs.get(member.node.name), time)
        for each in sets:
            status = set_status(each, decided, by_name, time)
            if status != each.status:
                content = as_json(status)
                content.setdefault("topReasons", [])
                self._start(tasks, ("set", each.metadata.name), partial(self._status, each.metadata.name, content))
        for name, (generation, error) in self.cache.bad_sets.items():
            self._bad_set(tasks, name, generation, error, time)
        for occurrence, uid, fresh in self._occurrences(decided, by_name):
            self._event(tasks, occurrence, uid, fresh, time)
        for node in decided.overfull:
            self._complain(f"spec of node {node}", f"more than {SETS_MAX} module sets select the node")

    def _start(self, tasks: asyncio.TaskGroup, key: Key, work: Callable[[], Awaitable[bool]]) -> bool:
        """Start to write, unless that is under way or failed lately; whether it was started. The end of a write is a reason for a
        pass, which finds what changed meanwhile."""
        if key in self._jobs or key in self._not_before:
            return False
        self._jobs.add(key)
        tasks.create_task(self._job(key, work))
        return True

    async def _job(self, key: Key, work: Callable[[], Awaitable[bool]]) -> None:
        try:
            done = await work()
        finally:
            self._jobs.discard(key)
            if key[0] == "node":
                self.cache.under_way.pop(key[1], None)
        if done:
            self._failures.pop(key, None)
            if key[0] == "set":
                self._not_before[key] = self._clock() + STATUS_PAUSE
        else:
            attempts = self._failures[key] = self._failures.get(key, 0) + 1
            seconds = min(0.5 * 2.0 ** min(attempts - 1, 10), RETRY_MAX)
            self._not_before[key] = self._clock() + seconds * random.uniform(0.5, 1)  # noqa: S311 - no secret
        self._changed.set()

    def _node(
        self, tasks: asyncio.TaskGroup, member: Member, sets: list[str], spec: NodeModulesSpec | None, time: str
    ) -> None:
        node, key = member.node, ("node", member.node.name)
        if key in self._jobs:
            return
        changing = {
            entry.name
            for entry in (spec.sets if spec is not None else ())
            if (old := member.entry(entry.name)) is not None and old.generation != entry.generation
        }
        labels = node_labels(member, sets, changing)
        present = self.cache.nodes[node.name].condition
        told = node_condition(member, sets, time, present)
        if spec is None and not labels and told == present:
            return

        async def work() -> bool:
            steps: list[tuple[str, Callable[[], Awaitable[None]]]] = []
            if labels:
                steps.append(("labels", lambda: self._label(node, labels)))
            if spec is not None:
                # Where a set is about to be reloaded, no pod is to be bound for it any more: its label goes first.
                steps.insert(len(steps) if changing else 0, ("spec", lambda: self._give(member, spec)))
            if told != present:
                steps.append(("condition", lambda: self._mark(node, told, time)))
            for what, send in steps:
                if not await self._write(f"{what} of node {node.name}", what, send):
                    return False
            return True

        if self._start(tasks, key, work) and spec is not None:
            self.cache.under_way[node.name] = spec

    async def _label(self, node: Node, labels: Mapping[str, str | None]) -> None:
        document = {"metadata": {"uid": node.uid, "labels": dict(labels)}}
        self.cache.put(NODES, await self._api.patch(NODES, node.name, document))

    async def _mark(self, node: Node, marked: Condition | None, time: str) -> None:
        # Applied, not merged: the list has rows of the kubelet and of others, and a merge patch replaces lists whole.
        rows: list[Any] = []
        if marked is not None:
            rows = [{**as_json(marked), "lastHeartbeatTime": time}]
            del rows[0]["observedGeneration"]
        document = {"metadata": {"uid": node.uid}, "status": {"conditions": rows}}
        self.cache.put(NODES, await self._api.apply(NODES, node.name, document, status=True))

    async def _give(self, member: Member, spec: NodeModulesSpec) -> None:
        content = as_json(spec)
        if member.modules is None:
            owner = {"apiVersion": "v1", "kind": "Node", "name": member.node.name, "uid": member.node.uid}
            document = {
                "apiVersion": API_VERSION,
                "kind": NODE_MODULES.kind,
                "metadata": {"name": member.node.name, "ownerReferences": [owner]},
                "spec": content,
            }
            self.cache.put(NODE_MODULES, await self._api.create(NODE_MODULES, document))
            return
        metadata = {
            "uid": member.modules.metadata.uid,
            # The spec that was decided about is the one that is replaced; CONFLICT otherwise, and another decision.
            "resourceVersion": member.modules.metadata.resource_version,
        }
        answer = await self._api.patch(NODE_MODULES, member.node.name, {"metadata": metadata, "spec": content})
        self.cache.put(NODE_MODULES, answer)

    def _bad_set(self, tasks: asyncio.TaskGroup, name: str, generation: int, error: InvalidArgs, time: str) -> None:
        # Its last status cannot be read either: written once, and again where the error is another.
        subject = f"module set {name}"
        if ("set", name) in self._jobs or not self._complain(subject, error.message):
            return
        status = as_json(unreadable_status(error, generation, time, ModuleSetStatus()))
        content = {key: status[key] for key in ("observedGeneration", "conditions")}

        async def work() -> bool:
            done = await self._status(name, content)
            if not done:
                self._complaints.pop(subject, None)
            return done

        if not self._start(tasks, ("set", name), work):
            self._complaints.pop(subject, None)

    async def _status(self, name: str, content: Object) -> bool:
        async def send() -> None:
            answer = await self._api.patch(MODULE_SETS, name, {"status": content}, status=True)
            module_set = self.cache.sets.get(name)
            if module_set is not None and answer["metadata"].get("generation") == module_set.metadata.generation:
                self.cache.put(MODULE_SETS, answer)

        return await self._write(f"status of module set {name}", "status", send)

    async def _write(self, subject: str, what: str, send: Callable[[], Awaitable[None]]) -> bool:
        """Send one write that the lease allows; whether it is done, or need not be."""
        async with self._limits.get(what, self._others):
            self._leadership.require()
            try:
                await send()
            except ApiFault as fault:
                result = {CONFLICT: "conflict", NOT_FOUND: "gone"}.get(fault.code, "failed")
                self._metrics.writes.labels(what, result).inc()
                if fault.code == NOT_FOUND:
                    return True  # the watch says so too
                if fault.code != CONFLICT:
                    self._complain(subject, fault.message)
                return False
        self._complaints.pop(subject, None)
        self._metrics.writes.labels(what, "written").inc()
        return True

    def _complain(self, subject: str, message: str) -> bool:
        """Log what is wrong, once; whether it is news."""
        if self._complaints.get(subject) == message:
            return False
        self._complaints[subject] = message
        self._logger.warning("coordinator.trouble", message=f"{subject}: {message}")
        return True

    # --- events ------------------------------------------------------------------------------------------------------

    def _occurrences(self, decided: Plan, members: Mapping[str, Member]) -> list[tuple[Occurrence, str, bool]]:
        """What changed since the last pass, the uid of its object, and whether it is news. Of what was there when this process
        started only faults are reported, and not again where a process before it did."""
        news: list[tuple[Occurrence, str, bool]] = []
        fresh, before = self._reported is not None, self._reported or {}
        present: dict[tuple[str, str], Occurrence | None] = {}
        for name, about in decided.sets.items():
            for node in about.members:
                member = members[node]
                old = before.get((node, name))
                # What passes by (the spec was written, a module is being loaded) leaves the last status.
                occurrence = present[node, name] = node_occurrence(member, name) or old
                if occurrence is None or occurrence == old or member.modules is None:
                    continue
                # From ready to loadable and back, as pods come and go, is no news.
                if occurrence.warning or (fresh and (old is None or old.warning)):
                    news.append((occurrence, member.modules.metadata.uid, fresh))
            module_set = self.cache.sets[name]
            phase = self._phases.get(name)
            if phase is not None and phase is not about.phase:
                news.append((set_occurrence(module_set, about), module_set.metadata.uid, True))
        self._reported = present
        self._phases = {name: about.phase for name, about in decided.sets.items()}
        return news

    def _event(self, tasks: asyncio.TaskGroup, occurrence: Occurrence, uid: str, fresh: bool, time: str) -> None:
        if not self._may_report():
            self._metrics.events_dropped.inc()
            return
        # One that cannot be written is not written later, when it is no news any more.
        subject = f"event about {occurrence.name}"
        tasks.create_task(self._write(subject, "event", lambda: self._report(occurrence, uid, fresh, time)))

    def _may_report(self) -> bool:
        now = self._clock()
        self._allowance = min(EVENTS_BURST, self._allowance + (now - self._allowed_at) * EVENTS_RATE)
        self._allowed_at = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    async def _report(self, occurrence: Occurrence, uid: str, fresh: bool, time: str) -> None:
        # The same news has the same name: one Event that counts.
        content = f"{uid}|{occurrence.subject}|{occurrence.reason}|{occurrence.message}"
        digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        name = f"{occurrence.name[:230]}.{digest}"
        document: Object = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": EVENTS_NAMESPACE},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": occurrence.kind,
                "name": occurrence.name,
                "uid": uid,
            },
            "type": "Warning" if occurrence.warning else "Normal",
            "reason": occurrence.reason,
            "message": occurrence.message,
            "source": {"component": "kmodd-coordinator"},
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        }
        try:
            await self._api.create(EVENTS, document, EVENTS_NAMESPACE)
        except ApiFault as fault:
            if fault.code != CONFLICT:
                raise
            if not fresh:
                return
            known = await self._api.get(EVENTS, name, EVENTS_NAMESPACE)
            again = {"count": int(known.get("count") or 1) + 1, "lastTimestamp": time}
            await self._api.patch(EVENTS, name, again, EVENTS_NAMESPACE)


def _reasons(decided: Plan, members: Mapping[str, Member]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for name, about in decided.sets.items():
        for node in about.members:
            problem = trouble(members[node], name, members[node].standing(name))
            if problem is not None and problem.reason:
                rows = counts.setdefault(name, {})
                rows[problem.reason] = rows.get(problem.reason, 0) + 1
    return counts
