# SPDX-License-Identifier: LGPL-2.1-or-later
"""The client on a real bus: many calls at once, big answers, deadlines, a bus or daemon that goes away, no leftovers."""

import asyncio
import gc
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Message
from dbus_next.aio import MessageBus

from kmodd import client as client_module
from kmodd.client import Client, Signal
from kmodd.client.connection import SIGNALS_MAX, SignalStream, error_from_reply
from kmodd.dbus.interface_xml import installed
from kmodd.errors import ERRORS, Evidence, Failed, InUse, InvalidArgs, NoSuchModule, Unavailable
from kmodd.model import Result, State, StepAction, User
from kmodd.model.settings import PROMPT_TIMEOUT_LIMIT, TIMEOUT_LIMIT
from tests.cli import samples
from tests.cli.fake_daemon import Call, FakeDaemon, Refusal, tagged_map
from tests.cli.private_bus import private_bus


@pytest.fixture
async def client(bus: str, fake: FakeDaemon) -> AsyncIterator[Client]:
    """Connected; checks that closing leaves no task behind."""
    async with await Client.connect(bus) as connected:
        yield connected
    assert asyncio.all_tasks() == {asyncio.current_task()}


def descriptors() -> int:
    """Open descriptors of this process."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


FAILED = {
    "module": "vfat", "action": "unload", "result": "failed", "changed": ["fat"], "error": "InUse",
    "message": "vfat is in use by 1 mount", "hint": "umount it", "errno": 11, "kernel-log": ["vfat: busy"], "holders": ["msdos"],
    "users": [{"kind": "mount", "name": "/mnt", "detail": "/dev/sda1"}], "file": "/etc/modprobe.d/a.conf", "line": 3,
    "rule": "options vfat x=1",
}  # fmt: skip


async def arrived(fake: FakeDaemon, member: str) -> None:
    """Wait for a call."""
    while not fake.asked(member):  # noqa: ASYNC110 - the daemon runs in another thread
        await asyncio.sleep(0.01)


async def test_answers_are_values_of_the_model(client: Client, fake: FakeDaemon) -> None:
    found = await client.explain("vfat")
    assert found.state is State.LIVE
    assert found.users[0] == User("mount", "/boot/efi", "/dev/vda15")
    assert found.loaded_by is not None
    assert found.loaded_by.reason == "mount the backup disk"
    steps = await client.plan([("load", "vfat", {})])
    assert [(step.action, step.module) for step in steps] == [(StepAction.INSERT, "fat"), (StepAction.INSERT, "vfat")]
    fake.answers["Batch", ""] = [FAILED]
    (result,) = await client.batch([("unload", "vfat", {})], atomic=False)
    assert (result.module, result.action, result.result, result.touched) == ("vfat", "unload", Result.FAILED, ("fat",))
    assert isinstance(result.error, InUse)
    assert result.error.message == "vfat is in use by 1 mount"
    assert result.error.evidence == Evidence(
        errno=11, hint="umount it", kernel_log=("vfat: busy",), holders=("msdos",), users=(User("mount", "/mnt", "/dev/sda1"),),
        file="/etc/modprobe.d/a.conf", line=3, rule="options vfat x=1",
    )  # fmt: skip
    assert (await client.describe("loop")).parameters[0].name == "max_loop"
    assert (await client.health()).facts.release == "6.1.0-18-amd64"
    assert [entry.record.event for entry in await client.history()] == ["module.loaded", "module.failed"]
    assert (await client.list_modules("all", "v*"))[0].name == "vfat"
    fake.answers["GetMetrics", ""] = [["kmodd_x", "gauge", {"b": "1", "a": "2"}, 0.5]]
    (metric,) = await client.metrics()
    assert metric.labels == (("a", "2"), ("b", "1"))
    assert (await client.properties())["Version"] == "0.1.0"
    assert (await client.module_properties("loop"))["Size"] == 40960


async def test_big_answers_at_once(client: Client, fake: FakeDaemon) -> None:
    rows = [{**samples.LOADED[0], "name": f"module_{number}", "holders": ["x" * 50] * 5} for number in range(300)]
    fake.answers["ListModules", ""] = rows
    answers = await asyncio.gather(*(client.list_modules() for _ in range(32)))
    assert all(len(answer) == 300 for answer in answers)


@pytest.mark.parametrize("size", [10, 3_000, 60_000])
async def test_more_calls_at_once_than_the_socket_takes(size: int, client: Client, fake: FakeDaemon) -> None:
    """dbus-next alone closes the connection when the socket's buffer is full."""
    fake.answers["SetParameter", "loop"] = lambda call: call.arguments[2][:5]
    held = await asyncio.gather(
        *(client.set_parameter("loop", "p", "v" * size) for _ in range(1000 if size < 9999 else 150))
    )
    assert set(held) == {"vvvvv"}


async def test_errors_are_rebuilt(client: Client, fake: FakeDaemon) -> None:
    with pytest.raises(InUse, match="vfat is used by 2 mounts"):
        await client.unload("vfat")
    with pytest.raises(NoSuchModule):
        await client.describe("nosuch")


def test_every_error_of_the_table_is_rebuilt_and_nothing_else() -> None:
    for name, error in ERRORS.items():
        assert type(error_from_reply(name, "x")) is error
    assert type(error_from_reply("org.example.Strange", "x")) is Failed
    for gone in ("ServiceUnknown", "NameHasNoOwner", "NoReply", "Disconnected", "Spawn.ChildExited", "TimedOut"):
        assert type(error_from_reply("org.freedesktop.DBus.Error." + gone, "x")) is Unavailable


async def test_options_are_sent_as_the_api_has_them(client: Client, fake: FakeDaemon) -> None:
    await client.load("vfat", dry_run=True, timeout=5, only_modules=("vfat", "fat"))
    assert fake.calls[-1].options == {"dry-run": True, "timeout": 5, "only-modules": ["vfat", "fat"]}
    await client.set_parameter("loop", "max_part", "2", reason="why", on_behalf_of="token x")
    assert fake.calls[-1].options == {"reason": "why", "on-behalf-of": "token x"}
    await client.health()
    assert fake.calls[-1].options == {}
    with pytest.raises(InvalidArgs, match="Load has no option nonsense"):
        await client.data("Load", "vfat", {}, options={"nonsense": True})
    with pytest.raises(InvalidArgs, match="GetHealth has no option reason"):
        await client.data("GetHealth", options={"reason": "x"})
    for value in (1 << 32, -1, "5"):
        with pytest.raises(InvalidArgs, match="the option timeout cannot be"):
            await client.data("Load", "vfat", {}, options={"timeout": value})


async def test_the_interactive_flag_is_only_on_what_may_ask(client: Client, fake: FakeDaemon) -> None:
    client.interactive = True
    await client.load("vfat")
    await client.explain("vfat")
    assert [(call.member, call.interactive) for call in fake.calls] == [("Load", True), ("Explain", False)]


async def test_a_call_that_is_never_answered_ends(
    client: Client, fake: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.answers["Explain", "vfat"] = None
    monkeypatch.setattr(client_module, "READ_TIMEOUT", 0.05)
    with pytest.raises(Unavailable, match=r"did not answer within 0\.05 seconds"):
        await client.explain("vfat")
    fake.answers["Explain", "vfat"] = samples.VFAT
    assert (await client.explain("vfat")).name == "vfat"


async def test_a_change_is_given_as_much_time_as_the_daemons_own_settings_can_give_it(client: Client) -> None:
    def deadline(member: str, arguments: tuple[object, ...]) -> float:
        return client._deadline(installed().method("org.kmodd1.Manager", member), arguments)

    assert deadline("Explain", ("x",)) == client_module.READ_TIMEOUT
    assert deadline("Load", ("x",)) > TIMEOUT_LIMIT
    assert deadline("Batch", ([1, 2, 3],)) > 3 * TIMEOUT_LIMIT
    client.interactive = True
    assert deadline("Load", ("x",)) > TIMEOUT_LIMIT + PROMPT_TIMEOUT_LIMIT


async def test_calls_under_way_end_when_the_daemon_leaves(bus: str) -> None:
    fake = FakeDaemon(bus, samples.answers())
    fake.answers["Load", "slow"] = None
    async with await Client.connect(bus) as client:
        with fake.running():
            task = asyncio.create_task(client.load("slow"))
            await arrived(fake, "Load")
        with pytest.raises(Unavailable):
            await task
        with pytest.raises(Unavailable, match="not running"):
            await client.load("vfat")


async def test_calls_and_streams_end_when_the_bus_leaves(tmp_path: Path) -> None:
    with private_bus(tmp_path) as address:
        fake = FakeDaemon(address, samples.answers())
        fake.answers["Load", "slow"] = None
        client = await Client.connect(address)
        with fake.running():
            task = asyncio.create_task(client.load("slow"))
            async with client.signals() as stream:
                await arrived(fake, "Load")
                client._transport._connection._sock.shutdown(socket.SHUT_RDWR)
                with pytest.raises(Unavailable, match="connection to the bus was lost"):
                    await task
                with pytest.raises(Unavailable):
                    await anext(aiter(stream))
        with pytest.raises(Unavailable, match="connection to the bus was lost"):
            await client.health()
        await client.close()


async def test_signals_of_the_daemon_arrive_in_order(client: Client, fake: FakeDaemon) -> None:
    async with client.signals() as stream:
        for number in range(300):
            fake.emit("ModuleAdded", "s", [f"m{number}"])
        seen = [await anext(stream) for _ in range(300)]
    assert [signal.arguments for signal in seen] == [(f"m{number}",) for number in range(300)]


async def test_only_the_owner_of_the_name_is_believed(client: Client, fake: FakeDaemon, bus: str) -> None:
    """Anyone on the bus may send a signal straight to our unique name."""
    liar = MessageBus(bus_address=bus)  # type: ignore[no-untyped-call, unused-ignore]
    await liar.connect()
    async with client.signals() as stream:
        forged = Message.new_signal("/org/kmodd1", "org.kmodd1.Manager", "ModuleAdded", "s", ["rootkit"])
        forged.destination = client.unique_name
        await liar.send(forged)
        await asyncio.sleep(0.05)
        fake.emit("ModuleAdded", "s", ["vfat"])
        assert (await anext(stream)).arguments == ("vfat",)
    liar.disconnect()
    await liar.wait_for_disconnect()
    liar._stream.close()
    liar._sock.close()


async def test_a_daemon_that_comes_later_is_believed(bus: str) -> None:
    async with await Client.connect(bus) as client, client.signals() as stream:
        fake = FakeDaemon(bus, samples.answers())
        with fake.running():
            fake.emit("ModuleAdded", "s", ["vfat"])
            first, second = await anext(stream), await anext(stream)
        third = await anext(stream)
    assert first.member == third.member == "NameOwnerChanged"
    assert third.arguments[2] == ""
    assert second.arguments == ("vfat",)


async def test_a_reader_that_does_not_keep_up_loses_the_oldest() -> None:
    stream = SignalStream()
    for number in range(SIGNALS_MAX + 5):
        stream.put(Signal("/", "i", "m", (number,)))
    assert stream.lost == 5
    assert (await anext(stream)).arguments == (5,)


async def test_failed_connections_leave_nothing_open(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        await Client.connect("unix:path=/nonexistent")
    before = descriptors()
    for address in (
        "unix:path=/nonexistent",
        "nonsense",
        "unix:abstract=kmodd-none",
        "bogus:x=y",
        f"unix:path={tmp_path}",
    ):
        with pytest.raises(Unavailable, match="cannot connect"):
            await Client.connect(address)
    assert descriptors() == before


@pytest.mark.parametrize("reply", [b"", b"REJECTED EXTERNAL\r\n", b"x" * 9000])
async def test_a_bus_that_ends_authentication(reply: bytes, tmp_path: Path) -> None:
    async def rude(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)
        await writer.drain()
        writer.close()

    path = os.fspath(tmp_path / "rude")
    server = await asyncio.start_unix_server(rude, path)
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable, match="cannot connect"):
            await Client.connect(f"unix:path={path}")
    server.close()
    await server.wait_closed()


async def test_many_connections_leave_nothing_open(bus: str, fake: FakeDaemon) -> None:
    async def once() -> None:
        async with await Client.connect(bus) as client, client.signals():
            await client.health()

    await once()
    before, tasks = descriptors(), asyncio.all_tasks()
    for _ in range(50):
        await once()
    assert descriptors() == before
    assert asyncio.all_tasks() == tasks


async def test_a_call_after_closing_is_refused(bus: str, fake: FakeDaemon) -> None:
    client = await Client.connect(bus)
    await client.close()
    await client.close()
    with pytest.raises(Unavailable):
        await client.health()


async def test_data_answers_as_on_the_bus(client: Client, fake: FakeDaemon) -> None:
    """Nested variants are gone, unknown keys of a newer daemon stay."""
    newer: dict[str, Any] = {**samples.VFAT, "hint": "new in version 2"}

    def answer(call: Call) -> dict[str, Any]:
        return newer

    fake.answers["Explain", "vfat"] = answer
    assert await client.data("Explain", "vfat") == newer
    assert set(tagged_map(newer)) == set(newer)
    fake.answers["Explain", "vfat"] = Refusal("org.kmodd1.Error.Busy", "later")


async def test_an_explanation_may_ask_for_the_right_to_see_more(client: Client, fake: FakeDaemon) -> None:
    client.interactive = True
    await client.data("Explain", "vfat", prompt=True)
    await client.explain("vfat", public=True)
    asked, public = fake.asked("Explain")
    assert (asked.interactive, asked.options) == (True, {})
    assert (public.interactive, public.options) == (False, {"public": True})
