# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bus's words as HTTP's: keys in snake_case, rows as objects."""

import re
from collections.abc import Mapping
from typing import Any

_ROWS = {
    "users": ("kind", "name", "detail"),
    "parameters": ("name", "type", "description", "writable"),
}
"""Lists of structs, by the key they stand under, with the names of their fields."""
_VERBATIM = frozenset({"parameters", "labels"})
"""Maps whose keys are data."""
_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])")


def key(name: str) -> str:
    """`loaded-by` and `LoadDurationUSec` as `loaded_by` and `load_duration_usec`."""
    return _WORD.sub("_", name.replace("USec", "Usec")).replace("-", "_").lower()


def snake(values: Mapping[str, Any]) -> dict[str, Any]:
    """A map from the bus, its keys and those of maps within in snake_case."""
    return {(name := key(given)): _value(name, value) for given, value in values.items()}


def _value(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return value if name in _VERBATIM else snake(value)
    if isinstance(value, list):
        fields = _ROWS.get(name)
        if fields is not None:
            return [dict(zip(fields, row, strict=False)) if isinstance(row, list) else row for row in value]
        return [snake(row) if isinstance(row, dict) else row for row in value]
    return value
