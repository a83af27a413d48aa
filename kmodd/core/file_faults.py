# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why one of kmodd's own files cannot be written, as an error of the table."""

import errno as codes
from collections.abc import Sequence
from pathlib import PurePosixPath

from kmodd.errors import Conflict, Evidence, KmoddError, NotPermitted, errno_name
from kmodd.model.configuration import OwnFile

_FULL = frozenset({codes.ENOSPC, codes.EDQUOT})
_DENIED = frozenset({codes.EACCES, codes.EPERM})
_NO_FILE = frozenset({codes.EISDIR, codes.ENOTDIR, codes.ENXIO, codes.EFBIG})


def refusal(file: OwnFile, error: OSError) -> KmoddError:
    """Make the error for what the system answered."""
    number = error.errno or 0
    folder = PurePosixPath(file).parent
    if number == codes.ELOOP:
        return _conflict(file, number, f"{file} is a symbolic link, which kmodd neither follows nor replaces")
    if number in _NO_FILE:
        return _conflict(file, number, f"{file} is not a file that kmodd wrote")
    hint = "journalctl -k"
    if number == codes.EROFS:
        sentence, hint = f"{folder} is on a read-only file system", f"findmnt -T {folder}"
    elif number in _FULL:
        sentence, hint = f"there is no space left to write {file}", f"df -h {folder}; df -i {folder}"
    elif number in _DENIED:
        sentence, hint = f"{file} may not be written", f"lsattr -d {folder}; systemctl show kmodd -p ReadWritePaths"
    elif number == codes.ENOENT:
        sentence, hint = f"there is no folder {folder}", f"mkdir -m 0755 {folder}, then systemctl restart kmodd"
    else:
        sentence = f"{file} cannot be written ({errno_name(number)})"
    return NotPermitted(sentence, evidence=Evidence(errno=number or None, file=file, hint=hint))


def foreign(file: OwnFile) -> Conflict:
    """Make the error for a file of our name that somebody else wrote."""
    return Conflict(
        f"{file} was not written by kmodd, which leaves it alone",
        evidence=Evidence(file=file, hint=f"give {file} another name in the same folder"),
    )


def edited(file: OwnFile, difference: Sequence[str]) -> Conflict:
    """Make the error for a file of ours that was edited by hand; what was edited stands in the hint."""
    shown = f": {' | '.join(difference)}" if difference else ""
    return Conflict(
        f"{file} was edited since kmodd wrote it",
        evidence=Evidence(
            file=file,
            hint=f"move the lines that were added to another file in the same folder, and remove {file} or undo the "
            f"edit{shown}",
        ),
    )


def _conflict(file: OwnFile, number: int, sentence: str) -> Conflict:
    return Conflict(sentence, evidence=Evidence(errno=number, file=file, hint=f"ls -l {file}"))
