# SPDX-License-Identifier: LGPL-2.1-or-later
"""Routes that read and change modules, with health, history and metrics. Each checks the scope and delegates in one line."""

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
from kmodd.gateway.operations import Operations
from kmodd.gateway.queries import Queries

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
_LOAD, _UNLOAD, _RELOAD, _SET, _RESET, _BATCH = (
    installed().method(MANAGER, member).errors
    for member in ("Load", "Unload", "Reload", "SetParameter", "ResetFailed", "Batch")
)
"""What each can answer beyond what every route can."""
_LOAD_EXAMPLE = {"message": "Module loop loaded successfully", "module": "loop", "inserted": ["loop"]}
_UNLOAD_EXAMPLE = {"message": "Module loop unloaded successfully", "module": "loop", "removed": ["loop"]}
_LOAD_BODY = {"parameters": {"max_loop": "8"}, "reason": "disk images for the backup"}
_OPERATIONS = [
    {"action": "load", "module": "loop"},
    {"action": "unload", "module": "dummy"},
    {"action": "set-parameter", "module": "overlay", "parameters": {"redirect_max": "64"}},
]
MODULE = Path(description="Name of the module, 1 to 55 letters, digits, `-` and `_`.")
ALIAS = Path(description="Name of the module, or an alias such as `pci:v00008086d00001237sv*`.")


def reading_router(reading: Queries, changes: Operations, link: DaemonConnection) -> APIRouter:
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


def changing_router(changes: Operations) -> APIRouter:
    """The routes."""
    made = APIRouter(tags=["changes"])

    @made.post("/module/load/{module}", response_model=models.Loaded, operation_id="module_load",
               **documented("load", *_LOAD, example=_LOAD_EXAMPLE, body=_LOAD_BODY))  # fmt: skip
    @made.post("/v1/modules/{module}/load", response_model=models.Loaded, operation_id="load",
               **documented("load", *_LOAD, example=_LOAD_EXAMPLE, body=_LOAD_BODY))  # fmt: skip
    async def load(
        module: str = ALIAS, body: models.LoadRequest | None = None, principal: Principal = needs("load")
    ) -> Answer:
        """Load a module.

        With its dependencies and soft dependencies. The answer comes when the kernel is done. What is loaded already
        is a success with an empty `inserted`.
        """
        return Answer(await changes.load(principal, module, body or models.LoadRequest()))

    @made.post("/module/unload/{module}", response_model=models.Unloaded, operation_id="module_unload",
               **documented("unload", *_UNLOAD, example=_UNLOAD_EXAMPLE, body={"reason": "backup is done"}))  # fmt: skip
    @made.post("/v1/modules/{module}/unload", response_model=models.Unloaded, operation_id="unload",
               **documented("unload", *_UNLOAD, example=_UNLOAD_EXAMPLE, body={"reason": "backup is done"}))  # fmt: skip
    async def unload(
        module: str = MODULE, body: models.UnloadRequest | None = None, principal: Principal = needs("unload")
    ) -> Answer:
        """Unload a module.

        A reference that is held is never forced: `InUse` names who holds it. So does it where live interfaces or devices go
        with the module, unless `disconnect` is given.
        """
        return Answer(await changes.unload(principal, module, body or models.UnloadRequest()))

    @made.post("/v1/modules/{module}/reload", response_model=models.Loaded, operation_id="reload",
               **documented("load unload", *_RELOAD, example={**_LOAD_EXAMPLE, "message": "Module loop reloaded successfully"},
                      body=_LOAD_BODY))  # fmt: skip
    async def reload(
        module: str = MODULE, body: models.ReloadRequest | None = None, principal: Principal = needs("load")
    ) -> Answer:
        """Unload a module and load it with these parameters.

        When the new load fails, what was loaded before is loaded again with its old parameters.
        """
        principal.require("unload")
        return Answer(await changes.load(principal, module, body or models.ReloadRequest(), reload=True))

    @made.put("/v1/modules/{module}/parameters/{parameter}", response_model=models.Held, operation_id="set_parameter",
              **documented("set-parameter", *_SET,
                     example={"module": "loop", "parameter": "max_part", "value": "15"},
                     body={"value": "15"}))  # fmt: skip
    async def set_parameter(
        body: models.ParameterRequest,
        module: str = MODULE,
        parameter: str = Path(description="Name of the parameter."),
        principal: Principal = needs("set-parameter"),
    ) -> Answer:
        """Write a parameter of a loaded module, and answer what the kernel holds then."""
        return Answer(await changes.set_parameter(principal, module, parameter, body))

    @made.post("/v1/modules/{module}/reset-failed", response_model=models.DoneResponse, operation_id="reset_failed",
               **documented("load", *_RESET,
                      example={"message": "Cleared the recorded failure of module loop", "module": "loop"},
                      body={"reason": "the cable is plugged in again"}))  # fmt: skip
    async def reset_failed(
        body: models.Reasoned | None = None, module: str = MODULE, principal: Principal = needs("load")
    ) -> Answer:
        """Forget a failed operation, and unlock a stuck one once the kernel has let go of it."""
        return Answer(await changes.reset_failed(principal, module, body or models.Reasoned()))

    @made.post("/v1/batch", response_model=models.Results, operation_id="batch",
               **documented("load, unload or set-parameter, by operation", *_BATCH,
                      example={"results": [
                          {"module": "loop", "action": "load", "result": "changed", "changed": ["loop"]},
                          {"module": "dummy", "action": "unload", "result": "failed", "changed": [], "error": "InUse",
                           "message": "dummy is in use by 1 network interface", "hint": "ip link delete dummy0",
                           "errno": 11, "users": [{"kind": "netdev", "name": "dummy0", "detail": "up"}]},
                      ]},
                      body={"operations": _OPERATIONS, "reason": "maintenance"}))  # fmt: skip
    async def batch(body: models.BatchRequest, principal: Principal = needs("read")) -> Answer:
        """Do several operations as one.

        An atomic batch does all or nothing. The answer is a success although operations failed: it says which.
        """
        return Answer(await changes.batch(principal, body))

    @made.post("/v1/plan", response_model=models.Steps, operation_id="plan",
               **documented("read",
                      example={"steps": [{"action": "insert", "module": "loop", "because": "requested", "consequences": [],
                                          "operation": 0}]},
                      body={"operations": _OPERATIONS[:1]}))  # fmt: skip
    async def plan(body: models.PlanRequest, principal: Principal = needs("read")) -> Answer:
        """The exact steps a batch would take now; changes nothing."""
        del principal  # only its scope matters
        return Answer(await changes.plan(body))

    return made
