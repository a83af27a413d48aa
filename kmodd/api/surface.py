# SPDX-License-Identifier: LGPL-2.1-or-later
"""Handlers of the interface org.kmodd1.Surface."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from kmodd.api import options
from kmodd.api import polkit_details as asked
from kmodd.api import replies as rows
from kmodd.api.services import Services
from kmodd.core.module_requests import RefusedAttempts, count_refused, refused_records
from kmodd.core.surface.enforcement import APPLY, CONFIRM, REVERT
from kmodd.core.surface.locking import LOCK
from kmodd.core.surface.service import exposure_of
from kmodd.core.surface.vulnerabilities import given_record, spelled
from kmodd.core.trial import check_trial
from kmodd.dbus.call import Body, Call, unprepared
from kmodd.dbus.marshal import encode
from kmodd.errors import AccessDenied, InvalidArgs
from kmodd.model import Attempt, Caller
from kmodd.model.requests import confine
from kmodd.model.rules import ManagedFile
from kmodd.model.surface import (
    Decision,
    Exposure,
    Fault,
    Guard,
    KernelReport,
    LockPlan,
    ModuleUse,
    Needs,
    Reach,
    Reason,
    Response,
    ResponseOutcome,
    Route,
    Surface,
    SurfacePlan,
    Vulnerability,
)
from kmodd.names import (
    ARRAY_MAX,
    ModuleName,
    parse_glob,
    parse_module,
    parse_reason,
    parse_release,
    parse_response_id,
)
from kmodd.patterns import matches

ALLOW = "org.kmodd1.surface-allow"


class SurfaceInterface:
    """Members of org.kmodd1.Surface; see dbus/org.kmodd1.xml for what each means."""

    interface = "org.kmodd1.Surface"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._surfaces = services.surfaces
        self._enforcement = services.enforcement

    def get_summary(self, values: options.Values) -> Call:
        def summary(surface: Surface) -> Body:
            counts = Counter(exposure.reach for exposure in surface.exposures)
            row: rows.Row = {
                "kernel": ("s", surface.kernel),
                "running": ("b", surface.running),
                "kernels": ("as", list(self._surfaces.releases())),
                **{reach.value: ("u", counts[reach]) for reach in Reach},
                "guards": ("aa{sv}", list(map(_guard, surface.tables.guards))),
                "unreadable": ("as", [f"{file} {why}" for file, why in surface.unreadable.items()]),
                "nodes-known": ("b", all(node.mode_known for node in surface.tables.nodes)),
            }
            return Body(encode("a{sv}", (row,)))

        return self._call(values, summary)

    def get(self, values: options.Values) -> Call:
        reach, match = _reach(values), parse_glob(values["match"]) if values.get("match") else ""
        limit = values.get("limit", 0)

        def get(surface: Surface) -> Body:
            selected = [
                exposure
                for exposure in surface.exposures
                if (reach is None or exposure.reach is reach) and (not match or matches(match, exposure.module))
            ]
            # One row at a time: a list of thousands would be what the collector of garbage goes through, with the loop waiting.
            return Body(encode("aa{sv}", (map(_exposure, selected[: limit or None]),)))

        return self._call(values, get)

    def get_routes(self, module: str, values: options.Values) -> Call:
        name = parse_module(module)

        def routes(surface: Surface) -> Body:
            exposure = exposure_of(surface, name)
            return Body(encode("aa{sv}", ([_route(route, surface) for route in exposure.routes],)))

        return self._call(values, routes)

    def get_needed(self, values: options.Values) -> Call:
        kernel, behalf = _kernel(values), asked.behalf(options.on_behalf_of(values))

        async def run(_: Caller) -> Body:
            return Body(encode("aa{sv}", (_needs(await self._enforcement.needs(kernel)),)))

        return Call(run, behalf, cancellable=True)

    def plan(self, values: options.Values) -> Call:
        behalf = asked.behalf(options.on_behalf_of(values))

        async def run(_: Caller) -> Body:
            plan = await self._enforcement.plan()
            modules: rows.Row = {"modules": ("aa{sv}", list(map(_decision, plan.decisions)))}
            return Body(encode("a{sv}", (_plan(plan) | modules,)))

        return Call(run, behalf, cancellable=True)

    def apply(self, values: options.Values) -> Call:
        weaken, dry_run = values.get("weaken", False), values.get("dry-run", False)
        reason, behalf = parse_reason(values.get("reason", "")), asked.behalf(options.on_behalf_of(values))
        trial = check_trial(values["try-seconds"]) if "try-seconds" in values else 0

        async def run(caller: Caller) -> rows.Row:
            return _plan(
                await self._enforcement.apply(caller, weaken=weaken, dry_run=dry_run, reason=reason, trial=trial)
            )

        details = {"action": "surface-weaken" if weaken else APPLY, **behalf}
        return Call(run, details, actions=(ALLOW,) if weaken else (), dry_run=dry_run)

    def confirm(self, values: options.Values) -> Call:
        reason, behalf = parse_reason(values.get("reason", "")), asked.behalf(options.on_behalf_of(values))

        async def run(caller: Caller) -> list[str]:
            return list((await self._enforcement.confirm(caller, reason)).block)

        return Call(run, {"action": CONFIRM, **behalf})

    def revert(self, values: options.Values) -> Call:
        reason, behalf = parse_reason(values.get("reason", "")), asked.behalf(options.on_behalf_of(values))

        async def run(caller: Caller) -> list[str]:
            return list((await self._enforcement.revert(caller, reason)).release)

        return Call(run, {"action": REVERT, **behalf})

    def check(self, values: options.Values) -> Call:
        kernel, behalf = _kernel(values), asked.behalf(options.on_behalf_of(values))

        async def run(_: Caller) -> list[rows.Row]:
            return [_fault(fault) for fault in await self._enforcement.check(kernel)]

        return Call(run, behalf, cancellable=True)

    def lock(self, values: options.Values) -> Call:
        reason, behalf = parse_reason(values.get("reason", "")), options.on_behalf_of(values)
        dry_run = values.get("dry-run", False)

        async def run(caller: Caller) -> rows.Row:
            caller = replace(caller, reason=reason, on_behalf_of=behalf)
            return _lock_plan(await self._services.kernel_lock.lock(caller, dry_run=dry_run))

        return Call(run, {"action": LOCK, **asked.behalf(behalf)}, dry_run=dry_run)

    # --- vulnerabilities ----------------------------------------------------------------------------------------------

    def respond(self, key: str, values: options.Values) -> Call:
        named = parse_vulnerability(key, values)
        reason, behalf = parse_reason(values.get("reason", "")), options.on_behalf_of(values)
        dry_run, force = values.get("dry-run", False), values.get("force-in-use", False)
        only, attempt = options.only_modules(values), Attempt("respond", "", reason, dry_run, behalf)

        async def prepare(caller: Caller) -> Call:
            record = await self._services.responses.record(named, caller.uid)
            await self._confine(record.modules, only, attempt, caller)
            if not dry_run:
                await self._services.responses.refuse_change(record)
            loaders = () if dry_run else self._services.operations.loaders(record.modules)

            async def run(caller: Caller) -> rows.Row:
                return _outcome_row(
                    await self._services.responses.respond(
                        record,
                        caller,
                        dry_run=dry_run,
                        force=force,
                        reason=reason,
                        on_behalf_of=behalf,
                        loaders=loaders,
                    )
                )

            details = _details(record.id, record.modules, "respond", behalf) | asked.loaded_by(loaders)
            return Call(run, details, actions=() if dry_run else (asked.UNLOAD,), dry_run=dry_run)

        return Call(unprepared, asked.behalf(behalf), prepare=prepare)

    def get_responses(self) -> Call:
        async def run(_: Caller) -> list[rows.Row]:
            return [_response_row(each) for each in await self._services.responses.all()]

        return Call(run, cancellable=True)

    def end_response(self, key: str, values: options.Values) -> Call:
        name = parse_response_id(key)
        reason, behalf = parse_reason(values.get("reason", "")), options.on_behalf_of(values)

        only, attempt = options.only_modules(values), Attempt("end-response", "", reason, on_behalf_of=behalf)

        async def prepare(caller: Caller) -> Call:
            response = await self._services.responses.find(name)
            await self._confine(response.modules, only, attempt, caller)

            async def run(caller: Caller) -> list[str]:
                return list(
                    await self._services.responses.end(
                        name, caller, response.modules, reason=reason, on_behalf_of=behalf
                    )
                )

            return Call(run, _details(name, response.modules, "end-response", behalf))

        return Call(unprepared, asked.behalf(behalf), prepare=prepare)

    async def _confine(
        self, modules: Sequence[ModuleName], only: frozenset[ModuleName] | None, attempt: Attempt, caller: Caller
    ) -> None:
        try:
            confine(modules, only)
        except AccessDenied as error:
            raise await self._services.refusals.note(attempt, error, caller) from None

    def get_refused(self, values: options.Values) -> Call:
        highest = self._services.daemon_settings().history_limit_max
        query = refused_records(values.get("since", 0), options.number(values, "limit", highest, highest))

        async def run(caller: Caller) -> list[rows.Row]:
            entries = await self._services.history(query, caller)
            return [_refused_row(each) for each in count_refused(entries, await self._services.responses.all())]

        behalf = asked.behalf(options.on_behalf_of(values))
        return Call(run, {"action": "read-history", **behalf}, cancellable=True)

    def _call(self, values: options.Values, make: Callable[[Surface], Body]) -> Call:
        kernel = _kernel(values)

        async def run(caller: Caller) -> Body:
            return await self._surfaces.answer(kernel, caller.uid, make)

        return Call(run, cancellable=True)


def _kernel(values: options.Values) -> str:
    return parse_release(values["kernel"]) if values.get("kernel") else ""


def _needs(needs: Needs) -> list[rows.Row]:
    faults: list[rows.Row] = [
        {"source": ("s", source), "fault": ("s", fault)} for source, fault in needs.faults.items()
    ]
    return [*faults, *(_needed(name, each) for name, each in needs.reasons.items())]


def _lock_plan(plan: LockPlan) -> rows.Row:
    return {
        "locked": ("b", plan.locked),
        "pending": ("aa{sv}", list(map(_fault, plan.pending))),
        "breaks": ("aa{sv}", _needs(plan.breaks)),
    }


def _needed(module: ModuleName, reasons: tuple[Reason, ...]) -> rows.Row:
    return {
        "module": ("s", module),
        "source": ("s", reasons[0].source),
        "evidence": ("s", reasons[0].evidence),
        "floor": ("b", reasons[0].floor),
        "reasons": ("aa{sv}", list(map(_reason, reasons))),
    }


def _reason(reason: Reason) -> rows.Row:
    return {
        "source": ("s", reason.source),
        "evidence": ("s", reason.evidence),
        "floor": ("b", reason.floor),
        "kernels": ("as", list(reason.kernels)),
    }


def _plan(plan: SurfacePlan) -> rows.Row:
    return {
        "mode": ("s", plan.mode.value),
        "kernels": ("as", list(plan.kernels)),
        "file": ("s", ManagedFile.SURFACE.value),
        "block": ("as", list(plan.block)),
        "release": ("as", list(plan.release)),
        "remarks": ("aa{sv}", list(map(_fault, plan.remarks))),
        **({"until": ("t", plan.until)} if plan.until else {}),
    }


def _decision(decision: Decision) -> rows.Row:
    row: rows.Row = {
        "module": ("s", decision.module),
        "blocked": ("b", decision.blocked),
        "because": ("s", decision.because.value),
        "detail": ("s", decision.detail),
        "reach": ("s", decision.reach.value),
        "loaded": ("b", decision.loaded),
        "breaks": ("as", list(decision.breaks)),
    }
    if decision.rule is not None:
        rule = decision.rule
        row |= {"ids": ("as", list(rule.ids)), "file": ("s", rule.file), "line": ("u", rule.line)}
    return row


def _fault(fault: Fault) -> rows.Row:
    row: rows.Row = {"kind": ("s", fault.kind), "message": ("s", fault.message)}
    texts = {"module": fault.module or "", "kernel": fault.kernel, "file": fault.file, "hint": fault.hint}
    row |= {name: ("s", text) for name, text in texts.items() if text}
    return row | ({"line": ("u", fault.line)} if fault.line else {})


def _details(key: str, modules: Sequence[ModuleName], action: str, behalf: str) -> dict[str, str]:
    single = {"module": modules[0]} if len(modules) == 1 else {}
    every = {"modules": " ".join(modules), "response": key, "action": action}
    return single | every | asked.behalf(behalf)


def _reach(values: options.Values) -> Reach | None:
    text = values.get("reach", "")
    if text and text not in list(Reach):
        raise InvalidArgs(f"the option reach is one of {', '.join(Reach)}", argument="options")
    return Reach(text) if text else None


def _guard(guard: Guard) -> rows.Row:
    return {
        "name": ("s", guard.gate.value),
        "value": ("s", guard.value),
        "closes": ("b", guard.closes),
        "says": ("s", guard.says),
        "unread": ("b", guard.unread),
        "unusual": ("b", guard.unusual),
    }


def _exposure(exposure: Exposure) -> rows.Row:
    widest = exposure.routes[0]
    return {
        "module": ("s", exposure.module),
        "reach": ("s", exposure.reach.value),
        "reach-without": ("s", exposure.without.value),
        "loaded": ("b", exposure.loaded),
        "routes": ("u", exposure.count),
        "kind": ("s", widest.kind),
        "request": ("s", widest.request),
        "through": ("s", widest.through or ""),
    }


def _route(route: Route, surface: Surface) -> rows.Row:
    # The tables of what the kernel requests are not for an idle daemon.
    from kmodd.core.surface.surface import closing, going

    row: rows.Row = {
        "kind": ("s", route.kind),
        "request": ("s", route.request),
        "reach": ("s", route.reach.value),
        "open": ("b", route.open),
        "by-name": ("b", route.by_name),
        "through": ("s", route.through or ""),
        "more": ("u", route.more),
        "way": ("s", going(route)),
        "closed-by": ("s", closing(route, surface.tables)),
    }
    if route.gate is not None:
        row["gate"] = ("s", route.gate.value)
    if route.missing:
        row["missing"] = ("s", route.missing)
    if route.served is not None:
        row["served-by"] = ("s", route.served)
    if route.node:
        row["node"] = ("s", route.node)
    rule = route.rule or route.command
    if rule is not None:
        row |= {
            "file": ("s", rule.file),
            "line": ("u", rule.line),
            "rule": ("s", rule.told),
            "rule-kind": ("s", rule.kind),
            "command": ("b", route.command is not None),
        }
    return row


def parse_vulnerability(key: str, values: options.Values) -> Vulnerability:
    """The record that `Respond` names: only the id where kmodd's own record of it is meant. InvalidArgs."""
    lists = {name: values.get(name, ()) for name in ("modules", "files", "fixed")}
    for name, value in lists.items():
        if len(value) > ARRAY_MAX:
            raise InvalidArgs(f"the option {name} has at most {ARRAY_MAX} entries", argument="options")
    if not key and not lists["modules"]:
        raise InvalidArgs("name a CVE, or modules", argument="id")
    return given_record(
        key,
        lists["modules"],
        files=lists["files"],
        fixed=lists["fixed"],
        unaffected_from=values.get("unaffected-from", ""),
        unaffected_before=values.get("unaffected-before", ""),
    )


def _outcome_row(result: ResponseOutcome) -> rows.Row:
    """The reply of `Respond`."""
    return {
        **_about(result.vulnerability),
        "stage": ("s", result.stage),
        "proven": ("b", result.proven),
        "kernels": ("aa{sv}", list(map(_kernel_report, result.kernels))),
        "uses": ("aa{sv}", list(map(_use, result.uses))),
        "unloaded": ("as", list(result.unloaded)),
        "still-loaded": ("a{ss}", dict(result.still_loaded)),
        "history-known": ("b", result.history_known),
    }


def _response_row(kept: Response) -> rows.Row:
    """A row of `GetResponses`."""
    return {
        **_about(kept.vulnerability),
        "begun": ("t", kept.begun),
        "rules": ("as", [rule.module for rule in kept.rules]),
    }


def _about(record: Vulnerability) -> rows.Row:
    row: rows.Row = {
        "id": ("s", record.id),
        "title": ("s", record.title),
        "modules": ("as", list(record.modules)),
        "breaks": ("s", record.breaks),
        "notes": ("s", record.notes),
        "fixed": ("as", list(map(spelled, record.fixed))),
        "image-files": ("as", list(record.image_files)),
        "initcalls": ("as", list(record.initcalls)),
    }
    if record.unaffected_from is not None:
        row["unaffected-from"] = ("s", spelled(record.unaffected_from))
    if record.unaffected_before is not None:
        row["unaffected-before"] = ("s", spelled(record.unaffected_before))
    return row


def _kernel_report(report: KernelReport) -> rows.Row:
    return {
        "kernel": ("s", report.release),
        "running": ("b", report.running),
        "version": ("s", report.version.text),
        "verdict": ("s", report.verdict.value),
        "because": ("s", report.because),
        "placements": ("a{ss}", {name: place.value for name, place in report.placements.items()}),
        "blocked": ("b", report.blocked),
        "open-requests": ("a{sas}", {name: list(requests) for name, requests in report.open_requests.items()}),
        "requests": ("u", report.requests),
        "dependents": ("as", list(report.dependents[:ARRAY_MAX])),
        "initramfs": ("as", list(report.initramfs)),
        "initramfs-known": ("b", report.initramfs_known),
    }


def _use(use: ModuleUse) -> rows.Row:
    return {
        "module": ("s", use.module),
        "loaded": ("b", use.loaded),
        "builtin": ("b", use.builtin),
        "in-use": ("b", use.in_use),
        "references": ("u", use.references),
        "holders": ("as", list(use.holders)),
        "users": ("as", list(use.users)),
        "free": ("as", list(use.free)),
        "loads": ("u", use.loads),
        "last-load": ("t", use.last_load),
        "autoload": ("as", list(use.autoload)),
    }


def _refused_row(attempts: RefusedAttempts) -> rows.Row:
    """A row of `GetRefused`."""
    row: rows.Row = {
        "alias": ("s", attempts.alias),
        "modules": ("as", list(attempts.modules)),
        "exe": ("s", attempts.exe),
        "comm": ("s", attempts.name),
        "unit": ("s", attempts.unit),
        "container": ("s", attempts.container),
        "count": ("u", attempts.count),
        "first": ("t", attempts.first),
        "last": ("t", attempts.last),
        "file": ("s", attempts.file),
        "line": ("u", attempts.line),
        "rule": ("s", attempts.rule),
        "response": ("s", attempts.response),
        "allow": ("s", attempts.allow),
    }
    if attempts.uid is not None:
        row["uid"] = ("u", attempts.uid)
    return row
