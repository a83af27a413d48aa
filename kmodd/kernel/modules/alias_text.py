# SPDX-License-Identifier: LGPL-2.1-or-later
"""Modules by the aliases of file systems, device numbers and firewall expressions, from the text form of the alias index.

libkmod's context belongs to one thread, and the search for users runs in another. So the few hundred aliases of names in
user space are read from modules.alias, which depmod writes beside the binary index.
"""

import os
from pathlib import Path

from kmodd.kernel.files import note
from kmodd.names import canonical
from kmodd.patterns import matches

_PREFIXES = (
    *(b"fs-", b"char-major-", b"block-major-", b"devname:", b"rtnl-link-", b"md-", b"nls_", b"tty-ldisc-"),
    *(b"sch_", b"cls_", b"act_", b"net-sch-", b"net-cls-", b"net-act-", b"net-pf-16-proto-"),
    *(b"nft-", b"nf-flowtable-", b"nf-logger-", b"nfct-helper-"),
    *(b"xt_", b"ipt_", b"ip6t_", b"ebt_", b"arpt_", b"ip_set_"),
)
_STARTS = tuple(b"alias " + prefix for prefix in _PREFIXES)


class AliasText:
    """Resolves aliases of user space's things from /lib/modules/RELEASE/modules.alias; safe to call from any thread."""

    def __init__(self, root: Path, release: str) -> None:
        self._path = root / "lib/modules" / release / "modules.alias"
        self._read: tuple[tuple[int, int, int], _Aliases] | None = None

    def __call__(self, alias: str) -> tuple[str, ...]:
        """Canonical names of the modules with this alias; empty when there is none."""
        aliases = self._current()
        return aliases.resolve(alias) if aliases is not None else ()

    def modules(self, prefix: str) -> frozenset[str]:
        """Canonical names of the modules with an alias that begins so."""
        aliases = self._current()
        if aliases is None:
            return frozenset()
        patterns = {module for pattern, module in aliases.patterns if pattern.startswith(prefix)}
        return frozenset(patterns.union(*(names for alias, names in aliases.plain.items() if alias.startswith(prefix))))

    @property
    def readable(self) -> bool:
        """Whether the index could be read: without it nothing is known of aliases."""
        return self._current() is not None

    def _current(self) -> "_Aliases | None":
        try:
            status = self._path.stat()
        except OSError as error:
            note(error)
            return None
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._read is None or self._read[0] != version:
            self._read = (
                version,
                _load(self._path),
            )  # One assignment: two threads would read the same twice, no worse.
        return self._read[1]


class _Aliases:
    def __init__(self) -> None:
        self.plain: dict[str, list[str]] = {}
        self.patterns: list[tuple[str, str]] = []

    def resolve(self, alias: str) -> tuple[str, ...]:
        matched = (module for pattern, module in self.patterns if matches(pattern, alias))
        return tuple(dict.fromkeys((*self.plain.get(alias, ()), *matched)))


def _load(path: Path) -> _Aliases:
    aliases = _Aliases()
    try:
        # Line by line: the file has some megabytes, of which a few kilobytes are kept.
        with path.open("rb") as lines:
            for line in lines:
                if line.startswith(_STARTS):
                    _, alias, module = os.fsdecode(line).rsplit(maxsplit=2)
                    if any(mark in alias for mark in "*?["):
                        aliases.patterns.append((alias, canonical(module)))
                    else:
                        aliases.plain.setdefault(alias, []).append(canonical(module))
    except OSError as error:
        note(error)  # Gone: what was read is used until the file changes again.
    except ValueError:
        pass  # Being written by depmod: what was read is used until the file changes again.
    return aliases
