# SPDX-License-Identifier: LGPL-2.1-or-later
"""Routes about the administrator's rules and the wanted state."""

from typing import Any

from fastapi import APIRouter, Path, Query

from kmodd.client_configuration import Configuration
from kmodd.errors import AccessDenied
from kmodd.gateway import models, models_rules
from kmodd.gateway.asking import Answer, needs, told
from kmodd.gateway.changes import Changes, Intent, results
from kmodd.gateway.link import DaemonLink
from kmodd.gateway.principal import Principal
from kmodd.gateway.wording import snake
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
_DONE = {"message": "Rules about module loop are as asked", "module": "loop"}
_ERRORS = ("NoSuchModule", "Builtin", "Conflict", "BadParameter", "UnknownParameter", "NotPermitted")


def router(changes: Changes, link: DaemonLink) -> APIRouter:
    """The routes."""
    made = APIRouter(tags=["configuration"])

    async def change(who: Principal, member: str, module: str, asked: models.Change, *rest: Any, **more: Any) -> Answer:
        name, reason = parse_module(module), parse_reason(asked.reason)
        who.require_modules([name])
        options = {**_options(who, asked, reason), **more}
        async with changes.doing(who, Intent(member, name, reason, asked.dry_run)) as client:
            await Configuration(client).data(member, name, *rest, options=options)
        said = "would be" if asked.dry_run else "are"
        return Answer({"message": f"Rules about module {name} {said} as asked", "module": name})

    @made.get("/v1/config", response_model=models_rules.Rules, operation_id="config",
              **told("read", example={"rules": [_RULE]}))  # fmt: skip
    async def show(who: Principal = needs("read")) -> Answer:
        """Every rule in force about modules, with its file and line, and what shadows it."""
        del who
        return Answer({"rules": [snake(row) for row in await Configuration(link.client).data("Show")]})

    @made.get("/v1/config/drift", response_model=models_rules.Drifts, operation_id="drift",
              **told("read", example={"drift": [_DRIFT]}))  # fmt: skip
    async def drift(who: Principal = needs("read")) -> Answer:
        """What is not as it is wanted."""
        del who
        return Answer({"drift": [snake(row) for row in await Configuration(link.client).data("GetDrift")]})

    @made.put("/v1/config/modules/{module}/autoload", response_model=models_rules.Message, operation_id="autoload",
              **told("configure", *_ERRORS, example=_DONE, body={"enabled": True, "reason": "disk images"}))  # fmt: skip
    async def autoload(
        body: models_rules.AutoloadRequest, module: str = MODULE, who: Principal = needs("configure")
    ) -> Answer:
        """Have a module loaded at every boot, or no longer."""
        return await change(who, "SetAutoload", module, body, body.enabled, parse_parameters(body.parameters))

    @made.put("/v1/config/modules/{module}/options", response_model=models_rules.Message, operation_id="options",
              **told("configure", *_ERRORS, example=_DONE, body={"parameters": {"max_loop": "8"}}))  # fmt: skip
    async def options(
        body: models_rules.OptionsRequest, module: str = MODULE, who: Principal = needs("configure")
    ) -> Answer:
        """Write the parameters a module gets whenever it is loaded; none takes them away."""
        return await change(who, "SetOptions", module, body, parse_parameters(body.parameters))

    @made.put("/v1/config/modules/{module}/blacklist", response_model=models_rules.Message, operation_id="blacklist",
              **told("configure", *_ERRORS, example=_DONE, body={"blacklisted": True, "reason": "noise"}))  # fmt: skip
    async def blacklist(
        body: models_rules.BlacklistRequest, module: str = MODULE, who: Principal = needs("configure")
    ) -> Answer:
        """Keep a module from being loaded by devices, `hard` also by its name; or take that away."""
        more = {"hard": True} if body.hard else {}
        return await change(who, "SetBlacklisted", module, body, body.blacklisted, **more)

    @made.delete("/v1/config/modules/{module}/autoload", response_model=models_rules.Message, operation_id="no_autoload",
                 **told("configure", *_ERRORS, example=_DONE))  # fmt: skip
    async def no_autoload(module: str = MODULE, reason: str = REASON, who: Principal = needs("configure")) -> Answer:
        """Have a module loaded at boot no longer."""
        return await change(who, "SetAutoload", module, models.Change(reason=reason), False, {})

    @made.delete("/v1/config/modules/{module}/options", response_model=models_rules.Message, operation_id="no_options",
                 **told("configure", *_ERRORS, example=_DONE))  # fmt: skip
    async def no_options(module: str = MODULE, reason: str = REASON, who: Principal = needs("configure")) -> Answer:
        """Take away the parameters that kmodd's file has for a module."""
        return await change(who, "SetOptions", module, models.Change(reason=reason), {})

    @made.delete("/v1/config/modules/{module}/blacklist", response_model=models_rules.Message,
                 operation_id="no_blacklist", **told("configure", *_ERRORS, example=_DONE))  # fmt: skip
    async def no_blacklist(module: str = MODULE, reason: str = REASON, who: Principal = needs("configure")) -> Answer:
        """Take kmodd's own blacklisting of a module away."""
        return await change(who, "SetBlacklisted", module, models.Change(reason=reason), False)

    @made.post("/v1/config/apply", response_model=models.Results, operation_id="apply",
               **told("configure", "Busy", "Conflict",
                      example={"results": [{"module": "loop", "result": "changed", "error": "", "touched": ["loop"]}]},
                      body={"reason": "after the upgrade"}))  # fmt: skip
    async def apply(body: models.Change | None = None, who: Principal = needs("configure")) -> Answer:
        """Bring the machine to the wanted state; the answer says what became of each operation."""
        asked = body or models.Change()
        reason = parse_reason(asked.reason)
        _require_all(who)
        async with changes.doing(who, Intent("Apply", "", reason, asked.dry_run)) as client:
            rows = await Configuration(client).data("Apply", options=_options(who, asked, reason))
        return Answer(results(rows))

    @made.post("/v1/config/reload", response_model=models_rules.Message, operation_id="reload_config",
               **told("configure", "Conflict", example={"message": "The files are read again", "module": ""},
                      body={"reason": "edited by hand"}))  # fmt: skip
    async def reload(body: models.Reasoned | None = None, who: Principal = needs("configure")) -> Answer:
        """Read kmodd's files again; a bad file is a clear error, and the old settings stay."""
        reason = parse_reason(body.reason if body else "")
        _require_all(who)
        async with changes.doing(who, Intent("Reload", "", reason)) as client:
            await Configuration(client).data("Reload")
        return Answer({"message": "The files are read again", "module": ""})

    return made


def _options(who: Principal, asked: models.Change, reason: str) -> dict[str, object]:
    given: dict[str, object] = {"dry-run": asked.dry_run, "on-behalf-of": who.name}
    return given | ({"reason": reason} if reason else {})


def _require_all(who: Principal) -> None:
    if who.modules:
        raise AccessDenied("this token is for some modules alone")
