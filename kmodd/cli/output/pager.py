# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pipes long output into the user's pager, as systemctl does."""

import contextlib
import shlex
import subprocess
from collections.abc import Mapping

DEFAULT = "less -FRSX"


def page(text: str, environment: Mapping[str, str]) -> bool:
    """Show the text in `$KMODD_PAGER`, `$PAGER` or less; False when there is none (empty or `cat` counts as none)."""
    chosen = environment.get("KMODD_PAGER", environment.get("PAGER", DEFAULT))
    try:
        command = shlex.split(chosen)
    except ValueError:  # an unbalanced quote
        return False
    if not command or command == ["cat"]:
        return False
    variables = {"LESS": "FRSX", **environment}
    if "SUDO_UID" in environment or "PKEXEC_UID" in environment:
        # A user who may run kmodctl with more privileges must not get a shell from less (less(1), SECURITY).
        variables["LESSSECURE"] = "1"
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=variables)
    except OSError:
        return False
    with contextlib.suppress(BrokenPipeError):
        process.communicate(text.encode(errors="replace"))
    while True:
        try:
            return process.wait() != 127
        except KeyboardInterrupt:  # less handles ^C itself
            continue
