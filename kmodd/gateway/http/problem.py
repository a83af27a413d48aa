# SPDX-License-Identifier: LGPL-2.1-or-later
"""Failures as problem documents (RFC 9457)."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from kmodd.client.replies import about_user, held_by, hint_for
from kmodd.errors import INTERNAL, Failed, KmoddError, LimitsExceeded, Unavailable

MEDIA_TYPE = "application/problem+json"
URN = "urn:kmodd:error:"
RETRY_AFTER = 2
"""Seconds after which it is worth to try again what was unavailable or too much."""


class HttpProblem(Exception):
    """What is wrong with a request before it means anything: host, size, type, credentials."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


def document(error: KmoddError) -> dict[str, Any]:
    """The problem document of an error of the daemon; what is not known is left out."""
    evidence = error.evidence
    detail = INTERNAL if isinstance(error, Failed) else error.message or error.title
    document: dict[str, Any] = {
        "type": URN + error.name(),
        "title": error.title,
        "status": error.http_status,
        "detail": detail,
        "module": error.module,
        "argument": error.argument,
        "holders": list(evidence.holders),
        "users": [about_user(user) for user in held_by(evidence)],
        "kernel_log": list(evidence.kernel_log),
        "policy": evidence.policy,
        "file": evidence.file,
        "line": evidence.line,
        "rule": evidence.rule,
        "rule_kind": evidence.rule_kind,
        "consequences": list(evidence.goes),
        "symbols": list(evidence.symbols),
        "parameter": evidence.parameter,
        "hint": hint_for(error, error.module),
    }
    document = {name: value for name, value in document.items() if value not in ("", [], 0)}
    if evidence.errno is not None:
        document["errno"] = evidence.errno
    return document


def of_error(error: KmoddError) -> Response:
    """The answer for an error of the daemon."""
    headers = {}
    if isinstance(error, Unavailable | LimitsExceeded):
        headers["Retry-After"] = str(RETRY_AFTER)
    if error.http_status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return _answer(document(error), headers)


def of_http(problem: HttpProblem) -> Response:
    """The answer for a request that is wrong as HTTP."""
    document = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
    }
    return _answer(document, problem.headers)


def _answer(document: Mapping[str, Any], headers: Mapping[str, str]) -> Response:
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return Response(body, status_code=document["status"], media_type=MEDIA_TYPE, headers=dict(headers))
