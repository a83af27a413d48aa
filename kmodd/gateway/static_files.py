# SPDX-License-Identifier: LGPL-2.1-or-later
"""The static files, read once at start; no other file can be requested."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from kmodd.gateway.http.problem import HttpProblem

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".json": "application/json",
}


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


def read(folder: Path) -> Mapping[str, Page]:
    """Every file of a known type in the folder and those below it, by its name from there."""
    return {
        str(path.relative_to(folder)): Page(data, TYPES[path.suffix], f'"{hashlib.sha256(data).hexdigest()[:32]}"')
        for path in sorted(folder.rglob("*"))
        if path.suffix in TYPES and (data := path.read_bytes())
    }


def router(pages: Mapping[str, Page]) -> APIRouter:
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
