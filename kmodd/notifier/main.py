# SPDX-License-Identifier: LGPL-2.1-or-later
"""The composition root of kmodd-notifier, its command line and environment. It exits when the connection to the bus is lost."""

import argparse
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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kmodd import VERSION
from kmodd.client import NAME as DAEMON
from kmodd.client import Client
from kmodd.client.connection import Transport
from kmodd.config.section import ConfigurationError
from kmodd.core.audit.limit import RateLimitedAudit
from kmodd.dbus.authorizer import Authority, InsecureSameUserAuthority
from kmodd.dbus.interface_xml import installed
from kmodd.dbus.peers import GATEWAY, Delegation
from kmodd.dbus.polkit import Polkit
from kmodd.dbus.transport import BusLostError
from kmodd.dbus.transport import Transport as Server
from kmodd.errors import InvalidArgs, KmoddError, Unavailable
from kmodd.journal.writer import JournalAudit, Logger, StandardBridge, connect, make_logger
from kmodd.notifier.configuration import files, read_configuration
from kmodd.notifier.endpoints import Endpoints, Machine
from kmodd.notifier.ingest import Watcher
from kmodd.notifier.outbox import Outbox
from kmodd.notifier.service import NAME, Service
from kmodd.startup.machine import login_uid, machine_id
from kmodd.startup.sd_notify import SdNotify

DEFAULT_CONFIG = Path("/etc/kmodd/notify.toml")
DEFAULT_STATE = Path("/var/lib/kmodd-notifier")


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> argparse.Namespace:
    """The command line: `config`, `state` (paths), `address`, `check`, `desktop`. Bad usage and --help leave by SystemExit."""
    parser = argparse.ArgumentParser(
        prog="kmodd-notifier",
        description="Send what happens to kernel modules to webhooks and by e-mail. See kmodd-notifier(8), notify.toml(5).",
        allow_abbrev=False,
    )
    # systemd gives a colon-separated list; ours is one folder (StateDirectory=kmodd-notifier).
    state = environment.get("STATE_DIRECTORY", "").split(":")[0] or DEFAULT_STATE
    parser.add_argument(
        "--config", metavar="FILE", type=Path, default=DEFAULT_CONFIG, help=f"configuration instead of {DEFAULT_CONFIG}"
    )
    parser.add_argument(
        "--state", metavar="FOLDER", type=Path, default=Path(state), help=f"state instead of {DEFAULT_STATE}"
    )
    parser.add_argument("--address", default="", help="D-Bus address instead of the system bus, for tests")
    parser.add_argument("--check", action="store_true", help="read the configuration, report errors and exit")
    parser.add_argument("--desktop", action="store_true", help="show desktop notifications for the user who runs it")
    parser.add_argument("--version", action="version", version=f"kmodd-notifier {VERSION}")
    return parser.parse_args(arguments)


BAD_CONFIGURATION = 78
"""EX_CONFIG of sysexits.h: trying again without a change is of no use."""
THREADS = 72
"""One for each endpoint, and some for names that are being resolved: a dead server holds up its own alone."""


def _program(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/exe").readlink()) if pid > 0 else ""
    except OSError:
        return ""


async def _executable(pid: int) -> str:
    """Path of a caller's program for the journal, as far as this user may see it; empty otherwise."""
    return _program(pid)


class DeliveryThreads(ThreadPoolExecutor):
    """Threads that are not awaited at the end: the next process sends again what one of them was sending."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work."""
        super().shutdown(wait=False, cancel_futures=True)


def open_outbox(folder: Path, logger: Logger) -> Outbox:
    """The queue; an invalid file is renamed, because a notifier that cannot start would send nothing."""
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
            "notifier.dropped", message=f"the queue cannot be read ({error}) and was renamed to {aside.name}"
        )
        return Outbox(path)


async def run(settings: argparse.Namespace, environment: Mapping[str, str], logger: Logger) -> int:
    """Serve until stopped; returns the exit code."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(DeliveryThreads(THREADS, "notifier"))
    supervisor = SdNotify(environment)
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
    settings: argparse.Namespace,
    transport: Transport,
    outbox: Outbox,
    machine: Machine,
    supervisor: SdNotify,
    logger: Logger,
) -> int:
    watchers: list[Watcher] = []
    operator = Endpoints(
        settings.config, settings.state, outbox, logger, machine, lambda: watchers[0].trouble if watchers else ""
    )
    operator.start()
    watcher = Watcher(transport, Client(transport), operator.intake, logger)
    watchers.append(watcher)
    loop = asyncio.get_running_loop()
    # A separate connection: messages of other users are read by the daemon's hardened server, apart from the daemon's replies.
    server = Server(settings.address or None)
    authority: Authority = (
        InsecureSameUserAuthority(os.getuid())
        if settings.address
        else Polkit(server, speakers=Delegation(Path("/etc/passwd"), GATEWAY))
    )
    audit = RateLimitedAudit(JournalAudit(logger), machine.clock, loop.call_later)
    service = Service(
        server,
        installed(NAME),
        operator,
        authority=authority,
        audit=audit,
        report=lambda what, error: logging.getLogger("kmodd").error("%s", what, exc_info=error),
        executable=_executable,
        login_uid=login_uid,
        machine_id=machine_id,
    )
    ended, lost = asyncio.Event(), asyncio.Event()
    server.on_lost = lambda _: lost.set()

    def reload() -> None:
        supervisor.notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            operator.reload()
        except InvalidArgs as error:
            supervisor.notify(f"STATUS=previous configuration in effect: {error}")  # logged already
        else:
            supervisor.notify("STATUS=watching")
        supervisor.notify("READY=1")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        try:
            await server.connect()
        except BusLostError as error:
            raise Unavailable(str(error)) from error
        try:
            await service.start()
        except BusLostError as error:
            raise Unavailable(f"{error}: another notifier is running") from error
        supervisor.notify("READY=1", "STATUS=watching")
        logger.info("notifier.started", message=f"kmodd-notifier {VERSION} is running")
        gc.collect()
        gc.freeze()
        watching, *others = map(asyncio.ensure_future, (watcher.run(), ended.wait(), lost.wait()))
        await asyncio.wait((watching, *others), return_when=asyncio.FIRST_COMPLETED)
        failed = watching.done()
        for task in (watching, *others):
            task.cancel()
        results = await asyncio.gather(watching, *others, return_exceptions=True)
        if failed and isinstance(results[0], Exception):
            raise results[0]
        if lost.is_set():
            raise Unavailable("the connection to the bus was lost")
        return 0
    finally:
        supervisor.notify("STOPPING=1")
        await service.close()
        await server.close()
        audit.flush()
        await operator.close()


def main() -> int:
    """The program's entry point."""
    settings = parse(sys.argv[1:], os.environ)
    if settings.desktop:
        # Imported here: it shares nothing else with the service.
        from kmodd.notifier.channels.desktop import main as desktop

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
        logger.error("notifier.trouble", message=f"invalid configuration: {error}")  # noqa: TRY400 - no bug: no trace
        return BAD_CONFIGURATION
    except (KmoddError, sqlite3.Error) as error:
        logger.error("notifier.trouble", message=f"kmodd-notifier exits: {error}")  # noqa: TRY400 - no bug: no trace
        return 1
    finally:
        sink.flush()


if __name__ == "__main__":
    sys.exit(main())
