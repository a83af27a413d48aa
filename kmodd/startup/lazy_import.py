# SPDX-License-Identifier: LGPL-2.1-or-later
"""Modules that a library imports at its start and a program may never use: executed at the first access to an attribute."""

import sys
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType


class _LazyFinder(MetaPathFinder):
    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._names:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def import_lazily(names: Iterable[str]) -> None:
    """Execute these modules, as far as they are not imported yet, at the first use. `from … import` is a use."""
    sys.meta_path.insert(0, _LazyFinder(frozenset(names)))
