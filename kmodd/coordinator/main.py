# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodd-coordinator: builds the parts and joins them. A replica that loses the lease forgets what it knew, and waits for it again."""

import asyncio
import gc
import logging
import os
import platform
import signal
import sys
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from kmodd import VERSION
from kmodd.coordinator.coordinator import Coordinator
from kmodd.coordinator.election import Leadership
from kmodd.coordinator.metrics import Metrics
from kmodd.coordinator.settings import LEASE, USAGE, Settings
from kmodd.errors import KmoddError, Unavailable
from kmodd.fleet.exposition import Exposition
from kmodd.fleet.kubernetes import Access, Api, ApiFault
from kmodd.journal.writer import Logger, StandardBridge, connect, make_logger
from kmodd.startup.options import UsageError

HANG = 60.0
"""Seconds without an iteration of the event loop after which the process is not healthy."""


class Pulse:
    """Notices an event loop that does not turn: the probe is answered by that loop, and says so as soon as it can."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    async def beat(self) -> None:
        """Beat until cancelled."""
        while True:
            self._last = time.monotonic()
            await asyncio.sleep(HANG / 10)

    def healthy(self) -> bool:
        """The loop turned lately."""
        return time.monotonic() - self._last < HANG


async def run(settings: Settings, logger: Logger) -> int:
    """Coordinate until a signal ends it or until the lease is lost; the exit code."""
    metrics = Metrics()

    access = Access(settings.kubeconfig)

    def connect(trouble: Callable[[ApiFault | None], None] = lambda _: None) -> Api:
        return Api(access, "kmodd-coordinator", user_agent=f"kmodd-coordinator/{VERSION}", trouble=trouble)

    # The lease has separate connections: a full queue of writes must not hold up its renewal.
    lease_api = connect()
    identity = f"{settings.name or platform.node()}_{uuid.uuid4()}"
    leadership = Leadership(lease_api, settings.namespace, LEASE, identity)
    pulse = Pulse()
    exposition = Exposition(metrics.registry, pulse.healthy)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    beating, ending = asyncio.ensure_future(pulse.beat()), asyncio.ensure_future(ended.wait())
    try:
        if settings.metrics is not None:
            port = await exposition.start(settings.metrics)
            logger.info("coordinator.metrics", message=f"metrics are served at port {port}", port=str(port))
        while not ended.is_set():
            logger.info("coordinator.waiting", message=f"kmodd-coordinator {VERSION} waits for the lease as {identity}")
            await _first(ending, leadership.acquire())
            if ended.is_set():
                break
            metrics.leader.set(1)
            logger.info("coordinator.started", message="the lease is held")
            gc.collect()
            try:
                await _first(ending, Coordinator(connect, leadership, metrics, logger).run(), leadership.keep())
            except Unavailable:
                pass  # as when keep() ends
            finally:
                metrics.leader.set(0)
                metrics.clear()
            if not ended.is_set():
                # Not the end of the process: while the API server is away, restarts would add up to minutes of back-off.
                logger.warning("coordinator.stopped", message="the lease was lost")
        return 0
    finally:
        for task in (beating, ending):
            task.cancel()
        await asyncio.gather(beating, ending, return_exceptions=True)
        # After the work has ended: another replica may start immediately.
        await leadership.release()
        await exposition.close()
        await lease_api.close()


async def _first(ending: "asyncio.Future[Any]", *work: Coroutine[Any, Any, None]) -> None:
    """Until the end of the process or of the first of these, whose error is raised; all others have ended then."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        done, _ = await asyncio.wait((*tasks, ending), return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task in done:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def main() -> int:
    """The program's entry point."""
    try:
        settings = Settings.parse(sys.argv[1:], os.environ)
    except UsageError as error:
        sys.stderr.write(f"kmodd-coordinator: {error}\n{USAGE}")
        return 2
    if settings.help or settings.version:
        sys.stdout.write(USAGE if settings.help else f"kmodd-coordinator {VERSION}\n")
        return 0
    sink = connect(os.environ, sys.stderr)
    logger = make_logger(sink)
    logging.getLogger().addHandler(StandardBridge(logger))
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every request
    try:
        return asyncio.run(run(settings, logger))
    except (KmoddError, ApiFault) as error:
        logger.error("coordinator.trouble", message=f"kmodd-coordinator ends: {error}")  # noqa: TRY400 - no bug: no trace
        return 1
    finally:
        sink.flush()


if __name__ == "__main__":
    sys.exit(main())
