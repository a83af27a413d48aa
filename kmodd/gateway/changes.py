# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changes for a principal: checked, carried out by the daemon, written down with the principal's name."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from kmodd.client import Client
from kmodd.client_evidence import explicable, gather
from kmodd.errors import KmoddError, LimitsExceeded
from kmodd.gateway.link import DaemonLink
from kmodd.gateway.models import (
    BatchRequest,
    LoadRequest,
    OperationRequest,
    ParameterRequest,
    PlanRequest,
    Reasoned,
    UnloadRequest,
)
from kmodd.gateway.principal import Principal
from kmodd.gateway.wording import snake
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

OPERATIONS = 4
"""Calls that need authorisation which the daemon lets one user, the gateway's, have under way."""
PATIENCE = 10.0
"""Seconds a request waits for its turn."""
EVIDENCE_TIMEOUT = 5.0
"""Seconds that looking for evidence may take; the failure itself is known already."""

Operation = tuple[str, str, dict[str, str]]


@dataclass(frozen=True, slots=True)
class Intent:
    """What is about to be done, for the journal and the evidence."""

    action: str
    modules: str
    reason: str = ""
    dry_run: bool = False


class Changes:
    """One for the gateway."""

    def __init__(self, link: DaemonLink, record: Callable[[Record], None], clock: Callable[[], float]) -> None:
        """`record` writes to the journal; the clock counts seconds."""
        self._link = link
        self._record = record
        self._clock = clock
        self._turns = asyncio.Semaphore(OPERATIONS)

    async def load(self, who: Principal, module: str, asked: LoadRequest, *, anew: bool = False) -> dict[str, Any]:
        """Load, or reload when `anew`; what was inserted."""
        action = "reload" if anew else "load"
        name = parse_module(module) if anew else parse_module_or_alias(module)
        parameters = parse_parameters(asked.parameters)
        if asked.override_policy:
            who.require("admin")
        options = self._options(who, asked.reason, dry_run=asked.dry_run, timeout=asked.timeout)
        if asked.override_policy:
            options["override-policy"] = True
        async with self.doing(who, Intent(action, name, asked.reason, asked.dry_run)) as client:
            await self._confine(client, who, [(action, name, parameters)], override_policy=asked.override_policy)
            inserted = await client.data(action.capitalize(), name, parameters, options=options)
        return _told(name, "inserted", inserted, f"{action}ed", dry_run=asked.dry_run)

    async def unload(self, who: Principal, module: str, asked: UnloadRequest) -> dict[str, Any]:
        """Unload; what was removed."""
        name = parse_module(module)
        also = {"dependents": asked.dependents, "unused-dependencies": asked.unused_dependencies}
        options = self._options(who, asked.reason, dry_run=asked.dry_run, timeout=asked.timeout) | also
        async with self.doing(who, Intent("unload", name, asked.reason, asked.dry_run)) as client:
            await self._confine(client, who, [("unload", name, {})], **also)
            removed = await client.data("Unload", name, options=options)
        return _told(name, "removed", removed, "unloaded", dry_run=asked.dry_run)

    async def batch(self, who: Principal, asked: BatchRequest) -> dict[str, Any]:
        """Several operations; what became of each."""
        operations = parse_operations(asked.operations)
        for action, _, _ in operations:
            require_action(who, action)
        options = self._options(who, asked.reason, dry_run=asked.dry_run) | {"atomic": asked.atomic}
        names = " ".join(dict.fromkeys(name for _, name, _ in operations))
        intent = Intent("batch", names, asked.reason, asked.dry_run)
        async with self.doing(who, intent) as client:
            await self._confine(client, who, operations)
            rows = await client.data("Batch", operations, options=options)
        return results(rows)

    async def plan(self, asked: PlanRequest) -> dict[str, Any]:
        """The steps a batch would take; changes nothing."""
        options = {
            "atomic": asked.atomic,
            "override-policy": asked.override_policy,
            "dependents": asked.dependents,
            "unused-dependencies": asked.unused_dependencies,
        }
        steps = [
            snake(row)
            for row in await self._link.client.data("Plan", parse_operations(asked.operations), options=options)
        ]
        for step in steps:
            if "error" in step:
                step["error"] = step["error"].rpartition(".")[2]
        return {"steps": steps}

    async def set_parameter(
        self, who: Principal, module: str, parameter: str, asked: ParameterRequest
    ) -> dict[str, Any]:
        """Write a live parameter; what the kernel holds now."""
        name, key, text = parse_module(module), parse_parameter_name(parameter), parse_parameter_value(asked.value)
        who.require_modules([name])
        async with self.doing(who, Intent("set-parameter", name, parse_reason(asked.reason))) as client:
            held = await client.set_parameter(name, key, text)
        return {"module": name, "parameter": key, "value": held}

    async def reset_failed(self, who: Principal, module: str, asked: Reasoned) -> dict[str, Any]:
        """Forget a failed operation."""
        name, reason = parse_module(module), parse_reason(asked.reason)
        who.require_modules([name])
        async with self.doing(who, Intent("reset-failed", name, reason)) as client:
            await client.reset_failed(name)
        return {"message": f"Nothing failed is remembered of module {name} any more", "module": name}

    async def history(self, who: Principal, module: str, since: int, limit: int) -> list[dict[str, Any]]:
        """Records from the journal."""
        options: dict[str, object] = {"limit": limit, "on-behalf-of": who.name}
        if module:
            options["module"] = parse_module(module)
        if since:
            options["since"] = since
        async with self._turn():
            return [snake(row) for row in await self._link.client.data("GetHistory", options=options)]

    @staticmethod
    def _options(who: Principal, reason: str, *, dry_run: bool, timeout: int | None = None) -> dict[str, object]:
        options: dict[str, object] = {"dry-run": dry_run, "on-behalf-of": who.name}
        if reason:
            options["reason"] = parse_reason(reason)
        if timeout is not None:
            options["timeout"] = timeout
        return options

    async def _confine(self, client: Client, who: Principal, operations: Sequence[Operation], **options: bool) -> None:
        """AccessDenied when a token for some modules would touch another, be it as a dependency."""
        if not who.modules:
            return
        # An alias stands for whatever the index says; a list of names cannot answer for that.
        who.require_modules(name for _, name, _ in operations)
        given = {name.replace("_", "-"): value for name, value in options.items()}
        steps = await client.data("Plan", operations, options=given)
        who.require_modules(step["module"] for step in steps)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._turns.acquire()
        except TimeoutError:
            raise LimitsExceeded("too many operations are under way through the gateway") from None
        try:
            yield
        finally:
            self._turns.release()

    @asynccontextmanager
    async def doing(self, who: Principal, intent: Intent) -> AsyncIterator[Client]:
        """A change under way: waits for its turn, is written down, and fails with evidence."""
        started = self._clock()
        try:
            async with self._turn():
                client = self._link.client
                try:
                    yield client
                finally:
                    self._link.changed()
        except KmoddError as error:
            if not error.module and is_module_name(intent.modules):
                error.module = intent.modules
            self._write(who, intent, started, error)
            await self._explain(error)
            raise
        self._write(who, intent, started, None)

    async def _explain(self, error: KmoddError) -> None:
        if not explicable(error):
            return
        try:
            async with asyncio.timeout(EVIDENCE_TIMEOUT):
                error.evidence = await gather(error, self._link.client)
        except (TimeoutError, KmoddError):
            return  # what is known already is answered

    def _write(self, who: Principal, intent: Intent, started: float, error: KmoddError | None) -> None:
        # Nobody who reads it should think that something was done.
        done, said = ("dry-run", "could be done, a dry run") if intent.dry_run else ("done", "done")
        # Once the answer is on its way: the client need not wait for the journal.
        asyncio.get_running_loop().call_soon(
            self._record,
            Record(
                event="gateway.operation",
                message=f"{who.name}: {intent.action} {intent.modules}: {error.title if error else said}",
                module=intent.modules,
                action=intent.action,
                result="failed" if error else done,
                error=error.name() if error else "",
                reason=intent.reason,
                duration_usec=int((self._clock() - started) * 1_000_000),
                on_behalf_of=who.name,
                priority=5 if error else 6,
            ),
        )


def parse_operations(asked: Sequence[OperationRequest]) -> list[Operation]:
    """Operations of a body, their names and values parsed; the daemon says how many there may be."""
    return [
        (
            one.action,
            parse_module_or_alias(one.module) if one.action == "load" else parse_module(one.module),
            parse_parameters(one.parameters),
        )
        for one in asked
    ]


def results(rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """What `Batch` and `Apply` answer."""
    found = [dict(zip(("module", "result", "error", "touched"), row, strict=True)) for row in rows]
    for one in found:
        one["error"] = one["error"].rpartition(".")[2]
    return {"results": found}


def require_action(who: Principal, action: str) -> None:
    """AccessDenied unless the principal has the scopes of an operation."""
    for scope in ("load", "unload") if action == "reload" else (action,):
        who.require(scope)


def _told(name: str, key: str, modules: Sequence[str], done: str, *, dry_run: bool) -> dict[str, Any]:
    found: Mapping[str, Any] = {"module": name, key: list(modules)}
    if dry_run:
        return {"message": f"Module {name} would be {done}", **found, "dry_run": True}
    return {"message": f"Module {name} {done} successfully", **found}
