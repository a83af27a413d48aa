# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records become journal fields: named, escaped, capped, never holding anybody up."""

import io
import logging
import socket
import time
from pathlib import Path

import pytest

from kmodd.journal.fields import LINES_MAX, MESSAGE_IDS, VALUE_MAX, clean, from_fields, to_lines
from kmodd.journal.writer import BACKLOG, Journal, JournalAudit, StandardBridge, Terminal, connect, make_logger
from kmodd.model import Record

FULL = Record(
    event="operation.failed",
    message="loop is in use",
    modules=("loop", "dummy"),
    action="unload",
    result="failed",
    error="InUse",
    uid=1000,
    sender=":1.5",
    exe="/usr/bin/busctl",
    reason="ticket 12",
    job="7",
    duration_usec=1234,
    errno=11,
    kernel_log=("loop: one", "loop: two"),
    hint="losetup --detach",
    on_behalf_of="alice",
    priority=4,
    extra={"TOUCHED": "dummy"},
)


class Sent(list[tuple[str, ...]]):
    """Takes what is sent."""

    def __call__(self, *lines: str) -> None:
        self.append(lines)

    def field(self, name: str) -> list[str]:
        return [line.partition("=")[2] for lines in self for line in lines if line.partition("=")[0] == name]


def test_a_record_has_every_field_of_the_contract() -> None:
    sent = Sent()
    JournalAudit(make_logger(sent)).record(FULL)
    assert set(sent[0]) == {
        "MESSAGE=loop is in use",
        f"MESSAGE_ID={MESSAGE_IDS['operation.failed']}",
        "PRIORITY=4",
        "SYSLOG_IDENTIFIER=kmodd",
        "KMODD_EVENT=operation.failed",
        "KMODD_MODULE=loop",
        "KMODD_MODULE=dummy",
        "KMODD_ACTION=unload",
        "KMODD_RESULT=failed",
        "KMODD_ERROR=InUse",
        "KMODD_UID=1000",
        "KMODD_SENDER=:1.5",
        "KMODD_EXE=/usr/bin/busctl",
        "KMODD_REASON=ticket 12",
        "KMODD_JOB=7",
        "KMODD_DURATION_USEC=1234",
        "KMODD_ERRNO=11",
        "KMODD_KERNEL_LOG=loop: one",
        "KMODD_KERNEL_LOG=loop: two",
        "KMODD_KERNEL_LOG_ORDER=edc7b53e 8661b9a9",
        "KMODD_HINT=losetup --detach",
        "KMODD_ON_BEHALF_OF=alice",
        "KMODD_TOUCHED=dummy",
    }


def test_each_program_has_an_identifier_of_its_own() -> None:
    sent = Sent()
    make_logger(sent, identifier="kmodd-agent").info("agent.started", message="it runs")
    assert sent.field("SYSLOG_IDENTIFIER") == ["kmodd-agent"]


def test_what_is_not_known_is_left_out_and_root_is_known() -> None:
    lines = to_lines(Record("module.appeared", "m"))
    assert {line.partition("=")[0] for line in lines} == {
        "MESSAGE",
        "MESSAGE_ID",
        "PRIORITY",
        "SYSLOG_IDENTIFIER",
        "KMODD_EVENT",
    }
    assert "KMODD_UID=0" in to_lines(Record("module.loaded", "m", uid=0))


def test_what_is_written_reads_back_the_same() -> None:
    fields: dict[str, object] = {}
    for line in to_lines(FULL):
        name, _, value = line.partition("=")
        before = fields.get(name)
        fields[name] = value if before is None else [*(before if isinstance(before, list) else [before]), value]
    entry = from_fields(fields, 99)
    assert (entry.time, entry.record) == (99, FULL)


def test_the_kernels_lines_read_back_in_their_order_whatever_the_journal_does_with_them() -> None:
    """A journal file has what any entry wrote before first, and equal values once."""
    oops = ("BUG: null", "</TASK>", "Call Trace:", "<TASK>", "</TASK>")
    lines = to_lines(Record("operation.crashed", "m", kernel_log=oops))
    order = next(line.partition("=")[2] for line in lines if line.startswith("KMODD_KERNEL_LOG_ORDER="))
    held = ["Call Trace:", "<TASK>", "</TASK>", "BUG: null"]
    fields = {"KMODD_KERNEL_LOG": held, "KMODD_KERNEL_LOG_ORDER": order}
    record = from_fields(fields, 1).record
    assert record.kernel_log == oops
    assert record.extra == {}
    # What is older than this, or somebody forged, is shown as it is.
    assert from_fields({"KMODD_KERNEL_LOG": held}, 1).record.kernel_log == tuple(held)
    assert from_fields({**fields, "KMODD_KERNEL_LOG_ORDER": "x y"}, 1).record.kernel_log == tuple(held)


def test_fields_of_a_strange_shape_read_back_as_unknown() -> None:
    record = from_fields({"KMODD_EVENT": b"\xff", "KMODD_UID": "x", "KMODD_MODULE": [], "PRIORITY": None}, 1).record
    assert (record.event, record.uid, record.module, record.priority) == ("\ufffd", None, "", 6)


@pytest.mark.parametrize(
    ("value", "cleaned"),
    [
        ("plain ünïcode", "plain ünïcode"),
        ("a\nKMODD_UID=0", "a\\x0aKMODD_UID=0"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202eevil", "\\u202eevil"),
        ("\x00\x7f\x85", "\\x00\\x7f\\x85"),
        ("\udc80", "\\udc80"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_values_cannot_fool_a_terminal_or_forge_a_field(value: str, cleaned: str) -> None:
    assert clean(value) == cleaned


@pytest.mark.parametrize("value", ["x" * 5000, "ü" * 5000, "\n" * 5000, "x" * VALUE_MAX, "\udc80" * 4000])
def test_values_are_capped(value: str) -> None:
    assert len(clean(value).encode()) <= VALUE_MAX
    assert clean("x" * VALUE_MAX) == "x" * VALUE_MAX


def test_lists_are_capped_and_odd_names_dropped() -> None:
    record = Record(
        "module.loaded", "m", kernel_log=("x",) * 1000, extra={"UID": "0", "A=B": "1", "GOOD_1": "2", "": "3"}
    )
    lines = to_lines(record)
    assert lines.count("KMODD_KERNEL_LOG=x") == LINES_MAX
    assert [line for line in lines if line.endswith(("=0", "=1", "=2", "=3"))] == ["KMODD_GOOD_1=2"]


def test_the_daemons_own_messages_have_the_same_form() -> None:
    sent = Sent()
    logger = make_logger(sent)
    logger.warning("daemon.trouble", message="The bus is slow.", module="loop", lag="3")
    logger.debug("daemon.trouble", message="not shown")
    assert sent.field("MESSAGE") == ["The bus is slow."]
    assert sent.field("PRIORITY") == ["4"]
    assert sent.field("KMODD_MODULE") == ["loop"]
    assert sent.field("KMODD_LAG") == ["3"]


@pytest.mark.parametrize("priority", range(8))
def test_records_keep_their_priority(priority: int) -> None:
    sent = Sent()
    JournalAudit(make_logger(sent, least=7)).record(Record("module.loaded", "m", priority=priority))
    assert sent.field("PRIORITY") == [str(priority)]


def test_the_audit_never_raises_and_counts_what_was_lost() -> None:
    def broken(*_lines: str) -> None:
        raise OSError(28, "No space left on device")

    audit = JournalAudit(make_logger(broken))
    audit.record(FULL)
    audit.record(Record("module.loaded", 5))  # type: ignore[arg-type] # a mistake
    assert audit.lost == 2


def test_a_record_costs_well_under_sixty_microseconds() -> None:
    audit = JournalAudit(make_logger(lambda *_: None))
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(50):
            audit.record(FULL)
        best = min(best, (time.perf_counter() - start) / 50)
    assert best < 60e-6


class Socket:
    """A journal's socket that nobody reads until asked."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sender.connect(str(path))
        self.sender.settimeout(5)  # fails the test where the daemon would hang
        self.got: list[str] = []

    def send(self, *lines: str) -> None:
        self.sender.send("\n".join(lines).encode())

    def read(self) -> None:
        self.socket.setblocking(False)
        while True:
            try:
                self.got.append(self.socket.recv(65536).decode())
            except BlockingIOError:
                return

    def close(self) -> None:
        self.socket.close()
        self.sender.close()


def test_a_full_journal_blocks_no_caller_and_gets_the_latest_later(tmp_path: Path) -> None:
    receiver = Socket(tmp_path / "socket")
    journal = Journal(receiver.send, str(tmp_path / "socket"))
    limit = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    total = limit + BACKLOG + 50
    for number in range(total):
        journal(f"MESSAGE={number}")
    assert journal.waiting == BACKLOG
    assert journal.dropped >= 40
    while journal.waiting:
        receiver.read()
        journal.flush()
    receiver.read()
    numbers = [int(text.removeprefix("MESSAGE=")) for text in receiver.got if text.removeprefix("MESSAGE=").isdigit()]
    told = [text for text in receiver.got if "KMODD_EVENT=journal.dropped" in text]
    assert len(told) == 1
    assert f"KMODD_DROPPED={journal.dropped}" in told[0]
    assert numbers == sorted(numbers)
    assert numbers[-1] == total - 1
    assert len(numbers) == total - journal.dropped
    journal.close()
    receiver.close()


def test_a_record_that_the_journal_refuses_is_counted_and_reported(tmp_path: Path) -> None:
    """sd_journal_sendv() fails, as on a full disk behind the socket: nobody else's call may fail for that."""
    receiver = Socket(tmp_path / "socket")
    sent: list[tuple[str, ...]] = []
    broken = True

    def send(*lines: str) -> None:
        if broken:
            raise OSError(28, "No space left on device")
        sent.append(lines)

    journal = Journal(send, str(tmp_path / "socket"))
    journal("MESSAGE=1")
    journal("MESSAGE=2")
    assert (journal.dropped, journal.waiting) == (1, 1), (
        "the second waits until it can be said that the first is missing"
    )
    broken = False
    journal("MESSAGE=3")
    assert "KMODD_DROPPED=1" in sent[0]
    assert sent[1:] == [("MESSAGE=2",), ("MESSAGE=3",)]
    journal.close()
    receiver.close()


def test_outside_systemd_the_terminal_gets_lines(tmp_path: Path) -> None:
    stream = io.StringIO()
    send = connect({}, stream)
    assert isinstance(send, Terminal)
    JournalAudit(make_logger(send)).record(FULL)
    assert stream.getvalue().startswith(
        "loop is in use [event=operation.failed module=loop module=dummy action=unload "
    )
    assert stream.getvalue().count("\n") == 1
    stream.close()
    send("MESSAGE=x")  # a closed stream is nobody's trouble
    with pytest.raises(OSError, match="No such file"):
        Journal(lambda *_: None, str(tmp_path / "nowhere"))


def test_what_libraries_log_comes_along() -> None:
    sent = Sent()
    library = logging.getLogger("kmodd-test-library")
    library.propagate = False
    bridge = StandardBridge(make_logger(sent))
    library.addHandler(bridge)
    library.warning("slow %s", "peer")
    library.error("failed", exc_info=ValueError("secret\x1b[0m"))
    library.error("%d", "not a number")
    library.removeHandler(bridge)
    assert sent.field("KMODD_EVENT") == ["daemon.trouble", "daemon.bug"]
    assert sent.field("MESSAGE") == ["kmodd-test-library: slow peer", "kmodd-test-library: failed"]
    assert "ValueError" in sent.field("KMODD_EXCEPTION")[0]
    assert "\x1b" not in sent.field("KMODD_EXCEPTION")[0]
