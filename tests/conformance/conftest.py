# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shim, built once a session, and the two versions of modprobe."""

from pathlib import Path

import pytest

from tests.conformance import debian13
from tests.conformance.oracle import build_shim

HOST = ("/sbin/modprobe",)


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preloaded library."""
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(params=["this machine's", "debian 13's"])
def program(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The command of one modprobe."""
    return HOST if request.param == "this machine's" else debian13.modprobe()
