# SPDX-License-Identifier: LGPL-2.1-or-later
"""Follows the daemon: signals report that something happened, the history reports what.

The history is read from the last position, so that nothing is lost while this process or the daemon was not running. It
never starts the daemon: an administrator may have stopped it on purpose.
"""

import asyncio
import sqlite3
from collections.abc import Mapping
from typing import Any

from kmodd.client import NAME, PATH, READ_TIMEOUT, Client
from kmodd.client.connection import BUS, SignalStream, Transport
from kmodd.errors import InvalidArgs, KmoddError, Unavailable
from kmodd.journal.writer import Logger
from kmodd.notifier.ingest import UNSIGNED, Ingest

SETTLE = 0.3
"""Seconds the journal is given to have the record of what a signal tells, and a burst to become one question."""
AGAIN = 3.0
"""Seconds until a second look, when the first found nothing."""
POLL = 300.0
"""Seconds until a look without a signal: what drifts by an edited file, for one, has none."""
RETRY = 20.0
"""Seconds until the next look after one that failed. Signals do not hasten it: a refusal to read the history is a record, and
records are signalled."""
REST = 2.0
"""Minimum pause between reads, as a multiple of the duration of the last one: a burst of events costs kmodd as well."""
REST_MAX = 2.0
LIMIT = 250
"""Records of one reply. Each may have 32 lines of the kernel log, and all of a reply is in memory."""
TAINTED = "E"
"""The letter in /proc/modules of a module that was loaded without a valid signature."""


class Watcher:
    """The daemon's side of the notifier."""

    def __init__(self, transport: Transport, client: Client, intake: Ingest, logger: Logger) -> None:
        self._transport = transport
        self._client = client
        self._intake = intake
        self._logger = logger
        self._wake = asyncio.Event()
        self._returned = asyncio.Event()
        self._there = False
        self._compare = True
        """What is loaded has to be compared with what was known: no record tells what came while kmodd was away."""
        self._limit = LIMIT
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
                self._compare = True
                self._returned.set()
            self._wake.set()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        seconds = 0.0
        while True:
            signalled = await self._woken(seconds)
            began = loop.time()
            count = await self.look()
            if self.trouble:
                seconds = RETRY
            else:
                # A signal without a record: the journal may be slow. After that, the poll has it.
                seconds = AGAIN if signalled and not count else POLL
                await asyncio.sleep(min((loop.time() - began) * REST, REST_MAX))

    async def _woken(self, seconds: float) -> bool:
        """Wait for news, or so many seconds; tell whether there was a signal."""
        try:
            async with asyncio.timeout(seconds):
                await (self._returned if self.trouble else self._wake).wait()
            await asyncio.sleep(SETTLE)
        except TimeoutError:
            return False
        finally:
            self._wake.clear()
            self._returned.clear()
        return True

    async def look(self) -> int:
        """Take everything that is new; how many records were."""
        if not self._there:
            self._say("kmodd is not running")
            return 0
        try:
            # Once the history has a cursor, everything has been looked at for the first time. Later the records come first:
            # they know of a module without a valid signature, and by whom, before the list of modules is looked at.
            fresh = self._intake.fresh
            if fresh:
                await self._conditions()
            count = await self._history()
            if not fresh:
                await self._conditions()
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
            self._logger.info("notifier.recovered", message="contact with kmodd restored")
        self.trouble = ""
        return count

    async def _history(self) -> int:
        since = self._intake.since()
        rows = await self._records(since, oldest=False)
        if len(rows) < self._limit:
            return self._intake.records(rows)
        # There may be older ones that it had no room for: all of them, from the oldest on.
        count = 0
        while True:
            rows = await self._records(since, oldest=True)
            count += self._intake.records(rows)
            if len(rows) < self._limit:
                return count
            last = int(rows[-1]["time"])
            since = last if last > since else since + 1

    async def _records(self, since: int, *, oldest: bool) -> Any:
        while True:
            options = {"since": since, "limit": self._limit, "oldest": oldest}
            try:
                return await self._client.data("GetHistory", options=options)
            except InvalidArgs:
                # kmodd.toml allows fewer (limit-max).
                if self._limit == 1:
                    raise
                self._limit = max(1, self._limit // 2)

    async def _conditions(self) -> None:
        if self._compare:
            await self._unsigned()
            self._compare = False
        await self._drift()

    async def _unsigned(self) -> None:
        rows = await self._client.data("ListModules", options={"state": "loaded"})
        names = {str(row["name"]) for row in rows if TAINTED in str(row.get("taint", ""))}
        there = {name: (name, f"Module {name} was loaded without a valid signature.") for name in names}
        self._intake.conditions(UNSIGNED, "module.unsigned", there)

    async def _drift(self) -> None:
        try:
            (rows,) = await self._transport.call(PATH, "org.kmodd1.Configuration", "GetDrift", timeout=READ_TIMEOUT)
        except Unavailable:
            raise
        except KmoddError:
            return  # a daemon without desired state
        self._intake.conditions("drift", "drift.found", dict(_drifted(row) for row in rows))

    async def _ask_bus(self, member: str) -> Any:
        (answer,) = await self._transport.call(
            BUS[1], BUS[2], member, "s", [NAME], timeout=READ_TIMEOUT, destination=BUS[0]
        )
        return answer

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            self._logger.warning("notifier.trouble", message=f"lost contact with kmodd: {trouble}")
        self.trouble = trouble


def _drifted(row: Mapping[str, Any]) -> tuple[str, tuple[str, str]]:
    module, kind, wanted, actual = (str(row.get(key, "")) for key in ("module", "kind", "wanted", "actual"))
    return f"{module}:{kind}:{wanted}", (
        module,
        f"{module}: {kind} should be {wanted or 'none'}, is {actual or 'none'}",
    )
