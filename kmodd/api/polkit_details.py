# SPDX-License-Identifier: LGPL-2.1-or-later
"""The polkit actions that a plan needs, and the details passed with the check for rules and prompts."""

import re
from collections.abc import Mapping
from itertools import chain

from kmodd.core.planning.consequence_text import phrase, public
from kmodd.dbus.call import ON_BEHALF_OF
from kmodd.errors import BadModule
from kmodd.model import Loaders, Plan, StepAction, Verb
from kmodd.model.arguments import spell

LOAD = "org.kmodd1.load"
UNLOAD = "org.kmodd1.unload"
SET_PARAMETER = "org.kmodd1.set-parameter"
OVERRIDE = "org.kmodd1.override-policy"

UNKNOWN = "unknown"
"""In place of the user who loaded a module where kmodd did not load it."""
_ONE_NAME = re.compile(r"[!-~]+")
"""What no reader splits, of names joined by spaces."""
_TEXT_MAX = 2048
"""Letters of what goes with the modules."""
_VERBS = {
    Verb.LOAD: (LOAD,),
    Verb.UNLOAD: (UNLOAD,),
    Verb.RELOAD: (LOAD, UNLOAD),
    Verb.SET_PARAMETER: (SET_PARAMETER,),
    Verb.RESET_FAILED: (LOAD,),
}
_STEPS = {
    StepAction.INSERT: LOAD,
    StepAction.REMOVE: UNLOAD,
    StepAction.SET_PARAMETER: SET_PARAMETER,
    StepAction.RESET_FAILED: LOAD,
}


def actions(plan: Plan) -> tuple[str, ...]:
    """The actions of every requested operation and every planned step, each once."""
    needed: list[str] = []
    for operation in plan.request.operations:
        needed += _VERBS[operation.verb]
    for step in plan.steps:
        needed.append(_STEPS[step.action])
    if plan.request.override_policy:
        # Also where no rule stands in the way now: the plan is made again right before it is carried out.
        needed.append(OVERRIDE)
    return tuple(dict.fromkeys(needed))


def details(plan: Plan, action: str, uid: int | None = None) -> Mapping[str, str]:
    """`module` (what is named, when it is one), `modules` (all that would be touched), `parameters`, `action`, `loaded-by` (the users
    who loaded what would be removed), `consequences` (what live goes with them), `on-behalf-of`.

    `uid` is the caller's user, for a batch that unloads what it loads. BadModule for a module whose name would look like two of them.
    """
    named = sorted(set(chain.from_iterable(plan.targets)))
    for name in plan.modules:
        if _ONE_NAME.fullmatch(name) is None:
            raise BadModule("the name of a module contains a separator", module=name)
    passed = {"modules": " ".join(plan.modules), "action": action}
    if len(named) == 1:
        passed["module"] = named[0]
    single = len(plan.request.operations) == 1
    parameters: list[tuple[str, str]] = []
    for operation, names in zip(plan.request.operations, plan.targets, strict=True):
        if not operation.parameters:
            continue
        # By what an alias stands for: the alias itself may have anything in it.
        prefixes = [""] if single else [f"{name}." for name in names]
        parameters += [(f"{prefix}{name}", value) for prefix in prefixes for name, value in operation.parameters]
    if parameters:
        # Quoted as for the kernel: `a="1 b=2"` is one parameter, and a rule that allows `a=1 b=2` must not take it for two.
        passed["parameters"] = spell(parameters)
    live: list[str] = []
    for step in plan.steps:
        if step.consequences:
            live += [phrase(row) for row in public(step.consequences, None) if row.live]
    if live:
        # Shown to polkit rules and in the prompt of the caller's session: only what every user may see.
        passed["consequences"] = ", ".join(dict.fromkeys(live))[:_TEXT_MAX]
    if plan.sha256:
        passed["sha256"] = " ".join(plan.sha256)
    return passed | loaded_by(plan.loaders_for(uid)) | behalf(plan.request.on_behalf_of)


def loaded_by(loaders: Loaders | None) -> dict[str, str]:
    """The detail about who loaded what would be removed, where anything would be."""
    if not loaders:
        return {}
    return {"loaded-by": " ".join(sorted({UNKNOWN if uid is None else str(uid) for _, uid in loaders}))}


def behalf(name: str) -> dict[str, str]:
    """The detail about whom the caller says to ask for, where it does."""
    return {ON_BEHALF_OF: name} if name else {}
