# SPDX-License-Identifier: LGPL-2.1-or-later
"""Routes that report the attack surface."""

from typing import Literal

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from kmodd.client.surface import INTERFACE
from kmodd.dbus.interface_xml import installed
from kmodd.gateway import models
from kmodd.gateway.dependencies import Answer, documented, needs
from kmodd.gateway.http.authentication import Principal
from kmodd.gateway.operations import Operations
from kmodd.gateway.queries import Queries

KERNEL = Query("", max_length=64, description="Release of an installed kernel; the running one when left out.")
_GET, _ROUTES, _REFUSED, _RESPONSES = (
    installed().method(INTERFACE, member).errors for member in ("Get", "GetRoutes", "GetRefused", "GetResponses")
)
_EXPOSED = {
    "module": "algif_aead", "reach": "unprivileged", "reach_without": "unprivileged", "loaded": False, "routes": 1,
    "kind": "algorithm-type", "request": "algif-aead", "through": "",
}  # fmt: skip
_GUARD = {"name": "kernel.modprobe", "value": "/sbin/modprobe", "closes": False, "says": "does not restrict",
          "unread": False, "unusual": False}  # fmt: skip
_REPORT = {
    "kernel": "6.1.0-31-amd64", "running": True, "kernels": ["6.1.0-31-amd64"], "unprivileged": 206, "userns": 385,
    "device": 4, "hardware": 2070, "root": 922, "none": 3, "guards": [_GUARD], "unreadable": [], "nodes_known": True,
    "modules": [_EXPOSED],
}  # fmt: skip
_ROUTE = {
    "kind": "algorithm-type", "request": "algif-aead", "reach": "unprivileged", "open": False, "by_name": True,
    "through": "", "more": 0, "way": "any user who binds an AF_ALG socket",
    "closed_by": "install rule /etc/modprobe.d/local.conf:1: install algif_aead /bin/false",
    "file": "/etc/modprobe.d/local.conf", "line": 1, "rule": "install algif_aead /bin/false",
    "rule_kind": "install", "command": False,
}  # fmt: skip


_RESPONSE = {
    "id": "CVE-2026-31431", "title": "Copy Fail", "modules": ["algif_aead"], "breaks": "", "notes": "",
    "fixed": ["6.1.170", "6.12.85"], "unaffected_from": "7.0", "image_files": [], "initcalls": ["algif_aead_init"],
    "begun": 1793000000000000, "rules": ["algif_aead"],
}  # fmt: skip
_ATTEMPTS = {
    "alias": "algif-aead", "modules": ["algif_aead"], "uid": 1000, "exe": "/usr/bin/python3.11", "comm": "python3",
    "unit": "session-3.scope", "container": "", "count": 42, "first": 1793000000000000, "last": 1793000060000000,
    "file": "/etc/modprobe.d/kmodd-blacklist.conf", "line": 8, "rule": "install algif_aead /bin/false",
    "response": "CVE-2026-31431", "allow": "kmodctl respond end CVE-2026-31431",
}  # fmt: skip


def router(reading: Queries, changes: Operations) -> APIRouter:
    """The routes."""
    made = APIRouter(tags=["surface"])

    @made.get("/v1/surface", response_model=models.SurfaceReport, operation_id="surface",
              **documented("read", *_GET, example=_REPORT))  # fmt: skip
    async def surface(
        kernel: str = KERNEL,
        reach: Literal["", "unprivileged", "userns", "device", "hardware", "root", "none"] = "",
        match: str = Query("", max_length=64, description="A pattern over names with `*`, `?` and `[…]`."),
        limit: int = Query(0, ge=0, le=65536, description="Maximum number of modules; 0 for all."),
        principal: Principal = needs("read"),
    ) -> Response:
        """Which modules of a kernel can be loaded by whom, those that the most users reach first."""
        del principal
        return Response(await reading.surface(kernel, reach, match, limit), media_type="application/json")

    @made.get("/v1/surface/refused", response_model=models.RefusedAttempts, operation_id="surface_refused",
              **documented("read", *_REFUSED, example={"attempts": [_ATTEMPTS]}))  # fmt: skip
    async def refused(
        since: int = Query(
            0, ge=0, le=2**53 - 1, description="Only attempts since this time, in microseconds since 1970-01-01 UTC."
        ),
        principal: Principal = needs("read"),
    ) -> Answer:
        """Attempts to have a module loaded that a rule refused, by whom, and the command that allows each."""
        return Answer({"attempts": await changes.refused(principal, since)})

    @made.get("/v1/responses", response_model=models.Responses, operation_id="responses",
              **documented("read", *_RESPONSES, example={"responses": [_RESPONSE]}))  # fmt: skip
    async def responses(principal: Principal = needs("read")) -> Answer:
        """Vulnerabilities whose modules are kept out."""
        del principal
        return Answer(await reading.responses())

    @made.get("/v1/surface/{module}", response_model=models.Routes, operation_id="surface_routes",
              **documented("read", *_ROUTES, example={"routes": [_ROUTE]}))  # fmt: skip
    async def routes(
        module: str = Path(description="Name of the module."),
        kernel: str = KERNEL,
        principal: Principal = needs("read"),
    ) -> Answer:
        """By which routes a module can be loaded, and what closes each that is not open."""
        del principal
        return Answer(await reading.routes(module, kernel))

    return made
