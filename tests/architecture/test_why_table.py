# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodctl(1) lists what `kmodctl why` finds: exactly what a test on the real kernel proves."""

from pathlib import Path

import pytest

from tests.system.explains import rows, table

PAGE = Path(__file__).resolve().parents[2] / "docs/man/kmodctl.1.scd"


def test_the_manual_lists_what_the_tests_prove() -> None:
    """To bring it up to date, replace the table by the output of `python -m tests.system.explains`."""
    assert table() in PAGE.read_text()


@pytest.mark.parametrize(("what", "command", "body"), list(rows()), ids=[row[0] for row in rows()])
def test_the_command_is_that_of_the_test(what: str, command: str, body: str) -> None:
    assert command in body, what
