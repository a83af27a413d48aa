# SPDX-License-Identifier: LGPL-2.1-or-later
"""The gateway's composition root: settings, sockets, connection to the daemon, server."""

import argparse
import asyncio
import contextlib
import gc
import os
import secrets
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from kmodd import VERSION
from kmodd.client import Client
from kmodd.client.notifier import NotifierClient
from kmodd.config.section import ConfigurationError
from kmodd.gateway import application
from kmodd.gateway.application import STATIC, page_router, read_pages
from kmodd.gateway.daemon_connection import DaemonConnection
from kmodd.gateway.http import server
from kmodd.gateway.http.authentication import Authentication, TokenList, Verifier
from kmodd.gateway.http.listener import inherited, is_open_to_squatters, listen, require_tls
from kmodd.gateway.http.middleware import Middleware, RefusalJournal
from kmodd.gateway.metrics import GatewayMetrics
from kmodd.gateway.operations import Operations
from kmodd.gateway.queries import Queries, SharedAnswers
from kmodd.gateway.routes import config as routes_config
from kmodd.gateway.routes import events as routes_events
from kmodd.gateway.routes import modules as routes_modules
from kmodd.gateway.routes import store as routes_store
from kmodd.gateway.routes import surface as routes_surface
from kmodd.gateway.routes import webhooks as routes_webhooks
from kmodd.gateway.routes.events import Broadcaster
from kmodd.gateway.settings import SETTINGS, GatewaySettings, Issuer, read
from kmodd.journal.writer import JournalAudit, Logger, connect, make_logger
from kmodd.startup.sd_notify import SdNotify

EX_CONFIG = 78
"""Exit status for a configuration error (sysexits.h): systemd does not start it again for that."""
FIRST = 3.0
"""Seconds to wait for the system bus before the first request is answered."""
FRESH = 0.1
"""Seconds an answer that many ask for is kept."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line: `config`, a path, and `bus`, an address. Bad usage and --help leave by SystemExit."""
    parser = argparse.ArgumentParser(
        prog="kmodd-gateway",
        description="Serve kmodd over HTTP; systemd starts it. See kmodd-gateway(8).",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", type=Path, default=SETTINGS, help=f"settings instead of {SETTINGS}")
    parser.add_argument(
        "--bus", metavar="ADDRESS", default="", help="D-Bus address instead of the system bus (for a simulated kmodd)"
    )
    parser.add_argument("--version", action="version", version=f"kmodd-gateway {VERSION}")
    return parser.parse_args(arguments)


def verifiers(issuers: Sequence[Issuer]) -> list[Verifier]:
    """What checks JWTs; the library is imported only when there is something to check."""
    if not issuers:
        return []
    try:
        from kmodd.gateway.http.issuer import JwtVerifier
    except ImportError as error:
        raise ConfigurationError("an issuer is configured, but PyJWT with cryptography is not installed") from error
    from kmodd.gateway.http.issuer import Keys, fetcher

    try:
        return [JwtVerifier(issuer, Keys(issuer, fetcher(issuer.ca), time.monotonic), time.time) for issuer in issuers]
    except OSError as error:
        raise ConfigurationError(f"cannot read an issuer's certificate authority: {error.strerror}") from error


async def run(
    settings: GatewaySettings, listeners: list[socket.socket], bus: str, log: Logger, supervisor: SdNotify
) -> None:
    """Serve until stopped; ConfigurationError if no client could connect."""
    require_tls(listeners, tls=bool(settings.certificate))
    tokens = TokenList(Path(settings.tokens))
    count = len(tokens)
    if not count and not settings.issuers:
        raise ConfigurationError(
            "no client could authenticate: create a token with kmodctl token create, or configure an issuer"
        )
    hub, counts = Broadcaster(secrets.token_hex(4)), GatewayMetrics()
    link = DaemonConnection(lambda: Client.connect(bus or None), hub.publish, time.monotonic)
    authentication = Authentication(tokens, verifiers(settings.issuers), time.time)
    changes = Operations(link, JournalAudit(log).record, time.monotonic)
    reading = Queries(link, SharedAnswers(FRESH, time.monotonic, lambda: link.generation), counts)
    app = application.make(
        [
            routes_modules.changing_router(changes),
            routes_modules.reading_router(reading, changes, link),
            routes_surface.router(reading, changes),
            routes_events.router(hub, counts, authentication, settings.limits),
            routes_config.router(changes, link),
            routes_store.router(changes, link),
            routes_webhooks.router(lambda: NotifierClient.connect(bus or None), JournalAudit(log).record),
            page_router(read_pages(STATIC)),
        ]
    )

    journal = RefusalJournal(log, time.monotonic)
    guard = Middleware(app, settings, authentication, counts, time.monotonic, journal.bug, journal.refused)
    serving = server.make(
        guard,
        settings,
        stopping=hub.close,
        ready=lambda: _ready(log, listeners, count, supervisor, tls=bool(settings.certificate)),
        exhausted=journal.exhausted,
    )
    counts.connections = lambda: serving.open_connections
    linking = asyncio.create_task(link.run())
    try:
        await link.wait(FIRST)
        await serving.serve(sockets=listeners)
    finally:
        linking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await linking
        await link.close()
    log.info("gateway.stopped", message="the gateway stopped")


def _ready(log: Logger, listeners: Sequence[socket.socket], tokens: int, supervisor: SdNotify, *, tls: bool) -> None:
    # The routes and their models stay as long as the process: the collector need not walk through them again and again.
    gc.collect()
    gc.freeze()
    places = ", ".join(_place(listener) for listener in listeners)
    for each in listeners:
        if not tls and is_open_to_squatters(each):
            log.warning(
                "gateway.trouble",
                message=f"a program that binds {_place(each)} while the gateway is stopped receives its clients' tokens; use the "
                "unix socket, TLS or a port below 1024",
            )
    log.info("gateway.started", message=f"the gateway listens on {places}", tokens=str(tokens))
    supervisor.notify("READY=1")


def _place(listener: socket.socket) -> str:
    name = listener.getsockname()
    return name if isinstance(name, str) else f"{name[0]}:{name[1]}"


def serve(arguments: argparse.Namespace, environment: Mapping[str, str], log: Logger) -> int:
    """Run with this command line; the exit status."""
    listeners: list[socket.socket] = []
    try:
        settings = read(arguments.config)
        listeners = inherited(environment, os.getpid()) or listen(settings.listen)
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(run(settings, listeners, arguments.bus, log, SdNotify(environment)))
    except ConfigurationError as error:
        log.error("gateway.trouble", message=f"the gateway cannot start: {error}")  # noqa: TRY400 - no bug
        return EX_CONFIG
    finally:
        for listener in listeners:
            listener.close()
    return 0


def main() -> int:
    """The program's entry point."""
    arguments = parse(sys.argv[1:])
    return serve(arguments, os.environ, make_logger(connect(os.environ, sys.stderr)))


if __name__ == "__main__":
    sys.exit(main())
