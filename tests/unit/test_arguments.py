# SPDX-License-Identifier: LGPL-2.1-or-later
"""Parameters as text."""

import pytest

from kmodd.core.arguments import effective, spell, split_options


@pytest.mark.parametrize(
    ("line", "pairs"),
    [
        ("", ()),
        ("a=1", (("a", "1"),)),
        ("  a=1   b=2 ", (("a", "1"), ("b", "2"))),
        ('a="x y" b=2', (("a", "x y"), ("b", "2"))),
        ('"a=x y" b=2', (("a", "x y"), ("b", "2"))),
        ("max-part=1", (("max_part", "1"),)),
        ("flag", (("flag", "1"),)),
        ("empty=", (("empty", ""),)),
        ("a=1 -- b=2", (("a", "1"),)),
        ("a=b=c", (("a", "b=c"),)),
        ("=x", ()),
    ],
)
def test_options_line_is_read_as_the_kernel_reads_it(line: str, pairs: tuple[tuple[str, str], ...]) -> None:
    assert split_options(line) == pairs


def test_last_value_of_a_parameter_counts() -> None:
    assert effective((("a", "1"), ("b", "2"), ("a", "3"))) == (("b", "2"), ("a", "3"))


def test_values_with_spaces_are_quoted() -> None:
    assert spell((("a", "x y"), ("b", "2"))) == 'a="x y" b=2'


def test_values_that_would_end_the_kernels_parsing_are_quoted() -> None:
    assert spell((("a", "1 -- b=2"), ("b", "--"), ("c", ""))) == 'a="1 -- b=2" b="--" c=""'


def test_quotes_inside_a_configured_value_stay_as_written() -> None:
    assert spell(split_options('a=x"y z"')) == 'a=x"y z"'


def test_what_was_split_is_spelled_the_same() -> None:
    line = 'a=1 b="x y" c=z'
    assert spell(split_options(line)) == line
