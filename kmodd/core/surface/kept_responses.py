# SPDX-License-Identifier: LGPL-2.1-or-later
"""Responses as the text of a file, and back. What does not read back whole is no response: whose the rules are is not guessed."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from kmodd.model.responses import OwnedRule, Response, Version, Vulnerability
from kmodd.names import parse_module

_T = TypeVar("_T")


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
