# SPDX-License-Identifier: LGPL-2.1-or-later
"""A typed client of the daemon, for kmodctl and the gateway.

    async with await Client.connect() as client:
        inserted = await client.load("vfat", reason="backup disk")

One connection serves any number of calls at once. Every call has a deadline and raises classes of `kmodd.errors` alone;
`Unavailable` when there is no daemon. `data()` answers any member as plain values, keys as on the bus, for programs that
pass them on as JSON; the other methods answer values of `kmodd.model`.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypedDict, Unpack

from kmodd import client_answers as answers
from kmodd.client_transport import Signal, SignalStream, Transport, variant
from kmodd.errors import Failed
from kmodd.model import Explanation, Health, HistoryEntry, Metric, ModuleInfo, OperationResult, Step
from kmodd.names import escape_label

__all__ = ["Client", "Signal", "SignalStream"]

NAME = "org.kmodd1"
PATH = "/org/kmodd1"
MANAGER = "org.kmodd1.Manager"
MODULE = "org.kmodd1.Module"
JOB = "org.kmodd1.Job"
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECTS = "org.freedesktop.DBus.ObjectManager"

READ_TIMEOUT = 25.0
"""Seconds for a member that only reads, the default of D-Bus."""
PROMPT_TIMEOUT = 300.0
"""Seconds a person may take to type a password."""
KERNEL_TIMEOUT = 30
"""Seconds the daemon waits for one call into the kernel when the caller names no time-out."""
STEPS_ALLOWED = 8
"""Calls into the kernel that one operation is given time for; the daemon itself bounds each of them."""

Operation = tuple[str, str, Mapping[str, str]]
"""(`load`, `unload` or `reload`; module; parameters)."""

_SIGNATURES = {
    "Load": "sa{ss}a{sv}",
    "Unload": "sa{sv}",
    "Reload": "sa{ss}a{sv}",
    "Batch": "a(ssa{ss})a{sv}",
    "Plan": "a(ssa{ss})a{sv}",
    "SetParameter": "sss",
    "Explain": "s",
    "Describe": "s",
    "ListModules": "a{sv}",
    "GetHealth": "",
    "GetMetrics": "",
    "GetHistory": "a{sv}",
    "ResetFailed": "s",
}
_OPTIONS = {
    "dry-run": "b",
    "reason": "s",
    "on-behalf-of": "s",
    "timeout": "u",
    "override-policy": "b",
    "dependents": "b",
    "unused-dependencies": "b",
    "atomic": "b",
    "state": "s",
    "match": "s",
    "module": "s",
    "since": "t",
    "oldest": "b",
    "limit": "u",
}
_READS = frozenset({"Plan", "Explain", "Describe", "ListModules", "GetHealth", "GetMetrics"})


class LoadOptions(TypedDict, total=False):
    """Options of `Load` and `Reload`; the time-out is in seconds for each call into the kernel."""

    dry_run: bool
    reason: str
    timeout: int
    override_policy: bool
    on_behalf_of: str


class UnloadOptions(TypedDict, total=False):
    """Options of `Unload`."""

    dependents: bool
    unused_dependencies: bool
    dry_run: bool
    reason: str
    timeout: int
    on_behalf_of: str


class BatchOptions(TypedDict, total=False):
    """Options of `Batch`."""

    atomic: bool
    dry_run: bool
    reason: str
    on_behalf_of: str


class PlanOptions(TypedDict, total=False):
    """Options of `Plan`."""

    atomic: bool
    override_policy: bool
    dependents: bool
    unused_dependencies: bool


class Client:
    """The daemon's `Manager` and what belongs to it."""

    def __init__(self, transport: Transport, *, interactive: bool = False) -> None:
        self.interactive = interactive
        """Calls may ask a person for a password."""
        self._transport = transport
        self._where: tuple[str | None, bool] = (None, False)

    @classmethod
    async def connect(cls, address: str | None = None, *, session: bool = False, interactive: bool = False) -> Self:
        """Connect to the system bus, to the session's, or to the one at a D-Bus address; `Unavailable` without a bus.

        The daemon itself need not run: the first call starts it.
        """
        client = cls(await Transport.connect(NAME, address=address, session=session), interactive=interactive)
        client._where = (address, session)
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Calls under way end with `Unavailable`."""
        await self._transport.close()

    @property
    def transport(self) -> Transport:
        """The connection, for clients of kmodd's other services to share."""
        return self._transport

    @property
    def unique_name(self) -> str:
        """Our own name on the bus, as in a job's `Sender`."""
        return self._transport.unique_name

    async def data(self, member: str, *arguments: object, options: Mapping[str, object] | None = None) -> Any:
        """Call any member of the Manager and answer its value as on the bus, without variants; None when it has none.

        Options are named as on the bus, or with `_` for `-`.
        """
        signature = _SIGNATURES[member]
        body = [_struct(argument) for argument in arguments]
        given = {name.replace("_", "-"): value for name, value in (options or {}).items()}
        if signature.endswith("a{sv}"):
            body.append({name: variant(_OPTIONS[name], value) for name, value in given.items()})
        timeout = self._deadline(member, arguments, given)
        return await self._member(MANAGER, member, signature, body, reads=member in _READS, timeout=timeout)

    async def call(
        self,
        interface: str,
        member: str,
        signature: str,
        body: Sequence[object],
        *,
        reads: bool = False,
        long: bool = False,
    ) -> Any:
        """Call a member of another interface of the same object, such as Configuration, and answer its value.

        `reads` for one that asks nobody for a password, `long` for one that calls into the kernel for many modules.
        """
        if reads:
            timeout = READ_TIMEOUT
        else:
            kernel = KERNEL_TIMEOUT * STEPS_ALLOWED * (32 if long else 1)
            timeout = READ_TIMEOUT + (PROMPT_TIMEOUT if self.interactive else 0.0) + kernel
        return await self._member(interface, member, signature, list(body), reads=reads, timeout=timeout)

    async def _member(
        self, interface: str, member: str, signature: str, body: list[object], *, reads: bool, timeout: float
    ) -> Any:
        interactive = self.interactive and not reads
        reply = await self._transport.call(
            PATH, interface, member, signature, body, timeout=timeout, interactive=interactive
        )
        return reply[0] if reply else None

    async def send_file(self, interface: str, member: str, signature: str, file: int, *rest: object) -> tuple[Any, ...]:
        """Call a member whose first argument is a descriptor, over a connection of its own, and answer all its values."""
        address, session = self._where
        transport = await Transport.connect(NAME, address=address, session=session, descriptors=True)
        try:
            return await transport.call(
                PATH,
                interface,
                member,
                signature,
                [0, *rest],
                timeout=READ_TIMEOUT + STEPS_ALLOWED * KERNEL_TIMEOUT + (PROMPT_TIMEOUT if self.interactive else 0.0),
                interactive=self.interactive,
                files=[file],
            )
        finally:
            await transport.close()

    def _deadline(self, member: str, arguments: Sequence[object], options: Mapping[str, object]) -> float:
        if member in _READS:
            return READ_TIMEOUT
        per_call = options.get("timeout", KERNEL_TIMEOUT)
        operations = len(arguments[0]) if member == "Batch" and isinstance(arguments[0], Sequence) else 1
        prompt = PROMPT_TIMEOUT if self.interactive else 0.0
        seconds = per_call if isinstance(per_call, int) else KERNEL_TIMEOUT
        return READ_TIMEOUT + prompt + float(seconds * STEPS_ALLOWED * max(operations, 1))

    # --- what changes something --------------------------------------------------------------------------------------

    async def load(
        self, module: str, parameters: Mapping[str, str] | None = None, **options: Unpack[LoadOptions]
    ) -> tuple[str, ...]:
        """Load a module or alias; what was really inserted, in order."""
        return tuple(await self.data("Load", module, dict(parameters or {}), options={**options}))

    async def unload(self, module: str, **options: Unpack[UnloadOptions]) -> tuple[str, ...]:
        """Unload a module; what was really removed, in order."""
        return tuple(await self.data("Unload", module, options={**options}))

    async def reload(
        self, module: str, parameters: Mapping[str, str] | None = None, **options: Unpack[LoadOptions]
    ) -> tuple[str, ...]:
        """Unload a module and load it anew; what was inserted, in order."""
        return tuple(await self.data("Reload", module, dict(parameters or {}), options={**options}))

    async def batch(
        self, operations: Sequence[Operation], **options: Unpack[BatchOptions]
    ) -> tuple[OperationResult, ...]:
        """Several operations as one; one result for each."""
        rows = await self.data("Batch", operations, options={**options})
        return tuple(answers.operation_result(row) for row in rows)

    async def set_parameter(self, module: str, parameter: str, value: str) -> str:
        """Write a live parameter; what the kernel now holds."""
        return str(await self.data("SetParameter", module, parameter, value))

    async def reset_failed(self, module: str) -> None:
        """Forget a failed operation, unlock a stuck one that the kernel let go."""
        await self.data("ResetFailed", module)

    # --- what only reads ---------------------------------------------------------------------------------------------

    async def plan(self, operations: Sequence[Operation], **options: Unpack[PlanOptions]) -> tuple[Step, ...]:
        """The exact steps the operations would take now."""
        return tuple(answers.step(row) for row in await self.data("Plan", operations, options={**options}))

    async def explain(self, module: str) -> Explanation:
        """What a module is, why it is there, what holds it."""
        return answers.explanation(await self.data("Explain", module))

    async def describe(self, module: str) -> ModuleInfo:
        """Static facts from a module's file."""
        return answers.module_info(await self.data("Describe", module))[0]

    async def list_modules(self, state: str = "loaded", match: str = "") -> tuple[answers.ListedModule, ...]:
        """Modules by state: `loaded`, `available`, `builtin` or `all`; `match` is a pattern over names."""
        options = {"state": state} | ({"match": match} if match else {})
        return tuple(answers.listed_module(row) for row in await self.data("ListModules", options=options))

    async def health(self) -> Health:
        """Every check, with the kernel facts."""
        return answers.health(await self.data("GetHealth"))

    async def metrics(self) -> tuple[Metric, ...]:
        """Every sample, in Prometheus naming."""
        return tuple(answers.metric(row) for row in await self.data("GetMetrics"))

    async def history(self, module: str = "", *, since: int = 0, limit: int = 100) -> tuple[HistoryEntry, ...]:
        """Records from the journal, newest last; `since` in microseconds since the epoch. Needs authorisation."""
        options: dict[str, object] = {"limit": limit}
        if module:
            options["module"] = module
        if since:
            options["since"] = since
        return tuple(answers.history_entry(row) for row in await self.data("GetHistory", options=options))

    # --- properties and signals --------------------------------------------------------------------------------------

    async def properties(self) -> dict[str, Any]:
        """The Manager's properties, names as on the bus."""
        return await self._get_all(PATH, MANAGER)

    async def module_properties(self, name: str) -> dict[str, Any]:
        """A loaded module's properties, names as on the bus; `NotLoaded` and the like when it has no object."""
        return await self._get_all(f"{PATH}/module/{escape_label(name)}", MODULE)

    async def _get_all(self, path: str, interface: str) -> dict[str, Any]:
        (found,) = await self._transport.call(path, PROPERTIES, "GetAll", "s", [interface], timeout=READ_TIMEOUT)
        if not isinstance(found, dict):
            raise Failed("kmodd answered properties in an unexpected form")
        return found

    @asynccontextmanager
    async def signals(self, *rules: str) -> AsyncIterator[SignalStream]:
        """Every signal of the daemon from now on, and `NameOwnerChanged` when it comes or goes.

        With match rules as D-Bus spells them, without type and sender, only what one of them matches.
        """
        stream = await self._transport.subscribe(*(rules or (f"path_namespace='{PATH}'",)))
        try:
            yield stream
        finally:
            self._transport.unsubscribe(stream)


def _struct(argument: object) -> object:
    # dbus-next wants lists for arrays and structs alike.
    if isinstance(argument, (list, tuple)):
        return [_struct(item) for item in argument]
    if isinstance(argument, Mapping):
        return dict(argument)
    return argument
