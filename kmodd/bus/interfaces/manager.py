# SPDX-License-Identifier: LGPL-2.1-or-later
"""org.kmodd1.Manager."""

from collections.abc import Mapping, Sequence
from inspect import isawaitable
from typing import Any

from kmodd import VERSION
from kmodd.bus import asked, options, rows
from kmodd.bus.answers import Answers
from kmodd.bus.call import Body, Call, Refusal
from kmodd.bus.interfaces.parts import Parts
from kmodd.bus.interfaces.refusing import refusal
from kmodd.errors import KmoddError
from kmodd.model import Attempt, Caller, HistoryQuery, OperationResult, Plan, Request, Result, StepAction
from kmodd.names import (
    kernel_arguments,
    parse_module,
    parse_module_or_alias,
    parse_parameter_name,
    parse_parameter_value,
)

Operations = Sequence[tuple[str, str, Mapping[str, str]]]


class ManagerInterface:
    """Members of org.kmodd1.Manager; see dbus/org.kmodd1.xml for what each means."""

    interface = "org.kmodd1.Manager"

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lists = Answers("aa{sv}", forgotten=parts.give_back)
        # All of a distribution's thousands of modules take one to four megabytes; a thousand are most often below one.
        self._descriptions = Answers("a{sv}", size=8192, size_bytes=2 << 20, forgotten=parts.give_back)

    # --- what changes the kernel --------------------------------------------------------------------------------------

    def load(self, module: str, parameters: Mapping[str, str], wire: options.Wire) -> Call | Refusal:
        return self._single(options.load(module, parameters, wire, self._parts.tunables()), "load", StepAction.INSERT)

    def unload(self, module: str, wire: options.Wire) -> Call | Refusal:
        return self._single(options.unload(module, wire, self._parts.tunables()), "unload", StepAction.REMOVE)

    def reload(self, module: str, parameters: Mapping[str, str], wire: options.Wire) -> Call | Refusal:
        return self._single(
            options.reload(module, parameters, wire, self._parts.tunables()), "reload", StepAction.INSERT
        )

    def batch(self, operations: Operations, wire: options.Wire) -> Call | Refusal:
        plan = self._parts.operations.plan(options.batch(operations, wire, self._parts.tunables()))
        if _is_futile(plan):
            return self._refusal(plan)

        async def run(caller: Caller) -> list[tuple[str, str, str, tuple[str, ...]]]:
            return [rows.result(one) for one in await self._parts.operations.execute(plan, caller)]

        return Call(run, asked.details(plan, "batch"), asked.actions(plan))

    def set_parameter(self, module: str, parameter: str, value: str) -> Call | Refusal:
        name = parse_module(module)
        key, text = parse_parameter_name(parameter), parse_parameter_value(value)
        try:
            prepared = self._parts.parameters.prepare(name, key, text)
        except KmoddError as error:
            return refusal(self._parts.refusals, Attempt("set-parameter", name), error)
        details = {
            "module": name,
            "modules": name,
            "parameters": kernel_arguments({key: text}),
            "action": "set-parameter",
        }
        return Call(lambda caller: self._parts.parameters.write(prepared, caller), details)

    def reset_failed(self, module: str) -> Call:
        name = parse_module(module)
        details = {"module": name, "modules": name, "action": "reset-failed"}
        return Call(lambda caller: self._parts.operations.reset_failed(name, caller), details)

    def _refusal(self, plan: Plan) -> Refusal:
        return Refusal(lambda caller: self._parts.refusals.tell(plan, caller), plan.request.on_behalf_of)

    def _single(self, request: Request, action: str, told: StepAction) -> Call | Refusal:
        plan = self._parts.operations.plan(request)
        if _is_futile(plan):
            return self._refusal(plan)

        async def run(caller: Caller) -> list[str]:
            (result,) = await self._parts.operations.execute(plan, caller)
            return _touched(plan, result, told)

        return Call(run, asked.details(plan, action), asked.actions(plan))

    # --- what only reads ----------------------------------------------------------------------------------------------

    def plan(self, operations: Operations, wire: options.Wire) -> Call:
        request = options.plan(operations, wire)
        return Call(lambda _: rows.plan(self._parts.operations.plan(request)))

    def explain(self, module: str) -> Call:
        name = parse_module(module)

        async def run(_: Caller) -> rows.Row:
            return rows.explanation(await self._parts.explainer.explain(name))

        return Call(run, cancellable=True)

    def describe(self, module: str) -> Call:
        name = parse_module_or_alias(module)

        def run(_: Caller) -> Body:
            explainer = self._parts.explainer
            found = explainer.find(name)
            writable = explainer.writable(found)
            made_of = explainer.stamp(found), writable
            return self._descriptions.get(found, made_of, lambda: rows.description(explainer.info(found), writable))

        return Call(run)

    def list_modules(self, wire: options.Wire) -> Call:
        values = options.parse(wire, options.LIST)
        selection, match = values.get("state", "loaded"), values.get("match", "")

        def run(_: Caller) -> Body:
            if selection == "loaded":
                # The kernel's own text says whether anything changed, so the rows need not even be made.
                return self._lists.get(
                    (selection, match),
                    self._parts.loaded.raw(),
                    lambda: [rows.listed(row) for row in self._parts.listing.modules(selection, match)],
                )
            listed = self._parts.listing.modules(selection, match)
            return self._lists.get((selection, match), listed, lambda: [rows.listed(row) for row in listed])

        return Call(run)

    def get_health(self) -> Call:
        async def run(_: Caller) -> rows.Row:
            health = self._parts.health()
            return rows.health(await health if isawaitable(health) else health)

        return Call(run, cancellable=True)

    def get_metrics(self) -> Call:
        return Call(lambda _: [rows.metric(sample) for sample in self._parts.metrics()])

    def get_history(self, wire: options.Wire) -> Call:
        values = options.parse(wire, options.HISTORY)
        highest = self._parts.tunables().history_limit_max
        query = HistoryQuery(
            module=parse_module(values["module"]) if "module" in values else None,
            since=values.get("since", 0),
            limit=options.number(values, "limit", min(options.HISTORY_LIMIT, highest), highest),
            oldest=values.get("oldest", False),
        )

        async def run(_: Caller) -> list[rows.Row]:
            return [rows.history(entry) for entry in await self._parts.history(query)]

        details = {"action": "read-history", **({"module": query.module} if query.module else {})}
        details |= asked.behalf(options.on_behalf_of(values))
        return Call(run, details, cancellable=True)

    # --- properties ---------------------------------------------------------------------------------------------------

    def version(self) -> str:
        return VERSION

    def kernel_release(self) -> str:
        return self._parts.registry.facts().release

    def tainted(self) -> int:
        return self._parts.registry.facts().taint

    def modules_disabled(self) -> bool:
        return self._parts.registry.facts().modules_disabled

    def lockdown(self) -> str:
        return self._parts.registry.facts().lockdown

    def signature_enforced(self) -> bool:
        return self._parts.registry.facts().signature_enforced

    def loaded_count(self) -> int:
        return len(self._parts.registry)

    def health(self) -> Any:
        return self._parts.health_status().value


def _is_futile(plan: Plan) -> bool:
    """What is known to fail fails before anyone is asked for a password."""
    return plan.error is not None and (plan.request.atomic or len(plan.request.operations) == 1)


def _touched(plan: Plan, result: OperationResult, told: StepAction) -> list[str]:
    """What a single operation answers: the modules it changed in the way the member is about."""
    if result.result in {Result.FAILED, Result.ROLLED_BACK, Result.SKIPPED}:
        if result.error is None:
            raise AssertionError("an operation failed without saying why")
        raise result.error
    if len({step.action for step in plan.steps}) < 2:
        return list(result.touched)
    changed = [step.module for step in plan.steps if step.action is told]
    return [name for name in changed if name in result.touched]
