# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of errors is whole and unambiguous."""

import errno

import pytest

from kmodd.errors import ERRORS, KmoddError, errno_name

# Every row users rely on: (names, exit code of kmodctl, HTTP status).
TABLE = [
    ("Failed", 1, 500),
    ("InvalidArgs", 2, 400),
    ("NoSuchModule NoSuchParameter NoSuchVersion NoSuchEndpoint NoSuchResponse NotLoaded ModuleTreeMissing", 3, 404),
    ("AccessDenied", 4, 403),
    ("InteractiveAuthorizationRequired", 4, 401),
    ("InUse Builtin NotRemovable Conflict Busy", 5, 409),
    ("DisabledByPolicy", 6, 409),
    ("LimitsExceeded", 7, 429),
    ("BadModule WrongKernel BadSignature UnknownSymbol Shadows", 8, 422),
    ("BadParameter UnknownParameter ReadOnlyParameter", 9, 422),
    ("NoDevice InitFailed", 10, 502),
    ("Lockdown ModulesDisabled NotPermitted", 11, 409),
    ("TimedOut Stuck Crashed", 12, 504),
    ("Unavailable", 13, 503),
]


def test_the_table_is_complete() -> None:
    listed = {name for names, _, _ in TABLE for name in names.split()}
    assert {error.name() for error in ERRORS.values()} == listed


@pytest.mark.parametrize(("names", "code", "status"), TABLE)
def test_codes(names: str, code: int, status: int) -> None:
    for name in names.split():
        error = next(cls for cls in ERRORS.values() if cls.name() == name)
        assert (error.exit_code, error.http_status) == (code, status)
        assert error.title


def test_freedesktop_names_are_reused() -> None:
    reused = {name for name in ERRORS if name.startswith("org.freedesktop.DBus.Error.")}
    assert {name.rsplit(".", 1)[1] for name in reused} == {
        "InvalidArgs", "AccessDenied", "InteractiveAuthorizationRequired", "LimitsExceeded",
    }  # fmt: skip


def test_the_message_is_the_text() -> None:
    assert str(KmoddError("one sentence")) == "one sentence"


def test_error_numbers_are_called_what_linux_calls_them() -> None:
    assert errno_name(errno.EINVAL) == "EINVAL"
    assert errno_name(errno.EOPNOTSUPP) == "EOPNOTSUPP"
    assert errno_name(errno.EAGAIN) == "EAGAIN"
    assert errno_name(9999) == "error 9999"
