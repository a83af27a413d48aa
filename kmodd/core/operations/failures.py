# SPDX-License-Identifier: LGPL-2.1-or-later
"""Failed operations, kept across a restart of the daemon until they are reset or the operation succeeds."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from operator import attrgetter
from typing import Any

from kmodd.errors import Evidence
from kmodd.model import Failure, LoadedBy, OperationResult, User
from kmodd.names import ModuleName, canonical, is_module_name

REMEMBERED = 256
"""Modules at most; the oldest that is not stuck is forgotten first."""


class Failures:
    """The last failure of each module."""

    def __init__(self, kept: bytes | None = None, keep: Callable[[bytes], None] = lambda data: None) -> None:
        """`kept` is what `keep` was given last, by an earlier daemon; None for nothing."""
        self._keep = keep
        self._failures = _parse(kept) if kept is not None else {}
        self.get = self._failures.get
        """The failure of a module; None when there is none."""

    def all(self) -> tuple[Failure, ...]:
        """Every failure, oldest first."""
        return tuple(self._failures.values())

    @property
    def stuck(self) -> tuple[Failure, ...]:
        """Those the kernel has not let go of."""
        return tuple(filter(_is_stuck, self._failures.values()))

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
        """Assign to the requested modules (`targets`, for each result) the failure of the dependency that caused it."""
        for result, names in zip(results, targets, strict=True):
            cause = self._failures.get(ModuleName(result.error.module)) if result.error is not None else None
            if cause is None or result.error is None or cause.error != result.error.name():
                continue
            for name in names:
                if name != cause.module:
                    self.remember(replace(cause, module=name, stuck=False))

    def settle(self, name: ModuleName) -> bool:
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
        self._keep(json.dumps([asdict(failure) for failure in self._failures.values()]).encode())


_is_stuck = attrgetter("stuck")


def _parse(data: bytes) -> dict[ModuleName, Failure]:
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError):
        # Damaged, or nested too deep: nothing is remembered.
        return {}
    failures: dict[ModuleName, Failure] = {}
    for entry in entries if isinstance(entries, list) else ():
        failure = _failure(entry)
        if failure is not None:
            failures[failure.module] = failure
    return failures


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
            by=read_loader(data.get("by")),
            worker=_of(data.get("worker", ""), str),
            evidence=Evidence(
                errno=None if evidence["errno"] is None else _of(evidence["errno"], int),
                kernel_log=_texts(evidence["kernel_log"]),
                hint=_of(evidence["hint"], str),
                holders=_texts(evidence["holders"]),
                users=tuple(_user(user) for user in _of(evidence["users"], list) if isinstance(user, dict)),
                file=_of(evidence["file"], str),
                line=_of(evidence["line"], int),
                rule=_of(evidence["rule"], str),
                rule_kind=_of(evidence.get("rule_kind", ""), str),
                symbols=_texts(evidence["symbols"]),
                parameter=_of(evidence["parameter"], str),
            ),
        )
    except (KeyError, TypeError, ValueError):
        # A field is missing or is something else: an entry that cannot be trusted is dropped, the others stay.
        return None


def read_loader(value: object) -> LoadedBy | None:
    """The caller, as `asdict` made it; None for None. KeyError or TypeError for what is no caller."""
    if value is None:
        return None
    data = dict(_of(value, dict))
    uid = None if data["uid"] is None else _of(data["uid"], int)
    login_uid = data.get("login_uid")  # what an older version kept has none
    return LoadedBy(
        uid,
        _of(data["client"], str),
        _of(data["reason"], str),
        _of(data["time"], int),
        login_uid if isinstance(login_uid, int) else None,
    )


def _of(value: object, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}")
    return value


def _texts(value: object) -> tuple[str, ...]:
    return tuple(_of(text, str) for text in _of(value, list))


def _user(data: Mapping[str, object]) -> User:
    """A user as `asdict` spelled it; what an older version kept has fewer fields. Who owns it decides who may see it."""
    pid, owner = data.get("pid"), data.get("owner")
    return User(
        _of(data["kind"], str),
        _of(data["name"], str),
        _of(data["detail"], str),
        command=_of(data.get("command", ""), str),
        pid=None if pid is None else _of(pid, int),
        exe=_of(data.get("exe", ""), str),
        owner=None if owner is None else _of(owner, int),
    )
