# SPDX-License-Identifier: LGPL-2.1-or-later
"""What routes share: who asks, and how an answer is spelled."""

import json
from typing import Any

from fastapi import Depends, Request
from starlette.responses import Response

from kmodd.errors import InvalidArgs
from kmodd.gateway.guard import PRINCIPAL
from kmodd.gateway.principal import Principal


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
    # A parameter nobody knows is a mistake, as an unknown option is on the bus: `?stat=all` must not mean `loaded`.
    dependant = request.scope["route"].dependant
    known = {field.alias for field in dependant.query_params}
    if set(request.query_params) - known:
        raise InvalidArgs(f"there is no such query parameter; there are: {', '.join(sorted(known)) or 'none'}")


def told(scope: str, *errors: str, example: Any = None, body: Any = None) -> dict[str, Any]:
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
