# SPDX-License-Identifier: LGPL-2.1-or-later
"""History comes from fields that journald vouches for, newest last, within the question's limits."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kmodd.journal.reader import JournalReader, MemoryJournal, boot_loads
from kmodd.model import HistoryEntry, HistoryQuery, Record
from kmodd.names import ModuleName

if TYPE_CHECKING:
    from kmodd.core.events import Audit, HistoryReader

M = ModuleName


class FakeReader:
    """A journal with these entries, oldest first, that honours matches as journald does."""

    def __init__(self, entries: list[dict[str, object]]) -> None:
        self.entries = entries
        self.matches: list[str] = []
        self.position = 0
        self.closed = False

    def add_match(self, *args: str) -> None:
        self.matches += args

    def seek_tail(self) -> None:
        self.position = len(self.entries)

    def get_previous(self) -> Mapping[str, object]:
        while self.position:
            self.position -= 1
            entry = self.entries[self.position]
            if all(self.fits(entry, match) for match in self.matches):
                return entry
        return {}

    def seek_realtime(self, realtime: int) -> None:
        """As journald does where the clock never went back: before the first that is not older."""
        times = [entry["__REALTIME_TIMESTAMP"] for entry in self.entries]
        self.position = sum(time.timestamp() * 1_000_000 < realtime for time in times if isinstance(time, datetime))

    def get_next(self) -> Mapping[str, object]:
        while self.position < len(self.entries):
            self.position += 1
            entry = self.entries[self.position - 1]
            if all(self.fits(entry, match) for match in self.matches):
                return entry
        return {}

    def close(self) -> None:
        self.closed = True

    @staticmethod
    def fits(entry: dict[str, object], match: str) -> bool:
        name, _, value = match.partition("=")
        held = entry.get(name)
        return value in [str(each) for each in (held if isinstance(held, list) else [held])]


def entry(second: int, module: object = "loop", **fields: object) -> dict[str, object]:
    return {
        "_SYSTEMD_UNIT": "kmodd.service",
        "_UID": 0,
        "SYSLOG_IDENTIFIER": "kmodd",
        "KMODD_EVENT": "module.loaded",
        "KMODD_MODULE": module,
        "MESSAGE": str(second),
        "__REALTIME_TIMESTAMP": datetime.fromtimestamp(second, UTC),
        **fields,
    }


def read(entries: list[dict[str, object]], query: HistoryQuery) -> list[HistoryEntry]:
    reader = FakeReader(entries)
    try:
        return JournalReader(lambda: reader).read(query)
    finally:
        assert reader.closed


def test_newest_last_and_at_most_the_limit() -> None:
    found = read([entry(second) for second in range(1, 8)], HistoryQuery(limit=3))
    assert [each.record.message for each in found] == ["5", "6", "7"]
    assert found[0].time == 5_000_000


def test_other_services_cannot_write_into_it() -> None:
    forged = [
        entry(1, _SYSTEMD_UNIT="session-1.scope"),
        entry(2, _UID=1000),
        entry(3, SYSLOG_IDENTIFIER="systemd"),
    ]
    assert read([*forged, entry(4)], HistoryQuery()) == read([entry(4)], HistoryQuery())


def test_a_module_selects_also_records_about_several() -> None:
    found = read([entry(1, "dummy"), entry(2, ["loop", "dummy"]), entry(3)], HistoryQuery(module=M("dummy")))
    assert [each.record.names for each in found] == [("dummy",), ("loop", "dummy")]


def test_since_is_inclusive_and_messages_without_event_are_left_out() -> None:
    plain = entry(3)
    del plain["KMODD_EVENT"]
    found = read([entry(1), entry(2), plain, entry(4)], HistoryQuery(since=2_000_000))
    assert [each.record.message for each in found] == ["2", "4"]


def test_everything_can_be_read_in_parts_from_the_oldest_on() -> None:
    entries = [entry(second) for second in range(1, 30)]
    told: list[str] = []
    since = 5_000_000
    while True:
        part = read(entries, HistoryQuery(since=since, limit=7, oldest=True))
        told += [each.record.message for each in part if each.record.message not in told]
        if len(part) < 7:
            break
        since = part[-1].time
    assert told == [str(second) for second in range(5, 30)]


def test_a_clock_set_back_brings_nothing_older_than_since() -> None:
    found = read([entry(5), entry(2), entry(6)], HistoryQuery(since=5_000_000, oldest=True))
    assert [each.record.message for each in found] == ["6"]


def test_microseconds_survive() -> None:
    moment = datetime(2024, 5, 6, 7, 8, 9, 123457, tzinfo=UTC)
    assert read([entry(1, __REALTIME_TIMESTAMP=moment)], HistoryQuery())[0].time % 1_000_000 == 123457


def test_memory_keeps_the_latest_and_answers_alike() -> None:
    now = iter(range(100))
    memory = MemoryJournal(lambda: next(now), keep=4)
    audit: Audit = memory
    reader: HistoryReader = memory
    for number in range(6):
        names = ("loop", "dummy") if number % 2 else ("loop",)
        audit.record(Record("module.loaded", str(number)).about(names))
    assert [each.record.message for each in reader.read(HistoryQuery())] == ["2", "3", "4", "5"]
    assert [each.time for each in reader.read(HistoryQuery(module=M("dummy")))] == [3, 5]
    assert [each.time for each in reader.read(HistoryQuery(since=4))] == [4, 5]
    assert [each.time for each in reader.read(HistoryQuery(limit=1))] == [5]
    assert [each.time for each in reader.read(HistoryQuery(limit=2, oldest=True))] == [2, 3]


BOOT = "0123456789abcdef0123456789abcdef"


def inserted(message: str, **fields: object) -> dict[str, object]:
    return {
        "MESSAGE": message,
        "_SYSTEMD_UNIT": "systemd-modules-load.service",
        "_UID": 0,
        "_BOOT_ID": BOOT,
        "_PID": 234,
        "_EXE": "/usr/lib/systemd/systemd-modules-load",
        "__REALTIME_TIMESTAMP": datetime(2026, 1, 1, tzinfo=UTC),
        **fields,
    }


def test_loads_of_this_boot_are_read_from_what_systemd_modules_load_said(tmp_path: Path) -> None:
    file = tmp_path / "proc/sys/kernel/random/boot_id"
    file.parent.mkdir(parents=True)
    file.write_text("01234567-89ab-cdef-0123-456789abcdef\n")
    reader = FakeReader(
        [
            inserted("Inserted module 'lp'"),
            inserted("Inserted module 'snd-seq'"),
            inserted("Module 'msr' is built in"),
            inserted("Failed to insert module 'zfs': No such device"),
            inserted("Inserted module '../x'"),
            inserted("Inserted module 'other_boot'", _BOOT_ID="f" * 32),
            inserted("Inserted module 'of_a_user'", _UID=1000),
            inserted("Inserted module 'of_another_unit'", _SYSTEMD_UNIT="user@1000.service"),
        ]
    )
    loads = boot_loads(lambda: reader, tmp_path)
    assert sorted(loads) == ["lp", "snd_seq"]
    load = loads[M("lp")]
    assert (load.by.pid, load.by.uid, load.by.exe, load.by.unit) == (
        234,
        0,
        "/usr/lib/systemd/systemd-modules-load",
        "systemd-modules-load.service",
    )
    assert load.time == datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1_000_000
    assert reader.closed
