# SPDX-License-Identifier: LGPL-2.1-or-later
"""A program that keeps 128 calls pending on each of its connections: `python -m tests.bus.flood ADDRESS CONNECTIONS`."""

import asyncio
import sys
from struct import pack_into

from dbus_next import Message

from kmodd.dbus.message import ReceivedMessage
from kmodd.dbus.transport import Transport

PENDING = 128


async def flood(address: str, connections: int) -> None:
    """Never end: every answer is followed by the next call."""
    call = Message(
        "org.kmodd1", "/org/kmodd1", "org.kmodd1.Manager", "Explain", signature="sa{sv}", body=["loop", {}], serial=1
    )
    data = bytearray(call._marshall())
    transports = [Transport(address) for _ in range(connections)]
    for transport in transports:
        await transport.connect()
    print("\n".join(transport.unique_name for transport in transports), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

    def ask(transport: Transport) -> None:
        pack_into("<I", data, 8, transport.next_serial())
        transport.send(bytes(data))

    for transport in transports:

        def answered(frame: ReceivedMessage, data: bytes, transport: Transport = transport) -> None:
            ask(transport)

        transport._bus._deliver = answered  # type: ignore[method-assign]  # only the number of answers matters
        for _ in range(PENDING):
            ask(transport)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(flood(sys.argv[1], int(sys.argv[2])))
