# SPDX-License-Identifier: LGPL-2.1-or-later
"""What anybody on the bus may send costs the notifier next to nothing."""

import asyncio
from pathlib import Path
from typing import Any

from dbus_next import Message, MessageType

from kmodd.client.connection import Transport
from kmodd.client.notifier import NAME, PATH
from tests.notifier.running import Stage, stage

LIMIT_KB = 48 * 1024
"""Growth of the notifier's memory that 8 MiB of one message may cost: it lies there three times over while it is read, and is
not taken apart, which would cost 80 MiB and more. The bus takes messages of up to 32 MiB, the unit has 192 MiB."""


def test_huge_and_odd_messages_of_strangers(tmp_path: Path) -> None:
    with stage(tmp_path) as made:
        made.configure()
        made.start()
        assert made.notifier is not None
        proc = Path(f"/proc/{made.notifier.pid}")

        def memory(field: str) -> int:
            line = next(line for line in (proc / "status").read_text().splitlines() if line.startswith(field))
            return int(line.split()[1])

        def ticks() -> int:
            fields = (proc / "stat").read_text().rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])

        made.status()  # what its first answer needs is loaded
        before, worked = memory("VmRSS"), ticks()
        asyncio.run(strangers(made))
        assert made.status()["trouble"] == "", "it is the same process, and answers"
        assert made.notifier.poll() is None
        assert memory("VmRSS") - before < 16 * 1024
        assert memory("VmHWM") - before < LIMIT_KB
        assert ticks() - worked < 600, "hundredths of a second"
        made.stop()


async def strangers(made: Stage) -> None:
    transport = await Transport.connect(NAME, address=made.address)
    bus = transport.connection
    owner: Any = await bus.call(
        Message(
            "org.freedesktop.DBus",
            "/org/freedesktop/DBus",
            "org.freedesktop.DBus",
            "GetNameOwner",
            signature="s",
            body=[NAME],
        )
    )
    (target,) = owner.body
    numbers = list(range(2 << 20))

    def signal(signature: str, body: list[Any]) -> Message:
        return Message(target, PATH, "x.y", "Z", MessageType.SIGNAL, signature=signature, body=body)

    def call(signature: str, body: list[Any]) -> Message:
        return Message(NAME, PATH, NAME, "AddWebhook", signature=signature, body=body)

    await bus.send(signal("au", [numbers]))
    refused = await bus.call(call("au", [numbers]))
    assert refused is not None
    assert refused.error_name == "org.freedesktop.DBus.Error.InvalidArgs"
    for n in range(1500):  # the library remembers each signature it ever saw
        odd = "".join("ynqiuxt"[n // 7**place % 7] for place in range(4)) * 12
        await bus.send(signal(odd, [0] * len(odd)))
    refused = await bus.call(call("s", ["x"]))
    assert refused is not None
    assert refused.message_type is MessageType.ERROR
    await transport.close()
