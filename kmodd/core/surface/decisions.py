# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decides about each module: floor > block > allow > needed > profile > initramfs > default of its reach."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from datetime import date

from kmodd.core.desired.state import kernel_fits
from kmodd.model.surface import Reach
from kmodd.model.surface_policy import (
    Because,
    Decision,
    Fault,
    Needs,
    PolicyRule,
    Reason,
    SurfacePolicy,
)
from kmodd.names import ModuleName

INITRAMFS = "initramfs"


def applies(rule: PolicyRule, kernels: Collection[str], today: date) -> bool:
    """Tell whether a table applies: it has not expired, and one of the kernels fits its condition."""
    if rule.until is not None and today > rule.until:
        return False
    return not rule.kernel or any(kernel_fits(rule.kernel, kernel) for kernel in kernels)


def decide(
    policy: SurfacePolicy,
    needs: Needs,
    reaches: Mapping[ModuleName, Reach],
    *,
    kernels: Collection[str],
    loaded: Collection[ModuleName],
    today: date,
    dependents: Mapping[ModuleName, Collection[ModuleName]],
) -> tuple[Decision, ...]:
    """Every module in the scope, and those that the files name.

    `reaches` are the widest over all kernels, of modules with a file; `dependents` are those that depend on a module.
    """
    block, allow, profiled = (
        {name: rule for name, rule in rules.items() if applies(rule, kernels, today)}
        for rules in (policy.block, policy.allow, policy.profiled)
    )
    in_scope = {name for name, reach in reaches.items() if reach in policy.scope}
    decisions = []
    for module in sorted({*in_scope, *block, *allow, *profiled}):
        reasons = needs.reasons.get(module, ())
        reach = reaches.get(module, Reach.NONE)
        because, rule, detail = _because(module, reasons, reach, block, allow, profiled, needs, module in in_scope)
        decisions.append(
            Decision(
                module,
                blocked=because in (Because.BLOCK, Because.PROFILE, Because.DEFAULT),
                because=because,
                reach=reach,
                detail=detail,
                reasons=reasons,
                rule=rule,
                loaded=module in loaded,
            )
        )
    kept_out = {decision.module for decision in decisions if decision.blocked}
    return tuple(_with_breaks(decision, needs, allow, dependents, kept_out) for decision in decisions)


def _because(
    module: ModuleName,
    reasons: tuple[Reason, ...],
    reach: Reach,
    block: Mapping[ModuleName, PolicyRule],
    allow: Mapping[ModuleName, PolicyRule],
    profiled: Mapping[ModuleName, PolicyRule],
    needs: Needs,
    in_scope: bool,
) -> tuple[Because, PolicyRule | None, str]:
    floor = next((reason for reason in reasons if reason.floor), None)
    if floor is not None:
        return Because.FLOOR, block.get(module), says(floor)
    for because, rules in ((Because.BLOCK, block), (Because.ALLOW, allow)):
        if module in rules:
            return because, rules[module], rules[module].reason or rules[module].place
    needed = next((reason for reason in reasons if reason.source != INITRAMFS), None)
    if needed is not None:
        return Because.NEEDED, None, says(needed)
    if module in profiled:
        rule = profiled[module]
        return Because.PROFILE, rule, f"profile {rule.profile}{': ' + ', '.join(rule.ids) if rule.ids else ''}"
    if reasons and reach is Reach.HARDWARE:
        # Images of initramfs-tools have drivers for any machine, so that this says little of other modules.
        return Because.INITRAMFS, None, says(reasons[0])
    if needs.faults:
        source, fault = next(iter(needs.faults.items()))
        return Because.UNKNOWN, None, f"{source} {fault}"
    return (
        (Because.DEFAULT, None, f"nothing needs it, and its reach is {reach}")
        if in_scope
        else (Because.UNKNOWN, None, "")
    )


def says(reason: Reason) -> str:
    """A reason as a clause."""
    return f"{reason.source}: {reason.evidence}"


def _with_breaks(
    decision: Decision,
    needs: Needs,
    allow: Mapping[ModuleName, PolicyRule],
    dependents: Mapping[ModuleName, Collection[ModuleName]],
    kept_out: Collection[ModuleName],
) -> Decision:
    if not decision.blocked:
        return decision
    wanted = (
        name
        for name in sorted(dependents.get(decision.module, ()))
        if name not in kept_out and (name in allow or _is_needed(needs.reasons.get(name, ())))
    )
    breaks = tuple(wanted)
    if not breaks:
        return decision
    return replace(decision, breaks=breaks)


def _is_needed(reasons: tuple[Reason, ...]) -> bool:
    return any(reason.source != INITRAMFS for reason in reasons)


def remarks(
    policy: SurfacePolicy, decisions: Collection[Decision], needs: Needs, *, kernels: Collection[str], today: date
) -> Iterator[Fault]:
    """What the administrator should know of the policy itself."""
    for source, fault in needs.faults.items():
        yield Fault(
            "unreadable",
            f"{source} {fault}: what needs modules is not known, and nothing is blocked for not being needed",
        )
    for rule in (*policy.block.values(), *policy.allow.values()):
        if rule.until is not None and today > rule.until:
            yield Fault(
                "expired",
                f"the table for {rule.module} applied until {rule.until}",
                module=rule.module,
                file=rule.file,
                line=rule.line,
                hint=f"remove it from {rule.file}, or give it another date",
            )
    for decision in decisions:
        if decision.because is Because.FLOOR and decision.rule is not None:
            rule = decision.rule
            yield Fault(
                "floor",
                f"{decision.module} is not blocked, since the system needs it ({decision.detail})",
                module=decision.module,
                file=rule.file,
                line=rule.line,
            )
        for name in decision.breaks:
            yield Fault(
                "breaks",
                f"{name} cannot be loaded without {decision.module}, which is blocked ({decision.detail})",
                module=decision.module,
                file=decision.rule.file if decision.rule is not None else "",
                line=decision.rule.line if decision.rule is not None else 0,
            )
