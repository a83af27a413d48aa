# SPDX-License-Identifier: LGPL-2.1-or-later
"""Refreshes the initramfs. kmodctl runs the command, because the daemon runs none."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence

from kmodd.client.configuration import Configuration
from kmodd.errors import AccessDenied, Conflict, Evidence

KIND = "initramfs"
"""Kind of the row in `GetDrift` that has the command."""
_RELEASE = r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}"
_COMMANDS = (
    ("update-initramfs", "-u", "-k", _RELEASE),
    ("dracut", "-f", rf"/boot/initr[a-z.-]+{_RELEASE}", _RELEASE),
)
"""What each word has to be."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


async def stale(configuration: Configuration) -> tuple[str, ...]:
    """The command that would refresh it, in words; empty when it is up to date or there is none."""
    return next((row.command for row in await configuration.drift() if row.kind == KIND), ())


def check_root(user: Callable[[], int] = os.geteuid) -> None:
    """Raise AccessDenied before anything is changed for who could not refresh it afterwards."""
    if user() != 0:
        raise AccessDenied(
            "only root can refresh the initramfs", evidence=Evidence(hint="sudo kmodctl config apply --initramfs")
        )


def refresh(command: Sequence[str], *, path: str = _PATH) -> None:
    """Run it and wait; what it says goes to standard error. Conflict when it fails or is not one of those we know."""
    # It runs as root: no other word may be among them.
    if not any(len(known) == len(command) and all(map(re.fullmatch, known, command)) for known in _COMMANDS):
        raise Conflict("kmodd names an unknown command for the initramfs")
    _run(command, {"PATH": path, "LANG": os.environ.get("LANG", "C.UTF-8")})


def _run(words: Sequence[str], environment: dict[str, str]) -> None:
    try:
        done = subprocess.run(words, check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), env=environment)
    except OSError as error:
        raise Conflict(
            f"the initramfs was not refreshed: cannot run {words[0]} ({error.strerror})",
            evidence=Evidence(hint=" ".join(words)),
        ) from error
    if done.returncode != 0:
        raise Conflict(
            f"the initramfs was not refreshed: {words[0]} exited with status {done.returncode}",
            evidence=Evidence(hint=" ".join(words)),
        )
