# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records of refused requests, limited so that an attack cannot fill the journal.

journald drops everything of a service that writes more than 10,000 records in 30 seconds (journald.conf(5),
RateLimitBurst=), including the records of what tokens did. kmodd_gateway_refused_total counts what is left out here.
"""

import traceback
from collections.abc import Callable

from kmodd.gateway.http.middleware import RateLimiter
from kmodd.journal.writer import Logger

PER_SOURCE = (0.5, 20)
"""Records per second of one token, address or fault, sustained and in a burst."""
ALTOGETHER = (5.0, 100)
"""The same of all of them."""


class RefusalJournal:
    """Writes to the journal, within these rates."""

    def __init__(self, log: Logger, clock: Callable[[], float]) -> None:
        """The clock counts seconds."""
        self._log = log
        self._per_source = RateLimiter(*PER_SOURCE, clock)
        self._altogether = RateLimiter(*ALTOGETHER, clock)
        self._left_out = 0

    def refused(self, source: str, address: str, why: str) -> None:
        """A request was refused; no secret in it. `source` is the token, or the address of who has none."""
        if self._may_write(source):
            self._log.notice("gateway.refused", message=f"refused a request from {address}: {why}{self._others()}")

    def bug(self, what: str, error: BaseException) -> None:
        """Something failed that must not fail."""
        if self._may_write("bug"):
            trace = " | ".join(line.strip() for line in traceback.format_exception(error)[-6:])
            self._log.error(
                "gateway.trouble", message=f"{what} failed: internal error{self._others()}", exception=trace
            )

    def exhausted(self, error: OSError) -> None:
        """The system has no descriptor or memory for a connection."""
        if self._may_write("accept"):
            self._log.error("gateway.trouble", message=f"cannot accept a connection: {error.strerror}{self._others()}")

    def _may_write(self, source: str) -> bool:
        may = not self._per_source.take(source) and not self._altogether.take("")
        self._left_out += not may
        return may

    def _others(self) -> str:
        left_out, self._left_out = self._left_out, 0
        return f" ({left_out} more since the previous record)" if left_out else ""
