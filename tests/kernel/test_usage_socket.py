# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sockets and the modules of their protocols."""

import socket
from pathlib import Path

import pytest

from kmodd.kernel.usage_socket import SocketModules
from kmodd.names import ModuleName

FLAGS = "y  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n"


@pytest.fixture
def protocols(tmp_path: Path) -> SocketModules:
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/protocols").write_text(
        "protocol  size sockets  memory press maxhdr  slab module     cl co di ac io in de sh ss gs se re bi br ha uh gp em\n"
        f"UNIX-STREAM 1024   12  -1   NI       0   yes  faked-unix      {FLAGS}\n"
        f"UNIX      1024     12  -1   NI       0   yes  faked-unix      {FLAGS}\n"
        f"TWO WORDS 1024     12  -1   NI       0   yes  spaced      {FLAGS}\n"
        "broken\n"
    )
    return SocketModules(tmp_path)


def test_socket_is_known_by_its_protocol(protocols: SocketModules) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        link = Path(f"/proc/self/fd/{opened.fileno()}")
        assert protocols.protocol(link, ModuleName("faked_unix")) == "UNIX"
        assert protocols.protocol(link, ModuleName("spaced")) == ""
        assert protocols.protocol(link, ModuleName("absent")) == ""


def test_what_is_no_socket_has_no_protocol(protocols: SocketModules) -> None:
    assert protocols.protocol(Path("/proc/self/exe"), ModuleName("faked_unix")) == ""
    assert protocols.protocol(Path("/proc/self/fd/999"), ModuleName("faked_unix")) == ""
