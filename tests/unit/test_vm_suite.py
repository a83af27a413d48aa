# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which Debian the virtual machine runs."""

import pytest

from tests.vm import host, suite


@pytest.mark.parametrize(
    ("value", "name"), [(None, "bookworm"), ("", "bookworm"), ("trixie", "trixie"), ("sid", "sid")]
)
def test_environment_chooses_the_suite(monkeypatch: pytest.MonkeyPatch, value: str | None, name: str) -> None:
    monkeypatch.delenv("SUITE", raising=False)
    if value is not None:
        monkeypatch.setenv("SUITE", value)
    assert suite.chosen().name == name
    assert suite.chosen().kind("image") == f"{name}-image"


def test_unknown_suite_is_refused_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUITE", "woody")
    with pytest.raises(host.HostError, match=r"SUITE=woody: use bookworm, trixie, sid"):
        suite.chosen()
