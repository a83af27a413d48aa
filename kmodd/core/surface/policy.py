# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy for the attack surface: its files, the modules that this system needs, and the decision about each module.

The files of surface.d are read all or not at all. Needed is what sources name, and all that those modules depend on. The decision is
made in this order: floor > block > allow > needed > profile > initramfs > default of the module's reach.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime

from kmodd.config.section import Section
from kmodd.core.desired.state import is_kernel_condition, kernel_fits
from kmodd.core.planning.planned_state import soft_targets
from kmodd.kernel.ports import ModuleIndex
from kmodd.model.settings import Document
from kmodd.model.surface import Because, Decision, Fault, Mode, Needs, PolicyRule, Reach, Reading, Reason, SurfacePolicy
from kmodd.names import ModuleName, is_module_name, parse_module, parse_reason
from kmodd.suggestions import near
from kmodd.text import shown

RULES_MAX = 8192
"""Tables about modules, over all files."""
SCOPES = (Reach.UNPRIVILEGED, Reach.USERNS, Reach.DEVICE, Reach.HARDWARE)
_KEYS = ("surface", "allow", "block", "profile")
_NAME_SHOWN = 64
_IDS_MAX = 16
REASONS_MAX = 8
"""Reasons of one module that are kept, besides the first that makes it a floor."""
CUSTOM = "custom"
"""A module that did not come with the kernel package: of DKMS, of the store, or copied there."""
_REQUEST = re.compile(r"[!-~]{1,512}")
_IN_TREE = "/kernel/"
_DERIVED = frozenset({"dependency", "soft-dependency", "weak-dependency"})
INITRAMFS = "initramfs"


def read_policy(documents: Iterable[Document]) -> SurfacePolicy:
    """The policy; Conflict names file, line and key of the first error."""
    reader = _Reader()
    for document in documents:
        reader.read(Section(document))
    return reader.policy()


class _Reader:
    def __init__(self) -> None:
        self._surface: Section | None = None
        self._allow: dict[ModuleName, PolicyRule] = {}
        self._block: dict[ModuleName, PolicyRule] = {}
        self._profiles: dict[str, dict[ModuleName, PolicyRule]] = {}
        self._tables = 0

    def read(self, top: Section) -> None:
        top.only(_KEYS)
        surface = top.table("surface")
        if surface is not None:
            if self._surface is not None:
                before = self._surface
                surface.refuse("", f"surface is already described in {shown(before.file)}, line {before.line()}")
            self._surface = surface
        self._rules(top.table("allow"), self._allow, ("reason", "until", "when"))
        self._rules(top.table("block"), self._block, ("reason", "ids", "until", "when"))
        profiles = top.table("profile")
        for name, table in profiles.tables() if profiles is not None else ():
            table.only(("title", "block"))
            table.text("title", "")
            if name in self._profiles:
                table.refuse("", f"the profile {shown(name, _NAME_SHOWN)} is already described in another file")
            rules = self._profiles[name] = {}
            self._rules(table.table("block"), rules, ("reason", "ids", "when"), profile=name)

    def policy(self) -> SurfacePolicy:
        """What all files together say."""
        table = self._surface
        if table is None:
            return SurfacePolicy(allow=self._allow, block=self._block)
        table.only(("mode", "scope", "profile"))
        default = SurfacePolicy()
        scope = table.texts("scope", default.scope)
        for text in scope:
            if text not in SCOPES:
                table.refuse("scope", f"scope must be a list of {', '.join(SCOPES)}{_meant(text, SCOPES)}")
        profiles = tuple(dict.fromkeys(table.texts("profile", ())))
        for name in profiles:
            if name not in self._profiles:
                there = ", ".join(self._profiles) or "there is none"
                table.refuse(
                    "profile", f"no profile {shown(name, _NAME_SHOWN)}{_meant(name, self._profiles) or f'; {there}'}"
                )
        profiled: dict[ModuleName, PolicyRule] = {}
        for name in profiles:
            for module, rule in self._profiles[name].items():
                profiled.setdefault(module, rule)
        return SurfacePolicy(
            mode=Mode(table.text("mode", default.mode, one_of=Mode)),
            scope=tuple(Reach(text) for text in dict.fromkeys(scope)),
            profiles=profiles,
            allow=self._allow,
            block=self._block,
            profiled=profiled,
        )

    def _rules(
        self, tables: Section | None, rules: dict[ModuleName, PolicyRule], keys: Sequence[str], *, profile: str = ""
    ) -> None:
        if tables is None:
            return
        for key, table in tables.tables():
            if not is_module_name(key):
                tables.refuse(key, f"{shown(key, _NAME_SHOWN)} is not a module name")
            self._tables += 1
            if self._tables > RULES_MAX:
                tables.refuse(key, f"more than {RULES_MAX} modules")
            rule = _rule(key, table, keys, profile)
            before = rules.get(rule.module)
            if before is not None:
                tables.refuse(key, f"{rule.module} is already described in {shown(before.file)}, line {before.line}")
            rules[rule.module] = rule


def _rule(key: str, table: Section, keys: Sequence[str], profile: str) -> PolicyRule:
    table.only(keys)
    when = table.table("when")
    kernel = ""
    if when is not None:
        when.only(("kernel",))
        kernel = when.text("kernel")
        if not is_kernel_condition(kernel):
            when.refuse("kernel", 'kernel must be a comparison such as ">=6.1, <7", or a pattern such as "6.1.*-amd64"')
    return PolicyRule(
        module=parse_module(key),
        file=table.file,
        line=table.line(),
        written=key,
        reason=table.parsed("reason", lambda: parse_reason(table.text("reason", ""))),
        ids=table.texts("ids", (), longest=_IDS_MAX),
        until=_date(table) if "until" in table else None,
        kernel=kernel,
        profile=profile,
    )


def _date(table: Section) -> date:
    value = table.value("until")
    if not isinstance(value, date) or isinstance(value, datetime):
        table.refuse("until", "until must be a date such as 2027-03-31, without quotes")
    return value


def _meant(text: str, choices: Iterable[str]) -> str:
    close = near(text, tuple(choices))
    return f"; did you mean {close[0]}?" if close else ""


class NeedsCollector:
    """Collects reasons, one kernel after the other."""

    def __init__(self) -> None:
        self._reasons: dict[ModuleName, dict[tuple[str, str, bool], list[str]]] = {}
        self._faults: dict[str, str] = {}

    def kernel(self, release: str, index: ModuleIndex, readings: Iterable[Reading]) -> None:
        """Resolve what the sources name in the index of a kernel."""
        left: list[tuple[ModuleName, bool]] = []
        for reading in readings:
            if reading.fault:
                self._faults[reading.source] = reading.fault
            for want in reading.wants:
                for module in _modules(index, want.request):
                    self._add(module, reading.source, want.evidence, release, floor=want.floor)
                    left.append((module, want.floor))
        for module in index.available():
            path = index.path(module)
            if path and _IN_TREE not in path.rpartition(f"/{release}")[2] and not index.is_builtin(module):
                self._add(module, CUSTOM, f"{path}, which is not of the kernel package", release, floor=False)
                left.append((module, False))
        self._close(release, index, left)

    def needs(self) -> Needs:
        """Everything so far."""
        reasons = {}
        for module, rows in sorted(self._reasons.items()):
            kept = [
                Reason(source, evidence, floor, tuple(dict.fromkeys(kernels)))
                for (source, evidence, floor), kernels in rows.items()
            ]
            kept.sort(key=lambda reason: (not reason.floor, reason.source in _DERIVED))
            reasons[module] = tuple(kept[:REASONS_MAX])
        return Needs(reasons, dict(self._faults))

    def _close(self, release: str, index: ModuleIndex, left: list[tuple[ModuleName, bool]]) -> None:
        """Add what they depend on; of a floor that is a floor too."""
        visited: set[tuple[ModuleName, bool]] = set()
        while left:
            module, floor = left.pop()
            if (module, floor) in visited or (module, True) in visited:
                continue
            visited.add((module, floor))
            for name in index.dependencies(module):
                self._add(name, "dependency", f"{module} depends on it", release, floor=floor)
                left.append((name, floor))
            before, after = soft_targets(index, module)
            weak = [name for word in index.weakdeps(module) for name in _modules(index, word)]
            soft = [target.name for target in (*before, *after) if index.exists(target.name)]
            for source, names in (("soft-dependency", soft), ("weak-dependency", weak)):
                for name in names:
                    if not index.is_builtin(name):
                        self._add(name, source, f"{module} may need it", release, floor=floor)
                        left.append((name, floor))

    def _add(self, module: ModuleName, source: str, evidence: str, release: str, *, floor: bool) -> None:
        rows = self._reasons.setdefault(module, {})
        key = (source, evidence, floor)
        if key in rows or len(rows) < REASONS_MAX or (floor and not any(row[2] for row in rows)):
            rows.setdefault(key, []).append(release)


def _modules(index: ModuleIndex, request: str) -> Iterable[ModuleName]:
    """The modules that a name or alias stands for; none for what is part of the kernel image, or no such name."""
    if _REQUEST.fullmatch(request) is None:
        return ()
    names = dict.fromkeys(target.name for target in index.lookup(request))
    return [name for name in names if index.exists(name) and not index.is_builtin(name)]


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
