# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whom the gateway asks for: written down beside every decision and deed, told to polkit, and believed of nobody else."""

import asyncio
import pwd
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from kmodd.bus.speakers import root_and_gateway
from tests.bus.bench import GATEWAY, Bench, bench
from tests.bus.buses import Reply
from tests.bus.test_store import give, module

BEHALF = "token backup"
SPEAKING: list[tuple[str, str, str, tuple[Any, ...], str]] = [
    ("Manager", "Load", "sa{ss}a{sv}", ("dummy", {}), "module.loaded"),
    ("Manager", "Load", "sa{ss}a{sv}", ("kmodd_test_fail", {}), "operation.failed"),
    ("Manager", "Load", "sa{ss}a{sv}", ("no_such_thing", {}), "operation.failed"),
    ("Manager", "Unload", "sa{sv}", ("loop",), "module.unloaded"),
    ("Manager", "Batch", "a(ssa{ss})a{sv}", ([["load", "dummy", {}]],), "module.loaded"),
    ("Manager", "GetHistory", "a{sv}", (), "authorization.granted"),
    ("Configuration", "SetAutoload", "sba{ss}a{sv}", ("overlay", True, {}), "configuration.changed"),
    ("Configuration", "SetOptions", "sa{ss}a{sv}", ("overlay", {"redirect_max": "64"}), "configuration.changed"),
    ("Configuration", "SetBlacklisted", "sba{sv}", ("vfat", True), "configuration.changed"),
    ("Configuration", "Apply", "a{sv}", (), "authorization.granted"),
]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path, polkit_timeout=0.1) as made:
        made.kernel.modprobe("loop")
        await asyncio.sleep(0.05)
        yield made


@pytest.mark.parametrize(("interface", "member", "signature", "body", "event"), SPEAKING)
async def test_whom_the_gateway_asks_for_is_written_down_and_told(
    service: Bench, interface: str, member: str, signature: str, body: tuple[Any, ...], event: str
) -> None:
    async with service.client(GATEWAY) as user:
        said = {"on-behalf-of": user.transport.variant("s", BEHALF)}
        with suppress(Reply):
            await user.call(member, signature, *body, said, interface=f"org.kmodd1.{interface}")
        # The subject stays the connection.
        assert {sender for sender, *_ in service.polkit.asked} <= {user.name}
        assert {details["on-behalf-of"] for _, _, details, _ in service.polkit.asked} <= {BEHALF}
    for _ in range(200):  # a change is written down after it was answered
        told = [record for record in service.journal.records if record.event == event]
        if told:
            break
        await asyncio.sleep(0.01)
    assert told
    assert {(record.uid, record.on_behalf_of) for record in told} == {(GATEWAY, BEHALF)}


@pytest.mark.parametrize(("interface", "member", "signature", "body", "event"), SPEAKING)
async def test_nobody_else_says_for_whom_they_ask(
    service: Bench, interface: str, member: str, signature: str, body: tuple[Any, ...], event: str
) -> None:
    """Another user could put a colleague's name beside what it did."""
    del event
    async with service.client(1000) as user:
        said = {"on-behalf-of": user.transport.variant("s", BEHALF)}
        with pytest.raises(Reply, match=r"AccessDenied|NoSuchModule"):
            await user.call(member, signature, *body, said, interface=f"org.kmodd1.{interface}")
    assert not service.polkit.asked
    assert {record.on_behalf_of for record in service.journal.records} <= {""}
    assert not service.deeds.done


async def test_who_has_no_name_speaks_for_nobody() -> None:
    assert root_and_gateway(0)
    assert not root_and_gateway(None)
    assert not root_and_gateway(4_000_000_000)
    nobody = pwd.getpwnam("nobody").pw_uid
    assert not root_and_gateway(nobody)
    with patch("kmodd.bus.speakers.GATEWAY", "nobody"):
        assert root_and_gateway(nobody)


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[1m", "x" * 257])
async def test_whom_a_caller_asks_for_is_one_short_line(service: Bench, text: str) -> None:
    async with service.client(GATEWAY) as user:
        for member, signature, *body in (
            ("Load", "sa{ss}a{sv}", "dummy", {}),
            ("SetBlacklisted", "sba{sv}", "vfat", True),
        ):
            said = {"on-behalf-of": user.transport.variant("s", text)}
            interface = "org.kmodd1.Configuration" if member == "SetBlacklisted" else "org.kmodd1.Manager"
            with pytest.raises(Reply, match="InvalidArgs"):
                await user.call(member, signature, *body, said, interface=interface)
    assert not service.polkit.asked


async def test_whom_a_file_came_from(service: Bench) -> None:
    """The store finds out what the file is before polkit is asked, and records what it refuses."""
    async with service.client(GATEWAY) as user:
        said = {"on-behalf-of": BEHALF}
        with pytest.raises(Reply, match="BadModule"):
            await give(user, b"no module", **said)
        name, version, _ = await give(user, module(), **said)
        behalf = {"on-behalf-of": user.transport.variant("s", BEHALF)}
        store = "org.kmodd1.Store"
        await user.call("Activate", "ssa{sv}", name, version, behalf, interface=store)
        await user.call("Deactivate", "sa{sv}", name, behalf, interface=store)
    assert [details["on-behalf-of"] for _, _, details, _ in service.polkit.asked] == [BEHALF] * 3
    changes = ["operation.failed", "store.imported", "store.activated", "store.deactivated"]
    told = {record.event: record.on_behalf_of for record in service.journal.records if record.event in changes}
    assert told == dict.fromkeys(changes, BEHALF)
