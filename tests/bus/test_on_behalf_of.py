# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whom the gateway asks for: written down beside every decision and deed, told to polkit, and believed of nobody else."""

import asyncio
import pwd
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kmodd.dbus.peers import Delegation
from tests.bus.bench import GATEWAY, Bench, bench
from tests.bus.buses import Reply
from tests.bus.test_store import give, module

BEHALF, REASON = "token backup", "the backup needs it"
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
    ("Configuration", "Reload", "a{sv}", (), "authorization.granted"),
    ("Manager", "SetParameter", "sssa{sv}", ("overlay", "redirect_max", "64"), "parameter.set"),
    ("Manager", "SetParameter", "sssa{sv}", ("overlay", "no_such", "64"), "operation.failed"),
    ("Manager", "ResetFailed", "sa{sv}", ("kmodd_test_nodev",), "failure.reset"),
    ("Store", "Remove", "ssa{sv}", ("special", "1.0"), "operation.failed"),
]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path, polkit_timeout=20.0) as made:
        made.kernel.modprobe("loop")
        made.kernel.modprobe("overlay")
        async with made.client(0) as root:
            with pytest.raises(Reply, match="NoDevice"):
                await root.call("Load", "sa{ss}", "kmodd_test_nodev", {})
        made.deeds.done.clear()
        await asyncio.sleep(0.05)
        yield made


@pytest.mark.parametrize(("interface", "member", "signature", "body", "event"), SPEAKING)
async def test_on_behalf_of_is_recorded_and_announced(
    service: Bench, interface: str, member: str, signature: str, body: tuple[Any, ...], event: str
) -> None:
    async with service.client(GATEWAY) as user:
        said = {"on-behalf-of": user.transport.variant("s", BEHALF)}
        if member != "GetHistory":
            said["reason"] = user.transport.variant("s", REASON)
        with suppress(Reply):
            await user.call(member, signature, *body, said, interface=f"org.kmodd1.{interface}")
        # The subject stays the connection.
        assert {sender for sender, *_ in service.polkit.asked} <= {user.name}
        assert {details["on-behalf-of"] for _, _, details, _ in service.polkit.asked} <= {BEHALF}
    for _ in range(200):  # a change is written down after it was answered
        told = [record for record in service.journal.records if record.event == event and record.uid == GATEWAY]
        if told:
            break
        await asyncio.sleep(0.01)
    assert told
    assert {record.on_behalf_of for record in told} == {BEHALF}
    assert {record.reason for record in told} == {"" if member == "GetHistory" else REASON}


@pytest.mark.parametrize(("interface", "member", "signature", "body", "event"), SPEAKING)
async def test_on_behalf_of_is_not_for_everyone(
    service: Bench, interface: str, member: str, signature: str, body: tuple[Any, ...], event: str
) -> None:
    """Another user could put a colleague's name beside what it did."""
    del event
    async with service.client(1000) as user:
        said = {"on-behalf-of": user.transport.variant("s", BEHALF)}
        with pytest.raises(Reply, match=r"AccessDenied|NoSuch"):
            await user.call(member, signature, *body, said, interface=f"org.kmodd1.{interface}")
    assert not service.polkit.asked
    assert {record.on_behalf_of for record in service.journal.records} <= {""}
    assert not service.deeds.done


def test_only_root_and_the_machines_own_users_of_these_names_speak(tmp_path: Path) -> None:
    passwd = tmp_path / "passwd"
    speakers = Delegation(passwd, "kmodd-gateway", "kmodd-agent")
    assert speakers(0), "root needs no entry"
    assert not speakers(997), "there is no file"
    passwd.write_text("root:x:0:0::/:/bin/sh\nkmodd-gateway-x:x:996:996::/:/x\nkmodd-gateway:x:997:997::/:/x\n")
    assert speakers(997), "the gateway was installed meanwhile"
    assert [uid for uid in (None, 1, 996, 998, 4_000_000_000) if speakers(uid)] == []
    passwd.with_name("new").write_text("kmodd-gateway:x:995:995::/:/x\nkmodd-gateway:x:997:997::/:/x\n")
    passwd.with_name("new").replace(passwd)
    assert speakers(995)
    assert not speakers(997), "the first entry counts, as for getpwnam(3)"
    passwd.with_name("new").write_text("kmodd-agent:x:60964:60964::/:/x\nkmodd-gateway:x:995:995::/:/x\n")
    passwd.with_name("new").replace(passwd)
    assert [uid for uid in (None, 0, 1, 995, 997, 60964) if speakers(uid)] == [0, 995, 60964]
    assert not Delegation(passwd, "kmodd-gateway")(60964), "the notifier has no business with the agent"


@pytest.mark.parametrize(
    "entry",
    ["", "+", "kmodd-gateway", "kmodd-gateway:x", "kmodd-gateway:x::", "kmodd-gateway:x:-1:", "+kmodd-gateway:x:997:"],
)
def test_an_invalid_entry_names_no_user(tmp_path: Path, entry: str) -> None:
    (tmp_path / "passwd").write_bytes(entry.encode() + b"\n\xff:x:997:\n")
    speakers = Delegation(tmp_path / "passwd", "kmodd-gateway", "kmodd-agent")
    assert [uid for uid in (None, 0, 997, -1) if speakers(uid)] == [0]


def test_no_name_service_is_queried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that is away blocks for seconds, and may call any of its users kmodd-gateway."""

    def directory(*_: object) -> pwd.struct_passwd:
        raise AssertionError("the name service was asked")

    for function in ("getpwuid", "getpwnam", "getpwall"):
        monkeypatch.setattr(pwd, function, directory)
    (tmp_path / "passwd").write_text("root:x:0:0::/:/bin/sh\n")
    assert not Delegation(tmp_path / "passwd", "kmodd-gateway", "kmodd-agent")(1000)


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
    """polkit is asked before the file is read and again when it is known; what the store refuses is recorded."""
    async with service.client(GATEWAY) as user:
        said = {"on-behalf-of": BEHALF}
        with pytest.raises(Reply, match="BadModule"):
            await give(user, b"no module", **said)
        name, version, _ = await give(user, module(), **said)
        behalf = {"on-behalf-of": user.transport.variant("s", BEHALF)}
        store = "org.kmodd1.Store"
        await user.call("Activate", "ssa{sv}", name, version, behalf, interface=store)
        await user.call("Deactivate", "sa{sv}", name, behalf, interface=store)
        removing = {**behalf, "dry-run": user.transport.variant("b", True)}
        await user.call("Remove", "ssa{sv}", name, version, removing, interface=store)
        assert len(await user.call("List", interface=store)) == 1
        await user.call("Remove", "ssa{sv}", name, version, behalf, interface=store)
        assert not await user.call("List", interface=store)
    store_asked = [details for _, _, details, _ in service.polkit.asked if details["action"] != "list"]
    assert [details["on-behalf-of"] for details in store_asked] == [BEHALF] * 7
    changes = ["operation.failed", "store.imported", "store.activated", "store.deactivated", "store.removed"]
    told = {
        record.event: record.on_behalf_of
        for record in service.journal.records
        if record.event in changes and record.uid == GATEWAY
    }
    assert told == dict.fromkeys(changes, BEHALF)
