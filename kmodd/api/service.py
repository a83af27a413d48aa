# SPDX-License-Identifier: LGPL-2.1-or-later
"""Builds the server side of D-Bus: interfaces, object tree, signals and dispatcher."""

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from kmodd.api.configuration import ConfigurationInterface
from kmodd.api.disclosure import Disclosure
from kmodd.api.manager import ManagerInterface
from kmodd.api.module import JobInterface, ModuleInterface
from kmodd.api.services import Services
from kmodd.api.signals import ANNOUNCED, JOBS, MODULES, Announcer
from kmodd.api.standard import IntrospectableInterface, ObjectManagerInterface, PeerInterface, PropertiesInterface
from kmodd.api.store import StoreInterface
from kmodd.api.surface import SurfaceInterface
from kmodd.core.events import Audit, Events
from kmodd.core.operations.jobs import Jobs
from kmodd.dbus.admission import Quota
from kmodd.dbus.authorizer import Authority, Authorizer, Count
from kmodd.dbus.call import Target
from kmodd.dbus.dispatcher import Dispatcher
from kmodd.dbus.interface_xml import Contract
from kmodd.dbus.message import ReceivedMessage
from kmodd.dbus.object_tree import Introspection, Node, ObjectTree, PropertyReader, bind
from kmodd.dbus.peers import Credentials, Executable, Expect, Identity, Peers
from kmodd.dbus.transport import Transport
from kmodd.dbus.transport import credentials as ask_credentials
from kmodd.errors import Busy, Stuck
from kmodd.model import Caller
from kmodd.names import ModuleName

NAME = "org.kmodd1"


class Service:
    """Serves the API on a connected transport."""

    def __init__(
        self,
        transport: Transport,
        contract: Contract,
        services: Services,
        *,
        authority: Authority,
        audit: Audit,
        events: Events,
        count: Count,
        report: Callable[[str, BaseException], None],
        executable: Executable,
        login_uid: Callable[[int, int | None], int | None] = lambda pid, uid: None,
        identity: Identity = lambda pid: None,
        expect: Expect | None = None,
        quota: Quota | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """ContractError when the contract and the interfaces do not fit together.

        `executable` answers a process's program path for the journal, empty if unknown, `login_uid` as whom the
        session of a process (of a user) logged in, None when that cannot be known; for `identity` and `expect` see `Peers`.
        `credentials` asks for
        (uid, pid) of a unique name; the default asks the bus.
        """
        self._transport = transport
        self._events = events
        tree = _tree(contract, services)
        reading = PropertyReader(tree)
        self._announcer = announcer = Announcer(transport, contract, reading, services.slices, report)
        quota = quota or Quota()
        gate = Authorizer(authority, quota, audit.record, count)
        self.callers = callers = Peers(
            transport,
            credentials or ask_credentials(transport),
            executable,
            login_uid,
            identity=identity,
            expect=expect,
        )

        async def permits(caller: Caller, member: str, action: str, details: Mapping[str, str]) -> bool:
            client = callers.find(caller.sender)
            if client is not None:
                caller = await callers.with_origin(client, caller)
            return await gate.permits(caller, member, action, details)

        disclosure = Disclosure(permits, services.explainer.log_restricted)

        async def read_module(name: ModuleName, property_name: str, caller: Caller) -> None:
            if not property_name:
                await services.slices.read((name,), caller.uid)
            await services.values.refresh((name,))

        def look(target: Target, property_name: str, caller: Caller) -> Awaitable[None] | None:
            if target.path != tree.path(MODULES, target.label) or property_name not in {"", "Parameters"}:
                return None
            return read_module(ModuleName(target.label), property_name, caller)

        interfaces = bind(
            contract,
            [
                ManagerInterface(services, permits, disclosure),
                ModuleInterface(services),
                JobInterface(services),
                ConfigurationInterface(services, disclosure),
                StoreInterface(services, permits),
                SurfaceInterface(services),
                # The kernel sends no event for a write to a parameter below /sys: cached values are at most a second old.
                ObjectManagerInterface(
                    reading,
                    lambda: (services.loaded.raw(), announcer.generation, int(time.monotonic())),
                    lambda: services.values.refresh(services.registry.names()),
                    generation=lambda: announcer.generation,
                    slices=services.slices,
                ),
                PropertiesInterface(reading, look),
                IntrospectableInterface(Introspection(tree)),
                PeerInterface(services.machine_id),
            ],
        )
        reading.bind(interfaces)
        self.dispatcher = Dispatcher(
            transport,
            tree,
            interfaces,
            callers=self.callers,
            quota=quota,
            gate=gate,
            deferred=services.slices.deferred,
            read_files=services.slices.read,
            report=report,
            count=count,
            departed=lambda sender: _abandon(services.jobs, sender),
            disclosure=disclosure,
        )
        self._unsubscribe: Callable[[], None] = lambda: None

    async def start(self, name: str = NAME) -> None:
        """Start serving and acquire the name; BusLostError if it has an owner."""
        self._transport.on_call = self.dispatcher.on_call
        self._transport.on_signal = self._on_signal
        self._transport.on_drained = self.dispatcher.on_drained
        self._unsubscribe = self._events.subscribe(self._announcer.on_event, *ANNOUNCED)
        await self._transport.own(name)

    async def close(self) -> None:
        """Tell nothing more, and cancel what only waits; the transport is the caller's to close."""
        self._unsubscribe()
        self._announcer.close()
        await self.dispatcher.close()

    def _on_signal(self, frame: ReceivedMessage) -> None:
        self.callers.on_signal(frame)


def _tree(contract: Contract, services: Services) -> ObjectTree:
    return ObjectTree(
        contract,
        {
            MODULES: Node(services.registry.names, services.registry.__contains__),
            JOBS: Node(
                lambda: [str(job.id) for job in services.jobs.all()],
                # Longer than any number we give.
                lambda label: len(label) <= 18 and services.jobs.get(int(label)) is not None,
                escaped=False,
            ),
        },
    )


def _abandon(jobs: Jobs, sender: str) -> None:
    """Cancel the waiting requests of a caller that left the bus; running ones continue."""
    for job in jobs.all():
        if job.sender == sender:
            with suppress(Busy, Stuck):
                jobs.cancel(job.id)
