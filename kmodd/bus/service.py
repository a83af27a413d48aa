# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server side of the bus put together."""

import time
from collections.abc import Callable
from contextlib import suppress

from kmodd.bus.announcer import JOBS, MODULES, Announcer
from kmodd.bus.authority import Authority
from kmodd.bus.binding import bind
from kmodd.bus.callers import Callers, Credentials
from kmodd.bus.contract import Contract
from kmodd.bus.dispatcher import Dispatcher
from kmodd.bus.frame import Frame
from kmodd.bus.gate import Count, Gate
from kmodd.bus.interfaces.configuration import ConfigurationInterface
from kmodd.bus.interfaces.job import JobInterface
from kmodd.bus.interfaces.manager import ManagerInterface
from kmodd.bus.interfaces.module import ModuleInterface
from kmodd.bus.interfaces.object_manager import ObjectManagerInterface
from kmodd.bus.interfaces.parts import Jobs, Parts
from kmodd.bus.interfaces.standard import IntrospectableInterface, PeerInterface, PropertiesInterface
from kmodd.bus.interfaces.store import StoreInterface
from kmodd.bus.introspection import Introspection
from kmodd.bus.quota import Quota
from kmodd.bus.reading import Reading
from kmodd.bus.transport import DRIVER, DRIVER_PATH, Transport, plain
from kmodd.bus.tree import Branch, Tree
from kmodd.core.api import Audit, Events
from kmodd.errors import Busy, Stuck

NAME = "org.kmodd1"


class Service:
    """Serves the API on a connected transport."""

    def __init__(
        self,
        transport: Transport,
        contract: Contract,
        parts: Parts,
        *,
        authority: Authority,
        audit: Audit,
        events: Events,
        count: Count,
        report: Callable[[str, BaseException], None],
        executable: Callable[[int], str],
        quota: Quota | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """ContractError when the contract and the interfaces do not fit together.

        `executable` answers a process's program path for the journal, empty when it cannot be told. `credentials` asks for
        (uid, pid) of a unique name; the default asks the bus.
        """
        self._transport = transport
        self._events = events
        tree = _tree(contract, parts)
        reading = Reading(tree)
        self._announcer = announcer = Announcer(transport, contract, reading, report)
        interfaces = bind(
            contract,
            [
                ManagerInterface(parts),
                ModuleInterface(parts),
                JobInterface(parts),
                ConfigurationInterface(parts),
                StoreInterface(parts),
                # Nothing tells when somebody writes a parameter below /sys: what is kept is at most a second old.
                ObjectManagerInterface(
                    reading, lambda: (parts.loaded.raw(), announcer.generation, int(time.monotonic()))
                ),
                PropertiesInterface(reading),
                IntrospectableInterface(Introspection(tree)),
                PeerInterface(parts.machine_id),
            ],
        )
        reading.bind(interfaces)
        quota = quota or Quota()
        self.callers = Callers(transport, credentials or _credentials(transport), executable)
        self.dispatcher = Dispatcher(
            transport,
            tree,
            interfaces,
            callers=self.callers,
            quota=quota,
            gate=Gate(authority, quota, audit, count),
            report=report,
            count=count,
            departed=lambda sender: _abandon(parts.jobs, sender),
        )
        self._unsubscribe: Callable[[], None] = lambda: None

    async def start(self, name: str = NAME) -> None:
        """Answer from now on, and take the name; BusLostError when somebody has it."""
        self._transport.on_call = self.dispatcher.on_call
        self._transport.on_signal = self._on_signal
        self._transport.on_drained = self.dispatcher.on_drained
        self._unsubscribe = self._events.subscribe(self._announcer.on_event)
        await self._transport.own(name)

    async def close(self) -> None:
        """Tell nothing more, and cancel what only waits; the transport is the caller's to close."""
        self._unsubscribe()
        await self.dispatcher.close()

    def _on_signal(self, frame: Frame) -> None:
        self.callers.on_signal(frame)


def _tree(contract: Contract, parts: Parts) -> Tree:
    return Tree(
        contract,
        {
            MODULES: Branch(parts.registry.names, parts.registry.__contains__),
            JOBS: Branch(
                lambda: [str(job.id) for job in parts.jobs.all()],
                # Longer than any number we give.
                lambda label: len(label) <= 18 and parts.jobs.get(int(label)) is not None,
                escaped=False,
            ),
        },
    )


def _abandon(jobs: Jobs, sender: str) -> None:
    """End the waiting of what a caller that left the bus had asked for; what runs goes on."""
    for job in jobs.all():
        if job.sender == sender:
            with suppress(Busy, Stuck):
                jobs.cancel(job.id)


def _credentials(transport: Transport) -> Credentials:
    async def ask(sender: str) -> tuple[int | None, int]:
        (answer,) = await transport.call(DRIVER, DRIVER_PATH, DRIVER, "GetConnectionCredentials", "s", (sender,))
        uid, pid = plain(answer.get("UnixUserID")), plain(answer.get("ProcessID"))
        return (uid if isinstance(uid, int) else None), (pid if isinstance(pid, int) else 0)

    return ask
