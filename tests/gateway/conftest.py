# SPDX-License-Identifier: LGPL-2.1-or-later
"""One gateway for the tests of a file."""

from collections.abc import Iterator

import pytest

from tests.cli.private_bus import private_bus
from tests.gateway.processes import Gateway, daemon, gateway


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a bus with kmodd on a simulated kernel."""
    with private_bus(tmp_path_factory.mktemp("bus")) as address, daemon(address):
        yield address


@pytest.fixture(scope="module")
def served(simulation: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with settings as by default, but for the rate."""
    folder = tmp_path_factory.mktemp("gateway")
    with gateway(folder, simulation, "[limits]\nrate = 0\n") as made:
        yield made
