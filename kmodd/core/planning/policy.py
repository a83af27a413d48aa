# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy for a module, from modprobe.d and the kernel command line.

`blacklist M`, `install M /bin/false`, `alias M off` and `module_blacklist=` disable it; every other `install` or `remove`
line runs a shell command, which kmodd refuses to do.
"""

import re
from enum import Enum, auto
from functools import lru_cache

from kmodd.core.planning.planned_state import has_soft_targets
from kmodd.errors import DisabledByPolicy, Evidence
from kmodd.kernel.ports import ModuleIndex
from kmodd.model import Rule, Target
from kmodd.model.arguments import encoded, key, read
from kmodd.model.rules import ManagedFile
from kmodd.names import ModuleName, canonical
from kmodd.patterns import is_pattern, matches

_REFUSALS = frozenset(
    {
        ":",
        "true",
        "false",
        "exit",
        *(f"{folder}/{name}" for folder in ("/bin", "/usr/bin") for name in ("true", "false")),
    }
)
_MODPROBES = frozenset({"modprobe", *(f"{folder}/modprobe" for folder in ("/sbin", "/usr/sbin", "/bin", "/usr/bin"))})
_COMMENT = re.compile(r"(^|\s)#.*", re.DOTALL)
_AND_THEN = re.compile(r"\s*(?:;|&&|\|\|)\s*")
_AND_THEN_WORDS = re.compile(r"\s*(;|&&|\|\|)\s*")
_PLAIN = re.compile(r"[\w./:=,+%@-]+", re.ASCII)
_SILENCED = re.compile(r"[12]?>\s*/dev/null|[12]?>&[12]|&>\s*/dev/null")
_IGNORE_INSTALL = frozenset({"-i", "--ignore-install"})
_HARMLESS_OPTIONS = frozenset({"-q", "--quiet", "-s", "--syslog", "-v", "--verbose", "--"})
_GIVEN_OPTIONS = frozenset({"$CMDLINE_OPTS", '"$CMDLINE_OPTS"', "${CMDLINE_OPTS}"})
"""libkmod puts the options in the place of `$CMDLINE_OPTS` before a shell sees the line."""


class Meaning(Enum):
    """What comes of an `install` line."""

    REFUSAL = auto()
    """Nothing is loaded: the commands only end, well or not."""
    PERMISSION = auto()
    """modprobe is called for the same module without this line, and nothing else."""
    COMMAND = auto()


def meaning(rule: Rule) -> Meaning:
    """Judge the command of an `install` line. What is not plainly one of the others is a command."""
    return _meaning(rule.module, rule.value)


@lru_cache(maxsize=256)
def _meaning(module: str, command: str) -> Meaning:
    command = command.replace("\t", " ")
    if not command.isprintable():
        return Meaning.COMMAND  # a line break, to a shell, begins another command
    parts = _parts(command)
    if parts and all(map(_refuses, parts)):
        return Meaning.REFUSAL
    if len(parts) == 1 and _permits(module, parts[0]):
        return Meaning.PERMISSION
    return Meaning.COMMAND


def succeeds(rule: Rule) -> bool:
    """Tell whether the commands of a refusal end with status 0: modprobe then continues with the next module of its list."""
    text = _SILENCED.sub(" ", _COMMENT.sub("", rule.value)).strip().removesuffix(";")
    first, *rest = _AND_THEN_WORDS.split(text)
    good = _ends_well(first.split())
    for operator, part in zip(rest[::2], rest[1::2], strict=True):
        if operator == ";" or (operator == "&&") is good:
            good = _ends_well(part.split())
    return good


def _ends_well(words: list[str]) -> bool:
    words = words[1:] if words[:1] == ["exec"] else words
    if words[:1] == ["exit"]:
        return words[1:2] in ([], ["0"])
    return words[:1] != ["false"] and not words[0].endswith("/false") if words else True


def would_load(rule: Rule) -> tuple[str, ...]:
    """Names that the command gives to modprobe, as far as that can be read without a shell."""
    names = []
    for words in _parts(rule.value):
        if not words or words[0] not in _MODPROBES or "-r" in words or "--remove" in words:
            continue
        rest = [word for word in words[1:] if not word.startswith("-")]
        if rest and _PLAIN.fullmatch(rest[0]) and "=" not in rest[0]:
            names.append(rest[0])
    return tuple(dict.fromkeys(names))


def _parts(command: str) -> list[list[str]]:
    """Words of each command of a list, without comments."""
    text = _SILENCED.sub(" ", _COMMENT.sub("", command)).strip().removesuffix(";")
    return [part.split() for part in _AND_THEN.split(text)]


def _refuses(words: list[str]) -> bool:
    if words[:1] == ["exec"]:
        words = words[1:]
    return bool(words) and words[0] in _REFUSALS and all(_PLAIN.fullmatch(word) for word in words[1:])


def _permits(module: str, words: list[str]) -> bool:
    if words[:1] == ["exec"]:
        words = words[1:]
    if not words or words[0] not in _MODPROBES or _IGNORE_INSTALL.isdisjoint(words):
        return False
    rest = [word for word in words[1:] if word not in _IGNORE_INSTALL | _HARMLESS_OPTIONS | _GIVEN_OPTIONS]
    return len(rest) == 1 and not rest[0].startswith("-") and canonical(rest[0]) == module


COMMAND_LINE = "/proc/cmdline"
_SPECIAL = re.compile(r"[*?\[\\]")
_KEPT_MAX = 64
"""Modules whose aliases are remembered."""
_READABLE = "replace it with a regular file owned by root: kmodd has no access to /home, /root, /run/user and /tmp"
_COMMAND = "an install line runs a shell command, which kmodd never does"


class Policy:
    """Judges modules by the rules in effect."""

    def __init__(self, index: ModuleIndex) -> None:
        self._index = index
        self._seen: tuple[Rule, ...] | None = None
        self._by_alias: tuple[Rule, ...] = ()
        self._off: tuple[Rule, ...] = ()
        self._matches: dict[ModuleName, tuple[tuple[str, ...], tuple[Rule, ...]]] = {}
        """Rules that name an alias of a module, with the aliases they were looked for in."""

    def check_load(
        self, module: ModuleName, command_line: str, *, requested: str = "", needed_by: str = "", override: bool = False
    ) -> tuple[Rule, ...]:
        """Raise DisabledByPolicy when a rule forbids inserting it; answer the rules that `override` set aside.

        `requested` is the name or alias the caller used, `needed_by` the module that depends on it. The kernel's own
        `module_blacklist=` and install lines cannot be set aside. Where modprobe would load the module in spite of the rule, the
        error says so.
        """
        blocked = command_line_rule(module, command_line)
        if blocked is not None:
            hint = "remove it from module_blacklist= in the boot loader's configuration"
            raise _disabled(module, blocked, "the kernel command line blacklists it", needed_by, hint=hint)
        aside = []
        for rule in self.load_rules(module, requested):
            match rule.kind:
                case "install" if meaning(rule) is Meaning.COMMAND:
                    raise _disabled(module, rule, f"{_COMMAND}{_loads_instead(rule)}", needed_by)
                case "install":
                    # Written to keep it out by name too, as `blacklist` does not: to load it, edit the file.
                    note = self._why_ignored(rule, module)
                    raise _disabled(module, rule, "an install line disables it", needed_by, note=note)
                case "alias":
                    if needed_by or (requested and canonical(requested) != module):
                        # modprobe looks up aliases of the requested name only, never of dependencies.
                        continue
                    raise _disabled(module, rule, "an alias line disables it", "")
            if not override:
                by_alias = rule.module == module and bool(requested) and canonical(requested) != module
                how = "as a dependency" if needed_by else "by name"
                note = "" if by_alias and not needed_by else f"modprobe still loads it {how}"
                raise _disabled(module, rule, "it is blacklisted", needed_by, note=note)
            aside.append(rule)
        return tuple(aside)

    def check_files(self, module: ModuleName) -> None:
        """Raise DisabledByPolicy when a file of rules cannot be read: one of them may forbid any module, by a line nothing overrides."""
        for file, why in self._index.unreadable().items():
            raise DisabledByPolicy(
                f"{module} is not loaded: {file} {why}, and a rule in it may forbid the module",
                module=module,
                evidence=Evidence(file=file, hint=_READABLE),
            )

    def allows_softly(self, module: ModuleName, command_line: str) -> bool:
        """Whether a soft dependency is loaded: modprobe skips those that an install line or the kernel refuses.

        `blacklist` applies to the requested name. DisabledByPolicy if modprobe would run a command.
        """
        if command_line_rule(module, command_line) is not None:
            return False
        rule = self._install_line(module)
        if rule is None or self._why_ignored(rule, module) or meaning(rule) is Meaning.PERMISSION:
            return True
        if meaning(rule) is Meaning.REFUSAL:
            return False
        raise _disabled(module, rule, f"{_COMMAND}{_loads_instead(rule)}", "")

    def blacklists(self, module: ModuleName) -> bool:
        """Tell whether a `blacklist` line names the module: modprobe then passes it over among several that share an alias."""
        return any(rule.kind == "blacklist" for rule in self._index.rules(module))

    def keeps_out(self, module: ModuleName) -> bool:
        """Tell whether modprobe does not load the module by its name either, nor as a dependency."""
        rule = self._install_line(module)
        return rule is not None and meaning(rule) is Meaning.REFUSAL and not self._why_ignored(rule, module)

    def acting_install(self, module: ModuleName) -> Rule | None:
        """The `install` line that modprobe obeys when it loads the module; of several the first, unless soft dependencies switch it off."""
        rule = self._install_line(module)
        return None if rule is None or self._why_ignored(rule, module) else rule

    def blacklist_line(self, module: ModuleName) -> Rule | None:
        """The first `blacklist` line that names the module."""
        return next((rule for rule in self._index.rules(module) if rule.kind == "blacklist"), None)

    def is_ignored(self, rule: Rule) -> bool:
        """Tell whether modprobe does not obey this `install` line for the module it names, which has soft dependencies."""
        return bool(self._why_ignored(rule, ModuleName(rule.module)))

    def alias_line(self, target: Target) -> Rule | None:
        """The line of modprobe.d by which an alias leads to this target; of several the last, which decides."""
        lines = [
            rule
            for rule in self._index.all_rules()
            if rule.kind == "alias" and (rule.module, rule.value) == (target.alias, target.name)
        ]
        return lines[-1] if lines else None

    def has_command(self, module: ModuleName) -> bool:
        """Tell whether an `install` line names it, which modprobe obeys for a name without a module too."""
        return self._install_line(module) is not None

    def check_alias(self, requested: str) -> None:
        """Raise DisabledByPolicy when an alias that leads to no module was switched off (`alias net-pf-10 off`)."""
        name = canonical(requested)
        for rule in self._off_rules(name):
            raise _disabled(name, rule, "an alias line disables it", "")

    def check_unload(self, module: ModuleName) -> None:
        """Raise DisabledByPolicy when a `remove` line wants a shell command run."""
        for rule in self._index.rules(module):
            if rule.kind == "remove":
                raise _disabled(module, rule, "a remove line runs a shell command, which kmodd never does", "")

    def load_rules(self, module: ModuleName, requested: str = "") -> tuple[Rule, ...]:
        """Every `blacklist`, `install` and `alias … off` line that disables the module, the requested name, and its aliases.

        Rules that cannot be overridden come first, so that no caller is sent to override another one in vain.
        """
        rules: list[Rule] = []
        install = None
        for rule in self._index.rules(module):
            if rule.kind == "blacklist":
                rules.append(rule)
            elif rule.kind == "install" and install is None:  # of several the first one acts
                install = rule
        if install is not None:
            kind = meaning(install)
            # A command that modprobe does not run changes nothing; a refusal that it ignores was meant all the same.
            if kind is Meaning.REFUSAL or (kind is Meaning.COMMAND and not self._why_ignored(install, module)):
                rules.append(install)
        if requested and (named := canonical(requested)) != module:
            rules += filter(_is_refusal, self._index.rules(named))
        if self._index.all_rules() is not self._seen:
            self._sort_alias_rules()
        if self._by_alias:
            rules += self._about_aliases(module)
        if self._off:
            rules += self._off_rules(module)
        return tuple(sorted(dict.fromkeys(rules), key=_can_be_set_aside)) if rules else ()

    def _install_line(self, module: ModuleName) -> Rule | None:
        """Of several the first one acts."""
        return next((rule for rule in self._index.rules(module) if rule.kind == "install"), None)

    def _why_ignored(self, rule: Rule, module: ModuleName) -> str:
        """Why modprobe does not obey an install line when it loads the module; empty when it does."""
        if not matches(rule.module, module):
            return "modprobe still loads it by this name"
        if not has_soft_targets(self._index, module):
            return ""
        softdep = next((line for line in self._index.rules(module) if line.kind == "softdep"), None)
        place = f" ({softdep.file}, line {softdep.line})" if softdep is not None else ""
        return (
            f"modprobe ignores install lines of a module with soft dependencies{place} and still loads it: "
            f"'softdep {module} pre:' in an earlier file makes the line effective"
        )

    def _about_aliases(self, module: ModuleName) -> tuple[Rule, ...]:
        """Rules about what the module is called by others. Distributions ship dozens, and hardly any is about this one."""
        aliases = self._index.aliases(module)
        cached = self._matches.get(module)
        # The very same aliases: the index has not read the file again.
        if cached is None or cached[0] is not aliases:
            # Some modules have a thousand aliases: a pattern is tried only on what begins as it does.
            spelled = [(_SPECIAL.split(alias, 1)[0], alias) for alias in (alias.replace("-", "_") for alias in aliases)]
            matching = [
                rule
                for rule in self._by_alias
                if any(rule.module.startswith(start) and matches(alias, rule.module) for start, alias in spelled)
            ]
            cached = self._matches[module] = aliases, tuple(matching)
            while len(self._matches) > _KEPT_MAX:
                del self._matches[next(iter(self._matches))]
        return cached[1]

    def _off_rules(self, name: str) -> list[Rule]:
        if self._index.all_rules() is not self._seen:
            self._sort_alias_rules()
        return [rule for rule in self._off if matches(rule.module, name)]

    def _sort_alias_rules(self) -> None:
        """Sort out the rules whose name is no module's, so it can only be an alias.

        That is repeated only when the index hands out other rules than last time; keeping the tuple keeps its identity from
        being used again.
        """
        rules = self._index.all_rules()
        self._by_alias = tuple(
            rule
            for rule in rules
            if _is_refusal(rule) and not self._index.exists(ModuleName(rule.module)) and not is_pattern(rule.module)
        )
        # modprobe finds no module of that name, which is the purpose of such a line.
        off = () if self._index.exists(ModuleName("off")) else rules
        self._off = tuple(rule for rule in off if rule.kind == "alias" and rule.value == "off")
        self._matches.clear()
        self._seen = rules


def command_line_rule(module: ModuleName, command_line: str) -> Rule | None:
    """Find `module_blacklist=` naming the module; the last one on the line is the one the kernel keeps.

    The kernel compares letter by letter (blacklisted() in kernel/module/main.c): `snd-pcm` there is no module.
    """
    if "blacklist" not in command_line:
        return None
    names = _blacklisted_by_the_kernel(command_line)
    if module not in names.split(","):
        return None
    text = f"module_blacklist={names}"
    return Rule("module_blacklist", module, names, COMMAND_LINE, 1, text)


@lru_cache(maxsize=4)
def _blacklisted_by_the_kernel(command_line: str) -> str:
    # Cached, as it is called for every module.
    names = ""
    for word in read(encoded(command_line)):
        if word.ends:
            break
        if key(word.name) == "module_blacklist":
            names = word.value or ""
    return names


def _can_be_set_aside(rule: Rule) -> bool:
    return rule.kind == "blacklist"


def is_denial(rule: Rule) -> bool:
    """Tell whether an `install` line does nothing but end, and so keeps the module out."""
    return meaning(rule) is Meaning.REFUSAL


def _is_refusal(rule: Rule) -> bool:
    return rule.kind == "blacklist" or (rule.kind == "install" and is_denial(rule))


def _loads_instead(rule: Rule) -> str:
    names = would_load(rule) if rule.public else ()
    return f": it would load {' and '.join(names)}" if names else ""


def where(rule: Rule) -> str:
    """Spell a rule as `file:line: text`, without what not everyone may read."""
    return f"{rule.file}:{rule.line}: {rule.told}"


def _disabled(
    module: ModuleName, rule: Rule, why: str, needed_by: str, *, hint: str = "", note: str = ""
) -> DisabledByPolicy:
    """`note` says what modprobe does instead, where that is not the same."""
    place = rule.file if rule.file == COMMAND_LINE else f"{rule.file}, line {rule.line}"
    if not hint:
        # kmodd's own file is not for editing; that a rule other than a blacklist cannot be overridden is worth a word.
        ours = rule.file == ManagedFile.BLACKLIST
        hint = f"kmodctl config blacklist {rule.module} --off" if ours else f"change the rule in {place}"
        if _can_be_set_aside(rule):
            hint += ", or try once with --override-policy"
        elif rule.kind == "install" and not ours:
            hint += ": only a blacklist can be overridden"
    fact = f"{module} is not loaded: " if note else f"{module} cannot be used: "
    if needed_by:
        fact = f"{needed_by} needs {module}, but "
    return DisabledByPolicy(
        f"{fact}{why} ({place}){f'; {note}' if note else ''}",
        module=module,
        evidence=Evidence(file=rule.file, line=rule.line, rule=rule.told, rule_kind=rule.kind, hint=hint),
    )
