# SPDX-License-Identifier: LGPL-2.1-or-later
"""A settings file as it was read: its values, and the line each of them stands on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Document:
    """One TOML file."""

    file: str
    """Its path."""
    values: Mapping[str, Any]
    """As tomllib gives them."""
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    """The line, from 1, that each key (by its path from the top) first stands on."""
    public: bool = True
    """Everyone may read the file."""

    def line(self, *path: str) -> int:
        """The line of a key, of the nearest table around it when it has none, or 1."""
        for end in range(len(path), 0, -1):
            if (found := self.lines.get(path[:end])) is not None:
                return found
        return 1
