# SPDX-License-Identifier: LGPL-2.1-or-later
"""Answers calls on a bus name of our own. The only file of the notifier that knows dbus-next."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from dbus_next import Message, MessageFlag, MessageType, NameFlag, RequestNameReply, Variant

from kmodd.client_transport import Transport, plain
from kmodd.errors import INTERNAL, Failed, KmoddError, LimitsExceeded, Unavailable

IN_FLIGHT_MAX = 64
PER_SENDER_MAX = 8
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"

Answer = tuple[str, list[Any]]
"""Signature and values of a reply."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """One call."""

    sender: str
    """The caller's unique name, which the bus vouches for."""
    member: str
    signature: str
    body: list[Any]
    """Values without variants."""
    interactive: bool
    """The caller allows a password prompt."""


Handler = Callable[[Incoming], Awaitable[Answer]]
"""Raises KmoddError."""


def variants(values: dict[str, tuple[str, Any]]) -> dict[str, Variant]:
    """A map for `a{sv}` from names to (signature, value)."""
    return {name: Variant(signature, value) for name, (signature, value) in values.items()}


class BusName:
    """One name, one object, one interface."""

    def __init__(self, transport: Transport, path: str, interface: str, introspection: str, handler: Handler) -> None:
        self._connection = transport.connection
        self._path = path
        self._interface = interface
        self._introspection = introspection
        self._handler = handler
        self._tasks: dict[asyncio.Task[None], str] = {}

    async def own(self, name: str) -> None:
        """Take the name and answer from now on; Unavailable when somebody else has it."""
        self._connection.add_message_handler(self._on_message)
        reply = await self._connection.request_name(name, NameFlag.DO_NOT_QUEUE)
        if reply not in (RequestNameReply.PRIMARY_OWNER, RequestNameReply.ALREADY_OWNER):
            raise Unavailable(f"the name {name} on the bus is taken: another notifier is running")

    async def close(self) -> None:
        """Answer no more; calls under way end without a reply."""
        self._connection.remove_message_handler(self._on_message)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_message(self, message: Message) -> bool | Message:
        if message.message_type is not MessageType.METHOD_CALL or message.path != self._path:
            return False
        if message.interface == INTROSPECTABLE and message.member == "Introspect":
            return Message.new_method_return(message, "s", [self._introspection])
        if message.interface not in (self._interface, None):
            return False
        sender = str(message.sender)
        mine = sum(one == sender for one in self._tasks.values())
        if len(self._tasks) >= IN_FLIGHT_MAX or mine >= PER_SENDER_MAX:
            error = LimitsExceeded("too many calls at once")
            return Message.new_error(message, error.bus_name(), error.message)
        task = asyncio.get_running_loop().create_task(self._answer(message))
        self._tasks[task] = sender
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return True

    async def _answer(self, message: Message) -> None:
        try:
            call = Incoming(
                sender=str(message.sender),
                member=message.member,
                signature=message.signature,
                body=[plain(value) for value in message.body],
                interactive=bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION),
            )
            signature, values = await self._handler(call)
            reply = Message.new_method_return(message, signature, values)
        except KmoddError as error:
            reply = Message.new_error(message, error.bus_name(), error.message)
        # A bug of ours: the caller learns that much, asyncio's log has the rest.
        except Exception as error:
            reply = Message.new_error(message, Failed.bus_name(), INTERNAL)
            await self._send(reply)
            raise error from None
        await self._send(reply)

    async def _send(self, reply: Message) -> None:
        if self._connection.connected:
            await self._connection.send(reply)
