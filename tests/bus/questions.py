# SPDX-License-Identifier: LGPL-2.1-or-later
"""A tree of compressed modules, and calls put to a service from outside its loop."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dbus_next import Message

from tests.bus.bench import Bench
from tests.bus.buses import NAME
from tests.bus.odd_messages import RawClient
from tests.kernel.fakeroot import FakeModule, FakeRoot

NOBODY = 65534
MODULES = 1024
LOADED = 200


@dataclass(frozen=True)
class Question:
    """A call with the arguments that cost most."""

    interface: str
    member: str
    signature: str = ""
    body: tuple[Any, ...] = ()
    path: str = "/org/kmodd1"


def compressed_root(folder: Path) -> FakeRoot:
    """A thousand modules as Debian 13 has them, two hundred of them loaded, and rules about aliases and options."""
    parameters = (("alpha", "int", "a number"), ("beta", "charp", "a text"))
    modules = [
        FakeModule(
            f"m{number}",
            depends=("base",),
            parameters=parameters,
            aliases=(f"pci:v0000{number:04X}d*",),
            signer="Debian Secure Boot Signer",
            suffix=".ko.xz",
        )
        for number in range(MODULES)
    ]
    rules = "".join(f"blacklist no_such_{number}\n" for number in range(30))
    rules += "".join(f"options m{number} alpha=1\n" for number in range(400, 464))
    # As amdgpu and others: more aliases than there is a cache for.
    modules[MODULES - 1] = replace(
        modules[-1], aliases=tuple(f"pci:v00001002d{number:08X}sv*" for number in range(1000))
    )
    root = FakeRoot(
        folder,
        [FakeModule("base", parameters=parameters, suffix=".ko.xz"), *modules],
        {"lib/modprobe.d/distribution.conf": rules},
    ).build()
    users = ",".join(f"m{number}" for number in range(LOADED))
    loaded = [f"m{number} 16384 0 - Live 0x0" for number in range(LOADED)]
    loaded.append(f"base 16384 {LOADED} {users}, Live 0x0")
    root.write("proc/modules", "\n".join(loaded) + "\n")
    return root


async def ask(service: Bench, question: Question, uid: int = NOBODY) -> int:
    """Put a question from a thread; answers the size of the reply."""

    def talk() -> int:
        client = RawClient(service.bus.address.removeprefix("unix:path="))
        client.timeout(30)
        try:
            service.users[client.name] = uid
            message = Message(
                NAME,
                question.path,
                interface=question.interface,
                member=question.member,
                signature=question.signature,
                body=list(question.body),
                serial=2,
            )
            return len(client.request(bytes(message._marshall()))[1])
        finally:
            client.close()

    return await asyncio.to_thread(talk)
