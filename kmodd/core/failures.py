# SPDX-License-Identifier: LGPL-2.1-or-later
"""Failures that are remembered until they are reset or the operation succeeds, over a restart of the daemon too."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kmodd.errors import Evidence
from kmodd.model import Failure, LoadedBy, OperationResult
from kmodd.names import ModuleName, canonical, is_module_name

REMEMBERED = 256
"""Modules at most; the oldest that is not stuck is forgotten first."""
FILE_MAX = 1 << 20
"""Bytes of the state file that are read."""


class Failures:
    """The last failure of each module, kept in a small file below the runtime directory.

    The file is a convenience: when it is missing, broken or cannot be written, what is in memory still holds.
    """

    def __init__(self, path: Path | None = None, *, on_trouble: Callable[[OSError], None] = lambda error: None) -> None:
        """`path` None keeps everything in memory; `on_trouble` hears of a file that cannot be written."""
        self._path = path
        self._on_trouble = on_trouble
        self._failures = _read(path) if path is not None else {}

    def get(self, name: ModuleName) -> Failure | None:
        """The failure of a module; None when there is none."""
        return self._failures.get(name)

    def all(self) -> tuple[Failure, ...]:
        """Every failure, oldest first."""
        return tuple(self._failures.values())

    @property
    def stuck(self) -> tuple[Failure, ...]:
        """Those the kernel has not let go of."""
        return tuple(failure for failure in self._failures.values() if failure.stuck)

    def remember(self, failure: Failure) -> None:
        """Keep it in place of an older one about the same module."""
        self._failures.pop(failure.module, None)
        self._failures[failure.module] = failure
        if len(self._failures) > REMEMBERED:
            oldest = next((f for f in self._failures.values() if not f.stuck), None)
            if oldest is not None:
                del self._failures[oldest.module]
        self._write()

    def share(self, results: Sequence[OperationResult], targets: Sequence[Sequence[ModuleName]]) -> None:
        """Let what was asked for (`targets`, for each result) have the failure of the dependency that it failed for."""
        for result, names in zip(results, targets, strict=True):
            cause = self._failures.get(ModuleName(result.error.module)) if result.error is not None else None
            if cause is None or result.error is None or cause.error != result.error.name():
                continue
            for name in names:
                if name != cause.module:
                    self.remember(replace(cause, module=name, stuck=False))

    def let_go(self, name: ModuleName) -> bool:
        """Note that the kernel let go of a stuck module; False when it was not stuck."""
        failure = self._failures.get(name)
        if failure is None or not failure.stuck:
            return False
        self._failures[name] = replace(failure, stuck=False)
        self._write()
        return True

    def forget(self, name: ModuleName) -> bool:
        """Forget it; False when nothing was remembered. Costs nothing then."""
        if self._failures.pop(name, None) is None:
            return False
        self._write()
        return True

    def _write(self) -> None:
        if self._path is None:
            return
        text = json.dumps([asdict(failure) for failure in self._failures.values()])
        temporary = self._path.with_name(f".{self._path.name}.new")
        try:
            temporary.unlink(missing_ok=True)
            # The folder is the daemon's own and on a tmpfs: no fsync, a reboot clears both the file and its subject.
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(handle, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor, not a path
                file.write(text)
            temporary.replace(self._path)
        except OSError as error:
            self._on_trouble(error)


def _read(path: Path) -> dict[ModuleName, Failure]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(handle, encoding="utf-8") as file:  # noqa: PTH123 - a descriptor, not a path
            entries = json.loads(file.read(FILE_MAX))
    except (OSError, ValueError, RecursionError):
        # Absent at the first start; broken (or nested too deep) when somebody wrote into it: nothing is remembered.
        return {}
    found: dict[ModuleName, Failure] = {}
    for entry in entries if isinstance(entries, list) else ():
        failure = _failure(entry)
        if failure is not None:
            found[failure.module] = failure
    return found


def _failure(entry: object) -> Failure | None:
    try:
        data = dict(_of(entry, dict))
        evidence = dict(_of(data["evidence"], dict))
        name = _of(data["module"], str)
        if not is_module_name(name):
            return None
        return Failure(
            module=canonical(name),
            action=_of(data["action"], str),
            error=_of(data["error"], str),
            message=_of(data["message"], str),
            time=_of(data["time"], int),
            stuck=_of(data["stuck"], bool),
            by=_asker(data.get("by")),
            worker=_of(data.get("worker", ""), str),
            evidence=Evidence(
                errno=None if evidence["errno"] is None else _of(evidence["errno"], int),
                kernel_log=_texts(evidence["kernel_log"]),
                hint=_of(evidence["hint"], str),
                holders=_texts(evidence["holders"]),
                users=tuple(_triple(user) for user in _of(evidence["users"], list)),
                file=_of(evidence["file"], str),
                line=_of(evidence["line"], int),
                rule=_of(evidence["rule"], str),
                symbols=_texts(evidence["symbols"]),
                parameter=_of(evidence["parameter"], str),
            ),
        )
    except (KeyError, TypeError, ValueError):
        # A field is missing or is something else: an entry that cannot be trusted is dropped, the others stay.
        return None


def _asker(value: object) -> LoadedBy | None:
    if value is None:
        return None
    data = dict(_of(value, dict))
    uid = None if data["uid"] is None else _of(data["uid"], int)
    return LoadedBy(uid, _of(data["client"], str), _of(data["reason"], str), _of(data["time"], int))


def _of(value: object, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}")
    return value


def _texts(value: object) -> tuple[str, ...]:
    return tuple(_of(text, str) for text in _of(value, list))


def _triple(value: object) -> tuple[str, str, str]:
    kind, name, detail = _texts(value)
    return kind, name, detail
