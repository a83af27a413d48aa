# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changes for a principal: queued fairly, checked, executed by the daemon, and recorded with the principal's name."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from kmodd.client import FULL, PUBLIC, Client
from kmodd.client.replies import Fields, failed, hint_for
from kmodd.client.surface import AttackSurface
from kmodd.errors import KmoddError, LimitsExceeded
from kmodd.fast_dataclass import dataclass
from kmodd.gateway.daemon_connection import DaemonConnection
from kmodd.gateway.dependencies import snake
from kmodd.gateway.http.authentication import Principal
from kmodd.gateway.models import (
    BatchRequest,
    LoadRequest,
    OperationRequest,
    ParameterRequest,
    PlanRequest,
    Reasoned,
    ReloadRequest,
    UnloadRequest,
)
from kmodd.model import Record
from kmodd.names import (
    is_module_name,
    parse_module,
    parse_module_or_alias,
    parse_parameter_name,
    parse_parameter_value,
    parse_parameters,
    parse_reason,
)

WAIT_TIMEOUT = 10.0
"""Seconds a request waits for its turn."""
OPERATIONS = 4
"""Calls that need authorisation which the daemon lets one user, the gateway's, have under way."""
OPERATIONS_EACH = 2
"""Those of one token; a load that hangs keeps its own until the daemon gives it up."""

Operation = tuple[str, str, dict[str, str]]


class FairQueue:
    """The slots of one kind of work."""

    def __init__(self, slots: int, each: int, what: str, wait_timeout: float = WAIT_TIMEOUT) -> None:
        """`slots` altogether, `each` for one token; `what` names the work in the refusal."""
        self._free = slots
        self._each = each
        self._what = what
        self._patience = wait_timeout
        self._running: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """A slot of this token's, while the block lasts; LimitsExceeded when there is none in time."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        self._serve()
        try:
            async with asyncio.timeout(self._patience):
                await turn
        except TimeoutError:
            self._withdraw(owner, turn)
            raise LimitsExceeded(f"too many {self._what} in progress in the gateway") from None
        except BaseException:
            self._withdraw(owner, turn)
            raise
        try:
            yield
        finally:
            self._release(owner)

    def _serve(self) -> None:
        while self._free:
            owner = next((name for name in self._waiting if self._running[name] < self._each), None)
            if owner is None:
                return
            queue = self._waiting.pop(owner)
            turn = queue.popleft()
            if queue:
                self._waiting[owner] = queue  # behind the others
            if turn.done():
                continue  # cancelled, and not run since
            self._free -= 1
            self._running[owner] += 1
            turn.set_result(None)

    def _release(self, owner: str) -> None:
        self._free += 1
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]
        self._serve()

    def _withdraw(self, owner: str, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():
            self._release(owner)  # it got its turn in the same moment
        elif turn in (queue := self._waiting.get(owner, deque())):
            queue.remove(turn)
            if not queue:
                del self._waiting[owner]


@dataclass(frozen=True, slots=True)
class AuditContext:
    """What is about to be done, for the journal and the evidence."""

    action: str
    modules: tuple[str, ...] = ()
    reason: str = ""
    dry_run: bool = False


_SCOPES = {"reload": ("load", "unload"), "reset-failed": ("load",)}
"""The scopes of operations of a batch that have another name than theirs."""


class Operations:
    """One for the gateway."""

    def __init__(self, link: DaemonConnection, record: Callable[[Record], None], clock: Callable[[], float]) -> None:
        """`record` writes to the journal; the clock counts seconds."""
        self._link = link
        self._record = record
        self._clock = clock
        self._turns = FairQueue(OPERATIONS, OPERATIONS_EACH, "operations")

    async def load(
        self, principal: Principal, module: str, body: LoadRequest, *, reload: bool = False
    ) -> dict[str, Any]:
        """Load, or with `reload` unload and load; what was inserted."""
        action = "reload" if reload else "load"
        name = parse_module(module) if reload else parse_module_or_alias(module)
        parameters = parse_parameters(body.parameters)
        if body.override_policy:
            principal.require("admin")
        options = self._options(principal, body.reason, dry_run=body.dry_run, timeout=body.timeout)
        if body.override_policy:
            options["override-policy"] = True
        if isinstance(body, ReloadRequest):
            options["disconnect"] = body.disconnect
        async with self.doing(principal, AuditContext(action, (name,), body.reason, body.dry_run)) as client:
            inserted = await client.data(action.capitalize(), name, parameters, options=options)
        return _message(name, "inserted", inserted, f"{action}ed", dry_run=body.dry_run)

    async def unload(self, principal: Principal, module: str, body: UnloadRequest) -> dict[str, Any]:
        """Unload; what was removed."""
        name = parse_module(module)
        also = {
            "dependents": body.dependents,
            "unused-dependencies": body.unused_dependencies,
            "disconnect": body.disconnect,
        }
        options = self._options(principal, body.reason, dry_run=body.dry_run, timeout=body.timeout) | also
        async with self.doing(principal, AuditContext("unload", (name,), body.reason, body.dry_run)) as client:
            removed = await client.data("Unload", name, options=options)
        return _message(name, "removed", removed, "unloaded", dry_run=body.dry_run)

    async def batch(self, principal: Principal, body: BatchRequest) -> dict[str, Any]:
        """Several operations; what became of each."""
        operations = parse_operations(body.operations)
        for action, _, _ in operations:
            require_action(principal, action)
        options = self._options(principal, body.reason, dry_run=body.dry_run)
        options |= {"atomic": body.atomic, "disconnect": body.disconnect, "public": not principal.may("inspect")}
        names = tuple(dict.fromkeys(name for _, name, _ in operations))
        context = AuditContext("batch", names, body.reason, body.dry_run)
        async with self.doing(principal, context) as client:
            rows = await client.data("Batch", operations, options=options)
        return results(rows)

    async def plan(self, body: PlanRequest) -> dict[str, Any]:
        """The steps a batch would take; changes nothing."""
        options = {
            "atomic": body.atomic,
            "override-policy": body.override_policy,
            "dependents": body.dependents,
            "unused-dependencies": body.unused_dependencies,
            "disconnect": body.disconnect,
        }
        rows = await self._link.client.data("Plan", parse_operations(body.operations), options=options)
        return {"steps": [_with_hint(row) for row in rows]}

    async def set_parameter(
        self, principal: Principal, module: str, parameter: str, body: ParameterRequest
    ) -> dict[str, Any]:
        """Write a live parameter; what the kernel holds now."""
        name, key, text = parse_module(module), parse_parameter_name(parameter), parse_parameter_value(body.value)
        options = self._options(principal, body.reason)
        async with self.doing(principal, AuditContext("set-parameter", (name,), body.reason)) as client:
            held = await client.data("SetParameter", name, key, text, options=options)
        return {"module": name, "parameter": key, "value": held}

    async def reset_failed(self, principal: Principal, module: str, body: Reasoned) -> dict[str, Any]:
        """Forget a failed operation."""
        name, reason = parse_module(module), parse_reason(body.reason)
        principal.require_modules([name])
        async with self.doing(principal, AuditContext("reset-failed", (name,), reason)) as client:
            await client.reset_failed(name, **principal.caller_options(reason))
        return {"message": f"Cleared the recorded failure of module {name}", "module": name}

    async def history(
        self, principal: Principal, module: str, since: int, limit: int, *, requests: bool
    ) -> list[dict[str, Any]]:
        """Records from the journal."""
        options: dict[str, object] = {"limit": limit, "on-behalf-of": principal.label}
        if module:
            options["module"] = parse_module(module)
        if since:
            options["since"] = since
        if requests:
            options["requests"] = True
        async with self._turns.turn(principal.name):
            return [snake(row) for row in await self._link.client.data("GetHistory", options=options)]

    async def surface(self, principal: Principal, member: str, options: Mapping[str, object]) -> Any:
        """A query of `org.kmodd1.Surface` that needs authorization, as on the bus."""
        options = {**options, "on-behalf-of": principal.label}
        async with self._turns.turn(principal.name):
            return await AttackSurface(self._link.client).data(member, options=options)

    @staticmethod
    def _options(
        principal: Principal, reason: str, *, dry_run: bool | None = None, timeout: int | None = None
    ) -> dict[str, object]:
        """Options of what touches modules: the daemon holds a token for some of them to these."""
        options: dict[str, object] = {**principal.caller_options(parse_reason(reason))}
        if dry_run is not None:
            options["dry-run"] = dry_run
        if principal.modules:
            options["only-modules"] = sorted(principal.modules)
        if timeout is not None:
            options["timeout"] = timeout
        return options

    @asynccontextmanager
    async def doing(self, principal: Principal, context: AuditContext) -> AsyncIterator[Client]:
        """A change under way: waits for its turn, is written down, and fails with evidence."""
        started = self._clock()
        try:
            async with self._turns.turn(principal.name):
                client = self._link.client.telling(FULL if principal.may("inspect") else PUBLIC)
                try:
                    yield client
                finally:
                    self._link.changed()
        except KmoddError as error:
            if not error.module and len(context.modules) == 1 and is_module_name(context.modules[0]):
                error.module = context.modules[0]
            self._write(principal, context, started, error)
            raise
        self._write(principal, context, started, None)

    def _write(self, principal: Principal, context: AuditContext, started: float, error: KmoddError | None) -> None:
        # A reader must not think that something was done.
        done, outcome = ("dry-run", "could be done, a dry run") if context.dry_run else ("done", "done")
        # Once the answer is on its way: the client need not wait for the journal.
        asyncio.get_running_loop().call_soon(
            self._record,
            Record(
                event="gateway.operation",
                message=f"{principal.label}: {context.action} {' '.join(context.modules)}: {error.title if error else outcome}",
                action=context.action,
                result="failed" if error else done,
                error=error.name() if error else "",
                reason=context.reason,
                duration_usec=int((self._clock() - started) * 1_000_000),
                on_behalf_of=principal.label,
                priority=5 if error else 6,
            ).about(context.modules),
        )


def parse_operations(body: Sequence[OperationRequest]) -> list[Operation]:
    """Operations of a body, their names and values parsed; the daemon says how many there may be."""
    return [
        (
            operation.action,
            parse_module_or_alias(operation.module) if operation.action == "load" else parse_module(operation.module),
            parse_parameters(operation.parameters),
        )
        for operation in body
    ]


def results(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `Batch` and `Apply` answer."""
    return {"results": [_with_hint(row) for row in rows]}


def _with_hint(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row; one that failed says what to do about it, as a problem document does."""
    fields = snake(row)
    if "error" in row:
        error = failed(Fields(row))
        if hint := hint_for(error, error.module):
            fields["hint"] = hint
    return fields


def require_action(principal: Principal, action: str) -> None:
    """AccessDenied unless the principal has the scopes of an operation."""
    for scope in _SCOPES.get(action, (action,)):
        principal.require(scope)


def _message(name: str, key: str, modules: Sequence[str], done: str, *, dry_run: bool) -> dict[str, Any]:
    changes: Mapping[str, Any] = {"module": name, key: list(modules)}
    if dry_run:
        return {"message": f"Module {name} would be {done}", **changes, "dry_run": True}
    return {"message": f"Module {name} {done} successfully", **changes}
