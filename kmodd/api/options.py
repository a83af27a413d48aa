# SPDX-License-Identifier: LGPL-2.1-or-later
"""Parses the options and operations of a request; unknown keys and wrong types are refused."""

from collections.abc import Mapping, Sequence
from typing import Any

from kmodd.core.audit.records import Refusals
from kmodd.dbus.call import ON_BEHALF_OF, Refusal
from kmodd.errors import InvalidArgs, KmoddError
from kmodd.model import Attempt, Operation, Request, Verb
from kmodd.model.rules import RuleAction, RuleChange
from kmodd.model.settings import DaemonSettings
from kmodd.names import (
    ARRAY_MAX,
    BATCH_MAX,
    Alias,
    ModuleName,
    parse_module,
    parse_module_or_alias,
    parse_on_behalf_of,
    parse_parameters,
    parse_reason,
)

Wire = Mapping[str, tuple[str, Any]]
"""`a{sv}` as the decoder has it."""

Values = Mapping[str, Any]
"""Options as `parse` answers them, by name: only those that the member's row has, each of its type."""

DEFAULTS = DaemonSettings()
HISTORY_LIMIT = 100


def on_behalf_of(values: Mapping[str, Any]) -> str:
    """Whom the caller says to ask for; empty for itself."""
    return parse_on_behalf_of(values.get(ON_BEHALF_OF, ""))


def only_modules(values: Values) -> frozenset[ModuleName] | None:
    """The only modules that the call may touch; None for any, and none at all for an empty list."""
    names = values.get("only-modules")
    if names is None:
        return None
    if len(names) > ARRAY_MAX:
        raise InvalidArgs(f"the option only-modules has at most {ARRAY_MAX} names", argument="options")
    return frozenset(map(parse_module, names))


def number(values: Mapping[str, Any], name: str, default: int, highest: int) -> int:
    """An option from 1 to `highest`."""
    value = values.get(name, default)
    if not 1 <= value <= highest:
        raise InvalidArgs(f"the option {name} must be from 1 to {highest}", argument="options")
    return int(value)


def load(
    module: str, parameters: Mapping[str, str], values: Values, daemon_settings: DaemonSettings = DEFAULTS
) -> Request:
    """What `Load` asks."""
    operation = Operation(Verb.LOAD, parse_module_or_alias(module), tuple(parse_parameters(parameters).items()))
    return _request((operation,), values, daemon_settings)


def unload(module: str, values: Values, daemon_settings: DaemonSettings = DEFAULTS) -> Request:
    """What `Unload` asks."""
    operation = Operation(
        Verb.UNLOAD,
        parse_module(module),
        dependents=values.get("dependents", False),
        unused_dependencies=values.get("unused-dependencies", False),
    )
    return _request((operation,), values, daemon_settings)


def reload(
    module: str, parameters: Mapping[str, str], values: Values, daemon_settings: DaemonSettings = DEFAULTS
) -> Request:
    """What `Reload` asks."""
    operation = Operation(Verb.RELOAD, parse_module(module), tuple(parse_parameters(parameters).items()))
    return _request((operation,), values, daemon_settings)


def batch(
    operations: Sequence[tuple[str, str, Mapping[str, str]]], values: Values, daemon_settings: DaemonSettings = DEFAULTS
) -> Request:
    """What `Batch` asks."""
    return _request(tuple(_operation(*row) for row in _some(operations)), values, daemon_settings)


def plan(operations: Sequence[tuple[str, str, Mapping[str, str]]], values: Values) -> Request:
    """What `Plan` asks; `dependents` and `unused-dependencies` count for its unload operations."""
    parsed = tuple(
        _operation(
            *operation,
            dependents=values.get("dependents", False),
            unused_dependencies=values.get("unused-dependencies", False),
        )
        for operation in _some(operations)
    )
    return _request(parsed, {**values, "dry-run": True})


def rule_change(action: RuleAction, module: str, values: Values, parameters: Mapping[str, str]) -> RuleChange:
    """What `SetAutoload` and `SetOptions` ask."""
    if parameters and action is RuleAction.DISABLE_AUTOLOAD:
        raise InvalidArgs("parameters require enabled", argument="parameters")
    return _rule_change(action, module, values, tuple(parse_parameters(parameters).items()))


def blacklist(module: str, values: Values, *, blacklisted: bool) -> RuleChange:
    """What `SetBlacklisted` asks."""
    hard = values.get("hard", False)
    if hard and not blacklisted:
        raise InvalidArgs("the option hard requires blacklisted", argument="options")
    action = RuleAction.BLACKLIST_HARD if hard else RuleAction.BLACKLIST if blacklisted else RuleAction.UNBLACKLIST
    return _rule_change(action, module, values, ())


def _rule_change(
    action: RuleAction, module: str, values: Mapping[str, Any], parameters: tuple[tuple[str, str], ...]
) -> RuleChange:
    return RuleChange(
        action,
        parse_module(module),
        parameters,
        reason=parse_reason(values.get("reason", "")),
        dry_run=values.get("dry-run", False),
        on_behalf_of=on_behalf_of(values),
    )


def _some(
    operations: Sequence[tuple[str, str, Mapping[str, str]]],
) -> Sequence[tuple[str, str, Mapping[str, str]]]:
    if not 1 <= len(operations) <= BATCH_MAX:
        raise InvalidArgs(f"1 to {BATCH_MAX} operations", argument="operations")
    return operations


def _operation(
    verb: str,
    module: str,
    parameters: Mapping[str, str],
    *,
    dependents: bool = False,
    unused_dependencies: bool = False,
) -> Operation:
    if verb not in set(Verb):
        raise InvalidArgs(f"an operation is one of {', '.join(Verb)}", argument="operations")
    kind = Verb(verb)
    name: ModuleName | Alias = parse_module_or_alias(module) if kind is Verb.LOAD else parse_module(module)
    if kind is Verb.SET_PARAMETER and not parameters:
        raise InvalidArgs("set-parameter needs a parameter", argument="operations")
    if kind not in (Verb.UNLOAD, Verb.RESET_FAILED):
        return Operation(kind, name, tuple(parse_parameters(parameters).items()))
    if parameters:
        raise InvalidArgs(f"{kind} takes no parameters", argument="operations")
    if kind is Verb.RESET_FAILED:
        return Operation(kind, name)
    return Operation(kind, name, dependents=dependents, unused_dependencies=unused_dependencies)


def _request(
    operations: tuple[Operation, ...], values: Mapping[str, Any], daemon_settings: DaemonSettings = DEFAULTS
) -> Request:
    return Request(
        operations,
        atomic=values.get("atomic", True),
        dry_run=values.get("dry-run", False),
        reason=parse_reason(values.get("reason", "")),
        timeout=float(number(values, "timeout", daemon_settings.timeout, daemon_settings.timeout_max)),
        override_policy=values.get("override-policy", False),
        disconnect=values.get("disconnect", False),
        on_behalf_of=on_behalf_of(values),
        only_modules=only_modules(values),
    )


def refusal(refusals: Refusals, attempt: Attempt, error: KmoddError) -> Refusal:
    """Answer the error and write it down, as it is done for plans."""
    return Refusal(lambda caller: refusals.note(attempt, error, caller), attempt.on_behalf_of)
