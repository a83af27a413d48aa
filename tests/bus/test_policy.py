# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the bus itself lets through to the service, by dbus/org.kmodd1.conf."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.bus.bench import Bench, bench
from tests.bus.buses import ROOT, PrivateBus, Reply

_OWN = """
import asyncio, os, sys
from kmodd.dbus.transport import RemoteError, Transport

if os.getuid() == 0:
    os.setresuid(65534, 65534, 65534)

async def main():
    transport = Transport(sys.argv[1])
    await transport.connect()
    try:
        await transport.own("org.kmodd1")
    except RemoteError as error:
        print(error.name)
    await transport.close()

asyncio.run(main())
"""


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as made:
        yield made


@pytest.mark.parametrize("interface", ["org.example.Other", "org.kmodd1.Module", ""])
async def test_only_named_interfaces_are_reached(service: Bench, interface: str) -> None:
    async with service.client(1000) as user:
        with pytest.raises(Reply, match="AccessDenied"):
            await user.call("GetHealth", interface=interface)
        assert await user.get("Version")
    assert not service.service.dispatcher.pending


async def test_a_call_without_interface_is_understood_where_the_bus_lets_it_through(tmp_path: Path) -> None:
    extra = '<allow send_destination="org.kmodd1"/>'
    async with bench(tmp_path, extra=extra) as service, service.client(0) as root:
        assert (await root.call("GetHealth", interface=""))["status"].value == "ok"
        for member in ("NoSuch", "Cancel"):
            with pytest.raises(Reply, match="UnknownMethod"):
                await root.call(member, interface="")


def test_only_root_owns_the_name(tmp_path: Path) -> None:
    # The other user has to reach the socket; pytest keeps its folders to itself.
    for folder in (tmp_path, *tmp_path.parents):
        if folder.name.startswith(("test_", "pytest-", "popen-")):
            folder.chmod(0o755)
    bus = PrivateBus(tmp_path, own=False)
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _OWN, bus.address], cwd=ROOT, capture_output=True, text=True, timeout=30
        )
        assert answer.stdout.strip() == "org.freedesktop.DBus.Error.AccessDenied", answer.stderr
    finally:
        bus.close()
