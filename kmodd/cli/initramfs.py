# SPDX-License-Identifier: LGPL-2.1-or-later
"""Refreshing the initramfs: the one command that kmodctl runs, because the daemon runs none."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence

from kmodd.client_configuration import Configuration
from kmodd.errors import AccessDenied, Conflict, Evidence

KIND = "initramfs"
"""Kind of the row in `GetDrift` whose hint is the command."""
_RELEASE = r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}"
_COMMANDS = (
    re.compile(rf"(update-initramfs) (-u) (-k) ({_RELEASE})"),
    re.compile(rf"(dracut) (-f) (/boot/initr[a-z.-]+{_RELEASE}) ({_RELEASE})"),
)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


async def stale(configuration: Configuration) -> str:
    """The command that would refresh it; empty when it is up to date or there is none."""
    return next((row.hint for row in await configuration.drift() if row.kind == KIND), "")


def check_root(user: Callable[[], int] = os.geteuid) -> None:
    """Raise AccessDenied before anything is changed for who could not refresh it afterwards."""
    if user() != 0:
        raise AccessDenied(
            "only root can refresh the initramfs", evidence=Evidence(hint="sudo kmodctl config apply --initramfs")
        )


def refresh(command: str, *, path: str = _PATH) -> None:
    """Run it and wait; what it says goes to standard error. Conflict when it fails or is not one of those we know."""
    # The daemon answers a line for people to type: taken apart again, so that no other word can be among them.
    found = next((match for known in _COMMANDS if (match := known.fullmatch(command))), None)
    if found is None:
        raise Conflict("kmodd names a command for the initramfs that kmodctl does not know")
    _run(found.groups(), {"PATH": path, "LANG": os.environ.get("LANG", "C.UTF-8")})


def _run(words: Sequence[str], environment: dict[str, str]) -> None:
    try:
        done = subprocess.run(words, check=False, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), env=environment)
    except OSError as error:
        raise Conflict(
            f"the initramfs is not refreshed: {words[0]} cannot be run ({error.strerror})",
            evidence=Evidence(hint=" ".join(words)),
        ) from error
    if done.returncode != 0:
        raise Conflict(
            f"the initramfs is not refreshed: {words[0]} ended with status {done.returncode}",
            evidence=Evidence(hint=" ".join(words)),
        )
