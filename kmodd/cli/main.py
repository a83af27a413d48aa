# SPDX-License-Identifier: LGPL-2.1-or-later
"""Entry point of kmodctl: parses arguments, connects, runs one command, and maps the result to an exit status."""

import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING

from kmodd.cli.arguments import ExitCode, parse
from kmodd.cli.output.screen import Screen, discard
from kmodd.cli.session import Session
from kmodd.errors import KmoddError, Unavailable

if TYPE_CHECKING:
    import subprocess

READY_TIMEOUT = 30.0
"""Seconds for the agent to start and to tell polkit, which the bus may have to start first."""
ENDING_TIMEOUT = 5.0


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
        self._agent = TerminalAgent()

    def start(self) -> None:
        if self._wanted:
            self._agent.start()

    def stop(self) -> None:
        self._agent.stop()


@dataclass(slots=True)
class TerminalAgent:
    """`pkttyagent` for this process; it only acts where no other agent (a desktop's) serves the session."""

    program: str = "pkttyagent"
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    def start(self) -> None:
        """Start it once and wait until polkit knows it. Without the program polkit just says no."""
        if self._process is not None:
            return
        import select  # only where it is needed
        import subprocess

        read_end, write_end = os.pipe()
        # polkit 122 looks for fallback agents in sessions alone (get_authentication_agent_for_subject in
        # polkitbackendinteractiveauthority.c); where there is none, there is no desktop's agent to make way for either.
        fallback = ["--fallback"] if "XDG_SESSION_ID" in os.environ else []
        try:
            self._process = subprocess.Popen(
                [self.program, "--process", str(os.getpid()), *fallback, "--notify-fd", str(write_end)],
                pass_fds=(write_end,),
            )
        except OSError:
            return
        finally:
            os.close(write_end)
            if self._process is not None:
                # It closes its end when it is registered, or when it gives up.
                select.select([read_end], [], [], READY_TIMEOUT)
            os.close(read_end)

    def stop(self) -> None:
        """End it, so that the terminal is left as it was."""
        if self._process is None:
            return
        from subprocess import TimeoutExpired

        self._process.terminate()
        try:
            self._process.wait(ENDING_TIMEOUT)
        except TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
