# SPDX-License-Identifier: LGPL-2.1-or-later
"""When to try again: soon at first, then over days, as Standard Webhooks 1.0.0 advises."""

from collections.abc import Callable

SCHEDULE = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
"""Seconds to wait after the first, second, … failure in a row; the last one goes on for as long as there is something to send."""
JITTER = 0.2
"""So much of the wait is left to chance, so that many machines do not come back at one moment."""
EXPIRY = sum(SCHEDULE) + 4 * 3600
"""Seconds after which a message is given up: a little more than three days."""
RETRY_AFTER_MAX = 24 * 3600


def delay(failures: int, random: Callable[[], float], retry_after: float = 0.0) -> float:
    """Seconds to wait after so many failures in a row (at least 1); never less than the receiver asked for."""
    base = SCHEDULE[min(max(failures, 1), len(SCHEDULE)) - 1]
    wanted = base * (1 - JITTER / 2 + JITTER * random())
    return max(wanted, min(retry_after, RETRY_AFTER_MAX))
