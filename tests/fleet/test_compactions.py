# SPDX-License-Identifier: LGPL-2.1-or-later
"""No deletion is lost where etcd forgot it; `make compactions` does it a thousand times."""

from pathlib import Path

import pytest

from tests.fleet.compactions import compactions, hurry

ROUNDS = 20


async def test_no_deletion_is_lost_by_the_agent_or_the_coordinator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    await compactions(tmp_path, ROUNDS)
