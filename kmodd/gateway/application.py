# SPDX-License-Identifier: LGPL-2.1-or-later
"""The FastAPI application: routes, and every failure as a problem document."""

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from kmodd import VERSION
from kmodd.errors import INTERNAL, Failed, InvalidArgs, KmoddError
from kmodd.gateway import models
from kmodd.gateway import openapi as document
from kmodd.gateway.dependencies import encode
from kmodd.gateway.http.problem import HttpProblem, of_error, of_http

DESCRIPTION = """\
Load, unload and explain the kernel modules of this machine. The gateway is a client of kmodd's D-Bus API under its own
user: what polkit does not allow that user, no token can do. See kmodd-gateway(8).
"""
TAGS = [
    {"name": "changes", "description": "Operations that change the system."},
    {"name": "reading", "description": "Queries."},
    {"name": "surface", "description": "Which modules can be loaded by whom."},
    {"name": "configuration", "description": "The administrator's rules, and the desired state."},
    {"name": "store", "description": "Custom modules."},
    {"name": "webhooks", "description": "Receivers of notifications; requires kmodd-notifier."},
    {"name": "events", "description": "Events as they happen."},
]


def make(routers: Iterable[APIRouter]) -> FastAPI:
    """The application of these routes."""
    app = FastAPI(
        title="kmodd",
        version=VERSION,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        openapi_tags=TAGS,
    )
    app.router.redirect_slashes = False
    for router in routers:
        app.include_router(router)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    text = encode(describe(app))

    async def openapi(_: Request) -> Response:
        return Response(text, media_type="application/json")

    app.add_route("/openapi.json", openapi, methods=["GET"])
    return app


def describe(app: FastAPI) -> dict[str, Any]:
    """The application's OpenAPI document."""
    schema = app.openapi()
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    # No route answers with it by name, so FastAPI does not know it.
    schemas.update(_schemas())
    return document.complete(schema)


def _schemas() -> Mapping[str, Any]:
    template = "#/components/schemas/{model}"
    if hasattr(models.ProblemDocument, "model_json_schema"):
        schema: dict[str, Any] = models.ProblemDocument.model_json_schema(ref_template=template)
        inner = schema.pop("$defs", {})
    else:  # pydantic 1
        schema = models.ProblemDocument.schema(ref_template=template)
        inner = schema.pop("definitions", {})
    return {**inner, "ProblemDocument": schema}


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, KmoddError)  # noqa: S101 - registered for these
    return of_error(error)


async def _on_problem(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, HttpProblem)  # noqa: S101 - registered for these
    return of_http(problem)


async def _on_bug(_: Request, __: Exception) -> Response:
    return of_error(Failed(INTERNAL))  # the middleware records it


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for these
    return of_error(InvalidArgs(_sentence(error.errors())))


async def _on_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for these
    if error.status_code == HTTPStatus.BAD_REQUEST:
        return of_error(InvalidArgs("the body is not valid JSON"))  # nested deeper than can be read, for one
    details = {404: "no such resource", 405: "method not allowed for this resource"}
    detail = details.get(error.status_code, "the request cannot be served")
    return of_http(HttpProblem(error.status_code, detail, error.headers))


_HANDLERS: Mapping[type[Exception], Callable[[Request, Exception], Any]] = {
    KmoddError: _on_error,
    HttpProblem: _on_problem,
    RequestValidationError: _on_invalid,
    HTTPException: _on_http,
    Exception: _on_bug,
}


def _sentence(errors: Any) -> str:
    """Where the first mistake is and what it is; nothing of what was sent but the names of fields."""
    if not errors:
        return "the request does not match /openapi.json"
    first = errors[0]
    place = [str(part) for part in first.get("loc", ()) if isinstance(part, str | int)]
    kind = str(first.get("type", ""))
    if "json" in kind:
        return "the body is not valid JSON"
    words = "no such field" if "extra" in kind else str(first.get("msg", "")).rstrip(".")
    # Field names of a body are the client's own text.
    where = ".".join(part for part in place if part.isascii() and part.replace("_", "").isalnum() and len(part) < 64)
    return f"{where or 'the request'}: {words}"
