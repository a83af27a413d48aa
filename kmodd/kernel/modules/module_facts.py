# SPDX-License-Identifier: LGPL-2.1-or-later
"""A cache of the .modinfo strings of module files: reading a compressed one takes up to 0.1 seconds.

One object for each module; a thousand modules take about a megabyte. Entries are valid as long as the file's stamp is the
same.
"""

import os
import stat
from collections import OrderedDict
from dataclasses import dataclass

from kmodd.errors import BadModule
from kmodd.kernel.modules.module_file import ModuleFile
from kmodd.kernel.modules.param_section import FoundParameter
from kmodd.kernel.modules.signature import Signers, read_signature
from kmodd.names import ModuleName

BYTES_MAX = 4 << 20
"""Bytes kept. More than enough for a distribution's kernel; the facts used longest ago go first."""
_OVERHEAD = 400
"""Bytes of an entry beside its strings."""

Stamp = tuple[int, int, int, int] | None


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What was read of one file, or why it could not be read."""

    stamp: Stamp
    modinfo: bytes = b""
    signed: bool = False
    signer: str = ""
    parameters: tuple[FoundParameter, ...] = ()
    """The parameters that the kernel finds in it."""
    holds: str = ""
    """Name of the module in it, whatever the file is called; empty if unknown."""
    error: BadModule | None = None


class ModuleFacts:
    """Facts by path. `read` may be called from any thread, everything else from the one that owns the index."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, FileFacts] = OrderedDict()
        self._bytes = 0
        self._signers = Signers()

    def read(self, name: ModuleName, path: str) -> FileFacts:
        """Read a file now; nothing is kept. A file that is damaged or cannot be read is an answer too."""
        # Taken before anything is read: what changes meanwhile is seen the next time.
        stamp = file_stamp(path)
        try:
            with ModuleFile(name, path) as file:
                modinfo = file.modinfo()
                parameters = file.parameters()
                holds = file.module_name(modinfo)
                signed, signer = read_signature(file, self._signers)
        except BadModule as error:
            return FileFacts(stamp, error=error.with_traceback(None))
        return FileFacts(stamp, modinfo, signed, signer, parameters, holds)

    def keep(self, path: str, facts: FileFacts) -> None:
        """Keep what was read of a file."""
        self._drop(path)
        self._kept[path] = facts
        self._bytes += _size(facts)
        while self._bytes > BYTES_MAX and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    def forget(self) -> None:
        """Keep nothing: what is needed again is read again."""
        self._kept.clear()
        self._bytes = 0

    def find(self, path: str, stamp: Stamp) -> FileFacts | None:
        """The facts of a file that has this stamp; None where they have to be read."""
        facts = self._kept.get(path)
        if facts is None or facts.stamp != stamp:
            return None
        self._kept.move_to_end(path)
        return facts

    def used(self, path: str) -> None:
        """Forget a fault of the machine (EMFILE, EIO) once it was reported: only what the file says stays true."""
        facts = self._kept.get(path)
        if facts is not None and facts.error is not None and facts.error.evidence.errno is not None:
            self._drop(path)

    def _drop(self, path: str) -> None:
        facts = self._kept.pop(path, None)
        if facts is not None:
            self._bytes -= _size(facts)


def _size(facts: FileFacts) -> int:
    return len(facts.modinfo) + sum(len(each.name) for each in facts.parameters) + _OVERHEAD


def file_stamp(path: str) -> Stamp:
    """What changes when a regular file does; None where there is none that can be read."""
    try:
        status = os.stat(path)  # noqa: PTH116 - for each file at every refresh
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return (0, 0, status.st_ino, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns)
