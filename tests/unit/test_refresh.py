# SPDX-License-Identifier: LGPL-2.1-or-later
"""The index is looked at once for all calls that arrived together, and again for what came later."""

import pytest

from kmodd.core.planning.planner import IndexRefresher
from kmodd.kernel.simulated.kernel import SimulatedKernel


class Watched:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrivals = 0
        self.looked = 0
        self.fails = False
        index = SimulatedKernel().index
        monkeypatch.setattr(index, "refresh", self._look)
        self.refresh = IndexRefresher(index, lambda: self.arrivals)

    def _look(self) -> bool:
        self.looked += 1
        if self.fails:
            raise OSError("unreadable")
        return False


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_calls_that_came_together_cost_one_look(watched: Watched) -> None:
    for _ in range(5):
        watched.refresh()
    assert watched.looked == 1


def test_what_came_later_is_worth_another_look(watched: Watched) -> None:
    for _ in range(3):
        watched.refresh()
        watched.arrivals += 1
    assert watched.looked == 3


def test_look_that_failed_does_not_count(watched: Watched) -> None:
    watched.fails = True
    for _ in range(2):
        with pytest.raises(OSError, match="unreadable"):
            watched.refresh()
    assert watched.looked == 2
