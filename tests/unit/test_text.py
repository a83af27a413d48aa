# SPDX-License-Identifier: LGPL-2.1-or-later
"""Foreign text becomes one safe line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.text import escape, shown


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain ümläut", "plain ümläut"),
        ("a\x1b[31mb\n", "a\\x1b[31mb\\x0a"),
        ("a\u202eb", "a\\u202eb"),
        ("\udce9", "\\udce9"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_escape_names_what_cannot_be_seen(text: str, safe: str) -> None:
    assert escape(text) == safe


@given(st.text(), st.integers(1, 40))
def test_shown_is_one_line_within_its_limit_and_the_start_of_the_escaped_text(text: str, limit: int) -> None:
    line = shown(text, limit)
    assert line.isprintable()
    assert len(line) <= limit
    assert line == escape(text) or (line.endswith("…") and escape(text).startswith(line[:-1]))
