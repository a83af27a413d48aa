# SPDX-License-Identifier: LGPL-2.1-or-later
"""Type signatures, split into complete types. Only signatures of our own API get here, never a peer's."""

from collections.abc import Iterator
from functools import lru_cache

BASIC = frozenset("ybnqiuxtdsog")
ALIGNMENT = {
    "y": 1, "b": 4, "n": 2, "q": 2, "i": 4, "u": 4, "x": 8, "t": 8, "d": 8,
    "s": 4, "o": 4, "g": 1, "v": 1, "h": 4, "a": 4, "(": 8, "{": 8,
}  # fmt: skip
"""Bytes each type is aligned to (D-Bus specification, "Marshaling")."""


@lru_cache(maxsize=256)
def split(signature: str) -> tuple[str, ...]:
    """Split a signature into its complete types; ValueError when it is not one."""
    return tuple(_types(signature))


def _types(signature: str) -> Iterator[str]:
    position = 0
    while position < len(signature):
        end = _end(signature, position)
        yield signature[position:end]
        position = end


def _end(signature: str, start: int) -> int:
    while start < len(signature) and signature[start] == "a":
        start += 1
    if start >= len(signature):
        raise ValueError("a signature ends too early")
    if signature[start] not in "({":
        if signature[start] not in ALIGNMENT:
            raise ValueError("a signature has an unknown type")
        return start + 1
    depth = 0
    for position in range(start, len(signature)):
        if signature[position] in "({":
            depth += 1
        elif signature[position] in ")}":
            depth -= 1
            if depth == 0:
                return position + 1
    raise ValueError("a signature has an open bracket")
