# SPDX-License-Identifier: LGPL-2.1-or-later
"""Follows the daemon: signals say that something happened, its history says what.

The history is read from where it was left, so nothing is lost while this process or the daemon was away. The daemon is
never started by it: who stopped it meant to.
"""

import asyncio
import sqlite3
from collections.abc import Mapping
from typing import Any

from kmodd.client import NAME, PATH, READ_TIMEOUT, Client
from kmodd.client_transport import BUS, SignalStream, Transport
from kmodd.errors import KmoddError, Unavailable
from kmodd.log import Logger
from kmodd.notifier.intake import Intake

SETTLE = 0.3
"""Seconds the journal is given to have the record of what a signal tells, and a burst to become one question."""
AGAIN = 3.0
"""Seconds until a second look, when the first found nothing."""
POLL = 300.0
"""Seconds until a look without a signal: a refusal, for one, has a record and no signal."""
LIMIT = 1000
UNSIGNED = "E"
"""The letter in /proc/modules of a module that was loaded without a valid signature."""


class Watcher:
    """The daemon's side of the notifier."""

    def __init__(self, transport: Transport, client: Client, intake: Intake, logger: Logger) -> None:
        self._transport = transport
        self._client = client
        self._intake = intake
        self._logger = logger
        self._wake = asyncio.Event()
        self._there = False
        self.trouble = ""
        """Why nothing is heard of the daemon, one sentence; empty when all is well."""

    async def run(self) -> None:
        """Follow until cancelled; Unavailable when the bus is lost."""
        async with self._client.signals() as stream:
            self._there = bool(await self._ask_bus("NameHasOwner"))
            listening = asyncio.ensure_future(self._listen(stream))
            watching = asyncio.ensure_future(self._watch())
            try:
                done, _ = await asyncio.wait((listening, watching), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in (listening, watching):
                    task.cancel()
                await asyncio.gather(listening, watching, return_exceptions=True)

    async def _listen(self, stream: SignalStream) -> None:
        async for signal in stream:
            if signal.member == "NameOwnerChanged":
                self._there = bool(signal.arguments[2])
                if not self._there:
                    self._say("kmodd is not running")
                    continue
            self._wake.set()

    async def _watch(self) -> None:
        self._wake.set()
        seconds = POLL
        while True:
            signalled = True
            try:
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
                await asyncio.sleep(SETTLE)
            except TimeoutError:
                signalled = False
            self._wake.clear()
            found = await self.look()
            # A signal without a record: the journal may be slow. After that, the poll has it.
            seconds = AGAIN if signalled and not found else POLL

    async def look(self) -> int:
        """Take everything that is new; how many records were."""
        if not self._there:
            self._say("kmodd is not running")
            return 0
        try:
            await self._unsigned()
            await self._drift()
            # Last: once the history has a cursor, everything has been looked at for the first time.
            found = await self._history()
        except KmoddError as error:
            if not self._transport.connected:
                raise
            self._say(error.message)
            return 0
        except sqlite3.Error as error:
            # A full disk, most of all. Nothing was taken as seen, so the next look finds it again.
            self._say(f"the queue cannot be written: {error}")
            return 0
        if self.trouble:
            self._logger.info("notifier.recovered", message="kmodd answers again")
        self.trouble = ""
        return found

    async def _history(self) -> int:
        since = self._intake.since()
        rows = await self._client.data("GetHistory", options={"since": since, "limit": LIMIT})
        if len(rows) >= LIMIT:
            self._logger.warning(
                "notifier.trouble", message=f"only the newest {LIMIT} of what happened meanwhile can be told"
            )
        return self._intake.records(rows) if rows else 0

    async def _unsigned(self) -> None:
        rows = await self._client.data("ListModules", options={"state": "loaded"})
        names = {str(row["name"]) for row in rows if UNSIGNED in str(row.get("taint", ""))}
        self._intake.conditions(
            "unsigned", {name: (name, f"{name} was loaded without a valid signature") for name in names}
        )

    async def _drift(self) -> None:
        try:
            (rows,) = await self._transport.call(PATH, "org.kmodd1.Configuration", "GetDrift", timeout=READ_TIMEOUT)
        except Unavailable:
            raise
        except KmoddError:
            return  # a daemon without desired state
        self._intake.conditions("drift", dict(_drifted(row) for row in rows))

    async def _ask_bus(self, member: str) -> Any:
        (answer,) = await self._transport.call(
            BUS[1], BUS[2], member, "s", [NAME], timeout=READ_TIMEOUT, destination=BUS[0]
        )
        return answer

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            self._logger.warning("notifier.trouble", message=f"nothing is heard of kmodd: {trouble}")
        self.trouble = trouble


def _drifted(row: Mapping[str, Any]) -> tuple[str, tuple[str, str]]:
    module, kind, wanted, actual = (str(row.get(key, "")) for key in ("module", "kind", "wanted", "actual"))
    return f"{module}:{kind}:{wanted}", (
        module,
        f"{module}: {kind} should be {wanted or 'none'}, is {actual or 'none'}",
    )
