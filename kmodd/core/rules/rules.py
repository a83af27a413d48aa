# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rules in effect, the rules they mask, and findings about them."""

import asyncio
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, takewhile

from kmodd.core.fair_share import read_files
from kmodd.core.planning.parameters import (
    ALWAYS_KNOWN,
    NO_FLAG,
    Assignment,
    Options,
    declared,
    end_of,
    read_options,
    repaired,
    value_fault,
)
from kmodd.core.planning.policy import COMMAND_LINE, Meaning, Policy, is_denial, meaning
from kmodd.core.rules.lines import (
    NAMES_MAX,
    WORDS,
    about_autoload,
    about_ignored,
    about_words,
    after,
    before,
    begins_comment,
    is_slip,
    name_within,
    on_command_line,
    replacement,
    with_name,
    with_parameter,
    without_comment,
)
from kmodd.errors import KmoddError
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.ports import ModuleIndex
from kmodd.model import KernelFacts, ParameterInfo, Rule
from kmodd.model.arguments import encoded, key, read, shown
from kmodd.model.rules import Finding, ManagedFile, Replacement, RuleFile, RuleFiles, Severity, ShownRule
from kmodd.names import ModuleName, canonical, parse_module_or_alias
from kmodd.patterns import is_pattern, matches
from kmodd.suggestions import another_name, did_you_mean, is_spelling, near, several_names

LINES_MAX = 1024
"""Lines of one file that are shown, in their order: no hand-written file has more."""
VALUE_MAX = 4096
"""Characters of a line that are shown: the kernel accepts no longer parameters."""
NAME_MAX = 512
"""Characters of a module or an alias that are shown."""
FINDINGS_MAX = 16
"""Findings about one line."""
HINTS_MAX = 32
"""Names of modules that are compared with all there are, in one look: each takes milliseconds."""
LINES_INSTEAD_MAX = 16
"""Lines to write in place of one."""
SLICE = 0.01
"""Seconds of checking rules after which other tasks run: any user may call it, and the directories may have any files."""
_NOTES = frozenset(
    {
        "blacklisted",
        "duplicate",
        "hides-module",
        "loadable-by-name",
        "shadowed",
        "shell-command",
        "softdep-override",
        "too-long",
    }
)
"""Findings about lines that distributions ship as well, and mean."""
_MISSED = frozenset({"bad-softdep", "builtin", "missing-module", "mistyped", "not-read", "overridden"})
"""Findings that are a warning where the administrator wrote the line and kmodd knows what was meant, or the file is not read."""
_SHIPPED = frozenset({"bad-softdep", "builtin", "loadable-by-name", "missing-module", "mistyped"})
"""Kinds that say nothing about a distribution's file, which is for many kernels, nor about depmod's, made of what modules declare."""
_ADMINISTRATORS = ("/etc/", "/run/", "/usr/local/", "/proc/")
_NAME = re.compile(r"[\w.-]*\w", re.ASCII)
_WILD = frozenset("*?[")
_SPECIAL = re.compile(r"[*?\[\\]")
_FIRST_ACTS = frozenset({"install", "remove", "softdep"})
"""Of several such lines about one module libkmod obeys the first (kmod_module_get_softdeps and the like, kmod 30)."""


@dataclass(frozen=True, slots=True)
class ManagedFileState:
    """What is known of one of kmodd's own files."""

    present: bool = False
    ours: bool = False
    edited: bool = False
    difference: tuple[str, ...] = ()


async def judge(
    files: RuleFiles, own: Mapping[str, ManagedFileState], index: ModuleIndex, policy: Policy, facts: KernelFacts
) -> list[ShownRule]:
    """Every rule: modules-load.d, then modprobe.d, then the kernel's command line; each file before those it masks."""
    shown = [row for file in (*files.autoload, *files.modprobe) for row in _of_file(file, own)]
    shown += [ShownRule(rule) for rule in files.command_line]
    await read_files(index, (ModuleName(row.rule.module) for row in shown if row.rule.kind == "options"))
    return await _Evaluation(shown, index, policy, facts.command_line).rules()


def _of_file(file: RuleFile, own: Mapping[str, ManagedFileState]) -> Iterator[ShownRule]:
    state = own.get(file.path, ManagedFileState())
    findings = (*_about_own(file.path, state), *_about_name(file))
    rules: Iterable[Rule] = file.rules[:LINES_MAX]
    if findings and not file.rules:
        rules = (Rule("finding", "", "", file.path, 1, ""),)
    for rule in rules:
        # What is wrong with a file as a whole stands with its first rule only.
        about, findings = findings, ()
        yield ShownRule(_cut(rule), state.ours, file.masks, file.shadowed_by, about, file.public)
    if len(file.rules) > LINES_MAX:
        first = file.rules[LINES_MAX]
        rest = Finding("too-long", f"this and the following lines are ignored: {len(file.rules)} lines are too many")
        yield ShownRule(Rule("finding", "", "", file.path, first.line, ""), findings=(rest,), public=file.public)


def _cut(rule: Rule) -> Rule:
    if len(rule.module) <= NAME_MAX and len(rule.value) <= VALUE_MAX:
        return rule
    # What is cut off ends in a letter that no name has, so it stays what it is: none.
    module = rule.module if len(rule.module) <= NAME_MAX else rule.module[: NAME_MAX - 1] + "…"
    return replace(rule, module=module, value=rule.value[:VALUE_MAX])


def _about_name(file: RuleFile) -> Iterator[Finding]:
    if file.unread:
        yield Finding("not-read", f"{file.path} is not read: {file.unread}", names_file=True)
    elif file.obstacle:
        yield Finding(
            "unreadable", f"{file.path} {file.obstacle}: remove it, or put a regular file in its place", names_file=True
        )


def _about_own(path: str, state: ManagedFileState) -> Iterator[Finding]:
    if state.present and not state.ours:
        yield Finding(
            "foreign", f"{path} was not written by kmodd, so kmodd cannot write its rules there", names_file=True
        )
    if state.edited:
        what = f": {' | '.join(state.difference)}" if state.difference else ""
        yield Finding(
            "edited",
            f"{path} was edited since kmodd wrote it, and is no longer changed by kmodd{what}",
            names_file=True,
        )


class _Evaluation:
    """One look at all rules."""

    def __init__(self, shown: list[ShownRule], index: ModuleIndex, policy: Policy, command_line: str) -> None:
        self._shown = shown
        self._index = index
        self._policy = policy
        self._command_line = command_line
        # Rules in effect, in the order they are read.
        self._seen: dict[tuple[str, str, str], Rule] = {}
        self._first: dict[str, list[Rule]] = {kind: [] for kind in _FIRST_ACTS}
        self._masked: set[str] = set()
        self._modules = frozenset((*index.available(), *index.builtins()))
        self._kernel_parts: frozenset[str] | None = None
        self._hints = 0
        self._kernel_lists = [
            word.value or ""
            for word in takewhile(lambda word: not word.ends, read(encoded(command_line)))
            if key(word.name) == "module_blacklist"
        ]
        self._refused_by_kernel = {row.rule.module for row in shown if row.rule.kind == "module_blacklist"}
        self._options = self._all_options()
        """The lines in effect about each module, read together."""

    async def rules(self) -> list[ShownRule]:
        judged = []
        due = time.monotonic() + SLICE
        for row in self._shown:
            judged.append(_placed(self._judged(row)))
            if time.monotonic() >= due:
                await asyncio.sleep(0)
                due = time.monotonic() + SLICE
        return judged

    def _judged(self, row: ShownRule) -> ShownRule:
        if row.shadowed_by:
            return replace(row, findings=(*row.findings, *self._file_masked(row)))
        findings = [*row.findings, *self._about_ignored(row)]
        rule, shadow = row.rule, ""
        if rule.kind in _FIRST_ACTS:
            earlier = next((each for each in self._first[rule.kind] if matches(each.module, rule.module)), None)
            self._first[rule.kind].append(rule)
            if earlier is not None:
                shadow = place(earlier)
                # depmod writes a line for each soft dependency that a module declares.
                if rule.kind == "softdep" and earlier.file not in (ManagedFile.BLACKLIST, rule.file):
                    findings.append(_softdep_override(rule, earlier))
                if rule.kind == "install" and is_denial(rule) and not is_denial(earlier):
                    findings.append(_not_first(rule, earlier))
        key = (rule.kind, rule.module, rule.value)
        twin = self._seen.setdefault(key, rule)
        of_both = (rule.file.startswith(_ADMINISTRATORS), twin.file.startswith(_ADMINISTRATORS))
        if twin is not rule and rule.kind != "finding" and any(of_both) and _comparable(twin, rule):
            findings.append(Finding("duplicate", f"already in {place(twin)}"))
        findings += islice(self._about(rule), FINDINGS_MAX)
        return replace(row, shadowed_by=shadow, findings=tuple(findings))

    def _file_masked(self, row: ShownRule) -> Iterator[Finding]:
        if row.rule.file not in self._masked:
            self._masked.add(row.rule.file)
            mask = [each.rule for each in self._shown if each.rule.file == row.shadowed_by]
            masked = [each.rule for each in self._shown if each.rule.file == row.rule.file]
            same = [(rule.kind, rule.module, rule.value) for rule in mask] == [
                (rule.kind, rule.module, rule.value) for rule in masked
            ]
            if same and _comparable(*mask, *masked):
                yield Finding("duplicate", f"{row.shadowed_by} has the same rules and is read instead")
            else:
                yield Finding("shadowed", f"{row.shadowed_by} has the same name and is read instead")

    def _about(self, rule: Rule) -> Iterator[Finding]:
        misread = tuple(about_words(rule, self._modules)) if rule.kind in WORDS else ()
        if misread:
            yield from misread
            return
        if rule.kind in ("blacklist", "options", "install", "remove", "softdep"):
            yield from self._about_name(rule)
        match rule.kind:
            case "autoload":
                yield from self._about_autoload(rule)
            case "options":
                yield from self._about_options(rule)
            case "blacklist":
                yield from self._about_blacklist(rule)
            case "softdep" if rule.file.startswith("/etc/"):
                yield from self._about_soft_names(rule)
            case "alias":
                yield from self._about_alias(rule)
            case "module_blacklist":
                yield from self._about_kernel_list(rule)
            case "install" | "remove" if self._index.is_builtin(ModuleName(rule.module)):
                yield Finding("builtin", f"{rule.module} is built into the kernel, and is never loaded or unloaded")
            case "install" if is_denial(rule):
                yield from self._about_refusal(rule)
            case "install" | "remove" if not self._is_permission(rule):
                yield Finding("shell-command", f"this {rule.kind} line has modprobe run a shell command as root")

    def _about_ignored(self, row: ShownRule) -> Iterator[Finding]:
        """What is wrong with a line that is no rule; the text of a file that is not public is not shown."""
        if row.rule.kind != "finding" or not row.rule.text:
            return
        if not row.public:
            yield Finding("ignored-line", "modprobe ignores this line")
            return
        finding = about_ignored(row.rule.text, row.rule.file, self._modules)
        if finding is not None:
            yield finding

    def _about_alias(self, rule: Rule) -> Iterator[Finding]:
        """Aliases of modprobe.d go before the names of modules (lookup of libkmod 30)."""
        if not rule.file.startswith("/etc/"):
            return
        if rule.module in self._modules and rule.value not in (rule.module, "off") and self._is_known(rule.value):
            yield Finding(
                "hides-module",
                f"modprobe loads {_named(rule.value)} for the module {rule.module}, because aliases take precedence over names",
            )
        elif not self._is_known(rule.value) and rule.value != "off" and self._may_compare():
            meant = another_name(rule.value, self._modules)
            if meant:
                lines = (replacement(rule.file, f"alias {rule.module} {meant}"),)
                yield Finding("mistyped", f"no module {_named(rule.value)}: did you mean {meant}?", instead=lines)

    def _about_kernel_list(self, rule: Rule) -> Iterator[Finding]:
        """The kernel keeps the last `module_blacklist=`, and compares the names in it letter by letter."""
        if len(self._kernel_lists) > 1:
            names = dict.fromkeys(name for names in self._kernel_lists for name in names.split(",") if name)
            lines = (replacement(COMMAND_LINE, f"module_blacklist={','.join(names)}"),)
            yield Finding("not-in-effect", "the kernel uses only the last module_blacklist=", instead=lines)
            self._kernel_lists = []
        if rule.module in self._modules:
            if self._index.is_builtin(ModuleName(rule.module)):
                yield Finding("builtin", f"{rule.module} is built into the kernel, so blacklisting has no effect")
            return
        meant = another_name(rule.module, self._modules)
        if meant and is_spelling(rule.module, meant):
            lines = (replacement(COMMAND_LINE, f"module_blacklist={meant}"),)
            says = f"the kernel compares names exactly, and calls it {meant}"
            yield Finding("ignored-name", says, instead=lines)
        elif not _WILD.isdisjoint(rule.module):
            yield Finding("pattern", "the kernel accepts names, not patterns: this acts on no module")

    def _about_name(self, rule: Rule) -> Iterator[Finding]:
        """A pattern where none works, and a name of no module that is another one's."""
        name = ModuleName(rule.module)
        if self._is_known(rule.module):
            if rule.kind == "blacklist" and canonical(rule.module) not in self._modules:
                yield from self._about_blacklisted_alias(rule)
            return
        if is_pattern(rule.module):
            # fnmatch acts in `alias`, `install`, `remove` and `softdep`, not in the others (kmod_module_get_options,
            # is_mod_blacklisted of libkmod 30).
            if rule.kind in ("blacklist", "options"):
                yield self._about_pattern(rule)
        elif rule.file.startswith("/etc/") and canonical(rule.module) in self._parts():
            says = f"{name} is a part of the kernel that is not a module, so this line has no effect"
            yield _about_builtin_options(rule) if rule.kind == "options" else Finding("builtin", says)
        elif rule.file.startswith("/etc/"):
            findings = tuple(self._about_mistyped(rule, name, "mistyped", f"no module {_named(name)}"))
            yield from findings
            if not findings and (plain := name_within(rule.module)):
                yield Finding(
                    "mistyped",
                    f"no module is called {_named(name)}: {rule.kind} takes a name",
                    instead=with_name(rule, plain),
                )

    def _about_blacklisted_alias(self, rule: Rule) -> Iterator[Finding]:
        """`blacklist` is compared with the names of modules alone (is_mod_blacklisted of libkmod 30)."""
        modules = self._index.resolve(parse_module_or_alias(rule.module))[:LINES_INSTEAD_MAX]
        if rule.file.startswith("/etc/") and modules:
            yield Finding(
                "mistyped",
                f"{_named(rule.module)} is an alias of {' and '.join(modules)}, but blacklist takes module names only",
                instead=tuple(line for module in modules for line in with_name(rule, module)),
            )

    def _about_pattern(self, rule: Rule) -> Finding:
        meant: list[str] = []
        if self._may_compare():
            start = _SPECIAL.split(rule.module, maxsplit=1)[0]
            alike = (module for module in self._modules if module.startswith(start))
            meant = sorted(module for module in alike if matches(rule.module, module))
        few = meant if len(meant) <= LINES_INSTEAD_MAX else []
        lines = tuple(line for module in few for line in with_name(rule, module))
        return Finding(
            "pattern", f"{rule.kind} takes a name, not a pattern: this line acts on no module", instead=lines
        )

    def _about_mistyped(self, rule: Rule, name: str, kind: str, says: str) -> Iterator[Finding]:
        if not self._may_compare():
            return
        meant = another_name(name, self._modules)
        close = (meant,) if meant else near(name, self._modules)
        if close:
            # Lists of what is kept out name modules of many kernels, so that another name is a guess there.
            listed = rule.kind in ("blacklist", "install", "remove")
            sure = meant if not listed or is_spelling(name, meant) else ""
            if not meant and len(close) == 1 and is_slip(name, close[0]):
                sure = close[0]
            question = f"did you mean {' or '.join(close)}?"
            yield Finding(kind, f"{says}: {question}", instead=with_name(rule, sure) if sure else ())

    def _about_soft_names(self, rule: Rule) -> Iterator[Finding]:
        for word in rule.value.split():
            if word in ("pre:", "post:") or self._is_known(word) or not self._may_compare():
                continue
            meant = another_name(word, self._modules)
            if not meant:
                yield Finding("missing-module", f"no module {_named(word)}, so modprobe ignores this soft dependency")
            else:
                value = " ".join(meant if each == word else each for each in rule.value.split())
                lines = (replacement(rule.file, f"softdep {rule.module} {value}"),)
                yield Finding("mistyped", f"no module {_named(word)}: did you mean {meant}?", instead=lines)

    def _is_known(self, name: str) -> bool:
        """There is such a module, or an alias."""
        if canonical(name) in self._modules:
            return True
        try:
            return bool(self._index.resolve(parse_module_or_alias(name)))
        except KmoddError:
            return False

    def _parts(self) -> frozenset[str]:
        if self._kernel_parts is None:
            self._kernel_parts = frozenset(self._index.parts())
        return self._kernel_parts

    def _may_compare(self) -> bool:
        self._hints += 1
        return self._hints <= HINTS_MAX

    def _about_autoload(self, rule: Rule) -> Iterator[Finding]:
        try:
            modules = self._index.resolve(parse_module_or_alias(rule.module))
        except KmoddError:
            modules = ()
        if not modules:
            finding = about_autoload(rule.text, rule.file, self._modules) if rule.file != COMMAND_LINE else None
            if finding is not None:
                yield finding
                return
            says = f"no module {_named(rule.module)} to load at boot"
            closer = tuple(self._about_mistyped(rule, rule.module, "missing-module", says))
            yield from closer or (Finding("missing-module", says),)
        for module in modules:
            if self._index.is_builtin(module):
                continue
            try:
                self._policy.check_load(module, self._command_line, requested=rule.module)
            except KmoddError as error:
                yield Finding("blacklisted", f"it is not loaded at boot: {error.message}")

    def _about_options(self, rule: Rule) -> Iterator[Finding]:
        name = ModuleName(rule.module)
        if self._index.is_builtin(name):
            if rule.file != COMMAND_LINE:
                yield _about_builtin_options(rule)
            return
        if not self._index.exists(name):
            if rule.public and len(several_names(rule.module)) > 1 and not self._is_known(rule.module):
                yield self._about_several(rule, ())
            return
        try:
            parameters = declared(self._index.info(name))
        except KmoddError:
            return  # a damaged file is no matter of this line
        options = self._options[rule.module]
        end = options.end
        if end is rule:
            yield Finding("ends-early", f"this line {end_of(options)}")
        elif end is not None and not any(each.rule is rule for each in options.assignments):
            yield Finding("ends-early", f"{place(end)} {end_of(options)}: this line is not read")
        last = {each.name: each for each in options.assignments}
        yield from self._about_values(rule, options, parameters)
        for each in options.assignments:
            by = last[each.name]
            if each.rule is rule and by.rule is not rule and by.value != each.value and _comparable(by.rule, rule):
                yield _overridden(rule, each, by.rule)

    def _about_values(self, rule: Rule, options: Options, parameters: Mapping[str, ParameterInfo]) -> Iterator[Finding]:
        """What the kernel refuses or ignores of a line, in terms of that line."""
        commented = False
        own = [each for each in options.assignments if each.rule is rule]
        if not rule.public:
            if any(each.name not in parameters and each.name not in ALWAYS_KNOWN for each in own):
                yield Finding("unknown-parameter", f"{rule.module} does not have every parameter that this line sets")
            return
        others = tuple(each.name for each in own if each.name not in parameters and self._is_other_module(rule, each))
        if others:
            yield self._about_several(rule, others)
            own = [each for each in own if each.name in parameters]
        better, why = repaired(rule, parameters)
        lines = (replacement(rule.file, f"options {rule.module} {better}"),)
        for each in own:
            name = each.name
            sign = begins_comment(name)
            if not commented and sign:
                commented = True
                yield Finding(
                    "comment",
                    f"{sign} does not start a comment here: put comments on a separate line",
                    instead=without_comment(rule),
                )
            if name not in parameters:
                if better and name not in ALWAYS_KNOWN:
                    # One finding suffices for a line that is corrected as a whole.
                    yield Finding(
                        "unknown-parameter", f"{rule.module} has no parameter {_named(name)}: {why}", instead=lines
                    )
                    return
                if not commented and name not in ALWAYS_KNOWN:
                    close = near(name, parameters)
                    yield Finding(
                        "unknown-parameter",
                        f"{rule.module} has no parameter {_named(name)}" + _more(did_you_mean(name, parameters)),
                        instead=with_parameter(rule, name, close[0]) if len(close) == 1 else (),
                    )
                continue
            if commented:
                yield Finding("comment", f"parameter {name} after the # is in effect", instead=without_comment(rule))
            fault = value_fault(rule.module, each, parameters[name], likely=True)
            if fault:
                if better:
                    says = fault if fault.endswith(why) else f"{fault.removesuffix(NO_FLAG)}: {why}"
                    yield Finding("bad-value", says, instead=lines)
                    return
                instead: tuple[Replacement, ...] = ()
                if "#" in (each.value or ""):
                    instead, commented = without_comment(rule), True
                yield Finding("bad-value", fault, instead=instead)
        yield from _about_twice(rule, own) if not commented else ()

    def _is_other_module(self, rule: Rule, each: Assignment) -> bool:
        return each.value is None and each.name != rule.module and each.name in self._modules

    def _about_several(self, rule: Rule, others: Sequence[str]) -> Finding:
        """`options` takes one module; each of the modules is given the parameters that it has."""
        words = [word for word in rule.value.split() if key(word) not in others] if '"' not in rule.value else []
        modules = (*(several_names(rule.module) or (rule.module,)), *others)[:NAMES_MAX]
        lines: list[Replacement] = []
        for module in dict.fromkeys(modules):
            try:
                parameters = declared(self._index.info(ModuleName(module)))
            except KmoddError:
                continue
            own = [word for word in words if key(word.partition("=")[0]) in parameters]
            if own:
                lines.append(replacement(rule.file, f"options {module} {' '.join(own)}"))
        acts = f"{' and '.join(others)} is read as a parameter of {rule.module}" if others else "this line acts on none"
        return Finding("several-names", f"options takes one module: {acts}", instead=tuple(lines))

    def _about_blacklist(self, rule: Rule) -> Iterator[Finding]:
        name = ModuleName(rule.module)
        if rule.file == COMMAND_LINE and name not in self._modules:
            # kmod_config_parse_kcmdline of libkmod 30 and 34 keeps the names as they stand there.
            meant = another_name(name, self._modules)
            if meant and is_spelling(name, meant):
                lines = (replacement(rule.file, f"blacklist {meant}"),)
                says = f"modprobe compares the names of modprobe.blacklist= exactly, and calls it {meant}"
                yield Finding("ignored-name", says, instead=lines)
            return
        if self._index.is_builtin(name):
            yield Finding("builtin", f"{name} is built into the kernel, so blacklisting has no effect")
        elif self._index.exists(name) and not self._is_refused(name):
            yield Finding(
                "loadable-by-name",
                f"{name} is still loaded by its name and as a dependency; only an install line with /bin/false keeps it out",
            )

    def _about_refusal(self, rule: Rule) -> Iterator[Finding]:
        name = ModuleName(rule.module)
        if self._index.exists(name) and self._policy.is_ignored(rule):
            softdep = next((line for line in self._index.rules(name) if line.kind == "softdep"), None)
            because = f", which {place(softdep)} names" if softdep is not None else ""
            yield Finding(
                "not-in-effect",
                f"modprobe loads {name} nonetheless, because it ignores install lines of a module with soft dependencies{because}: "
                f"'softdep {name} pre:' in an earlier file makes it effective",
                instead=_first_line(softdep, name, f"softdep {name} pre:"),
            )

    def _is_permission(self, rule: Rule) -> bool:
        return rule.kind == "install" and meaning(rule) is Meaning.PERMISSION

    def _is_refused(self, name: ModuleName) -> bool:
        """Tell whether it is not loaded by its name either."""
        return self._policy.keeps_out(name) or name in self._refused_by_kernel

    def _all_options(self) -> dict[str, Options]:
        lines: dict[str, list[Rule]] = {}
        for row in self._shown:
            if row.rule.kind == "options" and not row.shadowed_by:
                lines.setdefault(row.rule.module, []).append(row.rule)
        return {module: read_options(rules) for module, rules in lines.items()}


def _placed(row: ShownRule) -> ShownRule:
    """Add to each finding where it stands and how much it matters; nothing is quoted of a file that not everyone may read."""
    if not row.findings:
        return row
    ours = row.rule.file.startswith(_ADMINISTRATORS)
    findings = (
        replace(
            finding,
            severity=_severity(finding, row.rule.file),
            instead=_instead(finding, row.rule.file) if row.public and row.rule.public else (),
            file=row.rule.file,
            line=row.rule.line,
        )
        for finding in row.findings
        if ours or finding.kind not in _SHIPPED
    )
    return replace(row, findings=tuple(findings))


def _instead(finding: Finding, file: str) -> tuple[Replacement, ...]:
    lines = finding.instead[:LINES_INSTEAD_MAX]
    return on_command_line(lines) if lines and file == COMMAND_LINE else lines


def _severity(finding: Finding, file: str) -> Severity:
    missed = finding.kind in _MISSED and not (
        file.startswith(_ADMINISTRATORS) and (finding.instead or finding.kind in ("builtin", "not-read"))
    )
    return Severity.NOTE if missed or finding.kind in _NOTES else Severity.WARNING


def place(rule: Rule) -> str:
    """Where a rule stands, as `FILE:LINE`."""
    return f"{rule.file}:{rule.line}"


def _comparable(*rules: Rule) -> bool:
    """All of them are public, so it may be shown whether they are the same."""
    return all(rule.public for rule in rules)


def _softdep_override(rule: Rule, earlier: Rule) -> Finding:
    same = " and says the same" if earlier.value == rule.value else " and differs"
    if not _comparable(rule, earlier):
        same = ""
    return Finding(
        "softdep-override",
        f"{place(earlier)} names soft dependencies of {rule.module} first{same}: other lines about them are ignored",
    )


def _not_first(rule: Rule, earlier: Rule) -> Finding:
    return Finding(
        "not-in-effect",
        f"{place(earlier)} is the first install line about {rule.module}, and other ones are ignored",
        instead=_first_line(earlier, rule.module, f"install {rule.module} {rule.value}"),
    )


def _first_line(rule: Rule | None, module: str, text: str) -> tuple[Replacement, ...]:
    """A line about the module that is read before the rule, in a separate file."""
    file = before(rule.file, module) if rule is not None else ""
    return (replacement(file, text),) if file else ()


def _overridden(rule: Rule, each: Assignment, by: Rule) -> Finding:
    lines: tuple[Replacement, ...] = ()
    if rule.file.startswith("/etc/") and not by.file.startswith(_ADMINISTRATORS):
        # The administrator's line stands in a file that is read before the distribution's.
        value = each.name if each.value is None else f"{each.name}={each.value}"
        lines = (replacement(after(by.file, rule.module), f"options {rule.module} {value}"),)
    return Finding(
        "overridden",
        f"{place(by)} gives {shown(each.name)} another value, and the last one wins",
        instead=lines if '"' not in rule.value else (),
    )


def _about_twice(rule: Rule, own: Sequence[Assignment]) -> Iterator[Finding]:
    """A parameter that one line gives two values; arrays and texts take no part of each."""
    values: dict[str, str | None] = {}
    for each in own:
        if values.setdefault(each.name, each.value) != each.value:
            yield Finding("overridden", f"this line gives {shown(each.name)} two values, and the last one wins")
            return


def _about_builtin_options(rule: Rule) -> Finding:
    words = rule.value.split() if '"' not in rule.value else []
    value = " ".join(f"{rule.module}.{word}" for word in words if "=" in word)
    return Finding(
        "builtin",
        f"{rule.module} is built into the kernel, which takes its parameters only from the kernel command line",
        instead=(replacement(COMMAND_LINE, value),) if value else (),
    )


def _named(name: str) -> str:
    """A name in a sentence, in quotes where it holds what no module's name does."""
    mark = '"' if "'" in name else "'"
    return name if _NAME.fullmatch(name) else f"{mark}{shown(name)}{mark}"


def _more(hint: str) -> str:
    return f": {hint}" if hint else ""
