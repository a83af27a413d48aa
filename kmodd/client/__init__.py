# SPDX-License-Identifier: LGPL-2.1-or-later
"""A typed client of the daemon, for kmodctl and the gateway.

    async with await Client.connect() as client:
        inserted = await client.load("vfat", reason="backup disk")

One connection serves any number of calls concurrently. Every call has a deadline and raises classes of `kmodd.errors` alone;
`Unavailable` when there is no daemon. `data()` answers any member as plain values, keys as on the bus, for programs that
pass them on as JSON; the other methods answer values of `kmodd.model`. Signatures, options and their types are those of the
installed XML.
"""

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from typing import Any, Self, TypedDict, Unpack

from kmodd.client import replies as answers
from kmodd.client.connection import Signal, SignalStream, Transport, message_body, variant
from kmodd.dbus.interface_xml import Method, installed
from kmodd.errors import Failed, KmoddError
from kmodd.model import Explanation, Health, HistoryEntry, Metric, ModuleInfo, OperationResult, Step
from kmodd.model.settings import PROMPT_TIMEOUT_LIMIT, TIMEOUT_LIMIT
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
PROMPT_TIMEOUT = float(PROMPT_TIMEOUT_LIMIT)
"""Seconds a person may take to type a password; the daemon ends a prompt, by a setting that is not known here."""
KERNEL_TIMEOUT = TIMEOUT_LIMIT
"""Seconds the daemon may wait for one call into the kernel: its setting is not known here, and a caller that waits for a module
of another caller's operation waits as long as that one. The bus reports a daemon that exits or hangs."""
STEPS_ALLOWED = 8
"""Calls into the kernel that one operation is given time for; the daemon itself bounds each of them."""
MANY_OPERATIONS = 32
"""Operations that a member for many modules, such as `Apply`, is given time for."""

FULL, PUBLIC = "full", "public"
"""Values of the option `evidence` that every member with options has."""

Operation = tuple[str, str, Mapping[str, str]]
"""(`load`, `unload` or `reload`; module; parameters)."""


class CallerOptions(TypedDict, total=False):
    """Options of every member that changes something."""

    reason: str
    on_behalf_of: str


class ConfinedOptions(CallerOptions, total=False):
    """Options of what may touch modules."""

    only_modules: Sequence[str]


class LoadOptions(ConfinedOptions, total=False):
    """Options of `Load`; the time-out is in seconds for each call into the kernel."""

    dry_run: bool
    timeout: int
    override_policy: bool


class ReloadOptions(LoadOptions, total=False):
    """Options of `Reload`."""

    disconnect: bool


class UnloadOptions(ConfinedOptions, total=False):
    """Options of `Unload`."""

    dependents: bool
    unused_dependencies: bool
    disconnect: bool
    dry_run: bool
    timeout: int


class HoldOptions(ConfinedOptions, total=False):
    """Options of `Hold`."""

    timeout: int
    override_policy: bool


class BatchOptions(ConfinedOptions, total=False):
    """Options of `Batch`."""

    atomic: bool
    disconnect: bool
    dry_run: bool
    public: bool


class PlanOptions(TypedDict, total=False):
    """Options of `Plan`."""

    atomic: bool
    override_policy: bool
    dependents: bool
    unused_dependencies: bool
    disconnect: bool


class Client:
    """The daemon's `Manager` and what belongs to it."""

    def __init__(self, transport: Transport, *, interactive: bool = False) -> None:
        self.interactive = interactive
        """Calls may ask a person for a password."""
        self.evidence = FULL
        """What an error of the daemon carries: all that it lets us see, or `PUBLIC`, what it would let everyone see."""
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

    async def data(
        self,
        member: str,
        *arguments: object,
        options: Mapping[str, object] | None = None,
        prompt: bool = False,
        interface: str = MANAGER,
        many: bool = False,
    ) -> Any:
        """Call any member of /org/kmodd1 and answer its value as on the bus, without variants; None when it has none.

        Options are named as on the bus, or with `_` for `-`; InvalidArgs for one that the member does not take. `prompt` lets a
        member that only reads ask for a password, where this client may do that at all. `many` is for a member that calls into
        the kernel for many modules.
        """
        row = installed().method(interface, member)
        body = message_body(row, arguments, options)
        self._ask_for_evidence(row, body)
        reply = await self._transport.call(
            PATH,
            interface,
            member,
            row.takes,
            body,
            timeout=self._deadline(row, arguments, prompt=prompt, many=many),
            interactive=self.interactive and (prompt or not row.public),
        )
        return reply[0] if reply else None

    def _ask_for_evidence(self, row: Method, body: list[Any]) -> None:
        if row.options is not None:
            body[-1] = {**body[-1], "evidence": variant("s", self.evidence)}

    def telling(self, evidence: str) -> Self:
        """The same client over the same connection, whose errors carry this evidence: `FULL` or `PUBLIC`."""
        other = copy(self)
        other.evidence = evidence
        return other

    async def send_file(
        self, interface: str, member: str, file: int, options: Mapping[str, object] | None = None
    ) -> tuple[Any, ...]:
        """Call a member that takes a descriptor, over a separate connection, and return all its values."""
        row = installed().method(interface, member)
        body = message_body(row, [0], options)
        self._ask_for_evidence(row, body)
        address, session = self._where
        transport = await Transport.connect(NAME, address=address, session=session, descriptors=True)
        try:
            return await transport.call(
                PATH,
                interface,
                member,
                row.takes,
                body,
                timeout=READ_TIMEOUT + STEPS_ALLOWED * KERNEL_TIMEOUT + (PROMPT_TIMEOUT if self.interactive else 0.0),
                interactive=self.interactive,
                files=[file],
            )
        finally:
            await transport.close()

    def _deadline(self, row: Method, arguments: Sequence[object], *, prompt: bool = False, many: bool = False) -> float:
        asking = PROMPT_TIMEOUT if self.interactive and (prompt or not row.public) else 0.0
        if row.public:
            return READ_TIMEOUT + asking
        operations = MANY_OPERATIONS if many else 1
        if row.name == "Batch" and isinstance(arguments[0], Sequence):
            operations = max(len(arguments[0]), 1)
        return READ_TIMEOUT + asking + float(KERNEL_TIMEOUT * STEPS_ALLOWED * operations)

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
        self, module: str, parameters: Mapping[str, str] | None = None, **options: Unpack[ReloadOptions]
    ) -> tuple[str, ...]:
        """Unload a module and load it again; what was inserted, in order."""
        return tuple(await self.data("Reload", module, dict(parameters or {}), options={**options}))

    async def hold(
        self, module: str, parameters: Mapping[str, str] | None = None, **options: Unpack[HoldOptions]
    ) -> int:
        """Load a module or alias and hold it: it stays until every copy of the descriptor is closed, which is the caller's to do.

        Processes that are started do not inherit it.
        """
        row = installed().method(MANAGER, "Hold")
        body = message_body(row, [module, dict(parameters or {})], {**options})
        self._ask_for_evidence(row, body)
        address, session = self._where
        transport = await Transport.connect(NAME, address=address, session=session, descriptors=True)
        received: list[int] = []
        try:
            await transport.call(
                PATH,
                MANAGER,
                "Hold",
                row.takes,
                body,
                timeout=self._deadline(row, body),
                interactive=self.interactive,
                received=received,
            )
        except BaseException:
            for file in received:
                os.close(file)
            raise
        finally:
            await transport.close()
        (file,) = received  # the contract's `h`
        os.set_inheritable(file, False)
        return file

    async def batch(
        self, operations: Sequence[Operation], **options: Unpack[BatchOptions]
    ) -> tuple[OperationResult, ...]:
        """Several operations as one; one result for each."""
        rows = await self.data("Batch", operations, options={**options})
        return tuple(answers.operation_result(row) for row in rows)

    async def set_parameter(self, module: str, parameter: str, value: str, **options: Unpack[ConfinedOptions]) -> str:
        """Write a live parameter; what the kernel now holds."""
        return str(await self.data("SetParameter", module, parameter, value, options={**options}))

    async def reset_failed(self, module: str, **options: Unpack[CallerOptions]) -> None:
        """Forget a failed operation, unlock a stuck one that the kernel let go."""
        await self.data("ResetFailed", module, options={**options})

    # --- what only reads ---------------------------------------------------------------------------------------------

    async def plan(self, operations: Sequence[Operation], **options: Unpack[PlanOptions]) -> tuple[Step, ...]:
        """The exact steps the operations would take now."""
        return tuple(answers.step(row) for row in await self.data("Plan", operations, options={**options}))

    async def explain(self, module: str, *, public: bool = False) -> Explanation:
        """State of a module, why it is loaded, what uses it. `public` leaves out what not every user may see, for any caller."""
        return answers.explanation(await self.data("Explain", module, options={"public": True} if public else {}))

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

    async def started_by_us(self, job: str) -> bool:
        """Tell whether this connection started the job of this path; False when it has ended."""
        try:
            properties = await self._get_all(job, JOB)
        except KmoddError:
            return False
        return properties.get("Sender") == self.unique_name

    async def _get_all(self, path: str, interface: str) -> dict[str, Any]:
        (properties,) = await self._transport.call(path, PROPERTIES, "GetAll", "s", [interface], timeout=READ_TIMEOUT)
        if not isinstance(properties, dict):
            raise Failed("kmodd answered properties in an unexpected form")
        return properties

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
