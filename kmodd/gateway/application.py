# SPDX-License-Identifier: LGPL-2.1-or-later
"""The FastAPI application: routes, static files, the OpenAPI document, and every failure as a problem document."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from kmodd import VERSION
from kmodd.errors import ERRORS, INTERNAL, Failed, InvalidArgs, KmoddError
from kmodd.fast_dataclass import dataclass
from kmodd.gateway import models
from kmodd.gateway.dependencies import encode
from kmodd.gateway.http.problem import MEDIA_TYPE, URN, HttpProblem, of_error, of_http
from kmodd.gateway.metrics import TYPE

DESCRIPTION = """\
Load, unload and explain the kernel modules of this machine. The gateway is a client of kmodd's D-Bus API under its own
user: what polkit does not allow that user, no token can do. See kmodd-gateway(8).
"""
TAGS = [
    {"name": "changes", "description": "Operations that change the system."},
    {"name": "reading", "description": "Queries."},
    {"name": "surface", "description": "Which modules can be loaded by whom, and what keeps them out."},
    {"name": "configuration", "description": "The administrator's rules, and the desired state."},
    {"name": "store", "description": "Custom modules."},
    {"name": "webhooks", "description": "Receivers of notifications; requires kmodd-notifier."},
    {"name": "events", "description": "Events as they happen."},
]
STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".json": "application/json",
}
_EVERYWHERE = {400: "", 421: "the Host header names a host that this gateway does not serve"}
_WITH_TOKEN = {
    401: "no valid bearer token",
    403: "the token lacks the scope or the module, or polkit refuses the gateway",
    429: "too many requests with this token, or too many operations",
    500: "internal error of kmodd",
    503: "kmodd is not available, or too many connections",
}
_WITH_BODY = {408: "the body took too long", 413: "the body is too long", 415: "the body is of another type"}
_BY_NAME = {error.name(): error for error in ERRORS.values()}
_PLAIN = {"/metrics": TYPE.partition(";")[0], "/v1/events": "text/event-stream"}
_PARAMETERS = {
    "module": "loop",
    "parameter": "max_part",
    "name": "loop_custom",
    "version": "1.2",
    "id": "CVE-2026-31431",
}
_EXAMPLES = {
    "/metrics": 'kmodd_modules_loaded 42\nkmodd_gateway_requests_total{method="GET",route="/health",status="200"} 7\n',
    "/v1/events": 'retry: 2000\nid: 5f1c-0\nevent: hello\ndata: {"complete": true}\n\n'
    'id: 5f1c-1\nevent: module-added\ndata: {"module":"loop"}\n\n',
}


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
    return complete_openapi(schema)


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


@dataclass(frozen=True, slots=True)
class Page:
    """One file."""

    data: bytes
    type: str
    tag: str
    """Its ETag."""

    def answer(self, request: Request) -> Response:
        """The file, or 304 when the browser has it."""
        headers = {"ETag": self.tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        return Response(self.data, headers={**headers, "Content-Type": self.type})


def read_pages(folder: Path) -> Mapping[str, Page]:
    """Every file of a known type in the folder and those below it, by its name from there."""
    return {
        str(path.relative_to(folder)): Page(data, TYPES[path.suffix], f'"{hashlib.sha256(data).hexdigest()[:32]}"')
        for path in sorted(folder.rglob("*"))
        if path.suffix in TYPES and (data := path.read_bytes())
    }


def page_router(pages: Mapping[str, Page]) -> APIRouter:
    """The pages' routes; they are no part of the API."""
    made = APIRouter(include_in_schema=False)

    @made.get("/")
    async def dashboard(request: Request) -> Response:
        """The dashboard; the API's description where a packager left it out."""
        return pages.get("dashboard/index.html", pages["docs.html"]).answer(request)

    @made.get("/docs")
    async def docs(request: Request) -> Response:
        return pages["docs.html"].answer(request)

    @made.get("/static/{name:path}")
    async def static(name: str, request: Request) -> Response:
        page = pages.get(name)
        if page is None:
            raise HttpProblem(404, "no such file")
        return page.answer(request)

    return made


def complete_openapi(document: dict[str, Any]) -> dict[str, Any]:
    """The document, in place."""
    components = document.setdefault("components", {})
    components["securitySchemes"] = {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "A token made by `kmodctl token create`, or a JWT of a configured issuer. "
            "Scopes: `read`, `inspect`, `load`, `unload`, `set-parameter`, `configure`, `surface`, `surface-allow`, "
            "`import`, `activate`; `admin` includes them all.",
        }
    }
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            _complete(path, operation)
            _allow_null(operation.get("requestBody", {}), document["openapi"])
    return document


def _allow_null(body: dict[str, Any], version: str) -> None:
    """Say of a JSON body that may be left out that `null` means the same: FastAPI accepts it, and says so with pydantic 2 alone."""
    content = body.get("content", {}).get("application/json", {})
    schema = content.get("schema", {})
    if body.get("required") or "$ref" not in schema:
        return
    content["schema"] = (
        {"allOf": [schema], "nullable": True} if version.startswith("3.0") else {"anyOf": [schema, {"type": "null"}]}
    )


def _complete(path: str, operation: dict[str, Any]) -> None:
    scope = operation.pop("x-kmodd-scope", "")
    errors = operation.pop("x-kmodd-errors", [])
    example = operation.pop("x-kmodd-example", None)
    body = operation.pop("x-kmodd-body", None)
    responses = operation["responses"]
    responses.pop("422", None)
    answer = responses["200"]
    if path in _PLAIN:
        answer["content"] = {_PLAIN[path]: {"schema": {"type": "string"}, "example": _EXAMPLES[path]}}
    elif example is not None:
        answer["content"]["application/json"]["example"] = example
    if path == "/health":
        responses["503"] = {**answer, "description": "kmodd is failing or not available"}
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            parameter["example"] = _PARAMETERS[parameter["name"]]
    if body == "a file":
        binary = {"schema": {"type": "string", "format": "binary"}}
        operation["requestBody"] = {"required": True, "content": {"application/octet-stream": binary}}
    elif body is not None:
        operation["requestBody"]["content"]["application/json"]["example"] = body
    if scope:
        operation["security"] = [{"bearer": []}]
        operation["description"] = f"{operation.get('description', '')}\n\nScope: `{scope}`.".strip()
        operation["x-scope"] = scope
    reasons: dict[int, list[str]] = {status: [text] if text else [] for status, text in _EVERYWHERE.items()}
    for also in (_WITH_TOKEN if scope else {}, _WITH_BODY if "requestBody" in operation else {}):
        for status, text in also.items():
            reasons.setdefault(status, []).append(text)
    for name in ("InvalidArgs", *errors):
        reasons.setdefault(_BY_NAME[name].http_status, []).append(f"`{name}`: {_BY_NAME[name].title}")
    for status, texts in sorted(reasons.items()):
        responses.setdefault(str(status), _problem(status, texts, errors))


def _problem(status: int, texts: Iterable[str], errors: Iterable[str]) -> dict[str, Any]:
    name = next((name for name in errors if _BY_NAME[name].http_status == status), "")
    name = name or ("InvalidArgs" if status == HTTPStatus.BAD_REQUEST else "")
    title = _BY_NAME[name].title if name else HTTPStatus(status).phrase
    example = {
        "type": URN + name if name else "about:blank",
        "title": title,
        "status": status,
        "detail": f"One sentence: {title}.",
    }
    schema = {"$ref": "#/components/schemas/ProblemDocument"}
    return {
        "description": "; ".join(texts) or title,
        "content": {MEDIA_TYPE: {"schema": schema, "example": example}},
    }
