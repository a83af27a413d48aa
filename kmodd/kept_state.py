# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is kept from one daemon to the next until the machine boots, found where an earlier version kept it."""

from contextlib import suppress
from pathlib import Path

from kmodd.kernel.atomic_file import read_file, replace_file
from kmodd.kernel.ports import ChangedMeanwhileError

FILES = ("failures.json", "wishes")


def adopt(folder: Path) -> None:
    """Copy what lies in the folder above, as earlier versions had it, and not in this one yet.

    An upgrade is no boot: without it everything that is to be absent would be unloaded, whoever loaded it since, and nobody
    would know what is stuck in the kernel.
    """
    for name in FILES:
        with suppress(OSError, ChangedMeanwhileError):
            kept = read_file(folder.parent / name)
            if kept is not None:
                # Only where there is nothing: what was written since counts.
                replace_file(folder / name, kept, expected=None, mode=0o600)
