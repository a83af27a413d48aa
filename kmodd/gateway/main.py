# SPDX-License-Identifier: LGPL-2.1-or-later
"""The gateway's composition root: settings, sockets, link, server."""

import asyncio
import contextlib
import gc
import os
import secrets
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmodd import VERSION
from kmodd.client import Client
from kmodd.client_notifier import NotifierClient
from kmodd.gateway import (
    application,
    pages,
    routes_changes,
    routes_config,
    routes_events,
    routes_reading,
    routes_store,
    routes_webhooks,
    server,
    sockets,
)
from kmodd.gateway.authentication import Authentication, TokenList, Verifier
from kmodd.gateway.changes import Changes
from kmodd.gateway.counts import Counts
from kmodd.gateway.guard import Guard
from kmodd.gateway.hub import Hub
from kmodd.gateway.link import DaemonLink
from kmodd.gateway.reading import Reading
from kmodd.gateway.settings import SETTINGS, ConfigurationError, GatewaySettings, Issuer, read
from kmodd.gateway.shared import SharedAnswers
from kmodd.log import JournalAudit, Logger, connect, make_logger
from kmodd.supervisor import Supervisor

USAGE = """\
usage: kmodd-gateway [--config FILE] [--bus ADDRESS]

kmodd-gateway serves kmodd over HTTP; systemd starts it. See kmodd-gateway(8).

  --config FILE   settings instead of /etc/kmodd/gateway.toml
  --bus ADDRESS   D-Bus address instead of the system bus (for a simulated kmodd)
  --version       print the version
  --help          print this
"""
EX_CONFIG = 78
"""Exit status for a configuration error (sysexits.h): systemd does not start it again for that."""
FIRST = 3.0
"""Seconds to wait for the system bus before the first request is answered."""
FRESH = 0.1
"""Seconds an answer that many ask for is kept."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command line."""

    config: Path = SETTINGS
    bus: str = ""
    say: str = ""
    """Print this and leave."""


def parse(arguments: Sequence[str]) -> Arguments:
    """The command line; ValueError in a sentence."""
    config, bus = SETTINGS, ""
    rest = iter(arguments)
    for argument in rest:
        name, _, value = argument.partition("=")
        match name:
            case "--config" | "--bus":
                value = value or next(rest, "")
                if not value:
                    raise ValueError(f"{name} needs a value")
                config, bus = (Path(value), bus) if name == "--config" else (config, value)
            case "--version":
                return Arguments(say=f"kmodd-gateway {VERSION}\n")
            case "--help" | "-h":
                return Arguments(say=USAGE)
            case _:
                raise ValueError(f"unknown argument {argument!r}")
    return Arguments(config, bus)


def verifiers(issuers: Sequence[Issuer]) -> list[Verifier]:
    """What checks JWTs; the library is imported only when there is something to check."""
    if not issuers:
        return []
    try:
        from kmodd.gateway.issuer import JwtVerifier
    except ImportError as error:
        raise ConfigurationError("an issuer is configured, and PyJWT with cryptography is not installed") from error
    from kmodd.gateway.keys import Keys, fetcher

    try:
        return [JwtVerifier(one, Keys(one, fetcher(one.ca), time.monotonic)) for one in issuers]
    except OSError as error:
        raise ConfigurationError(f"cannot read an issuer's certificate authority: {error.strerror}") from error


async def run(
    settings: GatewaySettings, found: list[socket.socket], bus: str, log: Logger, supervisor: Supervisor
) -> None:
    """Serve until told to stop; ConfigurationError when that makes no sense."""
    sockets.require_tls(found, tls=bool(settings.certificate))
    known = TokenList(Path(settings.tokens))
    count = len(known)
    if not count and not settings.issuers:
        raise ConfigurationError("nobody could use it: make a token with kmodctl token create, or configure an issuer")
    hub, counts = Hub(secrets.token_hex(4)), Counts()
    link = DaemonLink(lambda: Client.connect(bus or None), hub.publish, time.monotonic)
    authentication = Authentication(known, verifiers(settings.issuers), time.time)
    changes = Changes(link, JournalAudit(log).record, time.monotonic)
    reading = Reading(link, SharedAnswers(FRESH, time.monotonic, lambda: link.generation), counts)
    app = application.make(
        [
            routes_changes.router(changes),
            routes_reading.router(reading, changes, link),
            routes_events.router(hub, counts, authentication, settings.limits),
            routes_config.router(changes, link),
            routes_store.router(changes, link),
            routes_webhooks.router(lambda: NotifierClient.connect(bus or None), JournalAudit(log).record),
            pages.router(pages.read(pages.STATIC)),
        ]
    )

    def report(what: str, error: BaseException) -> None:
        trace = " | ".join(line.strip() for line in traceback.format_exception(error)[-6:])
        log.error("gateway.trouble", message=f"{what} failed: a bug", exception=trace)

    def refused(address: str, why: str) -> None:
        log.notice("gateway.refused", message=f"refused a request from {address}: {why}")

    guard = Guard(app, settings, authentication, counts, time.monotonic, report, refused)
    serving = server.make(guard, settings, hub.close, lambda: _ready(log, found, count, supervisor))
    counts.connections = lambda: serving.open_connections
    linking = asyncio.create_task(link.run())
    try:
        await link.wait(FIRST)
        await serving.serve(sockets=found)
    finally:
        linking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await linking
        await link.close()
    log.info("gateway.stopped", message="the gateway has stopped")


def _ready(log: Logger, found: Sequence[socket.socket], tokens: int, supervisor: Supervisor) -> None:
    # The routes and their models stay as long as the process: the collector need not walk through them again and again.
    gc.collect()
    gc.freeze()
    places = ", ".join(_place(one) for one in found)
    log.info("gateway.started", message=f"the gateway listens on {places}", tokens=str(tokens))
    supervisor.tell("READY=1")


def _place(one: socket.socket) -> str:
    name = one.getsockname()
    return name if isinstance(name, str) else f"{name[0]}:{name[1]}"


def serve(arguments: Arguments, environment: Mapping[str, str], log: Logger) -> int:
    """Run with this command line; the exit status."""
    found: list[socket.socket] = []
    try:
        settings = read(arguments.config)
        found = sockets.inherited(environment, os.getpid()) or sockets.listen(settings.listen)
        with asyncio.Runner(loop_factory=server.Loop) as runner:
            runner.run(run(settings, found, arguments.bus, log, Supervisor(environment)))
    except ConfigurationError as error:
        log.error("gateway.trouble", message=f"the gateway cannot start: {error}")  # noqa: TRY400 - no bug
        return EX_CONFIG
    finally:
        for one in found:
            one.close()
    return 0


def main() -> int:
    """The program's entry point."""
    try:
        arguments = parse(sys.argv[1:])
    except ValueError as error:
        sys.stderr.write(f"kmodd-gateway: {error}\n{USAGE}")
        return 2
    if arguments.say:
        sys.stdout.write(arguments.say)
        return 0
    return serve(arguments, os.environ, make_logger(connect(os.environ, sys.stderr)))


if __name__ == "__main__":
    sys.exit(main())
