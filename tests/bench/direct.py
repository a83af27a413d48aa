# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client on the bus that does as it is told on its standard input: what of the gateway's time is the daemon's and polkit's.

Each line is `load` or `unload`; the answer is how many seconds the call took.
"""

import asyncio
import sys
import time

from dbus_next import BusType
from dbus_next.aio import MessageBus

from tests.bench.guest import MODULE, call, manager


async def main() -> None:
    """Until the input ends."""
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    calls = {
        "load": lambda: manager("Load", "sa{ss}a{sv}", [MODULE, {}, {}]),
        "unload": lambda: manager("Unload", "sa{sv}", [MODULE, {}]),
    }
    while line := await asyncio.to_thread(sys.stdin.readline):
        begin = time.perf_counter()
        await call(bus, calls[line.strip()]())
        print(time.perf_counter() - begin, flush=True)
    bus.disconnect()


if __name__ == "__main__":
    asyncio.run(main())
