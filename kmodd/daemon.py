# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodd itself: the only file that knows everything. It builds the parts, joins them, and ends when it must."""

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from kmodd import VERSION
from kmodd.bus.authority import InsecureSameUserAuthority
from kmodd.bus.contract import Contract
from kmodd.bus.interfaces.parts import Parts
from kmodd.bus.polkit import Polkit
from kmodd.bus.quota import Quota
from kmodd.bus.service import Service
from kmodd.bus.transport import DRIVER, DRIVER_PATH, BusLostError, RemoteError, Transport
from kmodd.core.announced import AnnouncedAudit
from kmodd.core.api import Audit, Event, HealthChanged, HistoryReader, ModuleAdded, ModuleRemoved
from kmodd.core.configuration import Configuration
from kmodd.core.events import EventHub
from kmodd.core.explain import Explainer
from kmodd.core.failures import Failures
from kmodd.core.health import HealthMonitor
from kmodd.core.history import History
from kmodd.core.jobs import Jobs
from kmodd.core.listing import Listing
from kmodd.core.locks import ModuleLocks
from kmodd.core.metrics import Metrics
from kmodd.core.operations import Operations
from kmodd.core.parameters import Parameters
from kmodd.core.planner import Planner
from kmodd.core.policy import Policy
from kmodd.core.ration import RationedAudit
from kmodd.core.refresh import Refresh
from kmodd.core.refusals import Refusals
from kmodd.core.registry import Registry
from kmodd.custom import CustomModules
from kmodd.journal import JournalReader, MemoryJournal, open_system_reader
from kmodd.kept_state import adopt
from kmodd.kernel.memory import give_back
from kmodd.log import JournalAudit, Logger, StandardBridge, Threshold, connect, make_logger
from kmodd.machine import executable, machine_id, real_kernel, simulated_kernel
from kmodd.model.tunables import Tunables
from kmodd.settings import USAGE, Settings, UsageError
from kmodd.supervisor import Supervisor
from kmodd.wanted import Wanted
from kmodd.watchdog import Watchdog

CONTRACT = Path(__file__).parent.parent / "dbus" / "org.kmodd1.xml"
"""Beside the package, in the repository and where it is installed."""
STATUS_SETTLE = 0.5
"""Seconds between a change and systemd's status line."""


class Daemon:
    """Everything, joined. Build it on the running loop, then `serve`."""

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        manager: Supervisor,
        logger: Logger,
        threshold: Threshold,
    ) -> None:
        """`threshold` is the logger's."""
        self._settings = settings
        self._transport = transport
        self._manager = manager
        self._logger = logger
        self._threshold = threshold
        self._ended = asyncio.Event()
        self._exit_code, self._trouble = 0, ""
        self._status_timer: asyncio.TimerHandle | None = None
        self._kernel = kernel = simulated_kernel() if settings.simulate else real_kernel(settings)
        self._events = events = EventHub(
            lambda _, event, error: self._report(f"a subscriber of {type(event).__name__} failed", error)
        )
        audit, reader = self._records()
        clock, later = _clock, asyncio.get_running_loop().call_later
        self._audit = RationedAudit(AnnouncedAudit(audit, events, later), clock, later)
        self._registry = registry = Registry(kernel.loaded, kernel.facts, events, self._audit, clock)
        policy = Policy(kernel.index)
        locks = ModuleLocks()
        self._jobs = jobs = Jobs(events, clock)
        if settings.runtime_directory:
            adopt(Path(settings.runtime_directory))
        failures = Failures(
            Path(settings.runtime_directory) / "failures.json" if settings.runtime_directory else None,
            on_trouble=self._cannot_remember,
        )
        self._operations = Operations(
            Planner(kernel.index, kernel.loaded, kernel.facts),
            kernel,
            locks=locks,
            jobs=jobs,
            failures=failures,
            audit=self._audit,
            events=events,
            clock=clock,
            capable=kernel.executor.is_capable,
            stuck_max=lambda: self._wanted.tunables.stuck_max,
        )
        listing = Listing(kernel.loaded, kernel.index, policy, kernel.facts.read().command_line)
        self._health = health = HealthMonitor(
            loaded=kernel.loaded,
            facts=kernel.facts,
            listing=listing,
            policy=policy,
            registry=registry,
            events=events,
            audit=self._audit,
            clock=clock,
            failures=failures.all,
            abandoned=lambda: kernel.executor.abandoned,
            trouble=lambda: self._trouble,
            stuck_max=lambda: self._wanted.tunables.stuck_max,
        )
        metrics = Metrics(
            loaded=kernel.loaded,
            registry=registry,
            events=events,
            version=VERSION,
            jobs=lambda: [job.state for job in jobs.all()],
            abandoned=lambda: kernel.executor.abandoned,
            health=lambda: health.status,
            clock=clock,
        )
        self._parameters = parameters = Parameters(
            kernel.index, kernel.loaded, kernel.facts, locks=locks, audit=self._audit, events=events, clock=clock
        )
        rules = Configuration(
            kernel.configuration, kernel.index, kernel.facts, policy, audit=self._audit, events=events, clock=clock
        )
        self._custom = CustomModules.of(
            settings,
            kernel,
            operations=self._operations,
            events=events,
            audit=self._audit,
            clock=clock,
            tunables=lambda: self._wanted.tunables,
        )
        self._wanted = Wanted(
            None if settings.simulate else Path("/"),
            kernel,
            operations=self._operations,
            parameters=parameters,
            rules=rules,
            health=health,
            events=events,
            audit=self._audit,
            runtime_directory=settings.runtime_directory,
            on_tunables=self._take_over,
            versions=self._custom,
            active_version=self._custom.active_version,
        )
        metrics.further += (self._wanted.metrics,)
        parts = Parts(
            operations=self._operations,
            refusals=Refusals(kernel, self._audit),
            parameters=parameters,
            explainer=Explainer(
                loaded=kernel.loaded,
                index=kernel.index,
                usage=kernel.usage,
                facts=kernel.facts,
                policy=policy,
                registry=registry,
                failure=failures.get,
                refresh=Refresh(kernel.index, lambda: transport.arrivals),
            ),
            listing=listing,
            registry=registry,
            jobs=jobs,
            loaded=kernel.loaded,
            index=kernel.index,
            configuration=rules,
            desired=self._wanted.convergence,
            store=self._custom.store,
            activation=self._custom.activation,
            health=health.now,
            health_status=lambda: health.status,
            metrics=metrics.read,
            history=History(reader, limit_max=lambda: self._wanted.tunables.history_limit_max).read,
            machine_id=machine_id,
            tunables=lambda: self._wanted.tunables,
            give_back=lambda: give_back(kernel.index.forget),
        )
        self._quota = Quota()
        self._authority = InsecureSameUserAuthority(os.getuid()) if settings.simulate else Polkit(transport)
        self._service = Service(
            transport,
            Contract.parse(CONTRACT.read_text(encoding="utf-8")),
            parts,
            authority=self._authority,
            quota=self._quota,
            audit=self._audit,
            events=events,
            count=metrics.count,
            report=self._report,
            executable=executable,
        )
        transport.on_lost = self._on_lost

    async def serve(self) -> int:
        """Serve until told to stop; answers the exit code, which is not 0 when the bus was lost."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        stop_following = [self._registry.start()]
        self._operations.recover()
        self._wanted.read()
        self._custom.start(self._health)
        stop_following += [self._health.start(), self._events.subscribe(self._on_event)]
        watchdog = Watchdog(
            self._settings.watchdog_usec,
            feed=lambda: self._checked("", "WATCHDOG=1"),
            ping_bus=self._ping_bus,
            report=self._checked,
        )
        tasks = [
            loop.create_task(self._registry.run(self._kernel.uevents)),
            loop.create_task(watchdog.run()),
        ]
        for task in tasks:
            task.add_done_callback(self._on_task_end)
        self._kernel.executor.start()
        await self._service.start()
        self._wanted.start()
        stop_following.append(self._wanted.stop)
        self._manager.tell("READY=1", self._status())
        self._logger.info("daemon.started", message=self._greeting())
        gc.collect()
        gc.freeze()  # what is here now stays: the collector need not look at it again
        give_back()
        await self._ended.wait()
        self._manager.tell("STOPPING=1")
        # Side by side: a handler whose caller waits for the kernel ends only when its operation is given up.
        await asyncio.gather(
            self._service.close(), self._operations.close(patience=1.0), self._wanted.close(), self._custom.close()
        )
        self._parameters.flush()
        self._audit.flush()
        for stop in stop_following:
            stop()
        for task in tasks:
            task.remove_done_callback(self._on_task_end)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._status_timer is not None:
            self._status_timer.cancel()
        self._kernel.uevents.close()
        await self._kernel.executor.close()
        self._logger.info("daemon.stopped", message="kmodd stopped")
        return self._exit_code

    def _records(self) -> tuple[Audit, HistoryReader]:
        if self._settings.simulate:
            memory = MemoryJournal(_clock)
            return memory, memory
        return JournalAudit(self._logger), JournalReader(open_system_reader)

    def _greeting(self) -> str:
        if self._settings.simulate:
            return "kmodd serves a SIMULATED kernel: nothing that is loaded or unloaded here is real"
        return f"kmodd {VERSION} serves Linux {self._registry.facts().release}"

    # --- what happens -------------------------------------------------------------------------------------------------

    def _on_lost(self, _: BaseException | None) -> None:
        # Nobody can reach this process any more. The exit code makes systemd start a new one.
        self._fail("the message bus is gone")

    def _on_task_end(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._report("a part of the daemon ended", error)
            self._fail("a part of the daemon ended")

    def _fail(self, why: str) -> None:
        if not self._ended.is_set():
            self._logger.error("daemon.trouble", message=f"{why}: kmodd ends")
            self._exit_code = 1
            self._ended.set()

    def _report(self, what: str, error: BaseException) -> None:
        logging.getLogger("kmodd").error("%s", what, exc_info=error)

    def _cannot_remember(self, error: OSError) -> None:
        self._logger.warning("daemon.trouble", message=f"failures will not be known after a restart: {error.strerror}")

    def _reload(self) -> None:
        """SIGHUP: read the module index and modprobe.d again, and look at everything once more."""
        # Type=notify-reload would do this for us, but systemd 252 does not know it.
        self._manager.tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        self._kernel.index.refresh()
        self._wanted.read_again()
        self._registry.look()
        self._health.check()
        self._manager.tell("READY=1", self._status())

    def _take_over(self, tunables: Tunables) -> None:
        """Take over what is set in kmodd.toml; the other settings are asked for where they count."""
        self._quota.change(operations=tunables.operations_per_user, prompts=tunables.prompts_per_user)
        if isinstance(self._authority, Polkit):
            self._authority.prompt_timeout = float(tunables.prompt_timeout)
        self._threshold.choose(tunables.log_level)

    async def _ping_bus(self) -> None:
        try:
            await self._transport.call(DRIVER, DRIVER_PATH, DRIVER, "GetId")
        except (BusLostError, RemoteError) as error:
            raise ConnectionError from error

    def _checked(self, trouble: str, *lines: str) -> None:
        """Note what the self-check found; tell systemd only of a good one."""
        if trouble != self._trouble:
            self._trouble = trouble
            if trouble:
                self._logger.error("daemon.trouble", message=f"self-check: {trouble}")
            self._health.look_soon()
        if lines:
            self._manager.tell(*lines)

    # --- systemd's status line ----------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if self._status_timer is None and isinstance(event, ModuleAdded | ModuleRemoved | HealthChanged):
            self._status_timer = asyncio.get_running_loop().call_later(STATUS_SETTLE, self._tell_status)

    def _tell_status(self) -> None:
        self._status_timer = None
        self._manager.tell(self._status())

    def _status(self) -> str:
        simulated = "SIMULATED KERNEL, nothing is real; " if self._kernel.simulated else ""
        return f"STATUS={simulated}{len(self._registry)} modules loaded, health {self._health.status}"


def _clock() -> int:
    return time.time_ns() // 1000


async def run(settings: Settings, environment: Mapping[str, str]) -> int:
    """Connect, build, serve; the exit code."""
    sink = connect(environment, sys.stderr)
    threshold = Threshold()
    logger = make_logger(sink, threshold=threshold)
    logging.getLogger().addHandler(StandardBridge(logger))
    address = settings.address or (environment.get("DBUS_SESSION_BUS_ADDRESS", "") if settings.simulate else "")
    if settings.simulate and not address:
        sys.stderr.write("kmodd: there is no session bus (DBUS_SESSION_BUS_ADDRESS); try dbus-run-session\n")
        return 1
    transport = Transport(address or None)
    try:
        await transport.connect()
        daemon = Daemon(settings, transport, Supervisor(environment), logger, threshold)
        code = await daemon.serve()
    except BusLostError as error:
        # An ordinary end of a daemon; its stack says nothing to anyone.
        logger.error("daemon.trouble", message=f"{error}: kmodd ends")  # noqa: TRY400 - no bug: no trace
        return 1
    await transport.close()
    sink.flush()
    return code


def main() -> int:
    """The program's entry point."""
    try:
        settings = Settings.parse(sys.argv[1:], os.environ, os.getpid())
    except UsageError as error:
        sys.stderr.write(f"kmodd: {error}\n{USAGE}")
        return 2
    if settings.help:
        sys.stdout.write(USAGE)
        return 0
    if settings.version:
        sys.stdout.write(f"kmodd {VERSION}\n")
        return 0
    if not settings.simulate and os.geteuid() != 0:
        sys.stderr.write("kmodd: only root can load modules; try --simulate\n")
        return 4
    return asyncio.run(run(settings, os.environ))


if __name__ == "__main__":
    sys.exit(main())
