# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server's connection to the bus: the only file of the server that knows dbus-next, with `library`, its part for clients too.

dbus-next connects, authenticates, and marshals the few calls of the daemon. Its reading and writing loops are replaced,
because with 0.2.3 a full socket closes the connection (issue 153), received descriptors are never closed (issue 162), every
signature a peer sends is kept forever, and a message of any size is unmarshalled before it can be refused.
"""

import asyncio
import os
import socket
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from io import BytesIO
from itertools import islice
from typing import Any

from dbus_next import BusType, Message, MessageFlag, MessageType
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.errors import AuthError, InvalidAddressError
from dbus_next.signature import SignatureTree, Variant

from kmodd.dbus import message as frames
from kmodd.dbus.library import Connection
from kmodd.dbus.message import Kind, MessageError, ReceivedMessage

OUTBOX_MAX = 64 << 20
"""Bytes waiting to be written; the bus reads as fast as it can, so more means that it has stopped."""
_AT_ONCE = 64
"""Messages of one system call."""


class NotReadError(Exception):
    """The other side does not read any more."""


class Outbox:
    """Writes to a socket that does not block. It stands where dbus-next has its message writer."""

    def __init__(
        self, channel: socket.socket, *, lost: Callable[[BaseException], None], drained: Callable[[], None]
    ) -> None:
        """`lost` is called with the error of the connection; `drained` when everything was written."""
        self._channel = channel
        self._lost = lost
        self._drained = drained
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[memoryview] = deque()
        self._files: dict[int, tuple[int, ...]] = {}
        """Descriptors that go with the first byte of a chunk, by the place of that byte in everything ever put."""
        self._start = 0
        """The place of the first byte that was not written."""
        self._scheduled = False
        self._waiting = False
        """The socket is full; the loop tells when it takes more."""
        self._closed = False
        self.size = 0

    def put(self, data: bytes, files: Sequence[int] = ()) -> None:
        """Queue a message; everything queued in one turn of the loop is written together.

        The descriptors `files` go with it, and are closed when they were sent, or are not going to be.
        """
        if files and self._closed:
            for file in files:
                os.close(file)
        elif files:
            self._files[self._start + self.size] = tuple(files)
        self._chunks.append(memoryview(data))
        self.size += len(data)
        if self.size > OUTBOX_MAX:
            self._lost(NotReadError("the bus stopped reading"))
        elif not self._scheduled and not self._waiting:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def flush(self) -> None:
        """Write what is queued now, as far as the socket takes it."""
        if self._chunks and not self._waiting:
            self._write()

    def close(self) -> None:
        """Write nothing more."""
        self._closed = True
        for place in list(self._files):
            self._close_files(place)
        if self._waiting:
            self._waiting = False
            self._loop.remove_writer(self._channel.fileno())

    def schedule_write(self, msg: Any = None, future: "asyncio.Future[None] | None" = None) -> None:
        """What dbus-next calls to send a message of ours."""
        if msg is not None:
            self.put(bytes(msg._marshall()))
        if future is not None:
            future.set_result(None)

    def _turn(self) -> None:
        self._scheduled = False
        if self._chunks and not self._waiting:
            self._write()

    def _write(self) -> None:
        if self._closed:
            return
        try:
            while self._chunks:
                place = self._start
                files = self._files.get(place, ())
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", files))] if files else []
                count = self._channel.sendmsg(self._first(), rights)
                if files:
                    self._close_files(place)
                self._written(count)
        except (BlockingIOError, InterruptedError):
            if not self._waiting:
                self._waiting = True
                self._loop.add_writer(self._channel.fileno(), self._write)
            return
        except OSError as error:
            self._lost(error)
            return
        if self._waiting:
            self._waiting = False
            self._loop.remove_writer(self._channel.fileno())
        self._drained()

    def _first(self) -> list[memoryview]:
        """What is written in one call: it ends before the next message that has descriptors, which go with its first byte."""
        chunks: list[memoryview] = []
        place = self._start
        for chunk in islice(self._chunks, _AT_ONCE):
            if chunks and place in self._files:
                break
            chunks.append(chunk)
            place += len(chunk)
        return chunks

    def _close_files(self, place: int) -> None:
        for file in self._files.pop(place, ()):
            os.close(file)

    def _written(self, count: int) -> None:
        self.size -= count
        self._start += count
        while count:
            first = self._chunks[0]
            if count < len(first):
                self._chunks[0] = first[count:]
                return
            count -= len(first)
            self._chunks.popleft()


DRIVER = "org.freedesktop.DBus"
DRIVER_PATH = "/org/freedesktop/DBus"
MESSAGE_MAX = 128 << 20
"""Bytes of one message in the specification; who announces more does not speak it."""
_READ = 64 * 1024
DESCRIPTORS_MAX = 16
"""Descriptors of one message; the system bus lets no more through either."""
_DESCRIPTORS = socket.CMSG_SPACE(253 * array("i").itemsize)  # SCM_MAX_FD of the kernel
_SIGNATURES_MAX = 256


class BusLostError(Exception):
    """The connection is gone, or could not be made."""


class RemoteError(Exception):
    """Another service answered with an error."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


class Transport:
    """One connection to a message bus.

    `on_call` gets every method call, and owns the descriptors that came with it; `on_signal` gets every signal of the bus
    itself. Both run on the loop and must not block or raise. `on_drained` is called when everything queued was written.
    `on_lost` is called once when the connection ends without `close()`: the process has to end then.
    """

    def __init__(self, address: str | None = None) -> None:
        """`address` is a bus address; None is the system bus. BusLostError when nothing listens there."""
        self.on_call: Callable[[ReceivedMessage], None] = ReceivedMessage.close
        self.on_signal: Callable[[ReceivedMessage], None] = lambda _: None
        self.on_drained: Callable[[], None] = lambda: None
        self.on_lost: Callable[[BaseException | None], None] = lambda _: None
        try:
            self._bus = _Connection(self, address)
        except (OSError, InvalidAddressError) as error:
            raise BusLostError("the message bus does not answer") from error

    async def connect(self, timeout: float = 10.0) -> None:
        """Authenticate and say hello; BusLostError when the bus does not answer within `timeout` seconds."""
        try:
            await asyncio.wait_for(self._bus.connect(), timeout)
        except (OSError, EOFError, TimeoutError, AuthError) as error:
            self._bus.release()
            raise BusLostError("the message bus does not answer") from error

    @property
    def unique_name(self) -> str:
        """Our name on the bus, such as `:1.7`."""
        return str(self._bus.unique_name)

    @property
    def connected(self) -> bool:
        """Messages can be sent."""
        return bool(self._bus.connected)

    @property
    def arrivals(self) -> int:
        """Rises whenever bytes are received."""
        return self._bus.arrivals

    def backlog(self) -> int:
        """Bytes waiting to be written."""
        return self._bus.outbox.size

    def next_serial(self) -> int:
        """A serial for a message of ours."""
        return int(self._bus.next_serial()) & 0xFFFFFFFF or self.next_serial()

    def send(self, data: bytes, files: Sequence[int] = ()) -> None:
        """Queue a marshalled message; everything queued in one turn of the loop is written together.

        The descriptors `files` go with it, and are closed when it was sent, or is not going to be.
        """
        if self._bus.connected:
            self._bus.outbox.put(data, files)
        else:
            _close_all(list(files))

    def flush(self) -> None:
        """Write what is queued in this turn of the loop already."""
        self._bus.outbox.flush()

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: tuple[Any, ...] = (),
        *,
        timeout: float = 5.0,
        interactive: bool = False,
    ) -> list[Any]:
        """Call another service and answer the reply's values; RemoteError, TimeoutError, BusLostError.

        Values are as dbus-next has them: lists for structs, dbus-next's own for variants.
        """
        if not self._bus.connected:
            raise BusLostError("not connected")
        flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else MessageFlag.NONE
        message = Message(
            destination,
            path,
            interface,
            member,
            flags=flags,
            signature=signature,
            body=list(body),
            serial=self.next_serial(),
        )
        try:
            reply = await asyncio.wait_for(self._bus.call(message), timeout)
        finally:
            self._bus.forget(message.serial)
        if reply is None:
            raise BusLostError("the connection was lost")
        if reply.message_type is MessageType.ERROR:
            text = reply.body[0] if reply.body and isinstance(reply.body[0], str) else ""
            raise RemoteError(str(reply.error_name), text)
        return list(reply.body)

    def variant(self, signature: str, value: Any) -> Any:
        """A variant for `call`."""
        return Variant(signature, value)

    def call_driver(self, member: str, signature: str, *body: Any) -> None:
        """Call the bus itself without waiting for its reply; its effect comes before that of any later message."""
        if self._bus.connected:
            self._bus.outbox.put(
                bytes(
                    Message(
                        DRIVER, DRIVER_PATH, DRIVER, member, flags=MessageFlag.NO_REPLY_EXPECTED,
                        signature=signature, body=list(body), serial=self.next_serial(),
                    )._marshall()
                )
            )  # fmt: skip

    async def own(self, name: str) -> None:
        """Take a well-known name, or BusLostError if it has an owner."""
        do_not_queue = 4
        (answer,) = await self.call(DRIVER, DRIVER_PATH, DRIVER, "RequestName", "su", (name, do_not_queue))
        if answer not in {1, 4}:  # primary owner, already owner
            raise BusLostError(f"the bus name {name} is taken")

    async def close(self) -> None:
        """Write what is queued as far as the bus takes it, and disconnect."""
        self.on_lost = lambda _: None
        self._bus.outbox.flush()
        self._bus.hang_up()
        # dbus-next sees its own shutdown as end of file on the next turn.
        await asyncio.sleep(0)


def plain(value: Any) -> Any:
    """The value inside a variant of a reply."""
    return value.value if isinstance(value, Variant) else value


def credentials(transport: Transport) -> "Callable[[str], Awaitable[tuple[int | None, int]]]":
    """Asks the bus for (uid, process id) of a unique name: None and 0 where it does not tell; raises when it is gone."""

    async def ask(sender: str) -> tuple[int | None, int]:
        (answer,) = await transport.call(DRIVER, DRIVER_PATH, DRIVER, "GetConnectionCredentials", "s", (sender,))
        uid, pid = plain(answer.get("UnixUserID")), plain(answer.get("ProcessID"))
        return (uid if isinstance(uid, int) else None), (pid if isinstance(pid, int) else 0)

    return ask


class _Connection(Connection):
    def __init__(self, owner: Transport, address: str | None) -> None:
        super().__init__(address or "", BusType.SYSTEM, negotiate_unix_fd=True)
        self.owner = owner
        self.outbox = Outbox(self._sock, lost=self._finalize, drained=self._drained)
        self._writer: Any = self.outbox
        self._buffer = bytearray()
        self._start = 0
        """Where in everything ever received the buffer begins."""
        self._files: deque[tuple[int, array[int]]] = deque()
        """Descriptors that came, each with the place in the stream up to which was read when they came."""
        self._skip = 0
        self.arrivals = 0

    def _drained(self) -> None:
        self.owner.on_drained()

    def forget(self, serial: int) -> None:
        self._method_return_handlers.pop(serial, None)

    def hang_up(self) -> None:
        self._user_disconnect = True
        self._finalize(None)
        self._close_files(None)
        self.release()

    def _finalize(self, err: BaseException | None = None) -> None:
        lost = not self._disconnected
        if lost:
            self.outbox.close()
            super()._finalize(err)  # type: ignore[no-untyped-call]  # dbus-next is typed in part
            # It may never be awaited: it must not warn about an exception that was not retrieved.
            if self._disconnect_future.done() and not self._disconnect_future.cancelled():
                self._disconnect_future.exception()
            self.owner.on_lost(err)

    def _message_reader(self) -> None:
        try:
            # A few chunks each time, so that a flood cannot keep the loop from anything else.
            for _ in range(4):
                data = self._receive()
                if data is None:
                    return
                self._buffer += data
                self._split()
                if len(data) < _READ:
                    return
        except (OSError, EOFError, MessageError) as error:
            self._finalize(error)

    def _receive(self) -> bytes | None:
        try:
            data, ancillary, _, _ = self._sock.recvmsg(_READ, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return None
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array("i")
                received.frombytes(content[: len(content) - len(content) % received.itemsize])
                # They belong to the message that contains the last byte read with them: the bus sends them with a message's
                # first byte, and a read ends where a write with descriptors ended (unix(7), SCM_RIGHTS).
                self._files.append((self._start + len(self._buffer) + len(data), received))
        if not data:
            raise EOFError("the bus closed the connection")
        self.arrivals += 1
        return bytes(data)

    def _split(self) -> None:
        """Cut the buffer into messages; bodies that are too long are dropped as they come in."""
        buffer, position = self._buffer, 0
        while True:
            if self._skip:
                step = min(self._skip, len(buffer) - position)
                position += step
                self._skip -= step
                self._close_files(self._start + position)
                if self._skip:
                    break
            if len(buffer) - position < 16:
                break
            header, body = frames.lengths(memoryview(buffer)[position : position + 16])
            if header + body > MESSAGE_MAX:
                raise MessageError("message too long")
            if header > frames.HEADER_MAX:
                # Its sender is unknown without reading it; such a message gets no reply.
                self._skip = header + body
                continue
            oversized = body > frames.BODY_MAX
            wanted = header if oversized else header + body
            if len(buffer) - position < wanted:
                break
            data = bytes(buffer[position : position + wanted])
            position += wanted
            frame = frames.parse(data[:header], b"" if oversized else data[header:])
            frame.oversized = oversized
            if oversized:
                self._skip = body
            files = self._take_files(self._start + position + self._skip) if self._files else []
            if frame.kind == Kind.METHOD_CALL and not oversized and len(files) == frame.descriptors <= DESCRIPTORS_MAX:
                frame.files = tuple(files)
            else:
                _close_all(files)
            self._deliver(frame, data)
        self._start += position
        del buffer[:position]

    def _take_files(self, end: int) -> list[int]:
        """Descriptors of what lies before this place in the stream."""
        taken: list[int] = []
        while self._files and self._files[0][0] <= end:
            taken += self._files.popleft()[1]
        return taken

    def _close_files(self, end: int | None) -> None:
        """Close the descriptors of what lies before this place, or all."""
        _close_all(self._take_files(MESSAGE_MAX + self._start + len(self._buffer) if end is None else end))

    def _deliver(self, frame: ReceivedMessage, data: bytes) -> None:
        if frame.kind == Kind.METHOD_CALL:
            self.owner.on_call(frame)
        elif frame.kind == Kind.SIGNAL:
            # Anyone may send us signals; only the bus's own mean anything.
            if frame.sender == DRIVER:
                self.owner.on_signal(frame)
        elif frame.kind in {Kind.METHOD_RETURN, Kind.ERROR}:
            handler = self._method_return_handlers.pop(frame.reply_serial, None)
            if handler is not None:
                handler(*_reply(frame, data))


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _reply(frame: ReceivedMessage, data: bytes) -> tuple[Any, Exception | None]:
    """A reply we wait for, as dbus-next's handlers take it: (message, error)."""
    if frame.oversized:
        return None, RemoteError(DRIVER + ".Error.LimitsExceeded", "the reply is too long")
    if len(SignatureTree._cache) > _SIGNATURES_MAX:
        SignatureTree._cache.clear()
    unmarshaller = Unmarshaller(BytesIO(data))
    try:
        unmarshaller.unmarshall()
    except Exception as error:  # noqa: BLE001 - dbus-next raises whatever a value of a service's choosing makes it raise
        return None, RemoteError(DRIVER + ".Error.InconsistentMessage", type(error).__name__)
    return unmarshaller.message, None
