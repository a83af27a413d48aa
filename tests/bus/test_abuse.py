# SPDX-License-Identifier: LGPL-2.1-or-later
"""What callers may send without anyone else noticing: afterwards everything is as it was."""

import asyncio
import gc
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from struct import pack_into
from typing import Any

import pytest
from dbus_next import Message, MessageFlag, MessageType, Variant
from dbus_next.signature import SignatureTree

from kmodd.core.registry import SETTLE
from tests.bus.bench import Bench, bench
from tests.bus.buses import MANAGER, NAME, PATH, ROOT, Client, Reply

PROPERTIES = "org.freedesktop.DBus.Properties"
NAMES = [
    "", "-", "--", "-r", ".", "..", "a/b", "./x", "/etc/passwd", "x.ko", "x" * 56, "x" * 4096, "a\nb", "$(id)",
    "%s%n", "*", "módulo", "\u202emodule", "\x1b[31mred", " dummy", "dummy ", "dum my", "1 other=2",
]  # fmt: skip
ALIASES = {"a/b", "x.ko", "dummy ", "dum my", "1 other=2"}
"""Names that an alias may have, where one is accepted: then it leads nowhere."""
VALUES = ['a"b', "a\nb", "x" * 4097, "x" * 1025, "ends\\", "\x1b[2J", "\u202e"]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as made:
        yield made


@pytest.fixture
async def user(service: Bench) -> AsyncIterator[Client]:
    async with service.client(1000) as client:
        yield client


@contextmanager
def nothing_left(service: Bench, *, megabytes: float = 12.0) -> Iterator[None]:
    """Descriptors, tasks and memory of this process (the service and its clients) are where they were."""
    gc.collect()
    descriptors, tasks, memory = _descriptors(), len(asyncio.all_tasks()), _resident()
    yield
    gc.collect()
    assert _descriptors() == descriptors
    assert len(asyncio.all_tasks()) <= tasks
    assert _resident() - memory < megabytes
    assert service.transport.connected


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def message(member: str = "ListModules", signature: str = "a{sv}", *body: Any, **header: Any) -> Message:
    fields: dict[str, Any] = {"path": PATH, "interface": MANAGER} | header
    return Message(NAME, member=member, signature=signature, body=list(body) or [{}], **fields)


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
async def test_bad_names_are_refused_everywhere(service: Bench, user: Client, name: str) -> None:
    calls: list[tuple[str, str, tuple[Any, ...]]] = [
        ("Load", "sa{ss}a{sv}", (name, {}, {})),
        ("Unload", "sa{sv}", (name, {})),
        ("Reload", "sa{ss}a{sv}", (name, {}, {})),
        ("Batch", "a(ssa{ss})a{sv}", ([["load", name, {}]], {})),
        ("Plan", "a(ssa{ss})a{sv}", ([["unload", name, {}]], {})),
        ("SetParameter", "sss", (name, "max_part", "1")),
        ("SetParameter", "sss", ("loop", name or "=", "1\n")),
        ("Explain", "sa{sv}", (name, {})),
        ("Describe", "s", (name,)),
        ("ResetFailed", "s", (name,)),
        ("GetHistory", "a{sv}", ({"module": Variant("s", name)},)),
    ]
    for member, signature, body in calls:
        with pytest.raises(Reply) as refused:
            await user.call(member, signature, *body)
        if name in ALIASES and (member in ("Load", "Describe") or (member == "Batch" and body[0][0][0] == "load")):
            assert refused.value.name == "org.kmodd1.Error.NoSuchModule", member
            # In quotes where a shell would split it.
            assert f"o module {quote(name)} for kernel" in refused.value.message
            continue
        assert refused.value.name == "org.freedesktop.DBus.Error.InvalidArgs", member
        assert not name.strip() or len(name) < 3 or name not in refused.value.message
    assert not service.polkit.asked


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
async def test_bad_values_are_refused_everywhere(service: Bench, user: Client, value: str) -> None:
    calls: list[tuple[str, str, tuple[Any, ...]]] = [
        ("Load", "sa{ss}a{sv}", ("dummy", {"numdummies": value}, {})),
        ("SetParameter", "sss", ("loop", "max_part", value)),
        ("Load", "sa{ss}a{sv}", ("dummy", {}, {"reason": Variant("s", value)})),
    ]
    for member, signature, body in calls[: 2 if value in {'a"b', "ends\\"} else 3]:
        with pytest.raises(Reply, match="InvalidArgs"):
            await user.call(member, signature, *body)
    assert not service.polkit.asked


@pytest.mark.parametrize(
    "options",
    [
        {"dry-run": Variant("s", "yes")},
        {"Dry-Run": Variant("b", True)},
        {"timeout": Variant("u", 0)},
        {"timeout": Variant("u", 601)},
        {"timeout": Variant("t", 5)},
        {"dependents": Variant("b", True)},
        {"reason": Variant("as", ["a"])},
        {"reason": Variant("v", Variant("v", Variant("s", "deep")))},
        {str(number): Variant("b", True) for number in range(65)},
    ],
    ids=range(9),
)
async def test_options_are_a_typed_list(user: Client, options: dict[str, Variant]) -> None:
    with pytest.raises(Reply, match="InvalidArgs"):
        await user.call("Load", "sa{ss}a{sv}", "dummy", {}, options)


async def test_wrong_addresses_get_the_specifications_errors(service: Bench, user: Client) -> None:
    async with service.client(0) as root:
        for client in (user, root):
            for error, arguments in (
                ("UnknownObject", {"path": "/org/kmodd1/module/nosuch"}),
                ("UnknownObject", {"path": "/org/kmodd1/module/_6coop"}),
                ("UnknownObject", {"path": "/org/kmodd1/module/_2e_2e_2fx"}),
                ("UnknownObject", {"path": "/org/kmodd1/job/00"}),
                ("UnknownObject", {"path": "/org/kmodd1/job/99999999999999999999"}),
                ("UnknownInterface", {"interface": "org.kmodd1.Job"}),
                ("UnknownMethod", {"member": "NoSuch"}),
                ("InvalidArgs", {"signature": "s", "body": ["x"]}),
                ("InvalidArgs", {"signature": "a{ss}", "body": [{}]}),
                ("InvalidArgs", {"member": "Load", "signature": "", "body": []}),
            ):
                fields = {"member": "ListModules", "signature": "a{sv}", "body": [{}], **arguments}
                with pytest.raises(Reply, match=error):
                    await client.call(
                        str(fields["member"]), str(fields["signature"]), *fields["body"],
                        path=str(fields.get("path", PATH)), interface=str(fields.get("interface", MANAGER)),
                    )  # fmt: skip


async def test_descriptors_are_closed_whatever_they_came_with(service: Bench, user: Client) -> None:
    kinds = [
        message("NoSuch", "ah", list(range(16))),
        message("Load", "sa{ss}a{sv}", "dummy", {}, {}),
        message("Get", "ss", MANAGER, "Version", interface=PROPERTIES),
        message("PropertiesChanged", "s", "x", interface=PROPERTIES, message_type=MessageType.SIGNAL),
        message("Ping", "h", 0, interface="org.freedesktop.DBus.Peer", flags=MessageFlag.NO_REPLY_EXPECTED),
    ]
    service.polkit.mode = "deny"
    await user.get("Version")
    with nothing_left(service):
        for index in range(1000):
            await user.throw_descriptors(kinds[index % len(kinds)], 16)
            if index % 50 == 0:
                await user.get("Version")
        await user.get("Version")
        await service.settled()


async def test_callers_that_hang_up_leave_nothing(service: Bench) -> None:
    service.polkit.mode = "hang"

    async def hit_and_run(index: int) -> None:
        client = Client(service.bus.address)
        await client.transport.connect()
        service.users[client.name] = 1000 + index % 100
        client.throw(message("Load", "sa{ss}a{sv}", "dummy", {}, {}))
        client.throw(message("Explain", "sa{sv}", "loop", {}))
        await client.close()

    async with service.client(0) as root:
        await root.get("Version")
        with nothing_left(service):
            for start in range(0, 1000, 20):
                await asyncio.gather(*(hit_and_run(index) for index in range(start, start + 20)))
            await root.get("Version")
            await service.settled()
            for _ in range(100):
                if service.quota.idle and len(service.service.callers) == 1:
                    break
                await asyncio.sleep(0.01)
        assert service.quota.idle
        assert len(service.service.callers) == 1
        assert not service.deeds.done
    assert not service.polkit.open


@pytest.mark.parametrize("size", [70_000, 20 << 20])
async def test_a_huge_string_is_refused_unread(service: Bench, user: Client, size: int) -> None:
    await user.get("Version")
    with pytest.raises(Reply, match=r"InvalidArgs.*64 KiB"):
        await user.call("Load", "sa{ss}a{sv}", "x" * size, {}, {})
    assert len(service.transport._bus._buffer) < 1 << 20
    assert await user.get("Version")


async def test_two_million_elements_are_refused_unread(user: Client) -> None:
    body = b"\0" * (8 << 20)
    thrown = message("Plan", "a(ssa{ss})a{sv}", [], {})
    thrown.serial = user.transport.next_serial()
    thrown.signature, thrown.signature_tree, thrown.body = "ay", SignatureTree._get("ay"), [body]
    user.transport.send(bytes(thrown._marshall()))
    assert await user.get("Version")


async def test_an_unknown_kind_of_message_is_ignored(user: Client) -> None:
    thrown = message()
    thrown.serial = user.transport.next_serial()
    data = bytearray(thrown._marshall())
    pack_into("<B", data, 1, 9)
    user.transport.send(bytes(data))
    assert await user.get("Version")


async def test_odd_signatures_are_not_remembered(service: Bench, user: Client) -> None:
    known = len(SignatureTree._cache)
    template = message("Load", "s", "x")
    for number in range(5000):
        signature = "".join("ynqiuxtd"[(number >> shift) & 7] for shift in range(0, 15, 3)) + "s"
        template.signature, template.body = signature, [0.0 if code == "d" else 0 for code in signature[:5]] + ["x"]
        template.flags = MessageFlag.NO_REPLY_EXPECTED
        user.throw(template)
        if number % 200 == 0:  # one connection may have 256 calls waiting
            mine = len(SignatureTree._cache)  # the client's own marshalling fills the same cache
            await user.get("Version")
            assert len(SignatureTree._cache) <= max(mine, 300)
    del known
    assert await user.get("Version")


async def test_unexpected_replies_are_dropped(service: Bench, user: Client) -> None:
    for index in range(200):
        user.throw(
            Message(service.transport.unique_name, message_type=MessageType.METHOD_RETURN, reply_serial=index + 1)
        )
    assert await user.get("Version")


async def test_three_hundred_signals_in_a_burst_arrive(service: Bench, user: Client) -> None:
    await user.listen()
    names = [name for name in service.kernel.index.available() if name not in service.registry]
    for _ in range(300 // len(names) + 1):
        for name in names:
            if service.kernel.loaded.read(name) is None:
                with suppress(OSError):  # some of the catalogue's fail on purpose
                    service.kernel.modprobe(name)
        await asyncio.sleep(3 * SETTLE)
        await service.settled()
        for name in reversed([one for one in service.registry.names() if one in names]):
            if service.kernel.loaded.read(name) is not None and not service.kernel.loaded.read(name).holders:  # type: ignore[union-attr]
                with suppress(OSError):
                    service.kernel.rmmod(name)
        await asyncio.sleep(3 * SETTLE)
        await service.settled()
    await user.get("Version")
    assert len(user.heard("ModuleAdded")) + len(user.heard("ModuleRemoved")) >= 300
    assert len(user.heard("InterfacesAdded")) == len(user.heard("ModuleAdded"))
    assert len(user.heard("InterfacesRemoved")) == len(user.heard("ModuleRemoved"))


async def test_many_big_answers_at_once(service: Bench) -> None:
    async with service.client(0) as root:
        everything = {"state": Variant("s", "all")}
        answers = await asyncio.gather(*(root.call("ListModules", "a{sv}", everything) for _ in range(32)))
        assert len({len(answer) for answer in answers}) == 1
        answers = await asyncio.gather(
            *(root.call("GetManagedObjects", interface="org.freedesktop.DBus.ObjectManager") for _ in range(64))
        )
        assert all(answers)


async def test_one_users_flood_does_not_slow_another(service: Bench, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bus.flood", service.bus.address, "50",
        cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        for _ in range(50):
            service.users[(await process.stdout.readline()).decode().strip()] = 1000
        process.stdin.write(b"go\n")
        await asyncio.sleep(1.0)
        slowest, pending = 0.0, 0
        async with service.client(1001) as other:
            for _ in range(20):
                begun = time.monotonic()
                await other.call("Plan", "a(ssa{ss})a{sv}", [["load", "dummy", {}]], {})
                slowest = max(slowest, time.monotonic() - begun)
                pending = max(pending, service.service.dispatcher.pending)
                await asyncio.sleep(0.02)
        assert slowest < 1.0
        assert pending > 100
    finally:
        process.kill()
        await process.communicate()
    await service.settled()


async def test_losing_the_bus_is_reported_once(service: Bench) -> None:
    lost: list[BaseException | None] = []
    service.transport.on_lost = lost.append
    service.bus.close()
    for _ in range(100):
        await asyncio.sleep(0.01)
        if lost:
            break
    assert len(lost) == 1
    assert not service.transport.connected
