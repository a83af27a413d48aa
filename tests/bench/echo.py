# SPDX-License-Identifier: LGPL-2.1-or-later
"""The floor no D-Bus service written on dbus-next can pass: a service that sends back what it was sent.

It answers every method call to it with the same body and signature, in the library's own fast path (one message
handler, no introspection, no interface). Printing its unique name is all the set-up there is.
"""

import asyncio
import sys

from dbus_next import BusType, Message, MessageType
from dbus_next.aio import MessageBus


async def serve() -> None:
    """Answer until the bus goes away."""
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()

    def echo(message: Message) -> Message | None:
        if message.message_type is not MessageType.METHOD_CALL or message.path != "/echo":
            return None
        return Message.new_method_return(message, message.signature, message.body)

    bus.add_message_handler(echo)
    await bus.request_name("org.kmodd1.bench")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await bus.wait_for_disconnect()


if __name__ == "__main__":
    asyncio.run(serve())
