# SPDX-License-Identifier: LGPL-2.1-or-later
"""A scripted `org.kmodd1` for tests of its clients: answers what it is told to, remembers what it was asked."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dbus_next import Message, MessageType, Variant
from dbus_next.aio import MessageBus

from kmodd.client.connection import _PatientSocket

MANAGER = "org.kmodd1.Manager"
PATH = "/org/kmodd1"

SIGNATURES = {
    "Load": "as",
    "Unload": "as",
    "Reload": "as",
    "Batch": "aa{sv}",
    "Plan": "aa{sv}",
    "SetParameter": "s",
    "Explain": "a{sv}",
    "Describe": "a{sv}",
    "ListModules": "aa{sv}",
    "GetHealth": "a{sv}",
    "GetMetrics": "a(ssa{ss}d)",
    "GetHistory": "aa{sv}",
    "ResetFailed": "",
    "Apply": "aa{sv}",
    "GetDrift": "aa{sv}",
    "Show": "aa{sv}",
    "GetAll": "a{sv}",
}
_TYPES = {
    "references": "i",
    "size": "t",
    "time": "t",
    "errno": "i",
    "uid": "u",
    "taint": "t",
    "operation": "u",
    "line": "u",
    "Size": "t",
    "References": "i",
    "LoadedAt": "t",
    "LoadDurationUSec": "t",
    "duration-usec": "t",
    "LoadedCount": "u",
    "pid": "u",
    "count": "u",
    "policy-line": "u",
    "parameters": "a(sssb)",
    "Parameters": "a{ss}",
    "checks": "aa{sv}",
    "findings": "aa{sv}",
    "Progress": "d",
}


@dataclass(frozen=True)
class Refusal:
    """An error to answer with."""

    name: str
    message: str
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Later:
    """An answer that takes its time."""

    seconds: float
    value: Any


@dataclass(frozen=True)
class Call:
    """A call that arrived."""

    member: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    interactive: bool
    sender: str
    evidence: str = ""
    """What an error's second argument is to be."""


Answer = Any
"""A value, a Refusal, or a function of the Call that gives either; None for a call that is never answered."""


def tagged(key: str, value: Any) -> Any:
    """The value as a variant of the type that the API gives this key."""
    if isinstance(value, str):
        return Variant("s", value)
    if isinstance(value, bool):
        return Variant("b", value)
    if isinstance(value, dict) and key != "Parameters":
        return Variant("a{sv}", tagged_map(value))
    if key in ("checks", "findings", "users"):
        return Variant("aa{sv}", [tagged_map(item) for item in value])
    if isinstance(value, list) and (key not in _TYPES or not value or isinstance(value[0], str)):
        return Variant("as", value)
    return Variant(_TYPES[key], value)


def tagged_map(data: dict[str, Any]) -> dict[str, Any]:
    """A map of variants."""
    return {key: tagged(key, value) for key, value in data.items()}


@dataclass
class FakeDaemon:
    """Runs in a thread, because kmodctl's main() brings its own event loop."""

    address: str
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    """By member and first argument where that is a string; ("Explain", "") answers every other one."""
    calls: list[Call] = field(default_factory=list)
    _loop: asyncio.AbstractEventLoop | None = None
    _bus: Any = None

    @contextmanager
    def running(self) -> Iterator["FakeDaemon"]:
        """Own the name while the block runs."""
        ready, stop = threading.Event(), asyncio.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready, stop)))
        thread.start()
        assert ready.wait(10)
        try:
            yield self
        finally:
            self.run(stop.set)
            thread.join(10)
            assert not thread.is_alive()

    def run(self, action: Callable[[], object]) -> None:
        """Run something on the daemon's loop."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(action)

    def emit(self, member: str, signature: str, body: list[Any], *, interface: str = MANAGER, path: str = PATH) -> None:
        """Send a signal."""
        message = Message.new_signal(path, interface, member, signature, body)
        self.run(lambda: self._bus.send(message))

    def asked(self, member: str) -> list[Call]:
        """Calls of one member, in order."""
        return [call for call in self.calls if call.member == member]

    async def _serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._bus = MessageBus(bus_address=self.address)
        await self._bus.connect()
        self._bus._writer.sock = _PatientSocket(self._bus._sock)  # the same cure as the client's
        self._bus.add_message_handler(self._handle)
        await self._bus.request_name("org.kmodd1")
        ready.set()
        await stop.wait()
        self._bus.disconnect()
        await self._bus.wait_for_disconnect()
        self._bus._stream.close()
        self._bus._sock.close()

    def _handle(self, message: Message) -> Message | None:
        if message.message_type is not MessageType.METHOD_CALL or message.member not in SIGNATURES:
            return None
        body = list(message.body)
        given = body.pop() if message.signature.endswith("a{sv}") else {}
        options = {name: value.value for name, value in given.items()}
        evidence = options.pop("evidence", "")
        call = Call(message.member, tuple(body), options, bool(message.flags.value & 4), message.sender, evidence)
        self.calls.append(call)
        first = message.path if call.member == "GetAll" else body[0] if body and isinstance(body[0], str) else ""
        answer = self.answers.get((call.member, first), self.answers.get((call.member, "")))
        if callable(answer):
            answer = answer(call)
        if isinstance(answer, Refusal):
            refused = Message.new_error(message, answer.name, answer.message)
            if evidence:
                refused.signature, refused.body = "sa{sv}", [answer.message, tagged_map(answer.evidence)]
            return refused
        signature = SIGNATURES[call.member]
        if not signature:
            return Message.new_method_return(message)
        if answer is None:
            return True  # type: ignore[return-value]  # the library takes True for "handled": no reply
        value: Any = answer.value if isinstance(answer, Later) else answer
        if signature == "a{sv}":
            value = tagged_map(value)
        elif signature == "aa{sv}":
            value = [tagged_map(row) for row in value]
        reply = Message.new_method_return(message, signature, [value])
        if isinstance(answer, Later):
            asyncio.get_running_loop().call_later(answer.seconds, self._bus.send, reply)
            return True  # type: ignore[return-value]  # as above
        return reply
