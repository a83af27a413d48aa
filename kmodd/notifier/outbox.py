# SPDX-License-Identifier: LGPL-2.1-or-later
"""The durable queue: seen records, queued notices, and the state of each endpoint.

SQLite with a write-ahead log and synchronous=FULL: what a method has confirmed survives a kill at any point and a power
loss. A notice is queued in the transaction that marks its record as seen, and removed only after its receiver accepted it;
so it is delivered at least once, with the same id each time.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from kmodd.fast_dataclass import dataclass
from kmodd.notifier.notice import Notice

SEEN_MAX = 20_000
"""Records remembered as seen; more than are read once more after a restart."""
DUE_MAX = 48 * 3_600_000_000
"""A single delivery due later than this many microseconds from now is due now: the clock was set back."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seen (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS condition (kind TEXT, key TEXT, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS delivery (
    number INTEGER PRIMARY KEY AUTOINCREMENT, endpoint TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL,
    queued INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, due INTEGER NOT NULL DEFAULT 0, batch TEXT,
    UNIQUE (endpoint, id));
CREATE INDEX IF NOT EXISTS delivery_order ON delivery (endpoint, number);
CREATE TABLE IF NOT EXISTS endpoint (
    name TEXT PRIMARY KEY, enabled INTEGER NOT NULL DEFAULT 1, why TEXT NOT NULL DEFAULT '',
    failures INTEGER NOT NULL DEFAULT 0, due INTEGER NOT NULL DEFAULT 0, wait INTEGER NOT NULL DEFAULT 0,
    last_success INTEGER NOT NULL DEFAULT 0, last_error TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0, delivered INTEGER NOT NULL DEFAULT 0, dropped INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sent (endpoint TEXT NOT NULL, time INTEGER NOT NULL);
"""
_SIZE = "length(body) + 200"
"""Bytes a delivery is counted with: its text and what SQLite keeps around it."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One notice for one endpoint."""

    number: int
    notice: Notice
    queued: int
    attempts: int


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """What waits for an endpoint. Times are microseconds since the epoch, 0 for none."""

    count: int = 0
    oldest: int = 0
    """When the oldest was queued."""
    due: int = 0
    """When the first may be sent, as far as it is up to the messages; 0 for now."""
    refused: int = 0
    """Those that the receiver rejected; each has its own schedule and delays no other."""


@dataclass(frozen=True, slots=True)
class EndpointState:
    """How an endpoint is. Times are microseconds since the epoch, 0 for never."""

    name: str
    enabled: bool = True
    why: str = ""
    failures: int = 0
    """Failed attempts since the last success."""
    due: int = 0
    """No attempt before then."""
    wait: int = 0
    """Seconds that were to be waited when `due` was set; bounds what a clock set back can do."""
    last_success: int = 0
    last_error: str = ""
    attempts: int = 0
    delivered: int = 0
    dropped: int = 0


class Outbox:
    """One file, one process, one connection. Every method is one transaction; sqlite3.Error when the disk refuses."""

    def __init__(self, path: Path | str) -> None:
        self._db = db = sqlite3.connect(path, isolation_level=None, timeout=5)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA cache_size=-512")
        db.execute("PRAGMA journal_size_limit=1048576")
        db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # --- what happened ------------------------------------------------------------------------------------------------

    @property
    def cursor(self) -> int | None:
        """Time of the newest record that was seen; None before the first."""
        row = self._db.execute("SELECT value FROM meta WHERE key = 'cursor'").fetchone()
        return None if row is None else int(row[0])

    def unseen(self, ids: Iterable[str]) -> set[str]:
        """Those that `take` does not know yet."""
        wanted = set(ids)
        existing: set[str] = set()
        ordered = sorted(wanted)
        for start in range(0, len(ordered), 500):
            part = ordered[start : start + 500]
            marks = ",".join("?" * len(part))
            existing.update(row[0] for row in self._db.execute(f"SELECT id FROM seen WHERE id IN ({marks})", part))  # noqa: S608 - question marks
        return wanted - existing

    def take(
        self,
        ids: Sequence[str],
        cursor: int | None,
        routed: Sequence[tuple[Notice, Sequence[str]]],
        now: int,
        changed: Mapping[tuple[str, str], bool] | None = None,
    ) -> int:
        """Remember records as seen and queue what they are worth, all or nothing; how many were queued.

        `changed` tells of conditions, by (kind, key), that the records say came (True) or went.
        """
        with _Transaction(self._db) as db:
            for condition, there in (changed or {}).items():
                if there:
                    db.execute("INSERT OR IGNORE INTO condition VALUES (?, ?)", condition)
                else:
                    db.execute("DELETE FROM condition WHERE kind = ? AND key = ?", condition)
            db.executemany("INSERT OR IGNORE INTO seen (id) VALUES (?)", [(identifier,) for identifier in ids])
            db.execute("DELETE FROM seen WHERE number <= (SELECT max(number) FROM seen) - ?", (SEEN_MAX,))
            if cursor is not None:
                db.execute("INSERT OR REPLACE INTO meta VALUES ('cursor', ?)", (str(cursor),))
            return self._queue(routed, now)

    def conditions(self, kind: str) -> set[str] | None:
        """What of this kind was there at the last look; None before the first."""
        if self._db.execute("SELECT 1 FROM meta WHERE key = ?", (f"looked-{kind}",)).fetchone() is None:
            return None
        return {row[0] for row in self._db.execute("SELECT key FROM condition WHERE kind = ?", (kind,))}

    def change_conditions(
        self, kind: str, now_there: set[str], routed: Sequence[tuple[Notice, Sequence[str]]], now: int
    ) -> int:
        """Remember what is there now and queue what became of it, all or nothing; how many were queued."""
        with _Transaction(self._db) as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, '1')", (f"looked-{kind}",))
            db.execute("DELETE FROM condition WHERE kind = ?", (kind,))
            db.executemany("INSERT INTO condition VALUES (?, ?)", [(kind, key) for key in sorted(now_there)])
            return self._queue(routed, now)

    def _queue(self, routed: Sequence[tuple[Notice, Sequence[str]]], now: int) -> int:
        count = 0
        for notice, endpoints in routed:
            body = notice.dump()
            for endpoint in endpoints:
                done = self._db.execute(
                    "INSERT OR IGNORE INTO delivery (endpoint, id, body, queued) "
                    "SELECT ?, ?, ?, ? WHERE NOT EXISTS (SELECT 1 FROM endpoint WHERE name = ? AND NOT enabled)",
                    (endpoint, notice.id, body, now, endpoint),
                )
                count += done.rowcount
                if not done.rowcount:
                    self._db.execute(
                        "UPDATE endpoint SET dropped = dropped + 1 WHERE name = ? AND NOT enabled", (endpoint,)
                    )
        return count

    # --- what is to be sent -------------------------------------------------------------------------------------------

    def waiting(self, endpoint: str) -> QueueStatus:
        """How much waits, and for what."""
        row = self._db.execute(
            "SELECT count(*), min(queued), min(due), total(due > 0) FROM delivery WHERE endpoint = ?", (endpoint,)
        ).fetchone()
        return QueueStatus(*(int(value or 0) for value in row))

    def begin(self, endpoint: str, most: int, now: int) -> list[Delivery]:
        """The oldest deliveries that are due, at most so many. What was begun together stays together until it is done."""
        with _Transaction(self._db) as db:
            head = db.execute(
                "SELECT id, batch FROM delivery WHERE endpoint = ? AND (due <= ? OR due > ?) ORDER BY number LIMIT 1",
                (endpoint, now, now + DUE_MAX),
            ).fetchone()
            if head is None:
                return []
            batch = head[1]
            if batch is None:
                batch = head[0]
                db.execute(
                    "UPDATE delivery SET batch = ? WHERE number IN "
                    "(SELECT number FROM delivery WHERE endpoint = ? AND (due <= ? OR due > ?) ORDER BY number LIMIT ?)",
                    (batch, endpoint, now, now + DUE_MAX, most),
                )
            rows = db.execute(
                "SELECT number, body, queued, attempts FROM delivery WHERE endpoint = ? AND batch = ? ORDER BY number",
                (endpoint, batch),
            ).fetchall()
        return [Delivery(number, Notice.parse(body), queued, attempts) for number, body, queued, attempts in rows]

    def finish(self, endpoint: str, deliveries: Sequence[Delivery], now: int) -> None:
        """They have arrived."""
        with _Transaction(self._db) as db:
            db.executemany("DELETE FROM delivery WHERE number = ?", [(delivery.number,) for delivery in deliveries])
            self._know(endpoint)
            db.execute(
                "UPDATE endpoint SET failures = 0, due = 0, wait = 0, last_success = ?, last_error = '', "
                "attempts = attempts + 1, delivered = delivered + ? WHERE name = ?",
                (now, len(deliveries), endpoint),
            )
            db.execute("DELETE FROM sent WHERE time < ? OR time > ?", (now - 3_600_000_000, now))
            db.execute("INSERT INTO sent VALUES (?, ?)", (endpoint, now))

    def postpone(self, endpoint: str, deliveries: Sequence[Delivery], error: str, due: int, wait: int) -> None:
        """They have not arrived: not before `due` again."""
        with _Transaction(self._db) as db:
            db.executemany(
                "UPDATE delivery SET attempts = attempts + 1 WHERE number = ?", [(d.number,) for d in deliveries]
            )
            self._know(endpoint)
            db.execute(
                "UPDATE endpoint SET failures = failures + 1, attempts = attempts + 1, last_error = ?, due = ?, wait = ? "
                "WHERE name = ?",
                (error, due, wait, endpoint),
            )

    def set_aside(self, endpoint: str, delivery: Delivery, error: str, due: int) -> None:
        """The receiver is well and does not take this one: it alone waits until `due`."""
        with _Transaction(self._db) as db:
            db.execute("UPDATE delivery SET attempts = attempts + 1, due = ? WHERE number = ?", (due, delivery.number))
            self._know(endpoint)
            db.execute(
                "UPDATE endpoint SET failures = 0, due = 0, wait = 0, attempts = attempts + 1, last_error = ? "
                "WHERE name = ?",
                (error, endpoint),
            )

    def drop_overdue(self, endpoint: str, before: int, only: Delivery | None = None) -> int:
        """Drop what was queued before then, or only one of it, and count that; how many."""
        with _Transaction(self._db) as db:
            done = db.execute(
                "DELETE FROM delivery WHERE endpoint = ? AND queued < ? AND (? IS NULL OR number = ?)",
                (endpoint, before, only and only.number, only and only.number),
            )
            self._know(endpoint)
            db.execute("UPDATE endpoint SET dropped = dropped + ? WHERE name = ?", (done.rowcount, endpoint))
            return done.rowcount

    def sent_since(self, endpoint: str, time: int) -> list[int]:
        """When something was sent, oldest first."""
        rows = self._db.execute("SELECT time FROM sent WHERE endpoint = ? AND time > ? ORDER BY time", (endpoint, time))
        return [row[0] for row in rows]

    def shrink(self, rows: int, size: int) -> dict[str, int]:
        """Drop the oldest of the endpoints with most until so many rows and bytes are left; returns how many by endpoint."""
        with _Transaction(self._db) as db:
            held = {
                name: [count, total]
                for name, count, total in db.execute(
                    f"SELECT endpoint, count(*), sum({_SIZE}) FROM delivery GROUP BY endpoint"  # noqa: S608 - a constant
                )
            }
            too_many = sum(count for count, _ in held.values()) - rows
            too_large = sum(total for _, total in held.values()) - size
            oldest: dict[str, Iterator[tuple[int, int]]] = {}
            dropped: dict[str, list[int]] = {}
            while too_many > 0 or too_large > 0:
                # The endpoint with most of what exceeds its limit, rows first.
                name = max(held, key=lambda endpoint: held[endpoint][0 if too_many > 0 else 1])
                if name not in oldest:
                    oldest[name] = db.execute(
                        f"SELECT number, {_SIZE} FROM delivery WHERE endpoint = ? ORDER BY number",  # noqa: S608 - a constant
                        (name,),
                    )
                number, freed = next(oldest[name])
                dropped.setdefault(name, []).append(number)
                held[name][0] -= 1
                held[name][1] -= freed
                too_many, too_large = too_many - 1, too_large - freed
            for name, numbers in dropped.items():
                oldest.pop(name)
                db.executemany("DELETE FROM delivery WHERE number = ?", [(number,) for number in numbers])
                self._know(name)
                db.execute("UPDATE endpoint SET dropped = dropped + ? WHERE name = ?", (len(numbers), name))
        return {name: len(numbers) for name, numbers in dropped.items()}

    # --- endpoints ----------------------------------------------------------------------------------------------------

    def state(self, endpoint: str) -> EndpointState:
        """How it is."""
        row = self._db.execute(
            "SELECT name, enabled, why, failures, due, wait, last_success, last_error, attempts, delivered, dropped "
            "FROM endpoint WHERE name = ?",
            (endpoint,),
        ).fetchone()
        return EndpointState(endpoint) if row is None else EndpointState(row[0], bool(row[1]), *row[2:])

    def enable(self, endpoint: str, *, enabled: bool, why: str = "") -> None:
        """Send to it, or keep what is queued and queue no more. Enabling also resets its failures: retry immediately."""
        with _Transaction(self._db) as db:
            self._know(endpoint)
            db.execute(
                "UPDATE endpoint SET enabled = ?, why = ?, failures = 0, due = 0, wait = 0 WHERE name = ?",
                (int(enabled), why, endpoint),
            )
            if enabled:
                db.execute("UPDATE delivery SET due = 0 WHERE endpoint = ?", (endpoint,))

    def forget_others(self, endpoints: Iterable[str]) -> dict[str, int]:
        """Drop what waits for endpoints that are no more; how many by endpoint."""
        kept = set(endpoints)
        with _Transaction(self._db) as db:
            waiting = dict(db.execute("SELECT endpoint, count(*) FROM delivery GROUP BY endpoint").fetchall())
            names = {row[0] for row in db.execute("SELECT name FROM endpoint")} | waiting.keys()
            for name in names - kept:
                db.execute("DELETE FROM delivery WHERE endpoint = ?", (name,))
                db.execute("DELETE FROM endpoint WHERE name = ?", (name,))
                db.execute("DELETE FROM sent WHERE endpoint = ?", (name,))
        return {name: count for name, count in waiting.items() if name not in kept}

    def _know(self, endpoint: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO endpoint (name) VALUES (?)", (endpoint,))


class _Transaction:
    """All or nothing; IMMEDIATE, so that a full disk or a lock is known before anything is half done."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> sqlite3.Connection:
        self._db.execute("BEGIN IMMEDIATE")
        return self._db

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._db.execute("COMMIT")
        elif self._db.in_transaction:  # SQLite itself rolls back on some errors
            self._db.execute("ROLLBACK")
