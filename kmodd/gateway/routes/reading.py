# SPDX-License-Identifier: LGPL-2.1-or-later
"""Routes that only read."""

from typing import Literal

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from kmodd.client import MANAGER
from kmodd.dbus.interface_xml import installed
from kmodd.errors import KmoddError
from kmodd.gateway import metrics as counts
from kmodd.gateway import models
from kmodd.gateway.daemon_connection import DaemonConnection
from kmodd.gateway.dependencies import Answer, documented, needs
from kmodd.gateway.http.authentication import Principal
from kmodd.gateway.operations import Changes
from kmodd.gateway.queries import Reading

MODULE = Path(description="Name of the module.")
_LISTED = {"name": "loop", "state": "live", "size": 40960, "references": 0, "holders": [], "taint": ""}
_CHECK = {"name": "bus", "status": "ok", "message": "the bus answers", "module": "", "hint": ""}
_HEALTH = {
    "status": "ok", "checks": [_CHECK], "release": "6.1.0-31-amd64", "lockdown": "none", "signature_enforced": False,
    "modules_disabled": False, "secure_boot": False, "taint": 0, "taint_flags": [],
}  # fmt: skip
_DESCRIBED = {
    "name": "loop",
    "filename": "/lib/modules/6.1.0-31-amd64/kernel/drivers/block/loop.ko",
    "license": "GPL",
    "parameters": [
        {"name": "max_loop", "type": "int", "description": "Maximum number of loop devices", "writable": False}
    ],
    "live": {"state": "live", "size": 40960, "references": 0},
}
_EXPLAINED = {
    "name": "loop", "state": "live", "because": "", "holders": [], "references": 1,
    "users": [{"kind": "loop", "name": "/dev/loop0", "detail": "/srv/disk.img"}],
    "removable": False, "blockers": ["/dev/loop0 is set up"], "loadable": False, "policy": "",
}  # fmt: skip
_RECORD = {
    "time": 1767225600000000, "event": "module.loaded", "message": "loop was loaded", "module": "loop", "action": "load",
    "result": "done", "uid": 998, "on_behalf_of": "token backup (0a1b2c3d4e5f)",
}  # fmt: skip
_DESCRIBE, _EXPLAIN = (installed().method(MANAGER, member).errors for member in ("Describe", "Explain"))


def router(reading: Reading, changes: Changes, link: DaemonConnection) -> APIRouter:
    """The routes."""
    made = APIRouter(tags=["reading"])

    @made.get("/v1/modules", response_model=models.Modules, operation_id="list_modules",
              **documented("read", example={"modules": [_LISTED]}))  # fmt: skip
    async def list_modules(
        state: Literal["loaded", "available", "builtin", "all"] = "loaded",
        match: str = Query("", max_length=64, description="A pattern over names with `*`, `?` and `[…]`."),
        principal: Principal = needs("read"),
    ) -> Response:
        """List modules, loaded ones first.

        Reference counts may be a tenth of a second old.
        """
        del principal
        return Response(await reading.modules(state, match), media_type="application/json")

    @made.get("/v1/modules/{module}", response_model=models.Described, operation_id="module",
              **documented("read", *_DESCRIBE, example=_DESCRIBED))  # fmt: skip
    async def module(module: str = MODULE, principal: Principal = needs("read")) -> Answer:
        """What a module is: facts from its file, and its live values while it is loaded."""
        del principal
        return Answer(await reading.module(module))

    @made.get("/v1/modules/{module}/explain", response_model=models.Explained, operation_id="explain",
              **documented("read", *_EXPLAIN, example=_EXPLAINED))  # fmt: skip
    async def explain(module: str = MODULE, principal: Principal = needs("read")) -> Answer:
        """Why a module is there, or is not, and what holds it.

        With the scope `inspect` also other users' processes and files, who loaded it and why, and the kernel's lines.
        """
        return Answer(await reading.explain(module, public=not principal.may("inspect")))

    @made.get("/health", response_model=models.Status, operation_id="status",
              **documented("", example={"status": "ok"}))  # fmt: skip
    async def status() -> Answer:
        """For load balancers and probes: 200, or 503 when kmodd is failing or not available. Needs no token."""
        try:
            report = await link.health()
        except KmoddError:
            return Answer({"status": "unavailable"}, 503)
        return Answer({"status": report}, 503 if report == "failing" else 200)

    @made.get("/v1/health", response_model=models.HealthReport, operation_id="health",
              **documented("read", example=_HEALTH))  # fmt: skip
    async def health(principal: Principal = needs("read")) -> Response:
        """Every check, and the facts about the kernel."""
        del principal
        return Response(await reading.health(), media_type="application/json")

    @made.get("/v1/history", response_model=models.History, operation_id="history",
              **documented("read", example={"records": [_RECORD]}))  # fmt: skip
    async def history(
        module: str = Query("", max_length=64, description="Only this module."),
        since: int = Query(
            0, ge=0, le=2**53 - 1, description="Only records since this time, in microseconds since 1970-01-01 UTC."
        ),
        limit: int = Query(100, ge=1, le=1000, description="Maximum number of records, newest first kept."),
        requests: bool = Query(default=False, description="Only which modules processes needed, and what came of it."),
        principal: Principal = needs("read"),
    ) -> Answer:
        """What was done, by whom, why and with which result; newest last."""
        return Answer({"records": await changes.history(principal, module, since, limit, requests=requests)})

    @made.get("/metrics", response_class=Response, operation_id="metrics", **documented("read"))
    async def metrics(principal: Principal = needs("read")) -> Response:
        """kmodd's metrics and the gateway's own, in Prometheus' text format."""
        del principal
        return Response(await reading.metrics(), headers={"Content-Type": counts.TYPE})

    return made
