# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client's connection to D-Bus: calls with a deadline, replies as plain values, errors as classes of `kmodd.errors`.

The only file on the client's side that knows dbus-next, so that its maintained fork could take its place. Beside what
`kmodd.dbus.library` cures for servers as well, it carries the cures for what version 0.2.3 gets wrong in a client (measured, and
https://github.com/altdesktop/python-dbus-next/issues/153): a full socket buffer closes the connection, and a call on a lost
connection never ends.

On the system bus any user may send a signal of up to 32 MiB to any other. dbus-next 0.2.3 unmarshals all of it before the
sender can be checked, at ten times its size and more, and keeps every signature it ever saw. So the header is read first
and the body of an unwanted message is skipped.
"""

import asyncio
import contextlib
import os
import select
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from dbus_next import BusType, Message, MessageFlag, MessageType, Variant
from dbus_next._private.constants import BIG_ENDIAN, LITTLE_ENDIAN, PROTOCOL_VERSION, HeaderField
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.errors import (
    AuthError,
    DBusError,
    InvalidAddressError,
    InvalidMessageError,
    SignatureBodyMismatchError,
)
from dbus_next.signature import SignatureTree

from kmodd.client.replies import add_evidence
from kmodd.dbus.interface_xml import Method
from kmodd.dbus.library import Connection
from kmodd.errors import ERRORS, Evidence, Failed, InvalidArgs, KmoddError, NotLoaded, Unavailable
from kmodd.fast_dataclass import dataclass

CALL_MAX = 64 * 1024
"""Bytes of a call to us that are read. What is larger gets an empty body, which fits no member that wants arguments."""
SIGNATURES_MAX = 512
"""Signatures the library may remember."""

Believed = Callable[[str], bool]
"""Whether signals of this unique name are subscribed."""


class CarefulUnmarshaller(Unmarshaller):
    """The library's, with a look at the header before the body."""

    believed: Believed

    def _unmarshall(self) -> None:
        # As in the library but for `_wanted`.
        library: Any = self  # it has no types
        library.offset = 0
        library.read(16, prefetch=True)
        library.endian = library.read_byte()
        if library.endian not in (LITTLE_ENDIAN, BIG_ENDIAN):
            raise InvalidMessageError("Expecting endianness as the first byte")
        kind, flags = MessageType(library.read_byte()), MessageFlag(library.read_byte())
        if library.read_byte() != PROTOCOL_VERSION:
            raise InvalidMessageError("got unknown protocol version")
        size, serial, header = library.read_uint32(), library.read_uint32(), library.read_uint32()
        library.read(header + library._padding(header, 8) + size, prefetch=True)
        library.offset -= 4  # the array's length is read again with the array
        fields = {}
        for number, value in library.read_argument(SignatureTree._get("a(yv)").types[0]):
            fields[HeaderField(number).name.lower()] = value.value
        library.align(8)
        fields.pop("unix_fds", None)
        wanted = bool(size) and self._wanted(kind, size, str(fields.get("sender", "")))
        if len(SignatureTree._cache) > SIGNATURES_MAX:
            SignatureTree._cache.clear()
        signature = SignatureTree._get(fields.pop("signature", "") if wanted else "")
        body: list[Any] = [library.read_argument(type_) for type_ in signature.types]
        self.message = Message(
            message_type=kind,
            flags=flags,
            unix_fds=library.unix_fds,
            signature=signature,
            body=body,
            serial=serial,
            **{name: value for name, value in fields.items() if name != "signature"},
        )

    def _wanted(self, kind: MessageType, size: int, sender: str) -> bool:
        if kind is MessageType.SIGNAL:
            return self.believed(sender)
        # The bus delivers replies only from the callee.
        return kind is not MessageType.METHOD_CALL or size <= CALL_MAX


BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
CONNECT_TIMEOUT = 10.0
SIGNALS_MAX = 4096
"""Signals kept for a reader that does not keep up; the oldest go first."""

_HINTS = {
    "kmodd": "see: systemctl status kmodd",
    "kmodd-notifier": "to start it: systemctl enable --now kmodd-notifier",
}
"""By service: what to do where it does not answer."""

_GONE = {
    "org.freedesktop.DBus.Error." + name: sentence
    for name, sentence in {
        "ServiceUnknown": "{service} is not running, and the bus does not know how to start it",
        "NameHasNoOwner": "{service} is not running",
        "NoReply": "{service} went away, or did not answer in time",
        "Disconnected": "the connection to the bus was lost",
        "NoServer": "no message bus",
        "Timeout": "{service} did not answer in time",
        "TimedOut": "{service} could not be started in time",
    }.items()
}
_SPAWN = ("org.freedesktop.DBus.Error.Spawn.", "org.freedesktop.systemd1.")


def variant(signature: str, value: object) -> object:
    """A value with its own signature, as `a{sv}` holds them."""
    return Variant(signature, value)


def message_body(row: Method, arguments: Sequence[object], options: Mapping[str, object] | None = None) -> list[object]:
    """What a call of this method is sent with.

    Options are named as on the bus, or with `_` for `-`; InvalidArgs for one that the method does not take, and for a value that
    is not of its type.
    """
    body = [_struct(argument) for argument in arguments]
    if row.options is None:
        return body
    fields: dict[str, object] = {}
    for key, value in (options or {}).items():
        name = key.replace("_", "-")
        if name not in row.options:
            raise InvalidArgs(f"{row.name} has no option {name}", argument="options")
        try:
            fields[name] = variant(row.options[name], _struct(value))
        except SignatureBodyMismatchError as error:
            raise InvalidArgs(f"the option {name} cannot be {value!r}: {error}", argument="options") from None
    return [*body, fields]


def _struct(argument: object) -> object:
    # dbus-next wants lists for arrays and structs alike.
    if isinstance(argument, (list, tuple, set, frozenset)):
        return [_struct(item) for item in argument]
    if isinstance(argument, Mapping):
        return dict(argument)
    return argument


def plain(value: Any) -> Any:
    """The same value without variants, all the way down."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def error_from_reply(name: str, text: str, service: str = "kmodd") -> KmoddError:
    """The class of `kmodd.errors` that a D-Bus error stands for; `Failed` for an unknown one. `service` is the callee."""
    if name in _GONE:
        return unavailable(_GONE[name].format(service=service), service)
    if name.startswith(_SPAWN):
        return unavailable(f"{service} could not be started", service)
    if name == "org.freedesktop.DBus.Error.UnknownObject":
        # The only objects that come and go are modules and jobs.
        return NotLoaded("no such object: it no longer exists, or not yet")
    return ERRORS.get(name, Failed)(text or name)


def unavailable(sentence: str, service: str = "kmodd") -> Unavailable:
    """The service or the bus is not there; the hint says where to look."""
    return Unavailable(sentence, evidence=Evidence(hint=_HINTS[service]))


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal of the daemon, or `NameOwnerChanged` about it."""

    path: str
    interface: str
    member: str
    arguments: tuple[Any, ...]


class SignalStream:
    """Signals in the order they came. Read it with `async for`; it ends with the connection (`Unavailable`)."""

    def __init__(self) -> None:
        self.lost = 0
        """Signals dropped because the reader did not keep up."""
        self._queue: deque[Signal] = deque()
        self._arrived = asyncio.Event()
        self._error: KmoddError | None = None

    def put(self, signal: Signal) -> None:
        """Append one, at the price of the oldest when there are too many."""
        if len(self._queue) >= SIGNALS_MAX:
            self._queue.popleft()
            self.lost += 1
        self._queue.append(signal)
        self._arrived.set()

    def end(self, error: KmoddError) -> None:
        """No more will come; the reader gets this error after what is queued."""
        self._error = error
        self._arrived.set()

    def __aiter__(self) -> AsyncIterator[Signal]:
        return self

    async def __anext__(self) -> Signal:
        while not self._queue:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        return self._queue.popleft()


class _PatientSocket:
    """The writer's view of the socket: a full buffer means nothing was sent, not that the connection is over."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, data: memoryview) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0

    def sendmsg(self, buffers: Sequence[memoryview], rights: Sequence[tuple[int, int, Any]]) -> int:
        """The library forgets the descriptors after the first try, so this one waits for room."""
        while True:
            try:
                return self._sock.sendmsg(buffers, rights)
            except BlockingIOError:
                select.select((), (self._sock,), (), CONNECT_TIMEOUT)


class _Connection(Connection):
    believes: Callable[[str], bool] = staticmethod(lambda sender: sender == BUS[0])
    """Whose signals are read."""

    def _create_unmarshaller(self) -> CarefulUnmarshaller:
        make: Any = CarefulUnmarshaller  # as the library's, without types
        made: CarefulUnmarshaller = make(self._stream, self._sock if self._negotiate_unix_fd else None)
        made.believed = self.believes
        return made

    def tolerate_full_socket(self) -> None:
        self._writer.sock = _PatientSocket(self._sock)

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        def ended(future: "asyncio.Future[None]") -> None:
            if not future.cancelled():
                future.exception()  # retrieved, or asyncio warns that it never was
            callback()

        self._disconnect_future.add_done_callback(ended)

    def finish(self) -> None:
        if not self._disconnected:
            self._user_disconnect = True
            base: Any = self
            base._finalize(None)
        self.release()


class Transport:
    """One connection, shared by any number of concurrent calls to one peer."""

    def __init__(self, connection: _Connection, destination: str) -> None:
        self._connection = connection
        self._destination = destination
        self._owner = ""
        self._watching = False
        self._pending: dict[int, asyncio.Future[Message]] = {}
        self._streams: list[SignalStream] = []
        connection.tolerate_full_socket()
        connection.believes = self._believes
        connection.add_message_handler(self._on_message)
        connection.on_disconnect(self._on_disconnect)

    @classmethod
    async def connect(
        cls, destination: str, *, address: str | None = None, session: bool = False, descriptors: bool = False
    ) -> "Transport":
        """Connect to the bus at the address, or to the session's or the system's; `Unavailable` when that fails.

        `descriptors` lets calls carry some. Nothing closes those that others send us, so such a connection should be short.
        """
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                kind = BusType.SESSION if session else BusType.SYSTEM
                where: Any = address or None  # the library's annotation forgets that it takes None
                connection = _Connection(where, kind, negotiate_unix_fd=descriptors)
                await connection.connect()
            return cls(connection, destination)
        except (
            OSError,
            EOFError,
            AuthError,
            DBusError,
            InvalidAddressError,
            TimeoutError,
            ValueError,
            KeyError,
        ) as error:
            # KeyError: the library reads HOME when no session bus is named.
            if connection is not None:
                connection.finish()
            place = f"the bus at {address}" if address else f"the {'session' if session else 'system'} bus"
            reason = getattr(error, "strerror", None) or (
                "no answer" if isinstance(error, TimeoutError) else str(error)
            )
            raise unavailable(f"cannot connect to {place}: {reason}") from error

    @property
    def unique_name(self) -> str:
        """Our own name on the bus."""
        return str(self._connection.unique_name)

    @property
    def connection(self) -> Connection:
        """The library's own connection, for who also answers calls on it."""
        return self._connection

    @property
    def connected(self) -> bool:
        """Calls have a chance."""
        return bool(self._connection.connected)

    async def call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[object] = (),
        *,
        timeout: float,
        interactive: bool = False,
        destination: str = "",
        files: Sequence[int] = (),
        received: list[int] | None = None,
        service: str = "kmodd",
    ) -> tuple[Any, ...]:
        """Call, and answer the reply's values without variants. The timeout is in seconds; errors are `KmoddError`.

        Descriptors of the reply are added to `received`, and are the caller's to close; without it they are closed.

        `service` is whom a sentence names that does not answer.
        """
        if not self.connected:
            raise unavailable("the connection to the bus was lost", service)
        message = Message(
            destination=destination or self._destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
            flags=MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else MessageFlag.NONE,
            serial=self._connection.next_serial(),
            unix_fds=list(files),
        )
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._pending[message.serial] = future
        try:
            sent = self._connection.send(message)
            # A failed write also ends the connection, which is where the caller hears of it.
            sent.add_done_callback(lambda done: done.cancelled() or done.exception())
            async with asyncio.timeout(timeout):
                reply = await future
        except TimeoutError as error:
            raise unavailable(f"{service} did not answer within {timeout:g} seconds", service) from error
        finally:
            del self._pending[message.serial]
        if received is not None:
            received += reply.unix_fds
        else:
            for file in reply.unix_fds:
                os.close(file)
        if reply.message_type is MessageType.ERROR:
            text = reply.body[0] if reply.body and isinstance(reply.body[0], str) else ""
            refusal = error_from_reply(str(reply.error_name), text, service)
            if len(reply.body) > 1 and isinstance(reply.body[1], dict):
                add_evidence(refusal, plain(reply.body[1]))
            raise refusal
        return tuple(plain(value) for value in reply.body)

    async def subscribe(self, *rules: str) -> SignalStream:
        """Receive the peer's signals that match (each rule as D-Bus spells it, without type and sender)."""
        if not self._watching:
            self._watching = True
            await self._bus_call(
                "AddMatch", f"type='signal',sender='{BUS[0]}',member='NameOwnerChanged',arg0='{self._destination}'"
            )
            with contextlib.suppress(Unavailable):  # not running yet: NameOwnerChanged will tell
                self._owner = (await self._bus_call("GetNameOwner", self._destination))[0]
        stream = SignalStream()
        self._streams.append(stream)
        for rule in rules:
            await self._bus_call("AddMatch", f"type='signal',sender='{self._destination}',{rule}")
        return stream

    def unsubscribe(self, stream: SignalStream) -> None:
        """Stop filling a stream; match rules stay, they cost nothing that matters and may be shared."""
        if stream in self._streams:
            self._streams.remove(stream)

    async def close(self) -> None:
        """Close the connection; calls under way and streams end with `Unavailable`."""
        self._connection.finish()
        self._on_disconnect()
        await asyncio.sleep(0)

    async def _bus_call(self, member: str, argument: str) -> tuple[Any, ...]:
        return await self.call(BUS[1], BUS[2], member, "s", [argument], timeout=CONNECT_TIMEOUT, destination=BUS[0])

    def _on_message(self, message: Message) -> bool:
        if message.message_type in (MessageType.METHOD_RETURN, MessageType.ERROR):
            future = self._pending.get(message.reply_serial)
            if future is None:
                return False
            if not future.done():
                future.set_result(message)
            return True
        if message.message_type is MessageType.SIGNAL:
            self._on_signal(message)
            return False
        return False

    def _believes(self, sender: str) -> bool:
        """Anyone may send a signal straight to us; only the bus and the daemon are believed, and read at all."""
        return sender == BUS[0] or (bool(self._owner) and sender == self._owner)

    def _on_signal(self, message: Message) -> None:
        if message.sender == BUS[0]:
            if message.member != "NameOwnerChanged" or message.body[0] != self._destination:
                return
            self._owner = message.body[2]
        elif not self._believes(str(message.sender)):
            return
        signal = Signal(message.path, message.interface, message.member, tuple(plain(value) for value in message.body))
        for stream in self._streams:
            stream.put(signal)

    def _on_disconnect(self) -> None:
        error = unavailable("the connection to the bus was lost")
        for future in list(self._pending.values()):
            if not future.done():
                future.set_exception(error)
        for stream in self._streams:
            stream.end(error)
        self._connection.release()
