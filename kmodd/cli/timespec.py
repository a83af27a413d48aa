# SPDX-License-Identifier: LGPL-2.1-or-later
"""Parses times for `--since`, and formats user names."""

import re
from datetime import datetime, timedelta

from kmodd.cli.output.text import clean
from kmodd.errors import Evidence, InvalidArgs

_SPAN = re.compile(r"-?\s*(\d{1,6})\s*(s|sec|m|min|h|hour|hours|d|day|days|w|week|weeks)(?:\s+ago)?")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


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


def user_name(uid: int | None) -> str:
    """`alice (uid 1000)`, or what is known."""
    if uid is None:
        return "an unknown user"
    from pwd import getpwuid  # may ask name services; only where a user is shown

    try:
        return f"{getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
