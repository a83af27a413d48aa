# SPDX-License-Identifier: LGPL-2.1-or-later
"""What polkit is told about a plan: the actions it needs, and the details for an administrator's rules."""

from collections.abc import Mapping

from kmodd.bus.call import ON_BEHALF_OF
from kmodd.model import Operation, Plan, StepAction, Verb
from kmodd.names import kernel_arguments

LOAD = "org.kmodd1.load"
UNLOAD = "org.kmodd1.unload"
OVERRIDE = "org.kmodd1.override-policy"

_VERBS = {Verb.LOAD: (LOAD,), Verb.UNLOAD: (UNLOAD,), Verb.RELOAD: (LOAD, UNLOAD)}
_STEPS = {StepAction.INSERT: LOAD, StepAction.REMOVE: UNLOAD}


def actions(plan: Plan) -> tuple[str, ...]:
    """The actions of everything asked and of every step planned, each once."""
    needed = [action for operation in plan.request.operations for action in _VERBS[operation.verb]]
    needed += [_STEPS[step.action] for step in plan.steps]
    if plan.request.override_policy:
        # Also where no rule stands in the way now: the plan is made again right before it is carried out.
        needed.append(OVERRIDE)
    return tuple(dict.fromkeys(needed))


def details(plan: Plan, action: str) -> Mapping[str, str]:
    """`module` (what is named, when it is one), `modules` (all that would be touched), `parameters`, `action`, `on-behalf-of`."""
    named = sorted({name for names in plan.targets for name in names})
    told = {"modules": " ".join(plan.modules), "action": action}
    if len(named) == 1:
        told["module"] = named[0]
    single = len(plan.request.operations) == 1
    parameters = [
        word for operation in plan.request.operations for word in _parameters(operation, qualified=not single)
    ]
    if parameters:
        told["parameters"] = " ".join(parameters)
    return told | behalf(plan.request.on_behalf_of)


def behalf(name: str) -> dict[str, str]:
    """The detail about whom the caller says to ask for, where it does."""
    return {ON_BEHALF_OF: name} if name else {}


def _parameters(operation: Operation, *, qualified: bool) -> list[str]:
    prefix = f"{operation.module}." if qualified else ""
    # Quoted as for the kernel: `a="1 b=2"` is one parameter, and a rule that allows `a=1 b=2` must not take it for two.
    return [kernel_arguments({f"{prefix}{name}": value}) for name, value in operation.parameters]
