# SPDX-License-Identifier: LGPL-2.1-or-later
"""Options and operations of a request, parsed once: what is not listed, or of another type, is refused."""

from collections.abc import Mapping, Sequence
from typing import Any

from kmodd.bus.call import ON_BEHALF_OF
from kmodd.errors import InvalidArgs
from kmodd.model import Operation, Request, Verb
from kmodd.model.configuration import RuleAction, RuleChange
from kmodd.model.tunables import Tunables
from kmodd.names import (
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

LOAD = {"dry-run": "b", "reason": "s", "timeout": "u", "override-policy": "b", "on-behalf-of": "s"}
UNLOAD = {
    "dependents": "b",
    "unused-dependencies": "b",
    "dry-run": "b",
    "reason": "s",
    "timeout": "u",
    "on-behalf-of": "s",
}
BATCH = {"atomic": "b", "dry-run": "b", "reason": "s", "on-behalf-of": "s"}
PLAN = {"atomic": "b", "override-policy": "b", "dependents": "b", "unused-dependencies": "b"}
LIST = {"state": "s", "match": "s"}
HISTORY = {"module": "s", "since": "t", "limit": "u", "oldest": "b", "on-behalf-of": "s"}
CHANGE = {"dry-run": "b", "reason": "s", "on-behalf-of": "s"}
BLACKLIST = {"hard": "b", **CHANGE}
APPLY = CHANGE
IMPORT = {"version": "s", "description": "s", "shadow": "b", "dry-run": "b", "on-behalf-of": "s"}
SWITCH = {"load": "b", "kernel": "s", "dry-run": "b", "on-behalf-of": "s"}

DEFAULTS = Tunables()
HISTORY_LIMIT = 100


def parse(options: Wire, allowed: Mapping[str, str]) -> dict[str, Any]:
    """The values by name; InvalidArgs names the options there are, or the type one has."""
    values: dict[str, Any] = {}
    for name, (type_, value) in options.items():
        wanted = allowed.get(name)
        if wanted is None:
            known = ", ".join(allowed)
            raise InvalidArgs(f"there is no such option here; there are: {known}", argument="options")
        if type_ != wanted:
            raise InvalidArgs(f"the option {name} has the type '{wanted}'", argument="options")
        values[name] = value
    return values


def on_behalf_of(values: Mapping[str, Any]) -> str:
    """Whom the caller says to ask for; empty for itself."""
    return parse_on_behalf_of(values.get(ON_BEHALF_OF, ""))


def number(values: Mapping[str, Any], name: str, default: int, highest: int) -> int:
    """An option from 1 to `highest`."""
    value = values.get(name, default)
    if not 1 <= value <= highest:
        raise InvalidArgs(f"the option {name} is from 1 to {highest}", argument="options")
    return int(value)


def load(module: str, parameters: Mapping[str, str], options: Wire, tunables: Tunables = DEFAULTS) -> Request:
    """What `Load` asks."""
    values = parse(options, LOAD)
    operation = Operation(Verb.LOAD, parse_module_or_alias(module), tuple(parse_parameters(parameters).items()))
    return _request((operation,), values, tunables)


def unload(module: str, options: Wire, tunables: Tunables = DEFAULTS) -> Request:
    """What `Unload` asks."""
    values = parse(options, UNLOAD)
    operation = Operation(
        Verb.UNLOAD,
        parse_module(module),
        dependents=values.get("dependents", False),
        unused_dependencies=values.get("unused-dependencies", False),
    )
    return _request((operation,), values, tunables)


def reload(module: str, parameters: Mapping[str, str], options: Wire, tunables: Tunables = DEFAULTS) -> Request:
    """What `Reload` asks."""
    values = parse(options, LOAD)
    operation = Operation(Verb.RELOAD, parse_module(module), tuple(parse_parameters(parameters).items()))
    return _request((operation,), values, tunables)


def batch(
    operations: Sequence[tuple[str, str, Mapping[str, str]]], options: Wire, tunables: Tunables = DEFAULTS
) -> Request:
    """What `Batch` asks."""
    values = parse(options, BATCH)
    return _request(tuple(_operation(*one) for one in _some(operations)), values, tunables)


def plan(operations: Sequence[tuple[str, str, Mapping[str, str]]], options: Wire) -> Request:
    """What `Plan` asks; options of `Unload` count for its unload operations."""
    values = parse(options, PLAN)
    parsed = tuple(
        _operation(
            *one,
            dependents=values.get("dependents", False),
            unused_dependencies=values.get("unused-dependencies", False),
        )
        for one in _some(operations)
    )
    return _request(parsed, {**values, "dry-run": True})


def rule_change(action: RuleAction, module: str, options: Wire, parameters: Mapping[str, str]) -> RuleChange:
    """What `SetAutoload` and `SetOptions` ask."""
    values = parse(options, CHANGE)
    if parameters and action is RuleAction.DISABLE_AUTOLOAD:
        raise InvalidArgs("what is not loaded at boot takes no parameters", argument="parameters")
    return _rule_change(action, module, values, tuple(parse_parameters(parameters).items()))


def blacklist(module: str, options: Wire, *, blacklisted: bool) -> RuleChange:
    """What `SetBlacklisted` asks."""
    values = parse(options, BLACKLIST)
    hard = values.get("hard", False)
    if hard and not blacklisted:
        raise InvalidArgs("the option hard is for blacklisting", argument="options")
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
    if verb not in {"load", "unload", "reload"}:
        raise InvalidArgs("an operation is 'load', 'unload' or 'reload'", argument="operations")
    kind = Verb(verb)
    name: ModuleName | Alias = parse_module_or_alias(module) if kind is Verb.LOAD else parse_module(module)
    if kind is not Verb.UNLOAD:
        return Operation(kind, name, tuple(parse_parameters(parameters).items()))
    if parameters:
        raise InvalidArgs("unloading takes no parameters", argument="operations")
    return Operation(kind, name, dependents=dependents, unused_dependencies=unused_dependencies)


def _request(operations: tuple[Operation, ...], values: Mapping[str, Any], tunables: Tunables = DEFAULTS) -> Request:
    return Request(
        operations,
        atomic=values.get("atomic", True),
        dry_run=values.get("dry-run", False),
        reason=parse_reason(values.get("reason", "")),
        timeout=float(number(values, "timeout", tunables.timeout, tunables.timeout_max)),
        override_policy=values.get("override-policy", False),
        on_behalf_of=on_behalf_of(values),
    )
