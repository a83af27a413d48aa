# SPDX-License-Identifier: LGPL-2.1-or-later
"""Entry point of kmodctl: parses arguments, connects, runs one command, and maps the result to an exit status."""

import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module

from kmodd.cli.arguments import ExitCode, parse
from kmodd.cli.output.screen import Screen, discard
from kmodd.cli.session import Session
from kmodd.errors import KmoddError, Unavailable


def main(arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> int:
    """Run kmodctl and answer its exit status. Bad usage and --help leave by SystemExit."""
    screen = Screen.of_process(sys.stdin, sys.stdout, sys.stderr, os.environ if environment is None else environment)
    try:
        parsed = parse(sys.argv[1:] if arguments is None else arguments)
        screen.use_pager = not parsed.no_pager
        import asyncio  # a usage error and --help do without it

        return asyncio.run(_run(parsed, screen))
    except KeyboardInterrupt:
        if screen.stderr.isatty():
            screen.complain([""])
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        discard(sys.stdout)
        return ExitCode.BROKEN_PIPE


async def _run(parsed: Namespace, screen: Screen) -> int:
    # Imported here: a usage error or --help should not wait for the D-Bus library.
    from kmodd.cli.failure import report
    from kmodd.client import Client

    if getattr(parsed, "local", False):
        try:
            done: int = import_module(parsed.run).run_local(screen, parsed)
        except KmoddError as error:
            return report(error, screen, module="", json=parsed.json)
        return done
    client: Client | None = None
    agent = _Agent(parsed, screen)
    try:
        address = parsed.bus or screen.environment.get("KMODD_BUS_ADDRESS") or None
        client = await Client.connect(None if parsed.session else address, session=parsed.session)
        client.interactive = agent.may_ask
        session = Session(client, screen, parsed.json, agent.start)
        module, _, function = parsed.run.partition(":")
        status: int = await getattr(import_module(module), function or "run")(session, parsed)
    except KmoddError as error:
        if parsed.session and isinstance(error, Unavailable):
            error.evidence = replace(error.evidence, hint="kmodd --simulate provides a simulated kernel on this bus")
        return report(error, screen, module=getattr(parsed, "module", ""), json=parsed.json)
    finally:
        agent.stop()
        if client is not None:
            await client.close()
    return status


class _Agent:
    """Prompt for passwords only at a terminal, for users other than root, and unless disabled."""

    def __init__(self, parsed: Namespace, screen: Screen) -> None:
        self.may_ask = not parsed.no_ask_password and screen.stdin.isatty() and os.geteuid() != 0
        # polkit's agent speaks to the system bus; elsewhere it would ask on behalf of another process.
        other_bus = parsed.session or parsed.bus or screen.environment.get("KMODD_BUS_ADDRESS")
        self._wanted = self.may_ask and not other_bus
        self._running: object = None

    def start(self) -> None:
        if not self._wanted:
            return
        from kmodd.cli.polkit_agent import TerminalAgent  # subprocess, only where it is needed

        agent = TerminalAgent()
        agent.start()
        self._running = agent

    def stop(self) -> None:
        stop = getattr(self._running, "stop", None)
        if stop is not None:
            stop()
