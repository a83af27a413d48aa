# SPDX-License-Identifier: LGPL-2.1-or-later
"""Brings the node to its specification, one step at a time, and says how it is.

Three tasks: one follows the node's object, one kmodd's signals, one works. After each step the specification and the node are
looked at again. A fourth writes the status, so that an API server that is away holds nothing up.

An object that is gone, or that makes no sense, wants nothing: then nothing is loaded and nothing unloaded. Only a specification
that leaves a module out has it unloaded.
"""

import asyncio
import datetime as dt
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace

from kmodd import VERSION
from kmodd.agent.node import SIGNALS, Look, Node
from kmodd.agent.planning import (
    LONGEST_WAIT,
    Action,
    Decision,
    Failure,
    Recovery,
    Situation,
    Step,
    Wanted,
    back_off,
    decide,
    merge,
    recovery,
)
from kmodd.agent.record import Barred, Owned, Record, StateFolder
from kmodd.client import PATH, Client, Signal, SignalStream
from kmodd.errors import InvalidArgs, KmoddError, Unavailable
from kmodd.fast_dataclass import dataclass
from kmodd.fleet.kubernetes import NODE_MODULES, NOT_FOUND, Api, ApiFault, Listing, Object, wait
from kmodd.fleet.resources import (
    Condition,
    ConditionStatus,
    ModuleState,
    ModuleStatus,
    NodeModules,
    NodeModulesSpec,
    NodeModulesStatus,
    SetStatus,
    as_json,
    parse_metadata,
    parse_node_modules,
    parse_node_spec,
)
from kmodd.journal.writer import Logger
from kmodd.model import State
from kmodd.names import escape_label

SETTLE = 0.1
"""Seconds in which the signals of one change become one look."""
LATER = 5.0
"""Seconds until a look after a module's properties changed."""
PATIENCE = 10.0
"""Seconds that the first answer of the API server is waited for before the specification that was kept is in effect."""
NOTICE = 0.5
"""Seconds after which a step that is under way is reported as such."""
FRESH = 5.0
"""Seconds that kmodd has to show a module that it was loaded."""
READY, REACHABLE, DRIFTED, LOADABLE = "Ready", "KmoddReachable", "Drifted", "Loadable"
NOT_YET = "NotLookedYet"


@dataclass(frozen=True, slots=True)
class Clock:
    """Time and chance."""

    monotonic: Callable[[], float]
    now: Callable[[], dt.datetime]
    """In UTC."""
    chance: Callable[[], float]


def date(moment: dt.datetime) -> str:
    """RFC 3339 as Kubernetes writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _instance(owned: Owned | None) -> int:
    """`LoadedAt` of what a reload replaces."""
    return 0 if owned is None else owned.loaded_at or owned.replaced


class Reconciler:
    """The agent's work."""

    def __init__(
        self,
        name: str,
        api: Api,
        client: Client,
        node: Node,
        folder: StateFolder,
        boot_id: str,
        clock: Clock,
        logger: Logger,
    ) -> None:
        self._name = name
        self._api = api
        self._client = client
        self._node = node
        self._folder = folder
        self._clock = clock
        self._logger = logger
        self._record: Record = folder.read(boot_id)
        self._object: NodeModules | None = folder.read_specification(name)
        self._refusal: InvalidArgs | None = None
        """Why the object that is there makes no sense."""
        self._exists = False
        """There is an object to write a status to, as far as is known."""
        self._failures: dict[str, Failure] = {}
        self._released: dict[str, float] = {}
        self._heard = asyncio.Event()
        """The API server answered, or cannot be reached."""
        self._wake = asyncio.Event()
        self._write = asyncio.Event()
        self._stopped = False
        """kmodd was stopped, and is not started by us."""
        self._timer: asyncio.TimerHandle | None = None
        self._later: asyncio.TimerHandle | None = None
        self._look: Look | None = None
        self._decision: Decision | None = None
        self._unreachable: KmoddError | None = None
        self._conditions: dict[str, Condition] = {}
        self._written: Object | None = None
        self._connected = False
        self._generation = 0
        """Of the specification that was decided from last."""
        self._fresh = {name: clock.monotonic() for name, owned in self._record.owned.items() if not owned.loaded_at}
        """When a module was loaded by us, or by the agent before this one right before it ended; for a moment kmodd may not show it."""
        self._unheld: dict[str, str] = {}
        """Modules that pods need and that could not be held, and for which error."""
        self._adopted = False
        self._lookouts = 0
        self.on_change: Callable[[], None] = lambda: None
        """Called when something that metrics show may be different."""
        self.on_step: Callable[[str, str], None] = lambda action, result: None
        """Called after each step with its action and `done` or `failed`."""
        self.on_report: Callable[[str], None] = lambda result: None
        """Called after each report to the API with `done` or `failed`."""
        api.trouble = self._on_trouble

    # --- for metrics --------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """The watch of the node's object runs."""
        return self._connected

    @property
    def reachable(self) -> bool:
        """kmodd responded when it was last called."""
        return self._look is not None and self._unreachable is None

    @property
    def leases(self) -> int:
        """Modules that are held."""
        return len(self._node.leases)

    def states(self) -> tuple[ModuleState, ...]:
        """Of each module, as reported last."""
        return tuple(row.state for row in self._decision.modules) if self._decision is not None else ()

    async def run(self) -> None:
        """Work until cancelled; Unavailable when the bus is lost."""
        self._wake.set()
        async with self._client.signals(*SIGNALS) as stream:
            tasks = [
                asyncio.ensure_future(work)
                for work in (self._listen(stream), self._follow(), self._work(), self._report())
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for timer in (self._timer, self._later):
                    if timer is not None:
                        timer.cancel()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._node.leases.close()

    # --- what arrives ------------------------------------------------------------------------------------------------

    async def _listen(self, stream: SignalStream) -> None:
        async for signal in stream:
            if signal.member == "NameOwnerChanged":
                self._stopped = not signal.arguments[2]
                if not self._stopped:
                    # Another kmodd may decide otherwise.
                    self._failures.clear()
            elif signal.member == "PropertiesChanged" and not self._telling(signal):
                # A value that changes at each read would otherwise be a reason for the next one.
                if self._later is None:
                    self._later = asyncio.get_running_loop().call_later(LATER, self._look_later)
                continue
            else:
                for failure in self._failures.values():
                    if recovery(failure.error.name()) is Recovery.RELEASE:
                        failure.next_try = self._clock.monotonic()
            self._wake.set()

    def _telling(self, signal: Signal) -> bool:
        """Holders changed, or the values of a module that was just loaded were read."""
        changed = signal.arguments[1] if len(signal.arguments) > 1 and isinstance(signal.arguments[1], dict) else {}
        return "Holders" in changed or signal.path in {f"{PATH}/module/{escape_label(name)}" for name in self._fresh}

    def _look_later(self) -> None:
        self._later = None
        self._wake.set()

    async def _follow(self) -> None:
        async with aclosing(self._api.follow(NODE_MODULES, fields={"metadata.name": self._name})) as events:
            async for event in events:
                if isinstance(event, Listing):
                    self._heard.set()
                    ours = [item for item in event.items if item.get("metadata", {}).get("name") == self._name]
                    self._on_object(ours[0] if ours else None)
                else:
                    self._on_object(None if event.type == "DELETED" else event.object)

    def _on_object(self, document: Object | None) -> None:
        if document is None:
            if self._object is not None or self._exists:
                self._logger.warning(
                    "agent.trouble", message=f"the cluster has no NodeModules {self._name}: nothing changes"
                )
            self._object, self._refusal, self._exists, self._written = None, None, False, None
            self._conditions.clear()
            self._keep()
            return
        appeared, self._exists = not self._exists, True
        try:
            modules = NodeModules(parse_metadata(document), parse_node_spec(document))
        except InvalidArgs as error:
            generation = document.get("metadata", {}).get("generation")
            self._generation = generation if isinstance(generation, int) else 0
            if self._refusal is None or self._refusal.message != error.message:
                self._logger.warning("agent.refused", message=f"the specification of this node is bad: {error.message}")
                self._refusal = error
                self._wake.set()
            return
        if appeared:
            self._adopt(document)
        before = self._object
        if before is None or (before.spec, before.metadata.generation) != (modules.spec, modules.metadata.generation):
            self._wake.set()
        refused, self._refusal = self._refusal, None
        if refused is not None or appeared:
            self._wake.set()
        self._object = modules
        if before is None or before.spec != modules.spec:
            self._keep()
        if appeared:
            self._write.set()

    def _adopt(self, document: Object) -> None:
        """Times of transitions go on from what the last agent wrote; where that makes no sense they begin now."""
        try:
            status = parse_node_modules(document).status
        except InvalidArgs:
            return
        for condition in status.conditions:
            self._conditions.setdefault(condition.type, condition)
        self._adopted = bool(status.conditions)

    def _keep(self) -> None:
        try:
            self._folder.write_specification(self._object)
        except OSError as error:
            self._logger.error("agent.trouble", message=f"the specification cannot be kept: {error}")  # noqa: TRY400 - a full disk is no bug

    def _on_trouble(self, fault: ApiFault | None) -> None:
        self.on_change()
        if fault is None:
            if not self._connected:
                self._logger.info("agent.recovered", message="the Kubernetes API answers")
            self._connected = True
            # At each new watch, which is some ten times an hour: it shows the cluster that this agent lives.
            self._written = None
            self._write.set()
        else:
            self._heard.set()
            if self._connected or self._written is None:
                self._logger.warning(
                    "agent.trouble", message=f"{fault.message}; the specification before it stays in effect"
                )
            self._connected = False

    # --- work --------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        with suppress(TimeoutError):
            # What was kept may be out of date; it is for an API server that does not answer.
            await asyncio.wait_for(self._heard.wait(), PATIENCE)
        while True:
            await self._wake.wait()
            await asyncio.sleep(SETTLE)
            self._wake.clear()
            while await self._pass():
                pass

    async def _pass(self) -> bool:
        """Look, decide, take one step; whether there may be another one."""
        target = self._object
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if target is None or self._refusal is not None:
            self._write.set()
            return False
        if self._stopped:
            self._fail(Unavailable("kmodd is not running"))
            return False
        wanted = merge(target.spec)
        try:
            look = await self._node.look(wanted, self._record.owned)
        except KmoddError as error:
            if not self._client.transport.connected:
                raise
            self._fail(error)
            return False
        self._unreachable, self._lookouts = None, 0
        if self._record.loading in look.loaded:
            await self._resolve(self._record.loading)
        self._reconcile_record(look)
        await self._hold(wanted, look)
        now = self._clock.monotonic()
        self._count_grace(target.spec, look, now)
        for name in [name for name in self._failures if name not in wanted and name not in self._record.owned]:
            del self._failures[name]
        situation = Situation(
            target.spec,
            look.actual,
            self._record.owned,
            self._failures,
            self._record.barred,
            self._released,
            now,
            target.metadata.generation,
        )
        decision = decide(situation)
        self._look = look
        generation = target.metadata.generation
        if decision.step is None:
            self._publish(decision, generation)
            wakes = [max(wake - now, 0.0) for wake in (decision.wake,) if wake is not None]
            if self._unheld:
                wakes.append(LONGEST_WAIT)
            if wakes:
                self._again(min(wakes))
            return False
        await self._take(decision.step, lambda: self._publish(decision, generation))
        return True

    async def _hold(self, wanted: Mapping[str, Wanted], look: Look) -> None:
        """Hold what pods need and is as specified. Without a lease it is loaded all the same: the journal says so, once."""
        needed = [
            name
            for name, module in wanted.items()
            if module.demanded
            and not module.conflict
            and look.actual[name].as_specified
            and name not in self._node.leases
        ]
        self._unheld = {name: reason for name, reason in self._unheld.items() if name in needed}
        for name in needed:
            try:
                await self._node.hold(wanted[name])
            except KmoddError as error:
                if not self._client.transport.connected:
                    raise
                if self._unheld.get(name) != error.name():
                    self._logger.warning(
                        "agent.trouble",
                        message=f"cannot hold {name}: {error.message}; others may unload it",
                        module=name,
                    )
                self._unheld[name] = error.name()
            else:
                self._unheld.pop(name, None)

    def _fail(self, error: KmoddError) -> None:
        self._unreachable = error
        self._write.set()
        self.on_change()
        if not self._stopped:
            self._lookouts += 1
            self._again(back_off(self._lookouts, self._clock.chance()))

    def _again(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._wake.set)

    def _count_grace(self, spec: NodeModulesSpec, look: Look, now: float) -> None:
        wanted = merge(spec)
        idle = {name for name in self._record.owned if name in look.loaded and name in wanted and not wanted[name].now}
        self._released = {name: self._released.get(name, now) for name in idle}

    async def _take(self, step: Step, publish: Callable[[], None]) -> None:
        if step.action is not Action.LOAD:
            self._node.leases.release(step.module)  # ours alone; those of others are in the way
        failure = self._failures.get(step.module)
        if failure is not None and failure.step == step:
            # Tried before: what kmodd knows beforehand is no reason to try again.
            try:
                error = await self._node.check(step)
            except Unavailable as gone:
                self._fail(gone)
                return
            if error is not None:
                self._failed(step, failure.error if error.name() == failure.error.name() else error, again=False)
                return
        task = asyncio.ensure_future(self._step(step))
        try:
            await asyncio.wait({task}, timeout=NOTICE)
            if not task.done():
                publish()
            await task
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise

    async def _step(self, step: Step) -> None:
        resumed = self._record.loading == step.module
        if step.action is not Action.UNLOAD:
            self._record.loading = step.module
            self._save()
        try:
            changed = await self._node.take(step)
        except KmoddError as error:
            if not self._client.transport.connected:
                raise
            self._lost(step, error)
            self._failed(step, error)
            self.on_step(str(step.action), "failed")
        else:
            self._failures.pop(step.module, None)
            self.on_step(str(step.action), "done")
            if step.action is Action.UNLOAD:
                for name in changed:
                    self._record.owned.pop(name, None)
            else:
                for name in changed:
                    before = self._record.owned.pop(name, None)
                    requested = name == step.module or (before is not None and before.requested)
                    self._record.owned[name] = Owned(requested, replaced=_instance(before))
                    self._fresh[name] = self._clock.monotonic()
            done = {Action.LOAD: "loaded", Action.RELOAD: "reloaded", Action.UNLOAD: "unloaded"}[step.action]
            self._logger.info("agent.changed", message=f"{step.module} is {done}", module=step.module)
            if resumed and not changed:
                await self._resolve(step.module)  # the call of the agent before this one did it
        self._record.loading = ""
        self._save()

    def _lost(self, step: Step, error: KmoddError) -> None:
        # A failed reload may have left the module, or what came with it, out. What stays loaded is seen at the next look.
        if step.action is Action.RELOAD:
            for name in error.touched:
                self._record.owned.pop(name, None)

    def _failed(self, step: Step, error: KmoddError, *, again: bool = True) -> None:
        before = self._failures.get(step.module)
        same = before is not None and before.step == step
        attempts = (before.attempts if before is not None and same else 0) + (1 if again else 0)
        waits = (before.waits if before is not None and same else 0) + 1
        kind = recovery(error.name())
        if kind is Recovery.BOOT:
            self._record.barred[step.module] = Barred(
                error.name(), error.message, error.evidence.hint, error.evidence.kernel_log
            )
        seconds = back_off(waits, self._clock.chance())
        timed = kind in (Recovery.BACK_OFF, Recovery.RELEASE)
        self._failures[step.module] = Failure(
            step,
            error,
            attempts,
            self._clock.monotonic() + seconds if timed else None,
            date(self._clock.now() + dt.timedelta(seconds=seconds)) if timed else "",
            waits,
        )
        if again:
            self._logger.warning(
                "agent.failed", message=f"cannot {step.action} {step.module}: {error.message}", module=step.module
            )

    # --- what is ours ------------------------------------------------------------------------------------------------

    async def _resolve(self, name: str) -> None:
        """The agent ended while it loaded a module: that is ours only where kmodd says so, once it is loaded."""
        try:
            explanation = await self._node.explain(name)
        except KmoddError:
            return
        if explanation.state is not State.LIVE:
            return
        if self._node.is_ours(explanation):
            before = self._record.owned.get(name)
            self._record.owned[name] = Owned(before is None or before.requested, replaced=_instance(before))
            self._fresh[name] = self._clock.monotonic()
            for need in await self._node.brought(name):
                self._record.owned.setdefault(need, Owned(requested=False))
        self._record.loading = ""
        self._save()

    def _reconcile_record(self, look: Look) -> None:
        if look.boot_id and look.boot_id != self._record.boot_id:
            self._record = Record(look.boot_id)
        changed = False
        now = self._clock.monotonic()
        self._fresh = {name: since for name, since in self._fresh.items() if now - since < FRESH}
        for name, owned in list(self._record.owned.items()):
            actual = look.actual.get(name)
            if name in self._fresh:
                if actual is not None and actual.loaded_at not in (0, owned.loaded_at, owned.replaced):
                    self._record.owned[name] = replace(owned, loaded_at=actual.loaded_at, replaced=0)
                    changed = True
            elif name not in look.loaded:
                del self._record.owned[name]
                changed = True
            elif actual is not None and actual.loaded_at != owned.loaded_at and actual.loaded_at:
                if owned.loaded_at:
                    del self._record.owned[name]  # gone, and loaded again by others
                else:
                    self._record.owned[name] = replace(owned, loaded_at=actual.loaded_at, replaced=0)
                changed = True
        if changed:
            self._save()

    def _save(self) -> None:
        try:
            self._folder.write(self._record)
        except OSError as error:
            self._logger.error("agent.trouble", message=f"the record cannot be kept: {error}")  # noqa: TRY400 - a full disk is no bug

    # --- the status --------------------------------------------------------------------------------------------------

    def _publish(self, decision: Decision, generation: int) -> None:
        self._decision, self._generation = decision, generation
        self._write.set()
        self.on_change()

    def _status(self) -> Object:
        look, decision, generation = self._look, self._decision, self._generation
        status = NodeModulesStatus(
            observed_generation=generation,
            boot_id=self._record.boot_id,
            kernel_release=look.kernel_release if look else "",
            agent_version=VERSION,
            kmodd_version=look.version if look else "",
            sets=decision.sets if decision else (),
            modules=decision.modules if decision else (),
            conditions=tuple(self._condition(*row, generation) for row in self._findings()),
        )
        return dict(as_json(status))

    def _condition(self, kind: str, status: ConditionStatus, reason: str, message: str, generation: int) -> Condition:
        before = self._conditions.get(kind)
        since = before.last_transition_time if before is not None and before.status is status else ""
        condition = Condition(kind, status, reason, message, since or date(self._clock.now()), generation)
        self._conditions[kind] = condition
        return condition

    def _findings(self) -> list[tuple[str, ConditionStatus, str, str]]:
        true, false, unknown = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
        lost, decision = self._unreachable, self._decision
        if lost is not None:
            sentence = lost.message
            return [
                (REACHABLE, false, lost.name(), sentence),
                *((kind, unknown, lost.name(), sentence) for kind in (READY, DRIFTED, LOADABLE)),
            ]
        if self._refusal is not None:
            return [
                (REACHABLE, *((unknown, NOT_YET, "") if self._look is None else (true, "Answers", "kmodd answers"))),
                (READY, false, self._refusal.name(), self._refusal.message),
                (DRIFTED, unknown, self._refusal.name(), ""),
                (LOADABLE, unknown, self._refusal.name(), ""),
            ]
        if decision is None:
            return [
                (kind, unknown, NOT_YET, "the agent has not looked yet")
                for kind in (REACHABLE, READY, DRIFTED, LOADABLE)
            ]
        drifted = next((row for row in decision.modules if row.state is ModuleState.DRIFTED), None)
        refused = next((row for row in decision.modules if row.state is ModuleState.FAILED), None)
        return [
            (REACHABLE, true, "Answers", "kmodd answers"),
            _ready(decision),
            (DRIFTED, true, drifted.reason or "Drifted", drifted.message)
            if drifted
            else (DRIFTED, false, "AsSpecified", "no module is loaded otherwise than specified"),
            (LOADABLE, false, refused.reason, refused.message)
            if refused
            else (LOADABLE, true, "AsPlanned", "nothing prevents loading the specified modules"),
        ]

    async def _report(self) -> None:
        failures = 0
        while True:
            await self._write.wait()
            self._write.clear()
            if not self._exists:
                continue
            if self._adopted and self._decision is None and self._refusal is None and self._unreachable is None:
                continue  # what the last agent wrote is better than nothing
            status = self._status()
            if status == self._written:
                continue
            try:
                body = {"status": {**status, "lastContact": date(self._clock.now())}}
                await self._api.apply(NODE_MODULES, self._name, body, status=True)
            except ApiFault as fault:
                if fault.code == NOT_FOUND:
                    continue  # the watch says so as well
                failures += 1
                self.on_report("failed")
                self._logger.warning("agent.trouble", message=f"the status cannot be written: {fault.message}")
                await asyncio.sleep(wait(failures, self._clock.chance, fault.retry_after))
                self._write.set()
            else:
                failures = 0
                self._written = status
                self.on_report("done")


def _ready(decision: Decision) -> tuple[str, ConditionStatus, str, str]:
    good = (ModuleState.READY, ModuleState.LOADABLE)
    count = sum(module.state in good for module in decision.modules)
    bad: SetStatus | ModuleStatus | None = next((row for row in decision.sets if row.state not in good), None)
    if bad is None:
        # What no set wants any more, and cannot be unloaded, is in no set's status.
        bad = next((row for row in decision.leaving if row.state not in good), None)
    if bad is not None:
        return READY, ConditionStatus.FALSE, bad.reason or str(bad.state), bad.message
    return READY, ConditionStatus.TRUE, "AsSpecified", f"{count} module{'s are' if count != 1 else ' is'} as specified"
