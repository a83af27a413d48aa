# SPDX-License-Identifier: LGPL-2.1-or-later
"""Leases over a real bus: the descriptor that is handed over keeps a module, and nothing else does."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from dbus_next import Message

from kmodd.client import Client
from kmodd.core.leases import SETTLE
from kmodd.errors import Builtin, Conflict, InUse, KmoddError, LimitsExceeded, NoSuchModule
from kmodd.kernel.simulated.modules import Fault
from kmodd.model import User
from kmodd.model.rules import DesiredModule, Presence
from kmodd.names import ModuleName
from tests.bus.bench import Bench, bench, record_of
from tests.bus.buses import MANAGER, NAME, PATH, Reply

VFAT = ModuleName("vfat")


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path, loaded=["loop"]) as made:
        yield made


@pytest.fixture
async def client(service: Bench) -> AsyncIterator[Client]:
    made = await Client.connect(service.bus.address)
    yield made
    await made.close()


@asynccontextmanager
async def held(client: Client, module: str, **parameters: str) -> AsyncIterator[int]:
    file = await client.hold(module, parameters)
    try:
        yield file
    finally:
        os.close(file)


async def until_gone(service: Bench, *names: str) -> None:
    for _ in range(200):
        if not set(names) & service.kernel.loaded.snapshot().keys():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{names} stay")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def is_loaded(service: Bench, name: str) -> bool:
    return name in service.kernel.loaded.snapshot()


async def test_a_module_is_there_while_it_is_held(service: Bench, client: Client) -> None:
    async with held(client, "vfat") as file:
        assert is_loaded(service, "vfat")
        assert is_loaded(service, "fat")
        assert not os.get_inheritable(file)
        await asyncio.sleep(0.1)
        assert is_loaded(service, "vfat")
    await until_gone(service, "vfat", "fat")
    assert record_of(service.journal, "lease.granted").module == "vfat"
    assert record_of(service.journal, "lease.ended").message == "vfat is not held any more: released"


async def test_it_stays_until_the_last_copy_of_the_last_lease_is_closed(service: Bench, client: Client) -> None:
    first, second = await client.hold("vfat"), await client.hold("vfat")
    copy = os.dup(first)
    os.close(first)
    os.close(second)
    await asyncio.sleep(0.1)
    assert is_loaded(service, "vfat")
    os.close(copy)
    await until_gone(service, "vfat", "fat")


async def test_a_holder_can_neither_write_nor_read_anything(client: Client) -> None:
    async with held(client, "vfat") as file:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(file, b"x")
        os.set_blocking(file, False)
        with pytest.raises(BlockingIOError):
            os.read(file, 1)


async def test_what_was_there_before_stays(service: Bench, client: Client) -> None:
    async with held(client, "loop"):
        pass
    await client.load("fat")
    async with held(client, "vfat"):
        pass
    await until_gone(service, "vfat")
    await asyncio.sleep(0.1)
    assert is_loaded(service, "loop")
    assert is_loaded(service, "fat")


async def test_what_is_loaded_without_a_lease_as_well_stays(service: Bench, client: Client) -> None:
    async with held(client, "vfat"):
        assert await client.load("vfat") == ()
    await asyncio.sleep(0.1)
    assert is_loaded(service, "vfat")


async def test_what_another_lease_needs_stays(service: Bench, client: Client) -> None:
    async with held(client, "fat"):
        async with held(client, "vfat"):
            pass
        await until_gone(service, "vfat")
        await asyncio.sleep(0.05)
        assert is_loaded(service, "fat")
    await until_gone(service, "fat")


async def test_nobody_unloads_what_is_held(service: Bench, client: Client) -> None:
    async with held(client, "vfat"):
        for call in (client.unload("vfat"), client.reload("vfat"), client.unload("fat", dependents=True)):
            with pytest.raises(InUse) as caught:
                await call
            assert caught.value.message == "vfat is in use by 1 lease"
            (user,) = caught.value.evidence.users
            assert (user.kind, user.name) == ("lease", "holder")
        assert is_loaded(service, "vfat")
    await until_gone(service, "vfat")


async def test_explain_names_the_holders(service: Bench, client: Client) -> None:
    async with held(client, "vfat"):
        found = await client.explain("vfat")
        (user,) = found.users
        assert (user.kind, user.name, user.pid, user.exe) == ("lease", "holder", 4711, "/usr/bin/4711")
        assert user.detail == "pid 4711, uid 0"
        assert found.removable is False
        assert found.free == ("kill 4711", "kmodctl unload vfat")
        async with service.client(1000) as other:
            service.polkit.mode = "deny"
            (row,) = (await other.call("Explain", "sa{sv}", "vfat", {}))["users"].value
            assert {key: value.value for key, value in row.items()} == {
                "kind": "lease",
                "name": "",
                "detail": "1 lease of other users",
                "count": 1,
            }


async def test_what_is_in_use_at_the_end_goes_when_something_happened(service: Bench, client: Client) -> None:
    async with held(client, "vfat"):
        service.kernel.hold("vfat", User("mount", "/mnt", "vfat"))
    await asyncio.sleep(0.1)
    assert is_loaded(service, "vfat")
    service.kernel.end_hang("vfat")
    await client.unload("loop")
    await asyncio.sleep(SETTLE)
    await until_gone(service, "vfat", "fat")
    failed = [record for record in service.journal.records if record.error == "InUse"]
    assert len(failed) == 1


async def test_when_it_goes_all_the_same_the_holder_reads_the_end(service: Bench, client: Client) -> None:
    async with held(client, "vfat") as file:
        service.kernel.rmmod("vfat")
        await asyncio.sleep(0.1)
        assert os.read(file, 1) == b""
    assert "unloaded by something other" in record_of(service.journal, "lease.ended").message


async def test_desired_state_and_leases_do_not_fight(service: Bench, client: Client) -> None:
    service.wishes[VFAT] = DesiredModule(VFAT, "/etc/kmodd/modules.d/x.toml", 3, Presence.ABSENT)
    with pytest.raises(Conflict) as caught:
        await client.hold("vfat")
    assert caught.value.message == "vfat is to be absent by /etc/kmodd/modules.d/x.toml, line 3"
    assert not is_loaded(service, "vfat")
    service.wishes[VFAT] = DesiredModule(VFAT, state=Presence.LOADED)
    async with held(client, "vfat"):
        pass
    await asyncio.sleep(0.1)
    assert is_loaded(service, "vfat")


@pytest.mark.parametrize(
    ("module", "parameters", "error"),
    [("nosuch", {}, NoSuchModule), ("kmodd_test_fail", {}, KmoddError), ("unix", {"a": "1"}, Builtin)],
)
async def test_what_cannot_be_loaded_cannot_be_held(
    service: Bench, client: Client, module: str, parameters: dict[str, str], error: type[KmoddError]
) -> None:
    service.kernel.fail_next("kmodd_test_fail", Fault(errno=5))
    before = descriptors()
    with pytest.raises(error):
        await client.hold(module, parameters)
    await service.settled()
    assert descriptors() <= before
    assert not [record for record in service.journal.records if record.event.startswith("lease.")]


async def test_the_limit_is_the_users_own(service: Bench, client: Client) -> None:
    files = [await client.hold("vfat") for _ in range(24)]
    with pytest.raises(LimitsExceeded, match="user 0 holds 24 leases, and 24 is the limit"):
        await client.hold("vfat")
    os.close(files.pop())
    await asyncio.sleep(0.05)
    files.append(await client.hold("vfat"))
    for file in files:
        os.close(file)
    await until_gone(service, "vfat")


async def test_polkit_is_asked_to_load_and_told_that_it_is_held(service: Bench) -> None:
    service.polkit.granted = frozenset()
    async with service.client(1000) as user:
        with pytest.raises(Reply) as refused:
            await user.call("Hold", "sa{ss}a{sv}", "vfat", {}, {})
    assert refused.value.name == "org.freedesktop.DBus.Error.AccessDenied"
    ((_, action, details, _),) = service.polkit.asked
    assert (action, details["action"], details["module"]) == ("org.kmodd1.load", "hold", "vfat")
    assert not is_loaded(service, "vfat")


async def test_a_caller_that_leaves_at_once_leaves_nothing_behind(service: Bench) -> None:
    for _ in range(20):
        async with service.client(1000) as user:
            user.throw(Message(NAME, PATH, MANAGER, "Hold", signature="sa{ss}a{sv}", body=["vfat", {}, {}]))
        await service.settled()
    await until_gone(service, "vfat", "fat")
