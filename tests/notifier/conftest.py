# SPDX-License-Identifier: LGPL-2.1-or-later
"""Certificates, notices, a logger that remembers."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from kmodd.journal.writer import Logger, Terminal, make_logger
from kmodd.notifier.notice import Notice
from kmodd.notifier.outbox import Delivery
from tests.notifier.receiver import make_certificate

MakeNotice = Callable[..., Notice]


@pytest.fixture(scope="session")
def localhost(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"), "localhost")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for another host."""
    return make_certificate(tmp_path_factory.mktemp("tls"), "elsewhere.example")


@pytest.fixture
def log() -> io.StringIO:
    """Everything that was logged."""
    return io.StringIO()


@pytest.fixture
def logger(log: io.StringIO) -> Logger:
    """Writes to `log`."""
    return make_logger(Terminal(log))


def notice(number: int = 1, **changes: object) -> Notice:
    """A failure to load something."""
    values: dict[str, object] = {
        "id": f"msg_{number:032x}",
        "time": 1_700_000_000_000_000 + number,
        "kind": "failure",
        "severity": "warning",
        "event": "operation.failed",
        "message": f"failure {number}",
        "module": "dummy",
        "error": "InitFailed",
        "uid": 1000,
    }
    return Notice(**{**values, **changes})  # type: ignore[arg-type] # the tests name fields that are there


def delivery(number: int = 1, **changes: object) -> Delivery:
    """A notice on its way."""
    return Delivery(number, notice(number, **changes), 0, 0)
