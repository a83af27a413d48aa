# SPDX-License-Identifier: LGPL-2.1-or-later
# ruff: noqa: S101 - a test says what it expects
"""Load a module of the simulated kernel with the installed client library, and look at it."""

import asyncio

import kmodd
from kmodd.client import Client
from kmodd.errors import Unavailable


async def main() -> None:
    """AssertionError when the client comes from elsewhere or the module is not loaded."""
    assert kmodd.__file__.startswith("/usr/lib/python3/dist-packages/"), kmodd.__file__
    async with await Client.connect(session=True) as client:
        for _ in range(100):
            try:
                await client.properties()
                break
            except Unavailable:  # the daemon is starting
                await asyncio.sleep(0.1)
        inserted = await client.load("vfat", reason="autopkgtest")
        assert "vfat" in inserted, inserted
        assert "vfat" in {row.name for row in await client.list_modules()}


asyncio.run(main())
