"""Acting as the owner of a guest's root folder: as root, in a user namespace, or through sudo, in this order."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm import host

if TYPE_CHECKING:
    from collections.abc import Iterator


def elevated() -> list[str]:
    """The words before a command."""
    if os.geteuid() == 0:
        return []
    return ["mmdebstrap", "--unshare-helper"] if _has_subordinate_ids() else ["sudo"]


def mmdebstrap() -> list[str]:
    """The words that start mmdebstrap."""
    if os.geteuid() == 0:
        return ["mmdebstrap", "--mode=root"]
    return ["mmdebstrap", "--mode=unshare"] if _has_subordinate_ids() else ["sudo", "mmdebstrap", "--mode=root"]


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for us and for elevated commands, gone afterwards with whatever they left there.

    In /tmp, because in a user namespace a private home folder cannot be entered.
    """
    folder = Path(tempfile.mkdtemp(prefix="kmodd-build-"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        # Ours first: in a user namespace even its root may not touch them. Then what is left, then what that was in.
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            host.run([*elevated(), "sh", "-c", 'rm -rf "$1"/* 2>/dev/null || true', "sh", str(folder)])
            shutil.rmtree(folder)


def _has_subordinate_ids() -> bool:
    """Whether a user namespace can have other users than root."""
    try:
        lines = Path("/etc/subuid").read_text().splitlines()
    except FileNotFoundError:
        return False
    names = (pwd.getpwuid(os.getuid()).pw_name, str(os.getuid()))
    return any(line.split(":")[0] in names for line in lines)
