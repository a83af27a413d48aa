# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodctl(1) lists what `kmodctl why` finds: exactly what a test on the real kernel proves."""

import re
from pathlib import Path

import pytest

from tests.system.explains import rows, table

ROOT = Path(__file__).resolve().parents[2]
PAGE, README = ROOT / "docs/man/kmodctl.1.scd", ROOT / "README.md"


def test_the_manual_lists_what_the_tests_prove() -> None:
    """To bring it up to date, replace the table by the output of `python -m tests.system.explains`."""
    assert table() in PAGE.read_text()


def test_the_readme_claims_no_more() -> None:
    """Each command that it names is one of these; their number is a round one."""
    text = README.read_text()
    claimed = re.search(r"It finds more than (\d+) kinds of use", text)
    assert claimed is not None
    proved = "\n".join(f"{what} {command} {body}" for what, command, body in rows())
    assert len(list(rows())) > int(claimed[1])
    section = text[claimed.end() : text.index("under WHAT WHY FINDS")]
    named = [each.partition(" …")[0] for each in re.findall(r"`([^`]+)`", section)]
    assert [each for each in named if each not in proved and each != "kmodctl(1)"] == []


@pytest.mark.parametrize(("what", "command", "body"), list(rows()), ids=[row[0] for row in rows()])
def test_the_command_is_that_of_the_test(what: str, command: str, body: str) -> None:
    assert command in body, what
