# SPDX-License-Identifier: LGPL-2.1-or-later
"""Routes that change something. Each checks the scope and delegates in one line."""

from fastapi import APIRouter, Path

from kmodd.client import MANAGER
from kmodd.dbus.interface_xml import installed
from kmodd.gateway import models
from kmodd.gateway.dependencies import Answer, documented, needs
from kmodd.gateway.http.authentication import Principal
from kmodd.gateway.operations import Changes

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


def router(changes: Changes) -> APIRouter:
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
