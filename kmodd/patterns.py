# SPDX-License-Identifier: LGPL-2.1-or-later
"""Patterns of modprobe.d and of modules.alias, as fnmatch(3) reads them in the C locale with no flags.

Python's fnmatch differs: it knows neither `[^…]` nor the backslash.
"""

import re
from functools import lru_cache

_WILD = frozenset("*?[\\")
_KEPT_MAX = 1024
"""Compiled patterns that are kept; distributions ship some dozens."""


def is_pattern(text: str) -> bool:
    """Tell whether the text can match another than itself."""
    return not _WILD.isdisjoint(text)


def matches(pattern: str, name: str) -> bool:
    """Tell whether the pattern matches the whole name."""
    if pattern == name:
        return not is_pattern(pattern) or _matches(pattern, name)
    return is_pattern(pattern) and _matches(pattern, name)


def _matches(pattern: str, name: str) -> bool:
    expression = _compiled(pattern)
    return expression is not None and expression.fullmatch(_bytes(name)) is not None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@lru_cache(maxsize=_KEPT_MAX)
def _compiled(pattern: str) -> re.Pattern[bytes] | None:
    """The pattern as a regular expression; None where it matches nothing, as with a backslash at the end."""
    data = _bytes(pattern)
    parts = [b""]  # between stars
    position = 0
    while position < len(data):
        letter = data[position : position + 1]
        position += 1
        if letter == b"*":
            parts.append(b"")
        elif letter == b"?":
            parts[-1] += b"."
        elif letter == b"\\":
            if position == len(data):
                return None
            parts[-1] += re.escape(data[position : position + 1])
            position += 1
        elif letter == b"[" and (bracket := _bracket(data, position)) is not None:
            text, position = bracket
            parts[-1] += text
        else:
            parts[-1] += re.escape(letter)
    first, *rest = parts
    if rest:
        *middle, last = rest
        # The first place where a part fits is as good as any other: nothing is tried twice.
        first += b"".join(b"(?>.*?" + part + b")" for part in middle if part) + b".*" + last
    return re.compile(first, re.DOTALL)


def _bracket(data: bytes, position: int) -> tuple[bytes, int] | None:
    """Read `[…]` from behind its first letter; None for one that is not closed, which stands for itself."""
    negated = data[position : position + 1] in (b"!", b"^")
    position += negated
    members: set[int] = set()
    first = True
    while True:
        if position >= len(data):
            return None
        if data[position] == ord("]") and not first:
            break
        first = False
        low, position = _member(data, position)
        high = low
        if data[position : position + 1] == b"-" and data[position + 1 : position + 2] not in (b"", b"]"):
            high, position = _member(data, position + 1)
        members.update(range(low, high + 1))
    allowed = bytes(sorted(set(range(256)) - members if negated else members))
    text = b"[" + b"".join(b"\\x%02x" % byte for byte in allowed) + b"]" if allowed else b"(?!)"
    return text, position + 1


def _member(data: bytes, position: int) -> tuple[int, int]:
    if data[position] == ord("\\") and position + 1 < len(data):
        position += 1
    return data[position], position + 1


_BRACKET = re.compile(r"\[!?\^?(.)[^]]*\]")


def example(pattern: str) -> str:
    """A name that the pattern matches, without its wildcards."""
    return _BRACKET.sub(r"\1", pattern).replace("*", "0").replace("?", "0")
