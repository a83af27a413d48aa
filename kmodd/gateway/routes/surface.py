# SPDX-License-Identifier: LGPL-2.1-or-later
"""Routes that report the attack surface, apply the policy for it, and respond to vulnerabilities."""

from typing import Any, Literal

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from kmodd.client.surface import INTERFACE, AttackSurface
from kmodd.dbus.interface_xml import installed
from kmodd.gateway import models
from kmodd.gateway.dependencies import Answer, documented, needs, snake
from kmodd.gateway.http.authentication import Principal
from kmodd.gateway.operations import AuditContext, Operations
from kmodd.gateway.queries import Queries
from kmodd.names import (
    modules_of_response,
    parse_module,
    parse_reason,
    parse_release,
    parse_response_id,
    parse_source_file,
    parse_version,
)

KERNEL = Query("", max_length=64, description="Release of an installed kernel; the running one when left out.")
OF_KERNEL = Query("", max_length=64, description="Release of an installed kernel; all of them when left out.")
RESPONSE = Path(description="A CVE, or `module:` and the names of the modules, separated by commas.")
_GET, _ROUTES, _REFUSED, _RESPONSES, _NEEDED, _PLAN, _APPLY, _CONFIRM, _REVERT, _CHECK, _RESPOND, _END = (
    installed().method(INTERFACE, member).errors
    for member in ("Get", "GetRoutes", "GetRefused", "GetResponses", "GetNeeded", "Plan", "Apply", "Confirm", "Revert",
                   "Check", "Respond", "EndResponse")
)  # fmt: skip
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


_LEARNED = {
    "module": "vfat", "source": "fstab", "evidence": "/etc/fstab, line 3", "floor": True,
    "reasons": [{"source": "fstab", "evidence": "/etc/fstab, line 3", "floor": True, "kernels": ["6.1.0-31-amd64"]}],
}  # fmt: skip
_APPLIED = {
    "mode": "enforce", "kernels": ["6.1.0-31-amd64"], "file": "/etc/modprobe.d/00-kmodd-surface.conf",
    "block": ["rxrpc"], "release": [], "remarks": [],
}  # fmt: skip
_DECISION = {
    "module": "rxrpc", "blocked": True, "because": "default", "detail": "any user can have it loaded",
    "reach": "unprivileged", "loaded": False, "breaks": [],
}  # fmt: skip
_FAULT = {
    "kind": "missing", "message": "rxrpc is not blocked (any user can have it loaded)", "module": "rxrpc",
    "hint": "kmodctl surface apply",
}  # fmt: skip
_ASSESSED = {
    "kernel": "6.1.0-31-amd64", "running": True, "version": "6.1.128", "verdict": "affected",
    "because": "6.1.128 is older than 6.1.170", "placements": {"algif_aead": "file"}, "blocked": True,
    "open_requests": {}, "requests": 1, "dependents": [], "initramfs": [], "initramfs_known": True,
}  # fmt: skip
_USE = {
    "module": "algif_aead", "loaded": False, "builtin": False, "in_use": False, "references": 0, "holders": [],
    "users": [], "free": [], "loads": 0, "last_load": 0, "autoload": [],
}  # fmt: skip
_OUTCOME = {
    "id": "CVE-2026-31431", "title": "Copy Fail", "modules": ["algif_aead"], "stage": "responded", "proven": True,
    "kernels": [_ASSESSED], "uses": [_USE], "unloaded": [], "still_loaded": {}, "history_known": True,
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
        rows = await changes.surface(principal, "GetRefused", {"since": since} if since else {})
        return Answer({"attempts": [snake(row) for row in rows]})

    @made.get("/v1/responses", response_model=models.Responses, operation_id="responses",
              **documented("read", *_RESPONSES, example={"responses": [_RESPONSE]}))  # fmt: skip
    async def responses(principal: Principal = needs("read")) -> Answer:
        """Vulnerabilities whose modules are kept out."""
        del principal
        return Answer(await reading.responses())

    @made.get("/v1/surface/needed", response_model=models.NeededModules, operation_id="surface_needed",
              **documented("inspect", *_NEEDED, example={"modules": [_LEARNED]}))  # fmt: skip
    async def needed(kernel: str = OF_KERNEL, principal: Principal = needs("inspect")) -> Answer:
        """The modules that this system needs, and why. Takes a few seconds."""
        rows = await changes.surface(principal, "GetNeeded", _of_kernel(kernel))
        return Answer({"modules": [snake(row) for row in rows]})

    @made.get("/v1/surface/plan", response_model=models.PolicyPlan, operation_id="surface_plan",
              **documented("inspect", *_PLAN, example={**_APPLIED, "modules": [_DECISION]}))  # fmt: skip
    async def plan(principal: Principal = needs("inspect")) -> Answer:
        """The decision of the policy in surface.d about each module, and why. Takes a few seconds."""
        return Answer(snake(await changes.surface(principal, "Plan", {})))

    @made.get("/v1/surface/check", response_model=models.PolicyFaults, operation_id="surface_check",
              **documented("inspect", *_CHECK, example={"faults": [_FAULT]}))  # fmt: skip
    async def check(kernel: str = OF_KERNEL, principal: Principal = needs("inspect")) -> Answer:
        """How the rules, and what modprobe does with them, deviate from the policy. Takes a few seconds."""
        rows = await changes.surface(principal, "Check", _of_kernel(kernel))
        return Answer({"faults": [snake(row) for row in rows]})

    @made.post("/v1/surface/apply", response_model=models.PolicyChange, operation_id="surface_apply",
               **documented("surface", *_APPLY, example=_APPLIED, body={"try_seconds": 600, "reason": "ticket 12"}))  # fmt: skip
    async def apply(body: models.PolicyRequest | None = None, principal: Principal = needs("surface")) -> Answer:
        """Write the rules of the policy in surface.d; loaded modules stay loaded.

        With `weaken`, which needs the scope `surface-allow` as well, modules are also allowed again. With `try_seconds`, the
        rules are removed after that time unless they are confirmed.
        """
        requested = body or models.PolicyRequest()
        if requested.weaken:
            principal.require("surface-allow")
        principal.require_all_modules()
        reason = parse_reason(requested.reason)
        options = _options(principal, reason) | {"weaken": requested.weaken, "dry-run": requested.dry_run}
        if requested.try_seconds is not None:
            options["try-seconds"] = requested.try_seconds
        async with changes.doing(principal, AuditContext("surface-apply", (), reason, requested.dry_run)) as client:
            return Answer(snake(await AttackSurface(client).data("Apply", options=options)))

    async def end_trial(principal: Principal, member: str, body: models.Reasoned | None, message: str) -> Answer:
        principal.require_all_modules()
        reason = parse_reason(body.reason if body else "")
        async with changes.doing(principal, AuditContext(f"surface-{member.lower()}", (), reason)) as client:
            names = await AttackSurface(client).data(member, options=_options(principal, reason))
        return Answer({"message": message, "modules": names})

    @made.post("/v1/surface/confirm", response_model=models.ChangedModules, operation_id="surface_confirm",
               **documented("surface", *_CONFIRM, body={"reason": "all services run"},
                      example={"message": "Rules on trial confirmed", "modules": ["rxrpc"]}))  # fmt: skip
    async def confirm(body: models.Reasoned | None = None, principal: Principal = needs("surface")) -> Answer:
        """Keep the rules that are on trial; the response has the modules that they block."""
        return await end_trial(principal, "Confirm", body, "Rules on trial confirmed")

    @made.post("/v1/surface/revert", response_model=models.ChangedModules, operation_id="surface_revert",
               **documented("surface", *_REVERT, body={"reason": "the VPN is down"},
                      example={"message": "Rules on trial reverted", "modules": ["rxrpc"]}))  # fmt: skip
    async def revert(body: models.Reasoned | None = None, principal: Principal = needs("surface")) -> Answer:
        """Remove the rules that are on trial; the response has the modules that are allowed again."""
        return await end_trial(principal, "Revert", body, "Rules on trial reverted")

    @made.post("/v1/responses", response_model=models.ResponseOutcome, operation_id="respond",
               **documented("surface unload", *_RESPOND, example=_OUTCOME,
                      body={"id": "CVE-2026-31431", "reason": "ticket 12"}))  # fmt: skip
    async def respond(body: models.RespondRequest, principal: Principal = needs("surface")) -> Answer:
        """Respond to a vulnerability: assess each kernel, block the modules by every route, unload them, and prove it.

        If something uses a module, `stage` is `in-use` and nothing is changed, unless `force_in_use` is set. A dry run needs the
        scope `surface` only. A token that is limited to some modules can name `modules`, without `id` and `files`.
        """
        if not body.dry_run:
            principal.require("unload")
        names = tuple(map(parse_module, body.modules))
        if body.id or body.files or not names:
            principal.require_all_modules()
        principal.require_modules(names)
        reason = parse_reason(body.reason)
        options = _confined(principal, reason) | {"dry-run": body.dry_run, "force-in-use": body.force_in_use}
        record = {
            "modules": list(names),
            "files": list(map(parse_source_file, body.files)),
            "fixed": list(map(parse_version, body.fixed)),
            "unaffected-from": parse_version(body.unaffected_from) if body.unaffected_from else "",
            "unaffected-before": parse_version(body.unaffected_before) if body.unaffected_before else "",
        }
        options |= {name: value for name, value in record.items() if value}
        key = parse_response_id(body.id) if body.id else ""
        async with changes.doing(principal, AuditContext("respond", names, reason, body.dry_run)) as client:
            return Answer(snake(await AttackSurface(client).data("Respond", key, options=options)))

    @made.delete("/v1/responses/{id}", response_model=models.ChangedModules, operation_id="end_response",
                 **documented("surface-allow", *_END,
                        example={"message": "Response CVE-2026-31431 ended", "modules": ["algif_aead"]}))  # fmt: skip
    async def end_response(
        id: str = RESPONSE,  # noqa: A002 - the name in the path
        reason: str = Query("", max_length=1024, description="One line for the journal."),
        principal: Principal = needs("surface-allow"),
    ) -> Answer:
        """End a response; the response has the modules whose rules were removed.

        A token that is limited to some modules can end the responses that were named by these modules.
        """
        key, why = parse_response_id(id), parse_reason(reason)
        names = modules_of_response(key)
        if not names:
            principal.require_all_modules()
        principal.require_modules(names)
        async with changes.doing(principal, AuditContext("end-response", names, why)) as client:
            released = await AttackSurface(client).data("EndResponse", key, options=_confined(principal, why))
        return Answer({"message": f"Response {key} ended", "modules": released})

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


def _of_kernel(release: str) -> dict[str, object]:
    return {"kernel": parse_release(release)} if release else {}


def _options(principal: Principal, reason: str) -> dict[str, Any]:
    return {**principal.caller_options(reason)}


def _confined(principal: Principal, reason: str) -> dict[str, Any]:
    """Options of responses: the daemon confines a token for some modules to these."""
    only = {"only-modules": sorted(principal.modules)} if principal.modules else {}
    return _options(principal, reason) | only
