# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodd-agent: builds the parts, joins them, and ends when the bus does. Ending unloads nothing."""

import asyncio
import datetime as dt
import gc
import importlib
import logging
import os
import platform
import random
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kmodd import VERSION
from kmodd.agent.node import Node
from kmodd.agent.reconciler import Clock, Reconciler
from kmodd.agent.record import StateFolder
from kmodd.agent.settings import USAGE, Settings
from kmodd.client import Client
from kmodd.errors import KmoddError
from kmodd.fleet.kubernetes import Access, Api, ApiFault
from kmodd.journal.writer import Logger, StandardBridge, connect, make_logger
from kmodd.startup.options import UsageError
from kmodd.startup.sd_notify import SdNotify

if TYPE_CHECKING:
    from kmodd.agent.metrics import Metrics

NAME = "kmodd-agent"
"""To the API server as manager of fields, to the journal as identifier, and to the kernel as name of the process."""
BAD_CONFIGURATION = 78
"""EX_CONFIG of sysexits.h: trying again without a change is of no use."""


def _metrics(settings: Settings, reconciler: Reconciler, logger: Logger) -> "Metrics | None":
    if settings.metrics is None:
        return None
    # Imported here: it is a megabyte and a library that an agent without metrics does not need.
    from kmodd.agent.metrics import Metrics

    def trouble(error: OSError) -> None:
        logger.warning("agent.trouble", message=f"the metrics cannot be written: {error.strerror}")

    made = Metrics(settings.metrics, trouble)
    made.follow(reconciler)
    return made


async def run(settings: Settings, boot_id: str, environment: Mapping[str, str], logger: Logger) -> None:
    """Serve until a signal ends it."""
    loop = asyncio.get_running_loop()
    supervisor = SdNotify(environment)
    clock = Clock(time.monotonic, lambda: dt.datetime.now(dt.UTC), random.random)
    api = Api(Access(settings.kubeconfig), NAME, user_agent=f"{NAME}/{VERSION}")
    client = await Client.connect(settings.address or None)
    metrics: Metrics | None = None
    try:
        folder = StateFolder(settings.state)
        reconciler = Reconciler(settings.node, api, client, Node(client, os.getuid()), folder, boot_id, clock, logger)
        metrics = _metrics(settings, reconciler, logger)
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        logger.info("agent.started", message=f"{NAME} {VERSION} serves node {settings.node}")
        supervisor.notify("READY=1", f"STATUS=node {settings.node}")
        gc.collect()
        gc.freeze()
        working, ending = asyncio.ensure_future(reconciler.run()), asyncio.ensure_future(ended.wait())
        await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
        failed = working.done()
        for task in (working, ending):
            task.cancel()
        results = await asyncio.gather(working, ending, return_exceptions=True)
        if failed and isinstance(results[0], Exception):
            raise results[0]
    finally:
        supervisor.notify("STOPPING=1")
        if metrics is not None:
            metrics.close()
        await api.close()
        await client.close()


def main() -> int:
    """The program's entry point."""
    try:
        settings = Settings.parse(sys.argv[1:], os.environ, platform.node())
    except UsageError as error:
        sys.stderr.write(f"{NAME}: {error}\n{USAGE}")
        return 2
    if settings.help or settings.version:
        sys.stdout.write(USAGE if settings.help else f"{NAME} {VERSION}\n")
        return 0
    sink = connect(os.environ, sys.stderr, NAME)
    logger = make_logger(sink, identifier=NAME)
    logging.getLogger().addHandler(StandardBridge(logger))
    os.umask(0o077)
    # `kmodctl why` shows this name for a lease; without it, that of the interpreter.
    with suppress(OSError):
        Path("/proc/self/comm").write_text(NAME, encoding="ascii")
    # What is wrong before anything runs is wrong at each start; later the same error may pass, and systemd tries again.
    status = BAD_CONFIGURATION
    try:
        Access(settings.kubeconfig).read()
        if settings.metrics is not None:
            importlib.import_module("kmodd.agent.metrics")
        settings.state.mkdir(mode=0o700, exist_ok=True)
        boot_id = settings.boot_id.read_text(encoding="ascii").strip()
        status = 1
        asyncio.run(run(settings, boot_id, os.environ, logger))
    except (ApiFault, OSError, UnicodeDecodeError, ImportError, KmoddError) as error:
        logger.error("agent.trouble", message=f"{NAME} ends: {error}")  # noqa: TRY400 - no bug: no trace
        return status
    finally:
        sink.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
