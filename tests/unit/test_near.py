# SPDX-License-Identifier: LGPL-2.1-or-later
"""Did you mean?"""

from kmodd.core.near import did_you_mean, near


def test_mistyped_names_are_recognised() -> None:
    names = ["vfat", "fat", "dummy", "loop", "overlay"]
    assert near("dumy", names) == ("dummy",)
    assert near("overlya", names) == ("overlay",)
    assert near("vlat", names)[0] == "vfat"


def test_nothing_close_nothing_said() -> None:
    assert did_you_mean("zzzz", ["vfat", "loop"]) == ""


def test_question_names_the_candidates() -> None:
    assert did_you_mean("numdumies", ["numdummies", "x"]) == "did you mean numdummies?"


def test_at_most_three() -> None:
    assert len(near("abcd", [f"abcd{i}" for i in range(9)])) == 3
