# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs polkit's text agent for the terminal, so that kmodctl never handles a password."""

import os
import select
import subprocess
from dataclasses import dataclass, field

READY_TIMEOUT = 30.0
"""Seconds for it to start and to tell polkit, which the bus may have to start first."""
ENDING_TIMEOUT = 5.0


@dataclass(slots=True)
class TerminalAgent:
    """`pkttyagent` for this process; it only acts where no other agent (a desktop's) serves the session."""

    program: str = "pkttyagent"
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    def start(self) -> None:
        """Start it once and wait until polkit knows it. Without the program polkit just says no."""
        if self._process is not None:
            return
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
        self._process.terminate()
        try:
            self._process.wait(ENDING_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
