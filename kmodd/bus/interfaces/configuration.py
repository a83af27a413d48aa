# SPDX-License-Identifier: LGPL-2.1-or-later
"""org.kmodd1.Configuration."""

from collections.abc import Mapping

from kmodd.bus import asked, configuration_rows, options, rows
from kmodd.bus.call import Call, Refusal
from kmodd.bus.interfaces.parts import Parts
from kmodd.bus.interfaces.refusing import refusal
from kmodd.errors import KmoddError
from kmodd.model import Attempt, Caller
from kmodd.model.configuration import RuleAction, RuleChange
from kmodd.names import kernel_arguments, parse_reason


class ConfigurationInterface:
    """Members of org.kmodd1.Configuration; see dbus/org.kmodd1.xml for what each means."""

    interface = "org.kmodd1.Configuration"

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    # --- kmodd's own files --------------------------------------------------------------------------------------------

    def set_autoload(
        self, module: str, enabled: bool, parameters: Mapping[str, str], wire: options.Wire
    ) -> Call | Refusal:
        action = RuleAction.ENABLE_AUTOLOAD if enabled else RuleAction.DISABLE_AUTOLOAD
        return self._change(options.rule_change(action, module, wire, parameters))

    def set_options(self, module: str, parameters: Mapping[str, str], wire: options.Wire) -> Call | Refusal:
        return self._change(options.rule_change(RuleAction.SET_OPTIONS, module, wire, parameters))

    def set_blacklisted(self, module: str, blacklisted: bool, wire: options.Wire) -> Call | Refusal:
        return self._change(options.blacklist(module, wire, blacklisted=blacklisted))

    def _change(self, change: RuleChange) -> Call | Refusal:
        """What is known to fail fails before anyone is asked for a password."""
        try:
            self._parts.configuration.check(change)
        except KmoddError as error:
            attempt = Attempt(change.action, change.module, change.reason, change.dry_run, change.on_behalf_of)
            return refusal(self._parts.refusals, attempt, error)
        details = {"module": change.module, "modules": change.module, "action": change.action.value}
        if change.parameters:
            details["parameters"] = kernel_arguments(dict(change.parameters))
        details |= asked.behalf(change.on_behalf_of)
        return Call(lambda caller: self._parts.configuration.write(change, caller), details)

    def show(self) -> Call:
        async def run(_: Caller) -> list[rows.Row]:
            return [configuration_rows.rule(one) for one in await self._parts.configuration.show()]

        return Call(run, cancellable=True)

    # --- desired state ------------------------------------------------------------------------------------------------

    def get_drift(self) -> Call:
        async def run(_: Caller) -> list[rows.Row]:
            return [configuration_rows.drift(one) for one in await self._parts.desired.drift()]

        return Call(run, cancellable=True)

    def apply(self, wire: options.Wire) -> Call:
        values = options.parse(wire, options.APPLY)
        plan = self._parts.desired.plan(
            dry_run=values.get("dry-run", False), reason=parse_reason(values.get("reason", ""))
        )

        async def run(caller: Caller) -> list[tuple[str, str, str, tuple[str, ...]]]:
            return [rows.result(one) for one in await self._parts.desired.apply(plan, caller)]

        return Call(run, {**asked.details(plan, "apply"), **asked.behalf(options.on_behalf_of(values))})

    def reload(self) -> Call:
        return Call(self._parts.desired.reload, {"action": "reload-configuration"})
