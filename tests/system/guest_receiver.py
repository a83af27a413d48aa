# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs in the virtual machine, copied there: writes down what webhooks and mails arrive, one JSON line each.

`guest_receiver.py http FILE` listens on 127.0.0.1:8099, `guest_receiver.py smtp FILE CERTIFICATE KEY` on 127.0.0.1:2525 with
STARTTLS required, `guest_receiver.py notifications FILE` owns org.freedesktop.Notifications on the session's bus.
"""

import asyncio
import http.server
import json
import ssl
import sys
from pathlib import Path
from typing import Any


def write(file: str, document: object) -> None:
    """Append a line."""
    with Path(file).open("a") as out:
        out.write(json.dumps(document) + "\n")


def serve_http(file: str) -> None:
    """Answer 204 to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            headers = {name.lower(): value for name, value in self.headers.items()}
            write(file, {"path": self.path, "headers": headers, "body": body})
            self.send_response(204)
            self.end_headers()

    http.server.ThreadingHTTPServer(("127.0.0.1", 8099), Handler).serve_forever()


async def serve_smtp(file: str, certificate: str, key: str) -> None:
    """Take every mail that comes over TLS."""
    from aiosmtpd.smtp import SMTP

    class Box:
        async def handle_DATA(self, server: object, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
            text = envelope.content.decode()
            write(file, {"to": envelope.rcpt_tos, "tls": session.ssl is not None, "text": text})
            return "250 OK"

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(Box(), loop=loop, tls_context=context, require_starttls=True), "127.0.0.1", 2525
    )
    await server.serve_forever()


async def serve_notifications(file: str) -> None:
    """Show nothing, answer as a desktop would."""
    from dbus_next import BusType
    from dbus_next.aio import MessageBus
    from dbus_next.constants import MessageType
    from dbus_next.message import Message

    bus = await MessageBus(bus_type=BusType.SESSION).connect()

    def notify(message: Message) -> Message | None:
        if message.message_type is not MessageType.METHOD_CALL or message.member != "Notify":
            return None
        _, _, _, summary, body, _, hints, _ = message.body
        write(file, [summary, body, hints["urgency"].value])
        return Message.new_method_return(message, "u", [1])

    bus.add_message_handler(notify)
    await bus.request_name("org.freedesktop.Notifications")
    await asyncio.Event().wait()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["http", file]:
            serve_http(file)
        case ["smtp", file, certificate, key]:
            asyncio.run(serve_smtp(file, certificate, key))
        case ["notifications", file]:
            asyncio.run(serve_notifications(file))
