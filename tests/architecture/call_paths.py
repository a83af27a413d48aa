# SPDX-License-Identifier: LGPL-2.1-or-later
"""Counts the files and the Python calls of kmodd that one request passes: `python -m tests.architecture.call_paths [-v]`.

The daemon runs in this process, on a private bus and on the simulated kernel without delays, and so does the gateway, beside a
daemon of its own. Clients and polkit are dbus-next alone, so that what is counted belongs to the program that serves. A call is
the start of a function, method, lambda, comprehension or coroutine of a file below `kmodd`; going on with a coroutine is none.
The simulated kernel stands for Linux and libkmod, and is left out with all that it calls.
What is counted ends when the client has the answer, or the signal.
"""

import asyncio
import dis
import io
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from dbus_next import Message, MessageType, Variant
from dbus_next.aio import MessageBus

ROOT = Path(__file__).resolve().parents[2]
SOURCES = f"{ROOT}/kmodd/"
SIMULATED = f"{SOURCES}kernel/simulated/"
VALUES = f"{SOURCES}fast_dataclass.py"
"""Comparison and hash of values: written by `dataclasses` for other classes, and no calls of kmodd there."""
NAME, PATH, MANAGER = "org.kmodd1", "/org/kmodd1", "org.kmodd1.Manager"
RESUME = dis.opmap["RESUME"]
ROUNDS = 15
"""The shortest counts: signals and records of the request before may come in between."""
USER = 1000
"""Of callers that are not root."""


@dataclass(frozen=True)
class CallPath:
    """What one request passed."""

    files: tuple[str, ...]
    calls: int
    listing: str
    """Every function with how often it was called, by file."""


class CallCounter:
    """Counts while `counting`."""

    def __init__(self) -> None:
        self._calls: Counter[CodeType] = Counter()

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(SOURCES) or frame.f_code.co_filename == VALUES:
            return
        caller: FrameType | None = frame
        while caller is not None and caller.f_code.co_filename.startswith(SOURCES):
            if caller.f_code.co_filename.startswith(SIMULATED):
                return
            caller = caller.f_back
        code = frame.f_code.co_code
        # A frame that goes on after `yield` or `await` stands at a RESUME with an argument (dis, RESUME).
        if frame.f_lasti < 0 or code[frame.f_lasti] != RESUME or code[frame.f_lasti + 1] & 3 == 0:
            self._calls[frame.f_code] += 1

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what all threads that are started from now on do, and this one."""
        self._calls.clear()
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    @property
    def path(self) -> CallPath:
        """What was counted."""
        files = {code.co_filename.removeprefix(SOURCES) for code in self._calls}
        rows = [(code.co_filename.removeprefix(SOURCES), code.co_qualname, n) for code, n in self._calls.items()]
        listing = "\n".join(f"{n:5} {file} {name}" for file, name, n in sorted(rows))
        return CallPath(tuple(sorted(files)), self._calls.total(), listing)


class Caller:
    """A client on dbus-next."""

    def __init__(self, address: str) -> None:
        self._bus = MessageBus(address)
        self._signals: asyncio.Queue[str] = asyncio.Queue()

    async def connect(self) -> None:
        """Connect and listen to the service."""
        await self._bus.connect()
        self._bus.add_message_handler(self._on_message)
        rule = f"type='signal',sender='{NAME}'"
        await self.call("AddMatch", "s", rule, destination="org.freedesktop.DBus", path="/org/freedesktop/DBus")

    async def call(
        self, member: str, signature: str, *body: Any, destination: str = NAME, path: str = PATH, interface: str = ""
    ) -> Any:
        """The reply's body."""
        interface = interface or (MANAGER if destination == NAME else destination)
        message = Message(destination, path, interface, member, signature=signature, body=list(body))
        reply = await self._bus.call(message)
        assert reply is not None
        if reply.message_type is MessageType.ERROR:
            raise AssertionError(f"{member}: {reply.error_name}: {reply.body}")
        return reply.body

    async def signal(self, member: str) -> None:
        """Wait for a signal that was not waited for yet."""
        async with asyncio.timeout(20):
            while await self._signals.get() != member:
                pass

    def forget(self) -> None:
        """Wait only for signals from now on."""
        while not self._signals.empty():
            self._signals.get_nowait()

    def close(self) -> None:
        """Leave the bus."""
        self._bus.disconnect()

    def _on_message(self, message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and message.interface == MANAGER:
            self._signals.put_nowait(str(message.member))


async def polkit(address: str) -> MessageBus:
    """An authority that allows everything."""
    bus = await MessageBus(address).connect()

    def answer(message: Message) -> Message | None:
        if message.message_type is MessageType.METHOD_CALL and message.member == "CheckAuthorization":
            return Message.new_method_return(message, "(bba{ss})", [[True, False, {}]])
        return None

    bus.add_message_handler(answer)
    await bus.request_name("org.freedesktop.PolicyKit1")
    return bus


@asynccontextmanager
async def daemon_in_process(address: str) -> AsyncIterator[Any]:
    """kmodd itself, asking polkit, with callers that are not root; its simulated kernel is the answer."""
    from kmodd.api import service
    from kmodd.daemon import daemon
    from kmodd.dbus.polkit import Polkit
    from kmodd.dbus.transport import Transport
    from kmodd.journal.writer import Threshold, connect, make_logger
    from kmodd.kernel.simulated.kernel import SimulatedKernel
    from kmodd.startup.options import Settings
    from kmodd.startup.sd_notify import SdNotify

    kernel = SimulatedKernel(pace=0.0)
    users: dict[str, int] = {}

    async def credentials(sender: str) -> tuple[int, int]:
        return users.get(sender, 0), os.getpid()

    transport = Transport(address)
    await transport.connect()
    patched: Any = (daemon, service)
    patched[0].simulated_kernel = lambda: kernel
    patched[0].InsecureSameUserAuthority = lambda _: Polkit(transport, speakers=lambda uid: uid == 0)
    patched[1].ask_credentials = lambda _: credentials
    logger = make_logger(connect({}, io.StringIO()))
    serving = asyncio.create_task(
        daemon.Daemon(Settings(simulate=True), transport, SdNotify({}), logger, Threshold()).serve()
    )
    await asyncio.sleep(0.5)
    try:
        yield kernel, users
    finally:
        os.kill(os.getpid(), 15)
        await serving
        await transport.close()


async def count_daemon(address: str, counter: CallCounter, found: dict[str, CallPath]) -> None:
    """`Load` by root and by a user whom polkit allows it, and a module that somebody else loads."""
    authority = await polkit(address)
    async with daemon_in_process(address) as (kernel, users):
        for name, uid in (("load", 0), ("load as a user", USER)):
            caller = Caller(address)
            await caller.connect()
            users[str(caller._bus.unique_name)] = uid
            for _ in range(ROUNDS):  # the first call of a connection identifies it
                with counter.counting():
                    assert await caller.call("Load", "sa{ss}a{sv}", "vfat", {}, {}) == [["fat", "vfat"]]
                await asyncio.sleep(0.3)
                await caller.call("Unload", "sa{sv}", "vfat", {"unused-dependencies": Variant("b", True)})
                await asyncio.sleep(0.3)
                _found(name, counter, found)
            caller.close()
        listener = Caller(address)
        await listener.connect()
        for _ in range(ROUNDS):
            listener.forget()
            with counter.counting():
                kernel.insmod("dummy")
                await listener.signal("ModuleAdded")
            await asyncio.sleep(0.3)
            kernel.rmmod("dummy")
            await asyncio.sleep(0.3)
            _found("uevent", counter, found)
        listener.close()
    authority.disconnect()


async def count_gateway(address: str, folder: Path, counter: CallCounter, found: dict[str, CallPath]) -> None:
    """`POST /module/load/loop`, in the process of the gateway alone."""
    from kmodd import tokens
    from kmodd.gateway import main, settings
    from kmodd.gateway.http.listener import listen
    from kmodd.journal.writer import connect, make_logger
    from kmodd.startup.sd_notify import SdNotify

    path = folder / "http"
    (folder / "gateway.toml").write_text(f'tokens = "{folder / "tokens"}"\nlisten = ["{path}"]\n[limits]\nrate = 0\n')
    made, secret = tokens.make("root", ("admin",), (), int(time.time()), 3600)
    with tokens.TokenFile(folder / "tokens", lambda: None).changing() as known:
        known[made.id] = made
    configured = settings.read(folder / "gateway.toml")
    logger = make_logger(connect({}, io.StringIO()))
    listening = listen(configured.listen)
    serving = asyncio.create_task(main.run(configured, listening, address, logger, SdNotify({})))
    for _ in range(ROUNDS):
        reader, writer = await asyncio.open_unix_connection(path)
        await _ask(reader, writer, secret, "unload")
        with counter.counting():
            await _ask(reader, writer, secret, "load")
        writer.close()
        _found("post", counter, found)
    os.kill(os.getpid(), 15)
    await serving


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: str, verb: str) -> None:
    writer.write(
        f"POST /module/{verb}/loop HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secret}\r\n"
        "Content-Length: 0\r\n\r\n".encode()
    )
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = next(line for line in head.split("\r\n") if line.startswith("content-length:"))
    body = await reader.readexactly(int(length.partition(":")[2]))
    assert " 200 " in head.split("\r\n")[0] or verb == "unload", (head, body)


def _found(name: str, counter: CallCounter, found: dict[str, CallPath]) -> None:
    path = counter.path
    if name not in found or path.calls < found[name].calls:
        found[name] = path


def main() -> None:
    """Count, and print a JSON object: name of the request to its files and its number of calls.

    With `-v` a list of all functions comes before, each with how often it was called.
    """
    from tests.bus.buses import PrivateBus
    from tests.gateway.processes import daemon

    counter = CallCounter()
    found: dict[str, CallPath] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bus = PrivateBus(folder)
        try:
            asyncio.run(count_daemon(bus.address, counter, found))
            with daemon(bus.address):
                asyncio.run(count_gateway(bus.address, folder, counter, found))
        finally:
            bus.close()
    if "-v" in sys.argv:
        for name, path in found.items():
            print(f"--- {name}: {len(path.files)} files, {path.calls} calls\n{path.listing}")
    print(json.dumps({name: {"files": path.files, "calls": path.calls} for name, path in found.items()}))


if __name__ == "__main__":
    main()
