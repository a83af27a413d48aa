# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes the n-th call into the operating system fail, as a machine out of descriptors or memory or with a bad disk does."""

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from types import TracebackType
from typing import Any, Self

import pytest

ERRNOS = (errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOMEM)
"""What a call may answer beside ENOENT."""

_CALLS = ("open", "stat", "lstat", "listdir", "scandir", "read", "pread", "readlink")
"""Names in `os` that look at something; what only closes or counts is left out, as it does not fail so."""
CHANGING = (
    "write",
    "fsync",
    "rename",
    "replace",
    "mkdir",
    "rmdir",
    "unlink",
    "chmod",
    "fchmod",
    "posix_spawn",
    "pidfd_open",
)
"""Names in `os` that change something, or start a process that does."""


class Faults:
    """Counts calls of `os` and `open` in a block, and makes one of them fail."""

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        code: int = 0,
        at: int = -1,
        only: str = "",
        *,
        names: Sequence[str] = _CALLS,
        lasting: bool = False,
    ) -> None:
        """Call number `at`, from 0, fails with `code`; `only` counts what is done to paths below it, and every read.

        A `lasting` fault is one of all calls from there on.
        """
        self._names = names
        self._lasting = lasting
        self._lock = Lock()
        self._patch = patch
        self._code = code
        self._at = at
        self._only = only
        self.calls: list[str] = []
        """What was called, in order."""
        self.failed = False

    def __enter__(self) -> Self:
        for name in self._names:
            self._patch.setattr(os, name, self._wrapped(getattr(os, name), name))
        opened = self._wrapped(builtins.open, "open")
        self._patch.setattr(builtins, "open", opened)
        self._patch.setattr(io, "open", opened)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patch.undo()

    def _wrapped(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(target: Any, *arguments: Any, **named: Any) -> Any:
            if (
                isinstance(target, int)
                or "dir_fd" in named
                or name == "posix_spawn"
                or os.fsdecode(target).startswith(self._only)
            ):
                with self._lock:  # threads call too
                    number = len(self.calls)
                    self.calls.append(f"{name} {target!r}")
                if number == self._at or (self._lasting and 0 <= self._at <= number):
                    self.failed = True
                    path = None if isinstance(target, int) else os.fsdecode(target)
                    raise OSError(self._code, os.strerror(self._code), path)
            return real(target, *arguments, **named)

        return call


@contextmanager
def broken(code: int, at: int, only: str = "", *, changes: bool = False, lasting: bool = False) -> Iterator[Faults]:
    """A block in which call number `at` fails with `code`; with `changes` calls that change something count too."""
    names = (*_CALLS, *CHANGING) if changes else _CALLS
    with pytest.MonkeyPatch.context() as patch, Faults(patch, code, at, only, names=names, lasting=lasting) as faults:
        yield faults


def count(work: Callable[[], object], only: str = "") -> int:
    """How many calls the work makes when none fails."""
    with broken(0, -1, only) as faults:
        work()
    return len(faults.calls)


def at_every_call(work: Callable[[], object], only: str = "") -> Iterator[tuple[int, int, Faults]]:
    """Enter a block for each errno and each call of `work`, which the caller does in it."""
    total = count(work, only)
    assert total, "the work looks at nothing: this test could not fail"
    for code in ERRNOS:
        for number in range(total):
            with broken(code, number, only) as faults:
                yield code, number, faults
