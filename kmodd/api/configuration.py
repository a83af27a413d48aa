# SPDX-License-Identifier: LGPL-2.1-or-later
"""Handlers of the interface org.kmodd1.Configuration."""

from collections.abc import Mapping
from dataclasses import replace

from kmodd.api import options, replies
from kmodd.api import polkit_details as asked
from kmodd.api import replies as rows
from kmodd.api.disclosure import Disclosure
from kmodd.api.options import refusal
from kmodd.api.services import Services
from kmodd.core.desired.trial import CONFIRM, REVERT
from kmodd.core.fair_share import Work
from kmodd.core.planning.planner import PlanReadings
from kmodd.core.trial import check_trial
from kmodd.dbus.call import Call, Refusal, unprepared
from kmodd.errors import AccessDenied, KmoddError
from kmodd.model import Attempt, Caller, FactsPending, Plan
from kmodd.model.arguments import spell
from kmodd.model.rules import RuleAction, RuleChange
from kmodd.names import parse_reason


class ConfigurationInterface:
    """Members of org.kmodd1.Configuration; see dbus/org.kmodd1.xml for what each means."""

    interface = "org.kmodd1.Configuration"

    def __init__(self, services: Services, disclosure: Disclosure) -> None:
        self._services = services
        self._disclosure = disclosure

    # --- kmodd's own files --------------------------------------------------------------------------------------------

    def set_autoload(
        self, module: str, enabled: bool, parameters: Mapping[str, str], values: options.Values
    ) -> Call | Refusal:
        action = RuleAction.ENABLE_AUTOLOAD if enabled else RuleAction.DISABLE_AUTOLOAD
        return self._change(options.rule_change(action, module, values, parameters))

    def set_options(self, module: str, parameters: Mapping[str, str], values: options.Values) -> Call | Refusal:
        return self._change(options.rule_change(RuleAction.SET_OPTIONS, module, values, parameters))

    def set_blacklisted(self, module: str, blacklisted: bool, values: options.Values) -> Call | Refusal:
        return self._change(options.blacklist(module, values, blacklisted=blacklisted))

    def _change(self, change: RuleChange) -> Call | Refusal:
        """Reports known failures before the caller is prompted for a password."""
        try:
            self._services.configuration.check(change)
        except KmoddError as error:
            attempt = Attempt(change.action, change.module, change.reason, change.dry_run, change.on_behalf_of)
            return refusal(self._services.refusals, attempt, error)
        details = {"module": change.module, "modules": change.module, "action": change.action.value}
        if change.parameters:
            details["parameters"] = spell(change.parameters)
        details |= asked.behalf(change.on_behalf_of)
        return Call(lambda caller: self._services.configuration.write(change, caller), details, dry_run=change.dry_run)

    def show(self) -> Call:
        async def run(_: Caller) -> list[rows.Row]:
            return [replies.rule(shown) for shown in await self._services.configuration.show()]

        return Call(run, cancellable=True)

    # --- desired state ------------------------------------------------------------------------------------------------

    def get_drift(self) -> Call:
        async def run(_: Caller) -> list[rows.Row]:
            return [replies.drift(difference) for difference in await self._services.desired.drift()]

        return Call(run, cancellable=True)

    def apply(self, values: options.Values) -> Call:
        trial = check_trial(values["try-seconds"]) if "try-seconds" in values else 0
        return self._applying(values, "apply", trial=trial)

    def confirm(self, values: options.Values) -> Call:
        return self._applying(values, CONFIRM)

    def revert(self, values: options.Values) -> Call:
        reason, behalf = parse_reason(values.get("reason", "")), options.on_behalf_of(values)

        async def prepare(_: Caller) -> Call:
            trial = self._services.desired.trial
            kept = trial.kept

            async def run(caller: Caller) -> list[rows.Row]:
                results = await trial.revert(kept, replace(caller, reason=reason, on_behalf_of=behalf))
                return await self._disclosure.outcomes(results, caller, "Revert", public=False)

            modules = " ".join(sorted({operation.module for operation in kept.undo}))
            return Call(run, {"modules": modules, "action": REVERT, **asked.behalf(behalf)})

        return Call(unprepared, asked.behalf(behalf), prepare=prepare)

    def _applying(self, values: options.Values, action: str, *, trial: int = 0) -> Call:
        reason, behalf = parse_reason(values.get("reason", "")), asked.behalf(options.on_behalf_of(values))
        dry_run, only = values.get("dry-run", False), options.only_modules(values)

        def work(look: PlanReadings | None = None) -> Work[Plan]:
            while True:
                try:
                    return self._services.desired.plan(
                        dry_run=dry_run,
                        reason=reason,
                        disconnect=values.get("disconnect", False),
                        only_modules=only,
                        look=look,
                        trial=trial,
                        confirm=action == CONFIRM,
                    )
                except FactsPending as pending:
                    yield pending.names

        async def prepare(caller: Caller) -> Call:
            await self._services.desired.look()
            try:
                plan = await self._services.slices.run(work(), caller.uid)
                if plan.unseen:
                    plan = await self._services.slices.run(work(await self._services.desired.look(plan)), caller.uid)
            except AccessDenied as error:
                attempt = Attempt(action, "", reason, dry_run, options.on_behalf_of(values))
                raise await self._services.refusals.note(attempt, error, caller) from None

            async def run(caller: Caller) -> list[rows.Row]:
                results = await self._services.desired.apply(plan, caller)
                return await self._disclosure.outcomes(results, caller, "Apply", public=values.get("public", False))

            return Call(run, {**asked.details(plan, action), **behalf}, dry_run=plan.request.dry_run)

        return Call(unprepared, behalf, prepare=prepare)

    def reload(self, values: options.Values) -> Call:
        behalf = asked.behalf(options.on_behalf_of(values))
        return Call(self._services.desired.reload, {"action": "reload-configuration", **behalf})
