# SPDX-License-Identifier: LGPL-2.1-or-later
"""Routes for module rules and the desired state."""

from typing import Any

from fastapi import APIRouter, Path, Query

from kmodd.client.configuration import INTERFACE, Configuration
from kmodd.dbus.interface_xml import installed
from kmodd.gateway import models
from kmodd.gateway.daemon_connection import DaemonConnection
from kmodd.gateway.dependencies import Answer, documented, needs, snake
from kmodd.gateway.http.authentication import Principal
from kmodd.gateway.operations import AuditContext, Operations, results
from kmodd.names import parse_module, parse_parameters, parse_reason

MODULE = Path(description="Name of the module.")
REASON = Query("", max_length=1024, description="One line for the journal.")
_RULE = {
    "kind": "blacklist", "module": "pcspkr", "value": "", "file": "/etc/modprobe.d/kmodd-blacklist.conf", "line": 3,
    "ours": True, "masks": [], "shadowed_by": "", "findings": [],
}  # fmt: skip
_DRIFT = {
    "module": "loop", "kind": "autoload", "wanted": "loaded", "actual": "not loaded", "hint": "kmodctl config apply",
}  # fmt: skip
_DONE = {"message": "Rules for module loop updated", "module": "loop"}
_AUTOLOAD, _OPTIONS, _BLACKLIST, _APPLY, _RELOAD = (
    installed().method(INTERFACE, member).errors
    for member in ("SetAutoload", "SetOptions", "SetBlacklisted", "Apply", "Reload")
)


def router(changes: Operations, link: DaemonConnection) -> APIRouter:
    """The routes."""
    made = APIRouter(tags=["configuration"])

    async def change(
        principal: Principal, member: str, module: str, requested: models.Change, *rest: Any, **more: Any
    ) -> Answer:
        name, reason = parse_module(module), parse_reason(requested.reason)
        principal.require_modules([name])
        options = {**_options(principal, requested, reason), **more}
        async with changes.doing(principal, AuditContext(member, (name,), reason, requested.dry_run)) as client:
            await Configuration(client).data(member, name, *rest, options=options)
        outcome = "would be updated" if requested.dry_run else "updated"
        return Answer({"message": f"Rules for module {name} {outcome}", "module": name})

    @made.get("/v1/config", response_model=models.Rules, operation_id="config",
              **documented("read", example={"rules": [_RULE]}))  # fmt: skip
    async def show(principal: Principal = needs("read")) -> Answer:
        """Every module rule in effect, with its file and line, and what masks it."""
        del principal
        return Answer({"rules": [snake(row) for row in await Configuration(link.client).data("Show")]})

    @made.get("/v1/config/drift", response_model=models.Drifts, operation_id="drift",
              **documented("read", example={"drift": [_DRIFT]}))  # fmt: skip
    async def drift(principal: Principal = needs("read")) -> Answer:
        """The drift from the desired state."""
        del principal
        return Answer({"drift": [snake(row) for row in await Configuration(link.client).data("GetDrift")]})

    @made.put("/v1/config/modules/{module}/autoload", response_model=models.Message, operation_id="autoload",
              **documented("configure", *_AUTOLOAD, example=_DONE, body={"enabled": True, "reason": "disk images"}))  # fmt: skip
    async def autoload(
        body: models.AutoloadRequest, module: str = MODULE, principal: Principal = needs("configure")
    ) -> Answer:
        """Have a module loaded at every boot, or no longer."""
        return await change(principal, "SetAutoload", module, body, body.enabled, parse_parameters(body.parameters))

    @made.put("/v1/config/modules/{module}/options", response_model=models.Message, operation_id="options",
              **documented("configure", *_OPTIONS, example=_DONE, body={"parameters": {"max_loop": "8"}}))  # fmt: skip
    async def options(
        body: models.OptionsRequest, module: str = MODULE, principal: Principal = needs("configure")
    ) -> Answer:
        """Write the parameters a module gets whenever it is loaded; none takes them away."""
        return await change(principal, "SetOptions", module, body, parse_parameters(body.parameters))

    @made.put("/v1/config/modules/{module}/blacklist", response_model=models.Message, operation_id="blacklist",
              **documented("configure", *_BLACKLIST, example=_DONE, body={"blacklisted": True, "reason": "noise"}))  # fmt: skip
    async def blacklist(
        body: models.BlacklistRequest, module: str = MODULE, principal: Principal = needs("configure")
    ) -> Answer:
        """Keep a module from being loaded by devices, `hard` also by its name; or take that away."""
        more = {"hard": True} if body.hard else {}
        return await change(principal, "SetBlacklisted", module, body, body.blacklisted, **more)

    @made.delete("/v1/config/modules/{module}/autoload", response_model=models.Message, operation_id="no_autoload",
                 **documented("configure", *_AUTOLOAD, example=_DONE))  # fmt: skip
    async def no_autoload(
        module: str = MODULE, reason: str = REASON, principal: Principal = needs("configure")
    ) -> Answer:
        """Have a module loaded at boot no longer."""
        return await change(principal, "SetAutoload", module, models.Change(reason=reason), False, {})

    @made.delete("/v1/config/modules/{module}/options", response_model=models.Message, operation_id="no_options",
                 **documented("configure", *_OPTIONS, example=_DONE))  # fmt: skip
    async def no_options(
        module: str = MODULE, reason: str = REASON, principal: Principal = needs("configure")
    ) -> Answer:
        """Take away the parameters that kmodd's file has for a module."""
        return await change(principal, "SetOptions", module, models.Change(reason=reason), {})

    @made.delete("/v1/config/modules/{module}/blacklist", response_model=models.Message,
                 operation_id="no_blacklist", **documented("configure", *_BLACKLIST, example=_DONE))  # fmt: skip
    async def no_blacklist(
        module: str = MODULE, reason: str = REASON, principal: Principal = needs("configure")
    ) -> Answer:
        """Take kmodd's own blacklisting of a module away."""
        return await change(principal, "SetBlacklisted", module, models.Change(reason=reason), False)

    @made.post("/v1/config/apply", response_model=models.Results, operation_id="apply",
               **documented("configure", *_APPLY,
                      example={"results": [{"module": "loop", "action": "load", "result": "changed", "changed": ["loop"]}]},
                      body={"reason": "after the upgrade"}))  # fmt: skip
    async def apply(body: models.Apply | None = None, principal: Principal = needs("configure")) -> Answer:
        """Bring the system to the desired state; the response has the result of each operation."""
        requested = body or models.Apply()
        reason = parse_reason(requested.reason)
        principal.require_all_modules()
        async with changes.doing(principal, AuditContext("Apply", (), reason, requested.dry_run)) as client:
            options = {
                **_options(principal, requested, reason),
                "disconnect": requested.disconnect,
                "public": not principal.may("inspect"),
            }
            rows = await Configuration(client).data("Apply", options=options)
        return Answer(results(rows))

    @made.post("/v1/config/reload", response_model=models.Message, operation_id="reload_config",
               **documented("configure", *_RELOAD, example={"message": "Configuration reloaded", "module": ""},
                      body={"reason": "edited by hand"}))  # fmt: skip
    async def reload(body: models.Reasoned | None = None, principal: Principal = needs("configure")) -> Answer:
        """Read kmodd's files again; a bad file is a clear error, and the old settings stay."""
        reason = parse_reason(body.reason if body else "")
        principal.require_all_modules()
        async with changes.doing(principal, AuditContext("Reload", (), reason)) as client:
            await Configuration(client).reload(**principal.caller_options(reason))
        return Answer({"message": "Configuration reloaded", "module": ""})

    return made


def _options(principal: Principal, requested: models.Change, reason: str) -> dict[str, object]:
    return {**principal.caller_options(reason), "dry-run": requested.dry_run}
