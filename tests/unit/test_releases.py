# SPDX-License-Identifier: LGPL-2.1-or-later
"""Releases are in the order in which systemd has them, and candidates before what they are candidates for."""

import itertools
import subprocess

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kmodd.releases import by_age, compare

IN_ORDER = [
    "5.10.0-9-amd64",
    "5.10.0-28-amd64",
    "6.1.0-rc1",
    "6.1.0-rc2-amd64",
    "6.1.0-rc10",
    "6.1.0",
    "6.1.0-9-amd64",
    "6.1.0-18-amd64",
    "6.1.0-18-rt-amd64",
    "6.1.0-20-amd64",
    "6.1.1",
    "6.2~rc1",
    "6.2-rc2+",
    "6.2",
    "6.2-1",
    "6.10.3+deb13-amd64",
    "6.12-rc6-amd64",
    "6.12-amd64",
    "6.12.9",
    "10.0",
]


@pytest.mark.parametrize(("older", "newer"), list(itertools.combinations(IN_ORDER, 2)))
def test_the_order_of_releases(older: str, newer: str) -> None:
    assert compare(older, newer) == -1
    assert compare(newer, older) == 1


def test_sorting() -> None:
    assert sorted(sorted(IN_ORDER), key=by_age) == IN_ORDER


def analyzed(left: str, right: str) -> int:
    """What systemd says, which leaves `-rc` as it stands."""
    spelled = [text.replace("-rc", "~rc") for text in (left, right)]
    done = subprocess.run(["systemd-analyze", "compare-versions", "--", *spelled], capture_output=True, check=False)
    # systemd-analyze(1): 0 when they are equal, 11 when the first is newer, 12 when the second is.
    return {0: 0, 11: 1, 12: -1}[done.returncode]


PARTS = st.sampled_from(
    ["0", "1", "9", "10", "007", "18", ".", "-", "~", "^", "+", "_", "rc1", "-rc2", "a", "b", "amd64", "rt", "deb13"]
)
RELEASES = st.lists(PARTS, min_size=1, max_size=8).map("".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(RELEASES, RELEASES)
@example("6.1", "6.1-rc1")
@example("6.1.0", "6.1.0~")
@example("1.-", "1.a")
@example("1_2", "12")
@example("1+", "1")
def test_any_two_are_in_the_order_of_systemd(left: str, right: str) -> None:
    assert compare(left, right) == analyzed(left, right)


@given(RELEASES, RELEASES, RELEASES)
def test_it_is_an_order(first: str, second: str, third: str) -> None:
    assert compare(first, second) == -compare(second, first)
    assert compare(first, first) == 0
    if compare(first, second) <= 0 and compare(second, third) <= 0:
        assert compare(first, third) <= 0
