"""Which Debian the machine runs: ``SUITE`` in the environment, else Debian 12."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tests.vm import host


@dataclass(frozen=True)
class Suite:
    """A release of Debian: the name in its archive, and the name that people know."""

    name: str
    title: str

    def kind(self, name: str) -> str:
        """The kind of a cache entry that belongs to this suite: entries of another suite do not displace it."""
        return f"{self.name}-{name}"


SUITES = (Suite("bookworm", "Debian 12"), Suite("trixie", "Debian 13"), Suite("sid", "Debian unstable"))


def chosen() -> Suite:
    """The suite of this process."""
    name = os.environ.get("SUITE") or SUITES[0].name
    for suite in SUITES:
        if suite.name == name:
            return suite
    raise host.HostError(f"no machine can be built for SUITE={name}: use {', '.join(suite.name for suite in SUITES)}")
