# SPDX-License-Identifier: LGPL-2.1-or-later
"""Formats words, numbers and times, and sanitizes text from the kernel and from module files before it reaches a terminal."""

import re
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from kmodd.errors import Evidence, InvalidArgs
from kmodd.text import escape

_UNITS = ("B", "KiB", "MiB", "GiB")
_AGO = ((86_400, "day"), (3_600, "hour"), (60, "minute"))
_SPAN = re.compile(r"-?\s*(\d{1,6})\s*(s|sec|m|min|h|hour|hours|d|day|days|w|week|weeks)(?:\s+ago)?")
_LENGTH = re.compile(r"(\d{1,5})\s*([smhdwy])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800, "y": 365 * 86_400}


def clean(text: str) -> str:
    """Escape what a terminal could act on or that could change the reading order; line breaks and tabs become spaces."""
    return escape(text.replace("\n", " ").replace("\t", " "))


def columns(text: str) -> int:
    """Columns a terminal gives to clean text."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def shorten(text: str, width: int, ellipsis: str) -> str:
    """Cut clean text to a number of columns."""
    if columns(text) <= width:
        return text
    room = max(width - len(ellipsis), 0)
    while columns(text) > room:
        text = text[:-1]
    return text.rstrip() + ellipsis[: max(width, 0)]


def wrap(text: str, width: int) -> list[str]:
    """Break clean text between words; a word longer than the width stays whole."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and columns(line) + 1 + columns(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line] if line else lines


def hang(text: str, width: int) -> list[str]:
    """As `wrap`, with the second and later lines set in, for lines that come one after another."""
    first, *rest = wrap(text, width) or [""]
    return [first, *(f"  {line}" for line in wrap(" ".join(rest), width - 2))]


def size(count: int) -> str:
    """Bytes as people read them: `512 B`, `24.0 KiB`."""
    value = float(count)
    for unit in _UNITS[:-1]:
        if value < 1024:
            return f"{int(value)} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {_UNITS[-1]}"


def duration(usec: int) -> str:
    """A duration in the unit that suits it."""
    if usec < 1_000:
        return f"{usec} µs"
    if usec < 1_000_000:
        return f"{usec / 1_000:.1f} ms"
    return f"{usec / 1_000_000:.1f} s"


def moment(usec: int) -> str:
    """A time as in the journal, in the local zone."""
    return datetime.fromtimestamp(usec / 1_000_000, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def ago(usec: int, now: int) -> str:
    """How long ago, roughly."""
    seconds = max(now - usec, 0) // 1_000_000
    for length, unit in _AGO:
        if seconds >= length:
            return f"{counted(seconds // length, unit)} ago"
    return "just now" if seconds < 5 else f"{seconds} seconds ago"


def counted(number: int, noun: str) -> str:
    """`1 module`, `2 modules`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    parts = list(words)
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + f" and {parts[-1]}" if parts else ""


def parse_since(text: str, now: int) -> int:
    """Microseconds since the epoch for `1h`, `2 days ago`, `today`, `yesterday`, `2024-05-01`, `2024-05-01 12:00`."""
    span = _SPAN.fullmatch(text.strip().lower())
    if span:
        return now - int(span[1]) * _SECONDS[span[2][0]] * 1_000_000
    local = datetime.fromtimestamp(now / 1_000_000).astimezone()
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    days = {"today": 0, "yesterday": 1}
    try:
        when = midnight - timedelta(days[text]) if text in days else datetime.fromisoformat(text)
        return int(when.timestamp() * 1_000_000)
    except (ValueError, OverflowError):
        raise InvalidArgs(
            f"'{clean(text)}' is not a time",
            evidence=Evidence(hint="try '1h', '2 days ago', 'today', '2024-05-01' or '2024-05-01 12:00'"),
        ) from None


def parse_span(text: str) -> int:
    """Seconds of `10m`, `12h`, `30d`, `1y`; InvalidArgs otherwise."""
    span = _LENGTH.fullmatch(text.strip().lower())
    if span is None:
        raise InvalidArgs(f"'{clean(text)}' is not a time span", evidence=Evidence(hint="try '10m', '12h' or '30d'"))
    return int(span[1]) * _SECONDS[span[2]]


def user_name(uid: int | None) -> str:
    """`alice (uid 1000)`, or what is known."""
    if uid is None:
        return "an unknown user"
    from pwd import getpwuid  # may ask name services; only where a user is shown

    try:
        return f"{getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
