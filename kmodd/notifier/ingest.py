# SPDX-License-Identifier: LGPL-2.1-or-later
"""Follows the daemon, and turns records of its history and changes of conditions into queued notices, each once.

Limits notices about refused requests per user: refusals need no authorization, so any user can cause any number of them.

The history is read from the last position, so that nothing is lost while this process or the daemon was not running. It
never starts the daemon: an administrator may have stopped it on purpose.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kmodd.client import NAME, PATH, READ_TIMEOUT, Client
from kmodd.client.connection import BUS, SignalStream, Transport
from kmodd.errors import InvalidArgs, KmoddError, Unavailable
from kmodd.journal.writer import Logger
from kmodd.notifier.configuration import Rule, route
from kmodd.notifier.notice import Notice, from_record, identifier, record_key
from kmodd.notifier.outbox import Outbox

PERIOD = 60_000_000
"""Microseconds over which refusals of one user are counted, by the time of their records."""
TOLD_MAX = 30
"""Refusals per user and period that are sent."""
USERS_MAX = 256
_REFUSALS = frozenset({"authorization.denied", "module.refused", "operation.failed"})

Complain = Callable[[int | None, int], None]
"""Called with (user, 0) when refusals begin to be left out, and with (user, how many) once the period is over."""
Counted = tuple[dict[int | None, tuple[int, int]], int]
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


class RefusalLimiter:
    """Counts."""

    def __init__(self, complain: Complain) -> None:
        self._complain = complain
        self._counts: dict[int | None, tuple[int, int]] = {}
        """(beginning of the period, refusals in it) by user."""
        self.left_out = 0
        """Refusals that were not sent, since the start."""

    @property
    def counted(self) -> Counted:
        """What was counted so far, to go back to."""
        return dict(self._counts), self.left_out

    @counted.setter
    def counted(self, before: Counted) -> None:
        self._counts, self.left_out = dict(before[0]), before[1]

    def admits(self, notice: Notice) -> bool:
        """Whether to send this one. Those of root and of jobs are always sent."""
        if notice.uid == 0 or notice.job or notice.event not in _REFUSALS:
            return True
        begun, count = self._counts.get(notice.uid, (notice.time, 0))
        if not begun <= notice.time < begun + PERIOD:
            self._end(notice.uid, count)
            begun, count = notice.time, 0
        if notice.uid not in self._counts and len(self._counts) >= USERS_MAX:
            for uid, (since, before) in list(self._counts.items()):
                if not since <= notice.time < since + PERIOD:
                    self._end(uid, before)
                    del self._counts[uid]
        self._counts[notice.uid] = (begun, count + 1)
        if count < TOLD_MAX:
            return True
        self.left_out += 1
        if count == TOLD_MAX:
            self._complain(notice.uid, 0)
        return False

    def _end(self, uid: int | None, count: int) -> None:
        if count > TOLD_MAX:
            self._complain(uid, count - TOLD_MAX)


OVERLAP = 3_000_000
"""Microseconds that are read once more each time: the clock may have been set back a little."""
OVERLAP_START = 600_000_000
"""The same for the first time in a process, as it may have been set back while the notifier was not running."""
UNSIGNED = "unsigned"


_UNSIGNED_CHANGES = {UNSIGNED: True, "unload": False}
"""What a record says about a module without a valid signature: it is there now, or no more."""


class Ingest:
    """Between the watcher and the queue."""

    def __init__(
        self, outbox: Outbox, logger: Logger, *, clock: Callable[[], int], queued: Callable[[Sequence[str]], None]
    ) -> None:
        self._outbox = outbox
        self._logger = logger
        self._clock = clock
        self._queued = queued
        self._flood = RefusalLimiter(self._left_out)
        self._overlap = OVERLAP_START
        self._begun = 0
        """Older records are not sent; 0 except at the very first start."""
        self.rules: tuple[Rule, ...] = ()
        self.rows = 10_000
        self.bytes = 16 << 20

    @property
    def left_out(self) -> int:
        """Refusals that were not sent because one user caused too many."""
        return self._flood.left_out

    @property
    def fresh(self) -> bool:
        """Nothing was ever read: what is there now is as it always was."""
        return self._outbox.cursor is None

    def since(self) -> int:
        """From when on to read the history. Never later than now: a clock that was set back hides nothing."""
        now, cursor = self._clock(), self._outbox.cursor
        if self._overlap == OVERLAP:  # answered once, so all that is older was seen
            self._begun = 0
        if cursor is None:
            self._begun = cursor = now
            self._outbox.take([], cursor, [], now)
        return max(0, min(cursor, now) - self._overlap)

    def records(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Take an answer of GetHistory, oldest first; how many records were new."""
        keys: dict[str, Mapping[str, Any]] = {}
        for row in rows:
            nth = 0
            while (key := record_key(row, nth)) in keys:
                nth += 1
            keys[key] = row
        ids = {identifier(key): key for key in keys}
        unseen = self._outbox.unseen(ids)
        if not unseen:
            self._overlap = OVERLAP
            return 0
        counted = self._flood.counted
        routed, changed = [], dict[tuple[str, str], bool]()
        for record_id, key in ids.items():
            if record_id not in unseen:
                continue
            notice = from_record(keys[key], key)
            if notice is None or notice.time < self._begun:
                continue
            for module in notice.modules:
                if notice.kind in _UNSIGNED_CHANGES:
                    changed[UNSIGNED, module] = _UNSIGNED_CHANGES[notice.kind]
            names = route(self.rules, notice)
            if names and self._flood.admits(notice):
                routed.append((notice, names))
        new = [identifier for identifier in ids if identifier in unseen]
        try:
            self._outbox.take(new, int(rows[-1].get("time", 0)), routed, self._clock(), changed)
        except sqlite3.Error:
            self._flood.counted = counted  # they are read, and counted, once more
            raise
        self._overlap = OVERLAP
        self._told(routed)
        return len(unseen)

    def conditions(self, kind: str, event: str, there: Mapping[str, tuple[str, str]]) -> None:
        """Ingest the present conditions of a kind: name to (module, sentence). New are those absent at the last read."""
        before = self._outbox.conditions(kind)
        if before is not None and before == there.keys():
            return
        now = self._clock()
        routed = []
        for key in sorted(there.keys() - (there.keys() if before is None else before)):
            module, sentence = there[key]
            notice = Notice(
                id=identifier(f"{kind}:{key}:{now}"),
                time=now,
                kind=kind,
                severity="warning",
                event=event,
                message=sentence,
                module=module,
            )
            routed.append((notice, route(self.rules, notice)))
        self._outbox.change_conditions(kind, set(there), routed, now)
        self._told(routed)

    def test(self, endpoint: str, host: str) -> str:
        """Queue a notice for one endpoint by hand; its id."""
        now = self._clock()
        notice = Notice(
            id=identifier(f"test:{endpoint}:{now}"),
            time=now,
            kind="test",
            severity="info",
            event="notification.test",
            message=f"this is a test of kmodd's notifications on {host}",
        )
        self._outbox.take([], None, [(notice, [endpoint])], now)
        self._told([(notice, [endpoint])])
        return notice.id

    def _left_out(self, uid: int | None, count: int) -> None:
        what = f"{count} notifications suppressed" if count else "further notifications suppressed this minute"
        self._logger.warning("notifier.dropped", message=f"many requests were refused: {what}", uid=uid)

    def _told(self, routed: Sequence[tuple[Notice, Sequence[str]]]) -> None:
        endpoints = {name for _, names in routed for name in names}
        if not endpoints:
            return
        for name, count in self._outbox.shrink(self.rows, self.bytes).items():
            self._logger.error(
                "notifier.dropped", message=f"{name}: the queue is full, the oldest {count} were dropped"
            )
        self._queued(sorted(endpoints))


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
        """Why no records are received from the daemon, as a sentence; empty while they are."""

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
