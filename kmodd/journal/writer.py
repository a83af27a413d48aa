# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes records and the daemon's log messages by structlog to the journal or a terminal.

A message is `logger.info("daemon.started", message="…", module="…")`: the event first, then the fields of a Record by
their names; other names become KMODD_… fields. The last processor turns it into journal lines and the terminal logger
sends them.
"""

import logging
import sys
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import fields as dataclass_fields
from functools import partial
from select import POLLOUT, poll
from socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, socket
from typing import Any, Protocol, TextIO

import structlog

from kmodd.journal.fields import IDENTIFIER, clean, to_lines
from kmodd.model import Record

JOURNAL_SOCKET = "/run/systemd/journal/socket"
BACKLOG = 256
"""Records kept while the journal takes none; more are dropped and counted."""

_PRIORITIES = {"debug": 7, "info": 6, "notice": 5, "warning": 4, "warn": 4, "error": 3, "err": 3, "critical": 2}
_LEVELS = {2: "critical", 3: "error", 4: "warning", 5: "notice", 6: "info", 7: "debug"}
_RECORD_FIELDS = frozenset(field.name for field in dataclass_fields(Record))

Send = Callable[..., object]
"""Takes `FIELD=value` texts, as systemd.journal.sendv does."""


class Logger(Protocol):
    """What the daemon logs with."""

    def debug(self, event: str, **fields: object) -> object:
        """For who looks for a fault."""

    def info(self, event: str, **fields: object) -> object:
        """In the ordinary run of things."""

    def notice(self, event: str, **fields: object) -> object:
        """Ordinary, and worth to be noticed."""

    def warning(self, event: str, **fields: object) -> object:
        """Action may be required."""

    def error(self, event: str, **fields: object) -> object:
        """Something failed."""


class Journal:
    """Sends to the journal and never waits for it.

    sd_journal_sendv() writes to a datagram socket that blocks: with journald stopped, a few hundred records fill its
    queue (net.unix.max_dgram_qlen), and the next one would hold up the whole daemon until journald runs again. So a
    connected socket of our own is polled first (the kernel reports it writable only while the receiver's queue has
    room), and what does not fit is kept for later.
    """

    def __init__(self, send: Send, path: str = JOURNAL_SOCKET, identifier: str = IDENTIFIER) -> None:
        """OSError if there is no listener at `path`."""
        self._send = send
        self._identifier = identifier
        self._backlog: deque[tuple[str, ...]] = deque()
        self.dropped = 0
        """Records lost so far."""
        self._unreported = 0
        self._probe = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
        try:
            self._probe.connect(path)
        except OSError:
            self._probe.close()
            raise
        self._poll = poll()
        self._poll.register(self._probe, POLLOUT)

    def __call__(self, *lines: str) -> None:
        """Send one record, after those that had to wait."""
        self._backlog.append(lines)
        if len(self._backlog) > BACKLOG:
            self._backlog.popleft()
            self.dropped += 1
            self._unreported += 1
        self.flush()

    def flush(self) -> None:
        """Send what had to wait, as far as the journal takes it."""
        while self._backlog and self._poll.poll(0):
            try:
                if self._unreported:
                    self._send(*to_lines(_dropped(self._unreported), self._identifier))
                    self._unreported = 0
                else:
                    self._send(*self._backlog.popleft())
            except OSError:  # what was done has been done: a caller must not wait, and must not fail, for its record
                if not self._unreported:
                    self.dropped += 1
                    self._unreported = 1
                return

    @property
    def waiting(self) -> int:
        """Records that the journal did not accept yet."""
        return len(self._backlog)

    def close(self) -> None:
        """Send what can be sent and close the socket."""
        self.flush()
        self._probe.close()


class Terminal:
    """Writes one line for each record, for runs outside systemd."""

    dropped = 0
    """Nothing is ever counted here."""

    def flush(self) -> None:
        """Nothing ever waits here."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, *lines: str) -> None:
        """Write it; errors are ignored, as there is no place to report them."""
        message, shown = "", []
        for line in lines:
            name, _, value = line.partition("=")
            if name == "MESSAGE":
                message = value
            elif name.startswith("KMODD_"):
                shown.append(f"{name.removeprefix('KMODD_').lower()}={value}")
        try:
            self._stream.write(f"{message} [{' '.join(shown)}]\n")
            self._stream.flush()
        except (OSError, ValueError):  # a closed pipe, a closed stream
            return


class JournalAudit:
    """Takes the records of core and bus; implements core.api.Audit."""

    def __init__(self, logger: Logger) -> None:
        self._write = {number: getattr(logger, level, logger.info) for number, level in _LEVELS.items()}
        self.lost = 0
        """Records that could not be written at all."""

    def record(self, record: Record) -> None:
        """Write it; never raises, never waits."""
        try:
            self._write.get(record.priority, self._write[6])(record.event, record=record)
        except Exception:  # noqa: BLE001 - whatever is wrong with it, what was decided has been done and the caller waits
            self.lost += 1


def connect(environment: Mapping[str, str], stream: TextIO, identifier: str = IDENTIFIER) -> "Journal | Terminal":
    """Take the journal when systemd started us with it, else the stream. `identifier` is the program's SYSLOG_IDENTIFIER."""
    if "JOURNAL_STREAM" not in environment:
        return Terminal(stream)
    # Imported here: clients use this module too, and have no need of libsystemd.
    from systemd.journal import sendv

    try:
        return Journal(sendv, identifier=identifier)
    except OSError:
        return Terminal(stream)


class Threshold:
    """How urgent a message has to be; may change while the logger is in use."""

    def __init__(self, least: int = 6) -> None:
        """`least` is a syslog number."""
        self.least = least

    def choose(self, level: str) -> None:
        """Let through this level and what is more urgent."""
        self.least = _PRIORITIES.get(level, 6)


def make_logger(
    send: Send, *, least: int = 6, threshold: Threshold | None = None, identifier: str = IDENTIFIER
) -> Logger:
    """Make a logger that sends everything of priority `least` (a syslog number) or more urgent, and every audit record."""
    threshold = threshold or Threshold(least)

    def drop(_logger: object, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if _PRIORITIES.get(level, 6) > threshold.least and "record" not in event:
            raise structlog.DropEvent
        return event

    logger: Logger = structlog.wrap_logger(
        _Sender(send),
        processors=[drop, partial(_to_lines, identifier)],
        wrapper_class=_Levels,
        cache_logger_on_first_use=True,
    )
    return logger


class StandardBridge(logging.Handler):
    """Takes what libraries log with the standard library (asyncio, dbus-next) into the same stream."""

    def __init__(self, logger: Logger) -> None:
        super().__init__(logging.INFO)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Send it; the traceback becomes a separate field, one line of it per value."""
        try:
            trace: tuple[str, ...] = ()
            if record.exc_info:
                trace = tuple(logging.Formatter().formatException(record.exc_info).splitlines())
            write = self._logger.error if record.levelno >= logging.ERROR else self._logger.warning
            if record.levelno < logging.WARNING:
                write = self._logger.info
            write(
                "daemon.bug" if trace else "daemon.trouble",
                message=f"{record.name}: {record.getMessage()}",
                exception=" | ".join(line.strip() for line in trace[-6:]),
            )
        except Exception:  # noqa: BLE001 - a message that cannot be formatted must not stop its caller
            sys.stderr.write("kmodd: a message could not be logged\n")


class _Sender:
    """Where structlog's chain ends."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def send(self, *lines: str) -> None:
        self._send(*lines)


class _Levels(structlog.BoundLoggerBase):
    """The levels of syslog that are used here."""

    def debug(self, event: str, **fields: object) -> None:
        self._log("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._log("info", event, fields)

    def notice(self, event: str, **fields: object) -> None:
        self._log("notice", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._log("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._log("error", event, fields)

    def critical(self, event: str, **fields: object) -> None:
        self._log("critical", event, fields)

    def _log(self, level: str, event: str, fields: dict[str, object]) -> None:
        try:
            lines, _ = self._process_event(level, event, fields)
        except structlog.DropEvent:
            return
        self._logger.send(*lines)


def _to_lines(
    identifier: str, _logger: object, level: str, event: MutableMapping[str, Any]
) -> tuple[list[str], dict[str, object]]:
    """Turn structlog's event into the arguments of `send`."""
    record = event.get("record")
    if not isinstance(record, Record):
        name = str(event.pop("event", ""))
        own = {key: value for key, value in event.items() if key in _RECORD_FIELDS and key not in {"extra", "priority"}}
        extra = {key.upper(): clean(str(value)) for key, value in event.items() if key not in own and value != ""}
        own.setdefault("message", name)
        record = Record(event=name, priority=_PRIORITIES.get(level, 6), extra=extra, **own)
    return to_lines(record, identifier), {}


def _dropped(count: int) -> Record:
    return Record(
        "journal.dropped",
        f"{count} records are missing here: the journal accepted none for a while.",
        priority=4,
        extra={"DROPPED": str(count)},
    )
