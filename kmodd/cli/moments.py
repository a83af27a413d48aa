# SPDX-License-Identifier: LGPL-2.1-or-later
"""Times as people write them for `--since`."""

import re
from datetime import datetime, timedelta

from kmodd.cli.text import clean
from kmodd.errors import Evidence, InvalidArgs

_SPAN = re.compile(r"-?\s*(\d{1,6})\s*(s|sec|m|min|h|hour|hours|d|day|days|w|week|weeks)(?:\s+ago)?")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def parse_since(text: str, now: int) -> int:
    """Microseconds since the epoch for `1h`, `2 days ago`, `today`, `yesterday`, `2024-05-01`, `2024-05-01 12:00`."""
    found = _SPAN.fullmatch(text.strip().lower())
    if found:
        return now - int(found[1]) * _SECONDS[found[2][0]] * 1_000_000
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
