# SPDX-License-Identifier: LGPL-2.1-or-later
"""A private message bus with the rules of the system bus, and clients that can misbehave on it."""

import array
import asyncio
import os
import re
import socket
import subprocess
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dbus_next import Message, MessageFlag, MessageType
from dbus_next._private.unmarshaller import Unmarshaller

from kmodd.client.connection import plain
from kmodd.dbus import message as frames
from kmodd.dbus.marshal import decode, encode
from kmodd.dbus.message import ReceivedMessage
from kmodd.dbus.transport import Transport

ROOT = Path(__file__).resolve().parents[2]
NAME = "org.kmodd1"
PATH = "/org/kmodd1"
MANAGER = "org.kmodd1.Manager"

# As in /usr/share/dbus-1/system.conf, and like there everything else is in the services' own files.
_CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>
  <include>{policy}</include>
  <policy user="{uid}">
    {own}
    <allow send_destination="org.freedesktop.PolicyKit1"/>
    {extra}
  </policy>
  <limit name="max_connections_per_user">512</limit>
</busconfig>
"""

_OWN = '<allow own="org.kmodd1"/><allow own="org.freedesktop.PolicyKit1"/>'


class PrivateBus:
    """dbus-daemon posing as the system bus, with our own policy file in force."""

    def __init__(self, folder: Path, extra: str = "", *, own: bool = True) -> None:
        """`own` lets this process have the names of the service and of polkit, whoever it runs as."""
        path = folder / "bus"
        self.address = f"unix:path={path}"
        configuration = folder / "bus.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                socket=path, policy=ROOT / "dbus/org.kmodd1.conf", uid=os.getuid(), extra=extra, own=_OWN if own else ""
            )
        )
        self._process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={configuration}", "--nofork", "--print-address=1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "dbus-daemon did not start"

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Reply(Exception):
    """An error reply."""

    def __init__(self, name: str, message: str, *evidence: Any) -> None:
        super().__init__(f"{name}: {message}", *evidence)
        self.name = name
        self.message = message
        self.evidence: dict[str, Any] | None = plain(evidence[0]) if evidence else None
        """The second argument, without variants."""


class Client:
    """A connection that calls the service and keeps the signals it hears."""

    def __init__(self, address: str) -> None:
        self.transport = Transport(address)
        self.signals: list[tuple[str, str, str, list[Any]]] = []

    async def __aenter__(self) -> Self:
        await self.transport.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the bus."""
        await self.transport.close()

    @property
    def name(self) -> str:
        """Its unique name."""
        return self.transport.unique_name

    async def call(
        self,
        member: str,
        signature: str = "",
        *body: Any,
        path: str = PATH,
        interface: str = MANAGER,
        interactive: bool = False,
        timeout: float = 20.0,
    ) -> Any:
        """Call a member and answer its only value, or all of them; Reply is an error reply."""
        flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else MessageFlag.NONE
        message = Message(NAME, path, member=member, flags=flags, signature=signature, body=list(body))
        if interface:
            message.interface = interface
        reply = await asyncio.wait_for(self.transport._bus.call(message), timeout)
        assert reply is not None, "the connection was lost"
        if reply.message_type is MessageType.ERROR:
            raise Reply(str(reply.error_name), *(reply.body or [""]))
        return reply.body[0] if len(reply.body) == 1 else reply.body

    async def get(self, name: str, *, path: str = PATH, interface: str = MANAGER) -> Any:
        """Read a property."""
        value = await self.call("Get", "ss", interface, name, path=path, interface="org.freedesktop.DBus.Properties")
        return value.value

    def throw(self, message: Message) -> None:
        """Send and forget."""
        message.serial = self.transport.next_serial()
        self.transport.send(bytes(message._marshall(negotiate_unix_fd=True)))

    async def throw_descriptors(self, message: Message, count: int) -> None:
        """Send a message with so many descriptors of /dev/null."""
        message.unix_fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
        message.serial = self.transport.next_serial()
        data = bytes(message._marshall(negotiate_unix_fd=True))
        self.transport._bus.outbox.flush()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", message.unix_fds))]
        try:
            while True:
                try:
                    assert self.transport._bus._sock.sendmsg([data], rights) == len(data)
                except BlockingIOError:
                    await asyncio.sleep(0.001)
                else:
                    return
        finally:
            for descriptor in message.unix_fds:
                os.close(descriptor)

    async def listen(self, *rules: str) -> None:
        """Hear signals of the service from now on."""
        bus = self.transport._bus
        deliver = bus._deliver

        def hear(frame: ReceivedMessage, data: bytes) -> None:
            if frame.kind == 4 and frame.interface.startswith(("org.kmodd1", "org.freedesktop.DBus.")):
                body = _loose(data)
                self.signals.append((frame.path, frame.interface, frame.member, body))
            deliver(frame, data)

        bus._deliver = hear  # type: ignore[method-assign]  # the transport itself hears the bus alone
        for rule in rules or ("type='signal',sender='org.kmodd1'",):
            await self.transport.call(
                "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "AddMatch", "s", (rule,)
            )

    def heard(self, member: str) -> list[list[Any]]:
        """Bodies of the signals of this name so far."""
        return [body for _, _, one, body in self.signals if one == member]


def _loose(data: bytes) -> list[Any]:
    unmarshaller: Any = Unmarshaller(BytesIO(data))
    unmarshaller.unmarshall()
    return list(unmarshaller.message.body)


def expanded(message: str, details: Mapping[str, str]) -> str:
    """As polkit fills in details; one that does not exist leaves a gap."""
    return re.sub(r"\$\(([^)]*)\)", lambda match: details.get(match[1], ""), message)


class FakePolkit:
    """org.freedesktop.PolicyKit1.Authority to order."""

    def __init__(self, address: str) -> None:
        self.transport = Transport(address)
        self.mode = "allow"
        """`allow`, `deny`, `challenge`, `hang`, `garbage`, `error`, or `prompt` (challenge first, hang when it may ask)."""
        self.granted: frozenset[str] | None = None
        """The only actions that are not refused; None leaves it to the mode."""
        self.asked: list[tuple[str, str, Mapping[str, str], int]] = []
        """(sender, action, details, flags) of each question."""
        self.messages: list[str] = []
        """What was asked to be shown at each prompt."""
        self.open: dict[str, ReceivedMessage] = {}
        """Questions not answered, by cancellation id."""
        self.cancelled: list[str] = []

    async def __aenter__(self) -> Self:
        await self.transport.connect()
        self.transport.on_call = self._on_call
        await self.transport.own("org.freedesktop.PolicyKit1")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.transport.close()

    def _on_call(self, frame: ReceivedMessage) -> None:
        if frame.member == "CancelCheckAuthorization":
            (cancellation,) = decode("s", frame.body)
            self.cancelled.append(cancellation)
            asked = self.open.pop(cancellation, None)
            if asked is not None:
                self._reply(asked, "(bba{ss})", (False, False, {}))
            self._reply(frame, "")
            return
        (kind, subject), action, details, flags, cancellation = decode("(sa{sv})sa{ss}us", frame.body)
        assert kind == "system-bus-name"
        if message := details.pop("polkit.message", ""):
            self.messages.append(expanded(message, details))
        self.asked.append((subject["name"][1], action, details, flags))
        match "deny" if self.granted is not None and action not in self.granted else self.mode:
            case "allow":
                self._reply(frame, "(bba{ss})", (True, False, {}))
            case "deny":
                self._reply(frame, "(bba{ss})", (False, False, {}))
            case "challenge":
                self._reply(frame, "(bba{ss})", (False, True, {}))
            case "garbage":
                self._reply(frame, "(bsa{ss})", (True, "yes", {}))
            case "error":
                self._fail(frame)
            case "prompt" if not flags:
                self._reply(frame, "(bba{ss})", (False, True, {}))
            case _:
                self.open[cancellation] = frame

    def answer_open(self, *, yes: bool) -> None:
        """The person at the prompt decides."""
        for frame in self.open.values():
            self._reply(frame, "(bba{ss})", (yes, False, {}))
        self.open.clear()

    def _reply(self, frame: ReceivedMessage, signature: str, *values: Any) -> None:
        body = encode(signature, values) if signature else b""
        self.transport.send(frames.reply(self.transport.next_serial(), frame, signature, body))

    def _fail(self, frame: ReceivedMessage) -> None:
        name = "org.freedesktop.PolicyKit1.Error.Failed"
        self.transport.send(frames.failure(self.transport.next_serial(), frame, name, encode("s", ("no",))))
