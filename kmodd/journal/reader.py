# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads records and the loads at boot back from the journal; or records from memory if there is no journal."""

import re
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Protocol

from kmodd.core.events import Clock
from kmodd.journal.fields import IDENTIFIER, from_fields
from kmodd.model import HistoryEntry, HistoryQuery, ModuleLoad, Record, Requester
from kmodd.names import ModuleName, canonical, is_module_name

UNIT = "kmodd.service"
LOADER_UNIT = "systemd-modules-load.service"
_INSERTED = re.compile(r"Inserted module '([^']{1,64})'")
"""module_load_and_warn in systemd's src/shared/module-util.c, since version 218."""
_LOADS_MAX = 1000


class Reader(Protocol):
    """The part of systemd.journal.Reader that is used."""

    def add_match(self, *args: str) -> None:
        """Further matches of one field widen, of other fields narrow."""

    def seek_tail(self) -> None:
        """Go behind the newest entry."""

    def seek_realtime(self, realtime: int) -> None:
        """Go before the first entry of this time (microseconds since the epoch) or later."""

    def get_next(self) -> Mapping[str, object]:
        """The entry after; empty at the end."""

    def get_previous(self) -> Mapping[str, object]:
        """The entry before; empty at the beginning."""

    def close(self) -> None:
        """Close the files."""


class JournalReader:
    """Reads what kmodd itself wrote; implements core.api.HistoryReader.

    The matches are on fields with an underscore, which journald sets from the sender's credentials: another process can
    write any KMODD_… field, but not into this history.
    """

    def __init__(self, open_reader: Callable[[], Reader]) -> None:
        self._open = open_reader

    def read(self, query: HistoryQuery) -> list[HistoryEntry]:
        """Newest last. Blocking: it walks through journal files."""
        reader = self._open()
        try:
            reader.add_match(f"_SYSTEMD_UNIT={UNIT}")
            reader.add_match("_UID=0")
            reader.add_match(f"SYSLOG_IDENTIFIER={IDENTIFIER}")
            if query.module is not None:
                reader.add_match(f"KMODD_MODULE={query.module}")
            for event in query.events:  # of one field, any
                reader.add_match(f"KMODD_EVENT={event}")
            return _oldest(reader, query) if query.oldest else _newest(reader, query)
        finally:
            reader.close()


def _newest(reader: Reader, query: HistoryQuery) -> list[HistoryEntry]:
    reader.seek_tail()
    entries: list[HistoryEntry] = []
    while len(entries) < query.limit and (fields := reader.get_previous()):
        time = microseconds(fields.get("__REALTIME_TIMESTAMP"))
        if time < query.since:
            break
        if "KMODD_EVENT" in fields:
            entries.append(from_fields(fields, time))
    entries.reverse()
    return entries


def _oldest(reader: Reader, query: HistoryQuery) -> list[HistoryEntry]:
    reader.seek_realtime(query.since)
    entries: list[HistoryEntry] = []
    while len(entries) < query.limit and (fields := reader.get_next()):
        time = microseconds(fields.get("__REALTIME_TIMESTAMP"))
        # Where the clock was set back, the journal is not in the order of time.
        if time >= query.since and "KMODD_EVENT" in fields:
            entries.append(from_fields(fields, time))
    return entries


class MemoryJournal:
    """Keeps the latest records; implements Audit and HistoryReader for runs without a journal."""

    def __init__(self, clock: Clock, keep: int = 1000) -> None:
        self._clock = clock
        self._entries: deque[HistoryEntry] = deque(maxlen=keep)

    def record(self, record: Record) -> None:
        """Remember it."""
        self._entries.append(HistoryEntry(self._clock(), record))

    def read(self, query: HistoryQuery) -> list[HistoryEntry]:
        """Newest last."""
        entries = [
            entry
            # A copy first: reading happens in a thread while the daemon records.
            for entry in tuple(self._entries)
            if entry.time >= query.since
            and (query.module is None or query.module in entry.record.names)
            and (not query.events or entry.record.event in query.events)
        ]
        return entries[: query.limit] if query.oldest else entries[-query.limit :]


def open_system_reader() -> Reader:
    """Open the system's journal, files of this machine and of all boots."""
    # Imported here: the first question for history loads it, an idle daemon does without.
    from systemd.journal import SYSTEM
    from systemd.journal import Reader as SystemReader

    reader: Reader = SystemReader(flags=SYSTEM)
    return reader


def microseconds(value: object) -> int:
    """A time of the journal, since the epoch."""
    if isinstance(value, datetime):
        # timestamp() of a year like 2024 has more digits than a float keeps exactly; rounding restores microseconds.
        return round(value.timestamp() * 1_000_000)
    return value if isinstance(value, int) else 0


def boot_loads(open_reader: Callable[[], Reader], root: Path) -> dict[ModuleName, ModuleLoad]:
    """By module. Blocking. The matches are on fields that journald sets itself; OSError where the boot is not known."""
    boot = (root / "proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    reader = open_reader()
    try:
        for match in (f"_SYSTEMD_UNIT={LOADER_UNIT}", "_UID=0", f"_BOOT_ID={boot}"):
            reader.add_match(match)
        reader.seek_realtime(0)
        loads: dict[ModuleName, ModuleLoad] = {}
        for _ in range(_LOADS_MAX):
            fields = reader.get_next()
            if not fields:
                break
            inserted = _INSERTED.fullmatch(str(fields.get("MESSAGE", "")))
            if inserted is None or not is_module_name(name := canonical(inserted[1])):
                continue
            pid = fields.get("_PID")
            exe = str(fields.get("_EXE", "")) or "systemd-modules-load"
            by = Requester(pid if isinstance(pid, int) else 0, 0, "systemd-modules", exe, LOADER_UNIT)
            loads[ModuleName(name)] = ModuleLoad(
                ModuleName(name), by, time=microseconds(fields.get("__REALTIME_TIMESTAMP"))
            )
        return loads
    finally:
        reader.close()
