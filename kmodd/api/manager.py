# SPDX-License-Identifier: LGPL-2.1-or-later
"""Handlers of the interface org.kmodd1.Manager."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import isawaitable
from operator import attrgetter
from typing import Any

from kmodd import VERSION
from kmodd.api import options
from kmodd.api import polkit_details as asked
from kmodd.api import replies as rows
from kmodd.api.disclosure import Disclosure
from kmodd.api.options import refusal
from kmodd.api.services import Services
from kmodd.core.audit.redaction import CONSEQUENCES, USERS, View, is_withheld, redact, redact_plan
from kmodd.core.module_requests import REFUSED, REQUESTED
from kmodd.dbus.authorizer import INSPECT, READ_HISTORY
from kmodd.dbus.call import Body, Call, Descriptor, Permits, Refusal, unprepared
from kmodd.dbus.marshal import ReplyCache, encode
from kmodd.errors import AccessDenied, Conflict, KmoddError
from kmodd.model import Attempt, Caller, HistoryQuery, OperationResult, Plan, Request, Result, StepAction
from kmodd.model.arguments import spell
from kmodd.model.requests import confine
from kmodd.names import (
    parse_module,
    parse_module_or_alias,
    parse_parameter_name,
    parse_parameter_value,
    parse_reason,
)

Operations = Sequence[tuple[str, str, Mapping[str, str]]]


class ManagerInterface:
    """Members of org.kmodd1.Manager; see dbus/org.kmodd1.xml for what each means."""

    interface = "org.kmodd1.Manager"

    def __init__(self, services: Services, permits: Permits, disclosure: Disclosure) -> None:
        self._services = services
        self._permits = permits
        self._disclosure = disclosure
        self._lists = ReplyCache("aa{sv}", forgotten=services.trim_heap)
        # All of a distribution's thousands of modules take one to four megabytes; a thousand are most often below one.
        self._descriptions = ReplyCache("a{sv}", size=8192, size_bytes=2 << 20, forgotten=services.trim_heap)

    # --- what changes the kernel --------------------------------------------------------------------------------------

    def load(self, module: str, parameters: Mapping[str, str], values: options.Values) -> Call | Refusal:
        return self._single(
            options.load(module, parameters, values, self._services.daemon_settings()), "load", StepAction.INSERT
        )

    def unload(self, module: str, values: options.Values) -> Call | Refusal:
        return self._single(
            options.unload(module, values, self._services.daemon_settings()), "unload", StepAction.REMOVE
        )

    def reload(self, module: str, parameters: Mapping[str, str], values: options.Values) -> Call | Refusal:
        return self._single(
            options.reload(module, parameters, values, self._services.daemon_settings()), "reload", StepAction.INSERT
        )

    def hold(self, module: str, parameters: Mapping[str, str], values: options.Values) -> Call | Refusal:
        request = options.load(module, parameters, values, self._services.daemon_settings())

        def call(plan: Plan) -> Call:
            async def run(caller: Caller) -> Descriptor:
                return Descriptor(await self._services.leases.hold(plan, caller))

            return Call(run, asked.details(plan, "hold"), asked.actions(plan))

        return self._one(request, call, self._services.leases.check)

    def batch(self, operations: Operations, values: options.Values) -> Call | Refusal:
        request = options.batch(operations, values, self._services.daemon_settings())

        def call(plan: Plan, uid: int | None) -> Call:
            async def run(caller: Caller) -> list[rows.Row]:
                results = await self._services.operations.execute(plan, caller)
                self._services.leases.claim(plan, results)
                return await self._disclosure.outcomes(results, caller, "Batch", public=values.get("public", False))

            return Call(run, asked.details(plan, "batch", uid), asked.actions(plan), dry_run=plan.request.dry_run)

        return self._prepared(request, call)

    def set_parameter(self, module: str, parameter: str, value: str, values: options.Values) -> Call | Refusal:
        name = parse_module(module)
        key, text = parse_parameter_name(parameter), parse_parameter_value(value)
        reason, behalf = parse_reason(values.get("reason", "")), options.on_behalf_of(values)
        only = options.only_modules(values)
        try:
            confine((name,), only)
            prepared = self._services.parameters.prepare(name, key, text, reason=reason)
        except KmoddError as error:
            return refusal(self._services.refusals, Attempt("set-parameter", name, reason, on_behalf_of=behalf), error)
        details = {
            "module": name,
            "modules": name,
            "parameters": spell([(key, text)]),
            "action": "set-parameter",
            **asked.behalf(behalf),
        }
        return Call(lambda caller: self._services.parameters.write(prepared, caller), details)

    def reset_failed(self, module: str, values: options.Values) -> Call:
        name = parse_module(module)
        details = {"module": name, "modules": name, "action": "reset-failed"}
        details |= asked.behalf(options.on_behalf_of(values))
        return Call(lambda caller: self._services.operations.reset_failed(name, caller), details)

    def _refusal(self, plan: Plan) -> Refusal:
        return Refusal(lambda caller: self._services.refusals.tell(plan, caller), plan.request.on_behalf_of)

    def _single(self, request: Request, action: str, action_reported: StepAction) -> Call | Refusal:
        def call(plan: Plan) -> Call:
            async def run(caller: Caller) -> list[str]:
                (result,) = results = await self._services.operations.execute(plan, caller)
                self._services.leases.claim(plan, results)
                return _touched(plan, result, action_reported)

            return Call(run, asked.details(plan, action), asked.actions(plan), dry_run=plan.request.dry_run)

        return self._one(request, call)

    def _one(
        self, request: Request, call: Callable[[Plan], Call], check: Callable[[Plan], None] | None = None
    ) -> Call | Refusal:
        """A call for one operation; `check` raises what speaks against it beside the plan."""
        try:
            plan = self._services.operations.plan(request)
            if check is not None:
                check(plan)
        except (AccessDenied, Conflict) as error:
            return refusal(self._services.refusals, _attempt(request), error)
        if plan.unread or plan.unseen:
            return self._prepared(request, lambda plan, _: call(plan), plan)
        return self._refusal(plan) if _is_futile(plan) else call(plan)

    def _prepared(self, request: Request, call: Callable[[Plan, int | None], Call], first: Plan | None = None) -> Call:
        """The call for a plan that takes long to make: of many operations, or one that something has to be looked at for.

        `first` is the plan that says what to look at, where it was made already.
        """

        async def prepare(caller: Caller) -> Call:
            plan = await self._plan(request, caller, first)
            if _is_futile(plan):
                raise await self._services.refusals.tell(plan, caller)
            return call(plan, caller.uid)

        return Call(unprepared, asked.behalf(request.on_behalf_of), prepare=prepare)

    async def _plan(self, request: Request, caller: Caller, first: Plan | None = None) -> Plan:
        """Plan in slices, by live parameters and by what goes with modules as they are now.

        A plan that touches what it must not is recorded.
        """
        operations, slices = self._services.operations, self._services.slices
        try:
            plan = first if first is not None else await slices.run(operations.work(request), caller.uid)
            if plan.unread or plan.unseen:
                plan = await slices.run(operations.work(request, await operations.look(plan)), caller.uid)
        except AccessDenied as error:
            raise await self._services.refusals.note(_attempt(request), error, caller) from None
        return plan

    # --- what only reads ----------------------------------------------------------------------------------------------

    def plan(self, operations: Operations, values: options.Values) -> Call:
        request = options.plan(operations, values)

        async def run(caller: Caller) -> Any:
            plan = await self._plan(request, caller)
            details = {"modules": " ".join(plan.modules), "action": "inspect"}
            # Never worth a prompt: the sentence without names says enough to decide.
            full = is_withheld(plan, caller.uid) and await self._permits(
                replace(caller, interactive=False), "Plan", INSPECT, details
            )
            return rows.plan(redact_plan(plan, 0 if full else caller.uid))

        return Call(run, cancellable=True)

    def explain(self, module: str, values: options.Values) -> Call:
        name = parse_module(module)
        behalf = asked.behalf(options.on_behalf_of(values))
        public = values.get("public", False)

        async def run(caller: Caller) -> rows.Row:
            explanation = await self._services.explainer.explain(name)
            details = {"module": explanation.name, "modules": explanation.name, "action": "inspect", **behalf}
            log = not self._services.explainer.log_restricted()
            view = View(log=log) if public else View(caller.uid, log=log)
            shown = redact(explanation, view)
            # Do not request an authorization that would show nothing more.
            if public or not shown.withheld:
                return rows.explanation(shown)
            if await self._permits(caller, "Explain", INSPECT, details):
                return rows.explanation(explanation)
            # Who loaded it and the kernel log about it are in the history as well, which never justifies a prompt here.
            if set(shown.withheld) - {USERS, CONSEQUENCES} and await self._permits(
                replace(caller, interactive=False), "Explain", READ_HISTORY, {**details, "action": "read-history"}
            ):
                shown = redact(explanation, replace(view, history=True, log=True))
            return rows.explanation(shown)

        return Call(run, cancellable=True)

    def describe(self, module: str) -> Call:
        name = parse_module_or_alias(module)

        def run(_: Caller) -> Body:
            explainer = self._services.explainer
            name_found = explainer.find(name)
            writable = explainer.writable(name_found)
            made_of = explainer.stamp(name_found), writable
            return self._descriptions.get(
                name_found, made_of, lambda: rows.description(explainer.info(name_found), writable)
            )

        return Call(run)

    def list_modules(self, values: options.Values) -> Call:
        selection, match = values.get("state", "loaded"), values.get("match", "")

        def run(_: Caller) -> Body:
            if selection == "loaded":
                # The kernel's own text says whether anything changed, so the rows need not even be made.
                return self._lists.get(
                    (selection, match),
                    self._services.loaded.raw(),
                    lambda: [rows.listed(row) for row in self._services.listing.modules(selection, match)],
                )
            listed = self._services.listing.modules(selection, match)
            return self._lists.get((selection, match), listed, lambda: [rows.listed(row) for row in listed])

        return Call(run)

    def get_health(self) -> Call:
        async def run(_: Caller) -> rows.Row:
            health = self._services.health()
            return rows.health(await health if isawaitable(health) else health)

        return Call(run, cancellable=True)

    def get_metrics(self) -> Call:
        return Call(lambda _: [rows.metric(sample) for sample in self._services.metrics()])

    def get_history(self, values: options.Values) -> Call:
        highest = self._services.daemon_settings().history_limit_max
        query = HistoryQuery(
            module=parse_module(values["module"]) if "module" in values else None,
            since=values.get("since", 0),
            limit=options.number(values, "limit", min(options.HISTORY_LIMIT, highest), highest),
            oldest=values.get("oldest", False),
            events=(REQUESTED, REFUSED) if values.get("requests", False) else (),
        )

        async def run(caller: Caller) -> Body:
            entries = await self._services.history(query, caller)
            # A thousand records with their evidence are some megabytes.
            return await asyncio.to_thread(
                lambda: Body(encode("aa{sv}", ([rows.history(entry) for entry in entries],)))
            )

        details = {"action": "read-history", **({"module": query.module} if query.module else {})}
        details |= asked.behalf(options.on_behalf_of(values))
        return Call(run, details, cancellable=True)

    # --- properties ---------------------------------------------------------------------------------------------------

    def version(self) -> str:
        return VERSION

    def kernel_release(self) -> str:
        return self._services.registry.facts().release

    def boot_id(self) -> str:
        return self._services.boot_id

    def tainted(self) -> int:
        return self._services.registry.facts().taint

    def modules_disabled(self) -> bool:
        return self._services.registry.facts().modules_disabled

    def lockdown(self) -> str:
        return self._services.registry.facts().lockdown

    def signature_enforced(self) -> bool:
        return self._services.registry.facts().signature_enforced

    def loaded_count(self) -> int:
        return len(self._services.registry)

    def health(self) -> Any:
        return self._services.health_status().value


_action_of = attrgetter("action")


def _attempt(request: Request) -> Attempt:
    """A request for which there is no plan, as it is written down."""
    action = request.operations[0].verb.value if len(request.operations) == 1 else "batch"
    named = " ".join(dict.fromkeys(operation.module for operation in request.operations))
    return Attempt(action, named, request.reason, request.dry_run, request.on_behalf_of)


def _is_futile(plan: Plan) -> bool:
    """Reports known failures before the caller is prompted for a password."""
    return plan.error is not None and (plan.request.atomic or len(plan.request.operations) == 1)


def _touched(plan: Plan, result: OperationResult, action_reported: StepAction) -> list[str]:
    """What a single operation answers: the modules it changed in the way the member is about."""
    if result.result in {Result.FAILED, Result.ROLLED_BACK, Result.SKIPPED}:
        if result.error is None:
            raise AssertionError("an operation failed without an error")
        raise result.error
    if len(set(map(_action_of, plan.steps))) < 2:
        return list(result.touched)
    changed = [step.module for step in plan.steps if step.action is action_reported]
    return [name for name in changed if name in result.touched]
