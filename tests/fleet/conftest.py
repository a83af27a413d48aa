# SPDX-License-Identifier: LGPL-2.1-or-later
"""One Kubernetes API for the tests of a worker, and a daemon on a simulated kernel for each test that wants one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cli.private_bus import private_bus
from tests.fleet.cluster import ROOT, Cluster, cluster
from tests.fleet.coordinating import Fleet
from tests.fleet.running import Node, new_node
from tests.gateway.processes import daemon


@pytest.fixture(scope="session")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running API server that no test stops."""
    with cluster(tmp_path_factory.mktemp("kubernetes")) as made:
        yield made


@pytest.fixture(scope="session")
def deployed(kubernetes: Cluster) -> Cluster:
    """It has what deploy/ gives both programs: their accounts, and the rights of their roles alone."""
    for name in ("namespace", "agent", "coordinator"):
        for document in yaml.safe_load_all((ROOT / f"deploy/kubernetes/{name}.yaml").read_text()):
            if document["kind"] not in ("DaemonSet", "Deployment", "Service", "NetworkPolicy"):
                kubernetes.apply(document)
    return kubernetes


@pytest.fixture
def fleet(deployed: Cluster, tmp_path: Path) -> Iterator[Fleet]:
    """The coordinator's side, not started yet."""
    made = Fleet(deployed, tmp_path)
    yield made
    made.stop()
    made.clear()


@pytest.fixture
def own_kubernetes(tmp_path: Path) -> Iterator[Cluster]:
    """A running API server of this test's own, to be stopped."""
    folder = tmp_path / "kubernetes"
    folder.mkdir()
    with cluster(folder) as made:
        yield made


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[str]:
    """The address of a private bus."""
    with private_bus(tmp_path) as address:
        yield address


@pytest.fixture
def node(kubernetes: Cluster, bus: str, tmp_path: Path) -> Iterator[Node]:
    """A node with kmodd on a simulated kernel, its agent not started yet."""
    with daemon(bus):
        yield new_node(kubernetes, bus, tmp_path)
