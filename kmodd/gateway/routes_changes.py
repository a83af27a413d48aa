# SPDX-License-Identifier: LGPL-2.1-or-later
"""Routes that change something: each checks the scope and delegates in a line."""

from fastapi import APIRouter, Path

from kmodd.gateway import models
from kmodd.gateway.asking import Answer, needs, told
from kmodd.gateway.changes import Changes
from kmodd.gateway.principal import Principal

# What most of them can answer beyond what every route can.
# fmt: off
_LOAD = (
    "NoSuchModule", "ModuleTreeMissing", "Builtin", "Conflict", "Busy", "DisabledByPolicy", "BadModule", "WrongKernel",
    "BadSignature", "UnknownSymbol", "BadParameter", "UnknownParameter", "NoDevice", "InitFailed", "Lockdown",
    "ModulesDisabled", "NotPermitted", "TimedOut", "Stuck", "Crashed",
)
_UNLOAD = (
    "NoSuchModule", "InUse", "Builtin", "NotRemovable", "Busy", "DisabledByPolicy", "ModulesDisabled", "NotPermitted",
    "TimedOut", "Stuck", "Crashed",
)
# fmt: on
_BOTH = sorted({*_LOAD, *_UNLOAD})

_LOAD_EXAMPLE = {"message": "Module loop loaded successfully", "module": "loop", "inserted": ["loop"]}
_UNLOAD_EXAMPLE = {"message": "Module loop unloaded successfully", "module": "loop", "removed": ["loop"]}
_LOAD_BODY = {"parameters": {"max_loop": "8"}, "reason": "disk images for the backup"}
_OPERATIONS = [{"action": "load", "module": "loop"}, {"action": "unload", "module": "dummy"}]

MODULE = Path(description="Name of the module, 1 to 55 letters, digits, `-` and `_`.")
ALIAS = Path(description="Name of the module, or an alias such as `pci:v00008086d00001237sv*`.")


def router(changes: Changes) -> APIRouter:
    """The routes."""
    made = APIRouter(tags=["changes"])

    @made.post("/module/load/{module}", response_model=models.Loaded, operation_id="module_load",
               **told("load", *_LOAD, example=_LOAD_EXAMPLE, body=_LOAD_BODY))  # fmt: skip
    @made.post("/v1/modules/{module}/load", response_model=models.Loaded, operation_id="load",
               **told("load", *_LOAD, example=_LOAD_EXAMPLE, body=_LOAD_BODY))  # fmt: skip
    async def load(
        module: str = ALIAS, body: models.LoadRequest | None = None, who: Principal = needs("load")
    ) -> Answer:
        """Load a module.

        With its dependencies and soft dependencies. The answer comes when the kernel is done. What is loaded already
        is a success with an empty `inserted`.
        """
        return Answer(await changes.load(who, module, body or models.LoadRequest()))

    @made.post("/module/unload/{module}", response_model=models.Unloaded, operation_id="module_unload",
               **told("unload", *_UNLOAD, example=_UNLOAD_EXAMPLE, body={"reason": "backup is done"}))  # fmt: skip
    @made.post("/v1/modules/{module}/unload", response_model=models.Unloaded, operation_id="unload",
               **told("unload", *_UNLOAD, example=_UNLOAD_EXAMPLE, body={"reason": "backup is done"}))  # fmt: skip
    async def unload(
        module: str = MODULE, body: models.UnloadRequest | None = None, who: Principal = needs("unload")
    ) -> Answer:
        """Unload a module.

        A reference that is held is never forced: `InUse` names who holds it.
        """
        return Answer(await changes.unload(who, module, body or models.UnloadRequest()))

    @made.post("/v1/modules/{module}/reload", response_model=models.Loaded, operation_id="reload",
               **told("load unload", *_BOTH, example={**_LOAD_EXAMPLE, "message": "Module loop reloaded successfully"},
                      body=_LOAD_BODY))  # fmt: skip
    async def reload(
        module: str = MODULE, body: models.LoadRequest | None = None, who: Principal = needs("load")
    ) -> Answer:
        """Unload a module and load it anew with these parameters.

        When the new load fails, what was loaded before is loaded again with its old parameters.
        """
        who.require("unload")
        return Answer(await changes.load(who, module, body or models.LoadRequest(), anew=True))

    @made.put("/v1/modules/{module}/parameters/{parameter}", response_model=models.Held, operation_id="set_parameter",
              **told("set-parameter", "NoSuchModule", "NotLoaded", "Builtin", "NoSuchParameter", "ReadOnlyParameter",
                     "BadParameter", "Busy", "NotPermitted",
                     example={"module": "loop", "parameter": "max_part", "value": "15"},
                     body={"value": "15"}))  # fmt: skip
    async def set_parameter(
        body: models.ParameterRequest,
        module: str = MODULE,
        parameter: str = Path(description="Name of the parameter."),
        who: Principal = needs("set-parameter"),
    ) -> Answer:
        """Write a parameter of a loaded module, and answer what the kernel holds then."""
        return Answer(await changes.set_parameter(who, module, parameter, body))

    @made.post("/v1/modules/{module}/reset-failed", response_model=models.Told, operation_id="reset_failed",
               **told("load", "Stuck", "Busy",
                      example={"message": "Nothing failed is remembered of module loop any more", "module": "loop"},
                      body={"reason": "the cable is in again"}))  # fmt: skip
    async def reset_failed(
        body: models.Reasoned | None = None, module: str = MODULE, who: Principal = needs("load")
    ) -> Answer:
        """Forget a failed operation, and unlock a stuck one once the kernel has let go of it."""
        return Answer(await changes.reset_failed(who, module, body or models.Reasoned()))

    @made.post("/v1/batch", response_model=models.Results, operation_id="batch",
               **told("load or unload, by operation", *_BOTH,
                      example={"results": [
                          {"module": "loop", "result": "changed", "error": "", "touched": ["loop"]},
                          {"module": "dummy", "result": "unchanged", "error": "", "touched": []},
                      ]},
                      body={"operations": _OPERATIONS, "reason": "maintenance"}))  # fmt: skip
    async def batch(body: models.BatchRequest, who: Principal = needs("read")) -> Answer:
        """Do several operations as one.

        An atomic batch does all or nothing. The answer is a success although operations failed: it says which.
        """
        return Answer(await changes.batch(who, body))

    @made.post("/v1/plan", response_model=models.Steps, operation_id="plan",
               **told("read",
                      example={"steps": [{"action": "insert", "module": "loop", "because": "requested", "operation": 0}]},
                      body={"operations": _OPERATIONS[:1]}))  # fmt: skip
    async def plan(body: models.PlanRequest, who: Principal = needs("read")) -> Answer:
        """The exact steps a batch would take now; changes nothing."""
        del who  # asked for its scope alone
        return Answer(await changes.plan(body))

    return made
