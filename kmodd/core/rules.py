# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which rules are in force, what they mask, and what is wrong with them."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import islice

from kmodd.core.arguments import split_options
from kmodd.core.checks import ALWAYS_KNOWN
from kmodd.core.near import did_you_mean
from kmodd.core.policy import Policy, is_denial
from kmodd.errors import KmoddError
from kmodd.kernel.ports import ModuleIndex
from kmodd.model import KernelFacts, Rule
from kmodd.model.configuration import Finding, RuleFile, RuleFiles, ShownRule
from kmodd.names import ModuleName, parse_module_or_alias

_WORDS = ("alias", "blacklist", "install", "options", "remove", "softdep")
"""What a line of modprobe.d begins with."""
LINES_MAX = 1024
"""Lines of one file that are told of, in their order: with more it is no file that anybody wrote."""
VALUE_MAX = 4096
"""Characters of a line that are told: the kernel takes no longer parameters."""
NAME_MAX = 512
"""Characters of a module or an alias that are told."""
FINDINGS_MAX = 16
"""Findings about one line."""
HINTS_MAX = 16
"""Names of modules that are compared with all there are, in one look: each takes milliseconds."""
SLICE = 0.01
"""Seconds of looking at rules after which others have their turn: anybody may ask, and any file may be in the folders."""
_FIRST_ACTS = frozenset({"install", "remove", "softdep"})
"""Of several such lines about one module libkmod obeys the first (kmod_module_get_softdeps and the like, kmod 30)."""


@dataclass(frozen=True, slots=True)
class OwnState:
    """What is known of one of kmodd's own files."""

    present: bool = False
    ours: bool = False
    edited: bool = False
    difference: tuple[str, ...] = ()


async def judge(
    files: RuleFiles, own: Mapping[str, OwnState], index: ModuleIndex, policy: Policy, facts: KernelFacts
) -> list[ShownRule]:
    """Every rule: modules-load.d, then modprobe.d, then the kernel's command line; each file before those it masks."""
    shown = [one for file in (*files.autoload, *files.modprobe) for one in _of_file(file, own)]
    shown += [ShownRule(rule) for rule in files.command_line]
    return await _Judgement(shown, index, policy, facts.command_line).rules()


def _of_file(file: RuleFile, own: Mapping[str, OwnState]) -> Iterator[ShownRule]:
    state = own.get(file.path, OwnState())
    findings = (*_about_own(file.path, state), *_about_name(file))
    rules: Iterable[Rule] = file.rules[:LINES_MAX]
    if findings and not file.rules:
        rules = (Rule("finding", "", "", file.path, 1, ""),)
    for rule in rules:
        # What is wrong with a file as a whole stands with its first rule only.
        about = (*findings, *_about_line(rule, public=file.public))
        yield ShownRule(_cut(rule), state.ours, file.masks, file.shadowed_by, about, file.public)
        findings = ()
    if len(file.rules) > LINES_MAX:
        first = file.rules[LINES_MAX]
        rest = Finding(
            "too-long", f"this line and all after it are not looked at: {len(file.rules)} lines are too many"
        )
        yield ShownRule(Rule("finding", "", "", file.path, first.line, ""), findings=(rest,), public=file.public)


def _cut(rule: Rule) -> Rule:
    if len(rule.module) <= NAME_MAX and len(rule.value) <= VALUE_MAX:
        return rule
    # What is cut off ends in a letter that no name has, so it stays what it is: none.
    module = rule.module if len(rule.module) <= NAME_MAX else rule.module[: NAME_MAX - 1] + "…"
    return replace(rule, module=module, value=rule.value[:VALUE_MAX])


def _about_name(file: RuleFile) -> Iterator[Finding]:
    if not file.read:
        yield Finding("not-read", f"{file.path} is read by nobody: its name does not end in .conf")


def _about_line(rule: Rule, *, public: bool) -> Iterator[Finding]:
    """What a line is that is none; of a file that not everyone may read it is not said what stands there."""
    if rule.kind != "finding" or not rule.text:
        return
    if rule.text in _WORDS:
        why = f"what belongs behind {rule.text} is missing, or no name"
    elif public:
        why = f"{rule.text} is no word it knows{_more(did_you_mean(rule.text, _WORDS))}"
    else:
        why = "it begins with no word it knows"
    yield Finding("ignored-line", f"modprobe ignores this line: {why}")


def _about_own(path: str, state: OwnState) -> Iterator[Finding]:
    if state.present and not state.ours:
        yield Finding("foreign", f"{path} was not written by kmodd, which therefore cannot write its rules there")
    if state.edited:
        what = f": {' | '.join(state.difference)}" if state.difference else ""
        yield Finding("edited", f"{path} was edited since kmodd wrote it, which leaves it alone from then on{what}")


class _Judgement:
    """One look at all rules."""

    def __init__(self, shown: list[ShownRule], index: ModuleIndex, policy: Policy, command_line: str) -> None:
        self._shown = shown
        self._index = index
        self._policy = policy
        self._command_line = command_line
        # Rules in force, in the order they are read.
        self._seen: dict[tuple[str, str, str], Rule] = {}
        self._first: dict[str, list[Rule]] = {kind: [] for kind in _FIRST_ACTS}
        self._masked: set[str] = set()
        self._hints = 0
        self._installs = [one.rule for one in shown if one.rule.kind == "install" and not one.shadowed_by]
        self._refused_by_kernel = {one.rule.module for one in shown if one.rule.kind == "module_blacklist"}
        self._last_values = self._options()

    async def rules(self) -> list[ShownRule]:
        judged = []
        due = time.monotonic() + SLICE
        for one in self._shown:
            judged.append(self._judged(one))
            if time.monotonic() >= due:
                await asyncio.sleep(0)
                due = time.monotonic() + SLICE
        return judged

    def _judged(self, one: ShownRule) -> ShownRule:
        if one.shadowed_by:
            return replace(one, findings=(*one.findings, *self._file_masked(one)))
        findings = list(one.findings)
        rule, shadow = one.rule, ""
        if rule.kind in _FIRST_ACTS:
            earlier = next((each for each in self._first[rule.kind] if fnmatchcase(rule.module, each.module)), None)
            self._first[rule.kind].append(rule)
            if earlier is not None:
                shadow = place(earlier)
                if rule.kind == "softdep":
                    findings.append(_softdep_override(rule, earlier))
        key = (rule.kind, rule.module, rule.value)
        twin = self._seen.setdefault(key, rule)
        if twin is not rule and rule.kind != "finding":
            findings.append(Finding("duplicate", f"the same stands in {place(twin)} already"))
        findings += islice(self._about(rule), FINDINGS_MAX)
        return replace(one, shadowed_by=shadow, findings=tuple(findings))

    def _file_masked(self, one: ShownRule) -> Iterator[Finding]:
        if one.rule.file not in self._masked:
            self._masked.add(one.rule.file)
            mask = [each.rule for each in self._shown if each.rule.file == one.shadowed_by]
            masked = [each.rule for each in self._shown if each.rule.file == one.rule.file]
            if [(rule.kind, rule.module, rule.value) for rule in mask] == [
                (rule.kind, rule.module, rule.value) for rule in masked
            ]:
                yield Finding("duplicate", f"{one.shadowed_by} has the same rules and is read in its place")
            else:
                yield Finding("shadowed", f"{one.shadowed_by} has the same name and is read in its place")

    def _about(self, rule: Rule) -> Iterator[Finding]:
        match rule.kind:
            case "autoload":
                yield from self._about_autoload(rule)
            case "options":
                yield from self._about_options(rule)
            case "blacklist":
                yield from self._about_blacklist(rule)
            case "install" | "remove" if not is_denial(rule):
                yield Finding("shell-command", f"this {rule.kind} line has modprobe run a shell command as root")

    def _about_autoload(self, rule: Rule) -> Iterator[Finding]:
        try:
            modules = self._index.resolve(parse_module_or_alias(rule.module))
        except KmoddError:
            modules = ()
        if not modules:
            self._hints += 1
            hint = did_you_mean(rule.module, self._index.available()) if self._hints <= HINTS_MAX else ""
            yield Finding("missing-module", f"there is no module {rule.module} to load at boot" + _more(hint))
        for module in modules:
            if self._index.is_builtin(module):
                continue
            try:
                self._policy.check_load(module, self._command_line, asked=rule.module)
            except KmoddError as error:
                yield Finding("blacklisted", f"it is not loaded at boot: {error.message}")

    def _about_options(self, rule: Rule) -> Iterator[Finding]:
        name = ModuleName(rule.module)
        if not self._index.exists(name) or self._index.is_builtin(name):
            return
        try:
            known = {each.name.replace("-", "_") for each in self._index.info(name).parameters}
        except KmoddError:
            return  # a damaged file is no matter of this line
        for parameter, value in split_options(rule.value):
            if parameter not in known and parameter not in ALWAYS_KNOWN:
                hint = did_you_mean(parameter, known)
                yield Finding("unknown-parameter", f"{name} has no parameter {parameter}" + _more(hint))
            last = self._last_values.get((name, parameter))
            if last is not None and last[0] is not rule and last[1] != value:
                yield Finding(
                    "overridden", f"{place(last[0])} gives {parameter} another value, and the last one counts"
                )

    def _about_blacklist(self, rule: Rule) -> Iterator[Finding]:
        name = ModuleName(rule.module)
        if self._index.is_builtin(name):
            yield Finding("builtin", f"{name} is built into the kernel, where blacklisting changes nothing")
        elif self._index.exists(name) and not self._is_refused(name):
            yield Finding(
                "loadable-by-name",
                f"{name} is still loaded by its name and as a dependency; only an install line with /bin/false keeps it out",
            )

    def _is_refused(self, name: ModuleName) -> bool:
        """Tell whether it is not loaded by its name either."""
        first = next((rule for rule in self._installs if fnmatchcase(name, rule.module)), None)
        return (first is not None and is_denial(first)) or name in self._refused_by_kernel

    def _options(self) -> dict[tuple[str, str], tuple[Rule, str]]:
        """The rule that gives each parameter the value that counts."""
        return {
            (one.rule.module, parameter): (one.rule, value)
            for one in self._shown
            if one.rule.kind == "options" and not one.shadowed_by
            for parameter, value in split_options(one.rule.value)
        }


def place(rule: Rule) -> str:
    """Where a rule stands, as `FILE:LINE`."""
    return f"{rule.file}:{rule.line}"


def _softdep_override(rule: Rule, earlier: Rule) -> Finding:
    same = "says the same" if earlier.value == rule.value else "differs"
    return Finding(
        "softdep-override",
        f"{place(earlier)} names soft dependencies of {rule.module} first and {same}: no other line about them counts",
    )


def _more(hint: str) -> str:
    return f": {hint}" if hint else ""
