# SPDX-License-Identifier: LGPL-2.1-or-later
"""The modules of each installed kernel that this system needs: what sources name, and all that those depend on."""

import re
from collections.abc import Iterable

from kmodd.core.planning.planned_state import soft_targets
from kmodd.kernel.ports import ModuleIndex
from kmodd.model.surface_policy import Needs, Reading, Reason
from kmodd.names import ModuleName

REASONS_MAX = 8
"""Reasons of one module that are kept, besides the first that makes it a floor."""
CUSTOM = "custom"
"""A module that did not come with the kernel package: of DKMS, of the store, or copied there."""
_REQUEST = re.compile(r"[!-~]{1,512}")
_IN_TREE = "/kernel/"


class Learning:
    """Collects reasons, one kernel after the other."""

    def __init__(self) -> None:
        self._reasons: dict[ModuleName, dict[tuple[str, str, bool], list[str]]] = {}
        self._faults: dict[str, str] = {}

    def kernel(self, release: str, index: ModuleIndex, readings: Iterable[Reading]) -> None:
        """Resolve what the sources name in the index of a kernel."""
        left: list[tuple[ModuleName, bool]] = []
        for reading in readings:
            if reading.fault:
                self._faults[reading.source] = reading.fault
            for want in reading.wants:
                for module in _modules(index, want.request):
                    self._add(module, reading.source, want.evidence, release, floor=want.floor)
                    left.append((module, want.floor))
        for module in index.available():
            path = index.path(module)
            if path and _IN_TREE not in path.rpartition(f"/{release}")[2] and not index.is_builtin(module):
                self._add(module, CUSTOM, f"{path}, which is not of the kernel package", release, floor=False)
                left.append((module, False))
        self._close(release, index, left)

    def needs(self) -> Needs:
        """Everything so far."""
        reasons = {}
        for module, rows in sorted(self._reasons.items()):
            kept = [
                Reason(source, evidence, floor, tuple(dict.fromkeys(kernels)))
                for (source, evidence, floor), kernels in rows.items()
            ]
            kept.sort(key=lambda reason: (not reason.floor, reason.source in _DERIVED))
            reasons[module] = tuple(kept[:REASONS_MAX])
        return Needs(reasons, dict(self._faults))

    def _close(self, release: str, index: ModuleIndex, left: list[tuple[ModuleName, bool]]) -> None:
        """Add what they depend on; of a floor that is a floor too."""
        seen: set[tuple[ModuleName, bool]] = set()
        while left:
            module, floor = left.pop()
            if (module, floor) in seen or (module, True) in seen:
                continue
            seen.add((module, floor))
            for name in index.dependencies(module):
                self._add(name, "dependency", f"{module} depends on it", release, floor=floor)
                left.append((name, floor))
            before, after = soft_targets(index, module)
            weak = [name for word in index.weakdeps(module) for name in _modules(index, word)]
            soft = [target.name for target in (*before, *after) if index.exists(target.name)]
            for source, names in (("soft-dependency", soft), ("weak-dependency", weak)):
                for name in names:
                    if not index.is_builtin(name):
                        self._add(name, source, f"{module} may need it", release, floor=floor)
                        left.append((name, floor))

    def _add(self, module: ModuleName, source: str, evidence: str, release: str, *, floor: bool) -> None:
        rows = self._reasons.setdefault(module, {})
        key = (source, evidence, floor)
        if key in rows or len(rows) < REASONS_MAX or (floor and not any(row[2] for row in rows)):
            rows.setdefault(key, []).append(release)


_DERIVED = frozenset({"dependency", "soft-dependency", "weak-dependency"})


def _modules(index: ModuleIndex, request: str) -> Iterable[ModuleName]:
    """The modules that a name or alias stands for; none for what is part of the kernel image, or no such name."""
    if _REQUEST.fullmatch(request) is None:
        return ()
    names = dict.fromkeys(target.name for target in index.lookup(request))
    return [name for name in names if index.exists(name) and not index.is_builtin(name)]
