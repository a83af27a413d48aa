# SPDX-License-Identifier: LGPL-2.1-or-later
"""The OpenAPI document: FastAPI's, with the scope, errors and examples of each route."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from kmodd.errors import ERRORS
from kmodd.gateway.http.problem import MEDIA_TYPE, URN
from kmodd.gateway.metrics import TYPE

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
_PARAMETERS = {"module": "loop", "parameter": "max_part", "name": "loop_custom", "version": "1.2"}
_EXAMPLES = {
    "/metrics": 'kmodd_modules_loaded 42\nkmodd_gateway_requests_total{method="GET",route="/health",status="200"} 7\n',
    "/v1/events": 'retry: 2000\nid: 5f1c-0\nevent: hello\ndata: {"complete": true}\n\n'
    'id: 5f1c-1\nevent: module-added\ndata: {"module":"loop"}\n\n',
}


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """The document, in place."""
    components = document.setdefault("components", {})
    components["securitySchemes"] = {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "A token made by `kmodctl token create`, or a JWT of a configured issuer. "
            "Scopes: `read`, `inspect`, `load`, `unload`, `set-parameter`, `configure`, `import`, `activate`; `admin` "
            "includes them all.",
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
