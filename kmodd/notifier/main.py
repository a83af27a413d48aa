# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodd-notifier: builds the parts, joins them, and ends when the bus does."""

import asyncio
import gc
import logging
import os
import platform
import random
import secrets
import signal
import sqlite3
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kmodd import VERSION
from kmodd.client import NAME as DAEMON
from kmodd.client import Client
from kmodd.client_transport import Transport
from kmodd.errors import InvalidArgs, KmoddError
from kmodd.log import Logger, StandardBridge, connect, make_logger
from kmodd.notifier.authority import Authority, Polkit, SameUser
from kmodd.notifier.bus_name import BusName
from kmodd.notifier.configuration_files import files, read_configuration
from kmodd.notifier.operator import Machine, Operator
from kmodd.notifier.outbox import Outbox
from kmodd.notifier.section import ConfigurationError
from kmodd.notifier.service import NAME, PATH, Service
from kmodd.notifier.settings import USAGE, Settings
from kmodd.notifier.watcher import Watcher
from kmodd.settings import UsageError
from kmodd.supervisor import Supervisor

BAD_CONFIGURATION = 78
"""EX_CONFIG of sysexits.h: trying again without a change is of no use."""
INTROSPECTION = Path(__file__).parents[2] / "dbus" / "org.kmodd1.Notifier.xml"
THREADS = 72
"""One for each endpoint, and some for names that are being resolved: a dead server holds up its own alone."""


class Threads(ThreadPoolExecutor):
    """Threads that nobody waits for at the end: what one of them was sending is sent again by the next process."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work."""
        super().shutdown(wait=False, cancel_futures=True)


def open_outbox(folder: Path, logger: Logger) -> Outbox:
    """The queue; a file that is none is put aside, for a notifier that never starts again tells nobody anything."""
    path = folder / "queue.sqlite"
    try:
        return Outbox(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # a full disk, a lock, permissions: the file may be good
            raise
        aside = path.with_name(f"queue.broken-{int(time.time())}")
        path.rename(aside)
        for name in ("queue.sqlite-wal", "queue.sqlite-shm"):
            path.with_name(name).unlink(missing_ok=True)
        logger.error(  # noqa: TRY400 - the sentence is all there is to know
            "notifier.dropped", message=f"the queue cannot be read ({error}) and was put aside as {aside.name}"
        )
        return Outbox(path)


async def run(settings: Settings, environment: Mapping[str, str], logger: Logger) -> int:
    """Serve until told to stop; the exit code."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(Threads(THREADS, "notifier"))
    supervisor = Supervisor(environment)
    machine = Machine(platform.node(), lambda: time.time_ns() // 1000, random.random, secrets.token_bytes)
    outbox = open_outbox(settings.state, logger)
    try:
        transport = await Transport.connect(DAEMON, address=settings.address or None)
        try:
            return await _serve(settings, transport, outbox, machine, supervisor, logger)
        finally:
            await transport.close()
    finally:
        outbox.close()


async def _serve(
    settings: Settings,
    transport: Transport,
    outbox: Outbox,
    machine: Machine,
    supervisor: Supervisor,
    logger: Logger,
) -> int:
    watchers: list[Watcher] = []
    operator = Operator(
        settings.config, settings.state, outbox, logger, machine, lambda: watchers[0].trouble if watchers else ""
    )
    operator.start()
    watcher = Watcher(transport, Client(transport), operator.intake, logger)
    watchers.append(watcher)
    authority: Authority = SameUser(transport, os.getuid()) if settings.address else Polkit(transport)
    service = Service(operator, authority, logger)
    name = BusName(transport, PATH, NAME, INTROSPECTION.read_text(encoding="utf-8"), service.answer)
    ended = asyncio.Event()

    def reload() -> None:
        supervisor.tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            operator.reload()
        except InvalidArgs as error:
            supervisor.tell(f"STATUS=old configuration: {error}")  # logged already
        else:
            supervisor.tell("STATUS=watching")
        supervisor.tell("READY=1")

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        await name.own(NAME)
        supervisor.tell("READY=1", "STATUS=watching")
        logger.info("notifier.started", message=f"kmodd-notifier {VERSION} watches")
        gc.collect()
        gc.freeze()
        watching, stopping = asyncio.ensure_future(watcher.run()), asyncio.ensure_future(ended.wait())
        await asyncio.wait((watching, stopping), return_when=asyncio.FIRST_COMPLETED)
        lost = watching.done()
        for task in (watching, stopping):
            task.cancel()
        results = await asyncio.gather(watching, stopping, return_exceptions=True)
        if lost and isinstance(results[0], Exception):
            raise results[0]
        return 0
    finally:
        supervisor.tell("STOPPING=1")
        await name.close()
        await operator.close()


def main() -> int:
    """The program's entry point."""
    try:
        settings = Settings.parse(sys.argv[1:], os.environ)
    except UsageError as error:
        sys.stderr.write(f"kmodd-notifier: {error}\n{USAGE}")
        return 2
    if settings.help or settings.version:
        sys.stdout.write(USAGE if settings.help else f"kmodd-notifier {VERSION}\n")
        return 0
    if settings.desktop:
        # Imported here: it shares nothing else with the service.
        from kmodd.notifier.desktop import main as desktop

        return desktop(settings.address)
    sink = connect(os.environ, sys.stderr)
    logger = make_logger(sink)
    logging.getLogger().addHandler(StandardBridge(logger))
    try:
        if settings.check:
            read_configuration(files(settings.config))
            return 0
        os.umask(0o077)
        code = asyncio.run(run(settings, os.environ, logger))
        sink.flush()
        # The queue is closed and nothing is left to do; Python would wait for each thread that a dead mail server holds.
        os._exit(code)
    except ConfigurationError as error:
        logger.error("notifier.trouble", message=f"the configuration is bad: {error}")  # noqa: TRY400 - no bug: no trace
        return BAD_CONFIGURATION
    except (KmoddError, sqlite3.Error) as error:
        logger.error("notifier.trouble", message=f"kmodd-notifier ends: {error}")  # noqa: TRY400 - no bug: no trace
        return 1
    finally:
        sink.flush()


if __name__ == "__main__":
    sys.exit(main())
