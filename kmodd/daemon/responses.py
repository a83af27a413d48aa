# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files of responses: records below responses.d, and what is kept of responses in the state directory.

What does not read back whole is no response: whose the rules are is not guessed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from kmodd.config.toml_file import DropIns
from kmodd.core.surface.vulnerabilities import read_records
from kmodd.errors import Conflict, Evidence, InvalidArgs, NotPermitted, errno_name
from kmodd.kernel.atomic_file import read_file, write_whole
from kmodd.model.surface import OwnedRule, Response, Version, Vulnerability
from kmodd.names import parse_module

_T = TypeVar("_T")
FOLDER = "responses.d"


def dump(responses: Sequence[Response]) -> bytes:
    """The text of the file."""
    return (json.dumps([asdict(response) for response in responses], indent=1) + "\n").encode()


def load(text: bytes) -> tuple[Response, ...]:
    """Read the text back; ValueError for what `dump` did not write."""
    try:
        return tuple(_response(row) for row in _list(json.loads(text), dict))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("not a list of responses") from error


def _response(row: dict[str, Any]) -> Response:
    about = row["vulnerability"]
    vulnerability = Vulnerability(
        _text(about["id"]),
        tuple(parse_module(_text(name)) for name in _list(about["modules"], str)),
        title=_text(about["title"]),
        routes=tuple(_list(about["routes"], str)),
        breaks=_text(about["breaks"]),
        notes=_text(about["notes"]),
        fixed=tuple(_version(each) for each in _list(about["fixed"], list)),
        unaffected_from=_optional(about["unaffected_from"], _version),
        unaffected_before=_optional(about["unaffected_before"], _version),
        image_files=tuple(_list(about["image_files"], str)),
        initcalls=tuple(_list(about["initcalls"], str)),
        file=_text(about["file"]),
    )
    rules = tuple(
        OwnedRule(parse_module(_text(rule["module"])), _text(rule["before"]), _text(rule["before_reason"]))
        for rule in _list(row["rules"], dict)
    )
    uid = row["uid"]
    return Response(
        vulnerability, rules, _number(row["begun"]), None if uid is None else _number(uid), _text(row["reason"])
    )


def _list(value: Any, kind: type[_T]) -> list[_T]:
    if not isinstance(value, list) or not all(isinstance(each, kind) for each in value):
        raise ValueError("a list is expected")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is expected")  # noqa: TRY004 - of a file, not of a caller
    return value


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a number is expected")
    return value


def _version(value: Any) -> Version:
    first, second, third = (_number(each) for each in value)
    return first, second, third


def _optional(value: Any, parse: Callable[[Any], _T]) -> _T | None:
    return None if value is None else parse(value)


def shipped_records(root: Path | None) -> Mapping[str, Vulnerability]:
    """The records in effect below `root`; none for a simulated system. Read when they are needed, which is rare."""
    return {} if root is None else read_records(DropIns(root, FOLDER).read())


class KeptResponses:
    """Responses on a file, which outlives the boot; in memory where there is no state directory."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._memory: tuple[Response, ...] = ()

    def read(self) -> tuple[Response, ...]:
        """What was written last; Conflict for a file that something else wrote, NotPermitted for one that cannot be read."""
        if self._path is None:
            return self._memory
        try:
            text = read_file(self._path)
        except OSError as error:
            raise self._refusal("read", error) from error
        if text is None:
            return ()
        try:
            return load(text)
        except (ValueError, InvalidArgs) as error:
            raise Conflict(
                f"{self._path} is damaged, and which rules belong to which response is not known",
                evidence=Evidence(file=str(self._path), hint=f"move {self._path} away; kmodctl config show"),
            ) from error

    def write(self, responses: Sequence[Response]) -> None:
        """Replace all of it; NotPermitted leaves what was there."""
        if self._path is None:
            self._memory = tuple(responses)
            return
        try:
            write_whole(self._path, dump(responses), 0o600)
        except OSError as error:
            raise self._refusal("written", error) from error

    def _refusal(self, what: str, error: OSError) -> NotPermitted:
        return NotPermitted(
            f"{self._path} cannot be {what} ({errno_name(error.errno or 0)})",
            evidence=Evidence(errno=error.errno, file=str(self._path)),
        )
