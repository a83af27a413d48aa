# SPDX-License-Identifier: LGPL-2.1-or-later
"""The composition root: builds and connects all parts of the daemon, and stops it."""

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from kmodd import VERSION
from kmodd.api.service import Service
from kmodd.api.services import Services
from kmodd.core.audit.limit import AuditWatch, NotifyingAudit, OriginAudit, RateLimitedAudit
from kmodd.core.audit.records import History, Refusals
from kmodd.core.diagnosis.explain import BootLoads, Explainer
from kmodd.core.events import Audit, Event, EventHub, HealthChanged, HistoryReader, ModuleAdded, ModuleRemoved
from kmodd.core.fair_share import Slices, give_threads
from kmodd.core.health.monitor import HealthMonitor
from kmodd.core.leases import Leases, LeaseTable
from kmodd.core.listing import Listing
from kmodd.core.metrics import Metrics
from kmodd.core.module_requests import ModuleRequests
from kmodd.core.operations.failures import Failures
from kmodd.core.operations.jobs import Jobs, ModuleLocks
from kmodd.core.operations.live_values import GivenValues, LiveValues
from kmodd.core.operations.operations import Operations
from kmodd.core.operations.parameters import Parameters
from kmodd.core.planning.planner import IndexRefresher, Planner
from kmodd.core.planning.policy import Policy
from kmodd.core.registry import Registry
from kmodd.core.rules.configuration import Configuration
from kmodd.core.surface.cve_responses import Responses
from kmodd.core.surface.locking import KernelLock
from kmodd.core.surface.service import Surfaces
from kmodd.daemon.desired import DesiredParts, KeptTrialFile, desired_state, enforcement
from kmodd.daemon.responses import KeptResponses, shipped_records
from kmodd.daemon.state_files import KeptLeases, SavedRecords, StateFile, migrate_state
from kmodd.daemon.store import CustomModules, StorePlace
from kmodd.dbus.admission import Quota
from kmodd.dbus.authorizer import InsecureSameUserAuthority
from kmodd.dbus.interface_xml import installed
from kmodd.dbus.peers import AGENT, GATEWAY, Delegation
from kmodd.dbus.polkit import Polkit
from kmodd.dbus.transport import DRIVER, DRIVER_PATH, BusLostError, RemoteError, Transport
from kmodd.journal.reader import JournalReader, MemoryJournal, boot_loads, open_system_reader
from kmodd.journal.writer import JournalAudit, Logger, StandardBridge, Threshold, connect, make_logger
from kmodd.kernel.memory import trim_heap
from kmodd.kernel.proc.facts import driverless_aliases
from kmodd.startup.machine import identity, login_uid, machine_id, real_kernel, simulated_kernel
from kmodd.startup.options import USAGE, Settings, UsageError
from kmodd.startup.sd_notify import SdNotify, Watchdog, stored_descriptors

STATUS_SETTLE = 0.5
"""Seconds between a change and systemd's status line."""


class Daemon:
    """Everything, joined. Build it on the running loop, then `serve`."""

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        manager: SdNotify,
        logger: Logger,
        threshold: Threshold,
        dropped: Callable[[], int] = lambda: 0,
        stored: Mapping[str, int] | None = None,
    ) -> None:
        """`threshold` is the logger's; `dropped` answers how many records the journal has not taken.

        `stored` are the descriptors that systemd kept, by name.
        """
        self._stored = stored or {}
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
        audit, reader, lost = self._records()
        clock, later = _clock, asyncio.get_running_loop().call_later
        kept = SavedRecords(Path(settings.runtime_directory) / "held.json" if settings.runtime_directory else None)
        announced = NotifyingAudit(audit, events, later)
        for record in kept.take():
            announced.record(record)
        kept.write(())
        self._origins = origins = OriginAudit(announced, kept.write)
        self._audit = RateLimitedAudit(origins, clock, later)
        self._quota = Quota()
        self._authority = (
            InsecureSameUserAuthority(os.getuid())
            if settings.simulate
            else Polkit(transport, speakers=Delegation(Path("/etc/passwd"), GATEWAY, AGENT))
        )
        root = None if settings.simulate else Path("/")
        self._desired = desired = desired_state(root, kernel, self._audit, self._take_over)
        runtime = Path(settings.runtime_directory) if settings.runtime_directory else None
        kept_loaders = StateFile(runtime and runtime / "loaders.json", on_trouble=self._cannot_remember)
        self._registry = registry = Registry(
            kernel.loaded, kernel.facts, events, self._audit, clock, kept_loaders.read(), kept_loaders.write
        )
        policy = Policy(kernel.index)
        self._values = values = LiveValues(kernel.loaded, kernel.executor)
        locks = ModuleLocks()
        self._jobs = jobs = Jobs(events, clock)
        if settings.runtime_directory:
            migrate_state(Path(settings.runtime_directory))
        kept_failures = StateFile(runtime and runtime / "failures.json", on_trouble=self._cannot_remember)
        failures = Failures(kept_failures.read(), kept_failures.write)
        kept_values = StateFile(runtime and runtime / "values.json")
        self._given = given = GivenValues(kept_values.read(), kept_values.write, kernel.loaded.instance)
        held = LeaseTable(identity)
        place = StorePlace.of(settings, kernel.facts.read().release)
        planner = Planner(
            kernel.index,
            kernel.loaded,
            kernel.facts,
            values,
            given=given,
            failed=lambda name: failures.get(name) is not None,
            held=held.holders,
        )
        self._operations = Operations(
            planner,
            kernel,
            locks=locks,
            jobs=jobs,
            failures=failures,
            audit=self._audit,
            events=events,
            clock=clock,
            capable=kernel.executor.is_capable,
            authorised=place.content.sha256,
            stuck_max=lambda: desired.daemon_settings.stuck_max,
            loader=registry.loader,
        )
        kept_leases = KeptLeases(runtime and runtime / "leases.json")
        self._leases = Leases(
            held,
            self._operations,
            kernel.loaded,
            kernel.index,
            audit=self._audit,
            events=events,
            clock=clock,
            daemon_settings=lambda: desired.daemon_settings,
            desired=lambda name: desired.desired_modules.get(name),  # noqa: PLW0108 - another mapping after each reload
            read=kept_leases.read,
            write=kept_leases.write,
            keep=manager.keep,
            drop=manager.drop,
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
            stuck_max=lambda: desired.daemon_settings.stuck_max,
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
            planner.parameters, locks=locks, audit=self._audit, events=events, clock=clock
        )
        rules = Configuration(
            kernel.configuration, kernel.index, kernel.facts, policy, audit=self._audit, events=events, clock=clock
        )
        self._custom = CustomModules(
            place,
            kernel,
            operations=self._operations,
            events=events,
            audit=self._audit,
            clock=clock,
            daemon_settings=lambda: desired.daemon_settings,
            parser_socket=settings.parser_socket,
        )
        self._desired_parts = DesiredParts(
            root,
            kernel,
            desired,
            operations=self._operations,
            parameters=parameters,
            values=values,
            rules=rules,
            health=health,
            events=events,
            audit=self._audit,
            runtime_directory=settings.runtime_directory,
            clock=clock,
            kept_trial=KeptTrialFile(
                Path(settings.state_directory) / "desired-trial.json" if settings.state_directory else None
            ),
            versions=self._custom,
            active_version=self._custom.active_version,
            given=given,
            appeared=lambda name: registry.presence(name).loaded_at > 0 or given.appeared(name),
            on_device=self._leases.something_happened,
        )
        self._requests = requests = ModuleRequests(
            kernel.index,
            kernel.loaded,
            kernel.facts,
            policy,
            self._audit,
            events,
            clock,
            later,
            off=lambda: kernel.requests.off,
            lost=lambda: kernel.requests.lost,
        )
        kernel.uevents.on_announced = requests.announced
        self._surfaces = Surfaces(kernel.installed, kernel.loaded, kernel.facts, forgotten=trim_heap)
        self._policies = policies = enforcement(
            root, kernel, desired, history=reader, audit=self._audit, clock=clock, forgotten=trim_heap
        )
        watch = AuditWatch(lost=lambda: lost() + dropped(), collapsed=lambda: self._audit.left_out)
        metrics.further += (self._desired_parts.metrics, watch.metrics, requests.metrics, self._leases.metrics)
        health.further += (
            watch.health,
            requests.health,
            self._surfaces.health,
        )
        explainer = Explainer(
            loaded=kernel.loaded,
            index=kernel.index,
            inspection=kernel.inspection,
            facts=kernel.facts,
            policy=policy,
            registry=registry,
            failure=failures.get,
            load=requests.load_of,
            held=held.holders,
            refresh=IndexRefresher(kernel.index, lambda: transport.arrivals),
            boot=BootLoads(
                kernel.index,
                lambda: {} if root is None else boot_loads(open_system_reader, root),
                lambda: (*kernel.configuration.autoload(), *kernel.installed.initramfs_list()),
                lambda: kernel.installed.initramfs_modules(kernel.facts.read().release),
            ),
        )
        history = History(reader, limit_max=lambda: desired.daemon_settings.history_limit_max, settled=origins.settled)
        kept_responses = KeptResponses(
            Path(settings.state_directory) / "responses.json" if settings.state_directory else None
        )
        self._responses = Responses(
            installed=kernel.installed,
            facts=kernel.facts,
            rules=rules,
            operations=self._operations,
            explainer=explainer,
            history=history.read,
            autoload=kernel.configuration.autoload,
            audit=self._audit,
            clock=clock,
            records=lambda: shipped_records(root),
            read=kept_responses.read,
            write=kept_responses.write,
        )
        health.further += (self._responses.health,)
        kernel_lock = KernelLock(
            executor=kernel.executor,
            facts=kernel.facts,
            loaded=kernel.loaded,
            installed=kernel.installed,
            driverless=tuple if root is None else lambda: driverless_aliases(root),
            enforcement=policies,
            responses=self._responses,
            desired=self._desired_parts.convergence,
            waiting=self._desired_parts.reconciler.pending,
            jobs=jobs,
            leases=held,
            audit=self._audit,
            clock=clock,
            locked=self._locked,
        )
        parts = Services(
            operations=self._operations,
            refusals=Refusals(kernel, self._audit, self._events),
            parameters=parameters,
            leases=self._leases,
            values=values,
            explainer=explainer,
            listing=listing,
            registry=registry,
            jobs=jobs,
            loaded=kernel.loaded,
            index=kernel.index,
            configuration=rules,
            desired=self._desired_parts.convergence,
            store=self._custom.store,
            activation=self._custom.activation,
            health=health.now,
            health_status=lambda: health.status,
            metrics=metrics.read,
            history=history.read,
            machine_id=machine_id,
            boot_id=kernel.boot_id,
            surfaces=self._surfaces,
            enforcement=policies,
            responses=self._responses,
            kernel_lock=kernel_lock,
            slices=Slices(kernel.index),
            daemon_settings=lambda: desired.daemon_settings,
            trim_heap=lambda: trim_heap(kernel.index.forget),
        )
        self._service = Service(
            transport,
            installed(),
            parts,
            authority=self._authority,
            quota=self._quota,
            audit=self._audit,
            events=events,
            count=metrics.count,
            report=self._report,
            executable=kernel.inspection.executable,
            login_uid=login_uid,
            identity=identity,
            expect=self._expect,
        )
        transport.on_lost = self._on_lost

    async def serve(self) -> int:
        """Serve until stopped; returns the exit code, which is not 0 if the connection to the bus was lost."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        stop_following = [self._registry.start()]
        self._given.begin(self._registry.names())
        self._operations.recover()
        self._desired_parts.read()
        self._custom.start(self._health)
        self._leases.start(self._stored)
        self._policies.start()
        stop_following += [
            self._values.follow(self._events),
            self._health.start(),
            self._events.subscribe(self._on_event, ModuleAdded, ModuleRemoved, HealthChanged),
        ]
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
        self._kernel.requests.start(self._requests.requested, self._requests.loaded)
        await self._service.start()
        self._desired_parts.start()
        stop_following.append(self._desired_parts.stop)
        expiring = loop.create_task(self._responses.expire())
        self._manager.notify("READY=1", self._status())
        self._logger.info("daemon.started", message=self._greeting())
        gc.collect()
        gc.freeze()  # what is here now stays: the collector need not look at it again
        trim_heap()
        await self._ended.wait()
        self._manager.notify("STOPPING=1")
        await self._desired_parts.end_trial()
        # Side by side: a handler whose caller waits for the kernel ends only when its operation is given up.
        await asyncio.gather(
            self._service.close(),
            self._operations.close(grace_period=1.0),
            self._desired_parts.close(),
            self._custom.close(),
            self._leases.close(),
            self._policies.close(),
        )
        self._parameters.flush()
        self._requests.flush()
        self._audit.flush()
        self._origins.flush()
        for stop in stop_following:
            stop()
        expiring.cancel()
        await asyncio.gather(expiring, return_exceptions=True)
        for task in tasks:
            task.remove_done_callback(self._on_task_end)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._status_timer is not None:
            self._status_timer.cancel()
        self._surfaces.close()
        self._kernel.uevents.close()
        self._kernel.requests.close()
        await self._kernel.inspection.close()
        await self._kernel.executor.close()
        self._logger.info("daemon.stopped", message="kmodd stopped")
        return self._exit_code

    def _records(self) -> tuple[Audit, HistoryReader, Callable[[], int]]:
        """Where records go, where they are read from, and how many could not be written at all."""
        if self._settings.simulate:
            memory = MemoryJournal(_clock)
            return memory, memory, lambda: 0
        audit = JournalAudit(self._logger)
        return audit, JournalReader(open_system_reader), lambda: audit.lost

    def _greeting(self) -> str:
        if self._settings.simulate:
            return "kmodd uses a SIMULATED kernel: loading and unloading here is not real"
        return f"kmodd {VERSION} is ready, Linux {self._registry.facts().release}"

    def _expect(self, sender: str) -> Callable[[str], None]:
        """A caller's program is looked for: its records wait, and what it loads has its name as soon as that is known."""
        record = self._origins.expect(sender)

        def known(program: str) -> None:
            if program:
                self._registry.name_client(sender, program)
            record(program)

        return known

    # --- what happens -------------------------------------------------------------------------------------------------

    def _on_lost(self, _: BaseException | None) -> None:
        # This process cannot be reached any more. The exit code makes systemd start a new one.
        self._fail("lost the connection to the message bus")

    def _on_task_end(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._report("background task ended unexpectedly", error)
            self._fail("background task ended unexpectedly")

    def _fail(self, why: str) -> None:
        if not self._ended.is_set():
            self._logger.error("daemon.trouble", message=f"{why}: kmodd exits")
            self._exit_code = 1
            self._ended.set()

    def _report(self, what: str, error: BaseException) -> None:
        logging.getLogger("kmodd").error("%s", what, exc_info=error)

    def _cannot_remember(self, error: OSError) -> None:
        self._logger.warning("daemon.trouble", message=f"cannot save recorded failures: {error.strerror}")

    def _reload(self) -> None:
        """SIGHUP: read the module index and modprobe.d again, and look at everything once more."""
        # Type=notify-reload would do this for us, but systemd 252 does not know it.
        self._manager.notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        self._kernel.index.refresh()
        self._desired_parts.read_again()
        self._registry.look()
        self._health.check()
        self._manager.notify("READY=1", self._status())

    def _locked(self) -> None:
        """The kernel says nothing of it."""
        self._registry.look()
        self._health.look_soon()

    def _take_over(self) -> None:
        """Apply the settings of kmodd.toml; other settings are read where they are used."""
        daemon_settings = self._desired.daemon_settings
        self._quota.change(operations=daemon_settings.operations_per_user, prompts=daemon_settings.prompts_per_user)
        if isinstance(self._authority, Polkit):
            self._authority.prompt_timeout = float(daemon_settings.prompt_timeout)
        self._threshold.choose(daemon_settings.log_level)

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
            self._manager.notify(*lines)

    # --- systemd's status line ----------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if self._status_timer is None and isinstance(event, ModuleAdded | ModuleRemoved | HealthChanged):
            self._status_timer = asyncio.get_running_loop().call_later(STATUS_SETTLE, self._tell_status)

    def _tell_status(self) -> None:
        self._status_timer = None
        self._manager.notify(self._status())

    def _status(self) -> str:
        simulated = "SIMULATED KERNEL; " if self._kernel.simulated else ""
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
        sys.stderr.write("kmodd: no session bus (DBUS_SESSION_BUS_ADDRESS); try dbus-run-session\n")
        return 1
    give_threads(asyncio.get_running_loop())
    try:
        transport = Transport(address or None)
        await transport.connect()
        stored = stored_descriptors(environment, os.getpid())
        daemon = Daemon(settings, transport, SdNotify(environment), logger, threshold, lambda: sink.dropped, stored)
        code = await daemon.serve()
    except BusLostError as error:
        # An ordinary end of a daemon; its stack says nothing to anyone.
        logger.error("daemon.trouble", message=f"{error}: kmodd exits")  # noqa: TRY400 - no bug: no trace
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
