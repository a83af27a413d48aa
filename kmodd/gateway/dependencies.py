# SPDX-License-Identifier: LGPL-2.1-or-later
"""What routes share: the principal, and the form of responses with keys in snake_case and rows as objects."""

import json
import re
from collections.abc import Mapping
from typing import Any

from fastapi import Depends, Request
from starlette.responses import Response

from kmodd.errors import InvalidArgs
from kmodd.gateway.http.authentication import Principal
from kmodd.gateway.http.middleware import PRINCIPAL


def needs(scope: str) -> Any:
    """A dependency: the principal, when it has the scope."""

    async def check(request: Request) -> Principal:
        principal: Principal = request.scope[PRINCIPAL]
        principal.require(scope)
        if request.scope["query_string"]:
            _check_query(request)
        return principal

    return Depends(check)


def _check_query(request: Request) -> None:
    # An unknown parameter is a mistake, as an unknown option is on D-Bus: `?stat=all` must not mean `loaded`.
    dependant = request.scope["route"].dependant
    names = {field.alias for field in dependant.query_params}
    if set(request.query_params) - names:
        raise InvalidArgs(f"unknown query parameter; expected: {', '.join(sorted(names)) or 'none'}")


def documented(scope: str, *errors: str, example: Any = None, body: Any = None) -> dict[str, Any]:
    """What a route says of itself in the OpenAPI document: its scope, its errors, examples of its answer and body."""
    return {
        "openapi_extra": {
            "x-kmodd-scope": scope,
            "x-kmodd-errors": list(errors),
            "x-kmodd-example": example,
            "x-kmodd-body": body,
        }
    }


class Answer(Response):
    """JSON, spelled by us: what comes from the bus needs no second check on its way out."""

    media_type = "application/json"

    def __init__(self, value: object, status_code: int = 200) -> None:
        super().__init__(encode(value), status_code=status_code)


def encode(value: object) -> bytes:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


_ROWS = {
    "parameters": ("name", "type", "description", "writable"),
}
"""Lists of structs, by the key they stand under, with the names of their fields."""
_VERBATIM = frozenset({"parameters", "labels", "placements", "open_requests", "still_loaded"})
"""Maps whose keys are data."""
_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])")


def key(name: str) -> str:
    """`loaded-by` and `LoadDurationUSec` as `loaded_by` and `load_duration_usec`."""
    return _WORD.sub("_", name.replace("USec", "Usec")).replace("-", "_").lower()


def snake(values: Mapping[str, Any]) -> dict[str, Any]:
    """A map from the bus, its keys and those of maps within in snake_case."""
    return {(name := key(name_on_bus)): _value(name, value) for name_on_bus, value in values.items()}


def _value(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return value if name in _VERBATIM else snake(value)
    if isinstance(value, list):
        fields = _ROWS.get(name)
        if fields is not None:
            return [dict(zip(fields, row, strict=False)) if isinstance(row, list) else row for row in value]
        return [snake(row) if isinstance(row, dict) else row for row in value]
    return value
