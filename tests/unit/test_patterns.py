# SPDX-License-Identifier: LGPL-2.1-or-later
"""Patterns are what fnmatch(3) of the C library makes of them."""

import ctypes
from random import Random

import pytest

from kmodd.patterns import is_pattern, matches

_fnmatch = ctypes.CDLL(None).fnmatch


def test_random_patterns_match_what_the_c_library_matches() -> None:
    random = Random(3)  # noqa: S311 - to be repeated
    for _ in range(20_000):
        pattern = "".join(random.choice("ab-]^![\\*?c") for _ in range(random.randint(0, 7)))
        name = "".join(random.choice("ab-]^![\\c") for _ in range(random.randint(0, 4)))
        assert matches(pattern, name) == (_fnmatch(pattern.encode(), name.encode(), 0) == 0), (pattern, name)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("[^a]*", "b", True),
        ("[^a]*", "a", False),
        ("\\a", "a", True),
        ("\\*", "*", True),
        ("a\\", "a", False),
        ("a\\", "a\\", False),
        ("?", "\xe4", False),  # two bytes
        ("*", "", True),
        ("a" + "*a" * 30, "a" * 40 + "b", False),
    ],
)
def test_patterns(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


def test_a_name_is_no_pattern() -> None:
    assert not is_pattern("snd_pcm")
    assert is_pattern("\\a")
