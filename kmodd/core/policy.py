# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the administrator has ruled about a module: modprobe.d and the kernel command line.

`blacklist M`, `install M /bin/false`, `alias M off` and `module_blacklist=` say no; every other `install` or `remove` line
runs a shell command, which kmodd refuses to do.
"""

from fnmatch import fnmatchcase
from functools import lru_cache

from kmodd.core.arguments import words
from kmodd.errors import BadModule, DisabledByPolicy, Evidence
from kmodd.kernel.ports import ModuleIndex
from kmodd.model import Rule
from kmodd.names import ModuleName, canonical

COMMAND_LINE = "/proc/cmdline"
_KEPT_MAX = 64
"""Modules whose aliases are remembered."""
_DENIALS = frozenset(f"{folder}{name}" for folder in ("", "/bin/", "/usr/bin/") for name in ("true", "false"))


class Policy:
    """Judges modules by the rules in force."""

    def __init__(self, index: ModuleIndex) -> None:
        self._index = index
        self._seen: tuple[Rule, ...] | None = None
        self._by_alias: tuple[Rule, ...] = ()
        self._off: tuple[Rule, ...] = ()
        self._matches: dict[ModuleName, tuple[tuple[str, ...], tuple[Rule, ...]]] = {}
        """Rules that name an alias of a module, with the aliases they were looked for in."""

    def check_load(
        self, module: ModuleName, command_line: str, *, asked: str = "", needed_by: str = "", override: bool = False
    ) -> tuple[Rule, ...]:
        """Raise DisabledByPolicy when a rule forbids inserting it; answer the rules that `override` set aside.

        `asked` is the name or alias the caller used, `needed_by` the module that depends on it. The kernel's own
        `module_blacklist=` and install lines cannot be set aside.
        """
        blocked = command_line_rule(module, command_line)
        if blocked is not None:
            hint = "remove it from module_blacklist= in the boot loader's configuration"
            raise _disabled(module, blocked, "the kernel command line blacklists it", needed_by, hint=hint)
        aside = []
        for rule in self.load_rules(module, asked):
            if rule.kind == "install" and not is_denial(rule):
                raise _disabled(module, rule, "an install line runs a shell command, which kmodd never does", needed_by)
            if rule.kind == "install":
                # Written to keep it out by name too, as `blacklist` does not: whoever means otherwise edits the file.
                raise _disabled(module, rule, "an install line disables it", needed_by)
            if rule.kind == "alias":
                if needed_by:
                    # modprobe looks up aliases of what it was asked for only, never of dependencies.
                    continue
                raise _disabled(module, rule, "an alias line switches it off", "")
            if not override:
                raise _disabled(
                    module, rule, "it is blacklisted", needed_by, hint="an administrator may use override-policy"
                )
            aside.append(rule)
        return tuple(aside)

    def check_alias(self, asked: str) -> None:
        """Raise DisabledByPolicy when an alias that leads to no module was switched off (`alias net-pf-10 off`)."""
        name = canonical(asked)
        for rule in self._off_rules(name):
            raise _disabled(name, rule, "an alias line switches it off", "")

    def check_unload(self, module: ModuleName) -> None:
        """Raise DisabledByPolicy when a `remove` line wants a shell command run."""
        for rule in self._index.rules(module):
            if rule.kind == "remove":
                raise _disabled(module, rule, "a remove line runs a shell command, which kmodd never does", "")

    def load_rules(self, module: ModuleName, asked: str = "") -> tuple[Rule, ...]:
        """Every `blacklist`, `install` and `alias … off` line about the module, the name it was asked by, and its aliases.

        What nothing sets aside goes first: whoever is told of a rule must not be sent to override it in vain.
        """
        found = [rule for rule in self._index.rules(module) if rule.kind in ("blacklist", "install")]
        named = canonical(asked)
        if asked and named != module:
            found += [rule for rule in self._index.rules(named) if rule.kind in ("blacklist", "install")]
        if self._alias_rules():
            found += self._about_aliases(module)
        found += self._off_rules(module)
        return tuple(sorted(dict.fromkeys(found), key=_can_be_set_aside)) if found else ()

    def _about_aliases(self, module: ModuleName) -> tuple[Rule, ...]:
        """Rules about what the module is called by others. Distributions ship dozens, and hardly any is about this one."""
        aliases = self._aliases(module)
        known = self._matches.get(module)
        # The very same aliases: the index has not read the file again.
        if known is None or known[0] is not aliases:
            spelled = [alias.replace("-", "_") for alias in aliases]
            found = [rule for rule in self._by_alias if any(fnmatchcase(rule.module, alias) for alias in spelled)]
            known = self._matches[module] = aliases, tuple(found)
            while len(self._matches) > _KEPT_MAX:
                del self._matches[next(iter(self._matches))]
        return known[1]

    def _aliases(self, module: ModuleName) -> tuple[str, ...]:
        try:
            return self._index.info(module).aliases
        except BadModule:
            # A file that cannot be read is no question of policy: the kernel refuses it, and says what is wrong with it.
            return ()

    def _off_rules(self, name: str) -> list[Rule]:
        self._alias_rules()
        return [rule for rule in self._off if fnmatchcase(name, rule.module)]

    def _alias_rules(self) -> tuple[Rule, ...]:
        # Rules whose name is no module's, so it can only be an alias. Sorting them out is repeated only when the index
        # hands out other rules than last time; keeping the tuple keeps its identity from being used again.
        rules = self._index.all_rules()
        if rules is not self._seen:
            self._by_alias = tuple(
                rule
                for rule in rules
                if rule.kind in ("blacklist", "install")
                and not self._index.exists(ModuleName(rule.module))
                and "*" not in rule.module
            )
            # modprobe finds no module of that name, which is what people write it for.
            off = () if self._index.exists(ModuleName("off")) else rules
            self._off = tuple(rule for rule in off if rule.kind == "alias" and rule.value == "off")
            self._matches.clear()
            self._seen = rules
        return self._by_alias


def command_line_rule(module: ModuleName, command_line: str) -> Rule | None:
    """Find `module_blacklist=` naming the module; the last one on the line is the one the kernel keeps."""
    if "blacklist" not in command_line:
        return None
    names = _blacklisted_by_the_kernel(command_line)
    if module not in (canonical(name) for name in names.split(",")):
        return None
    text = f"module_blacklist={names}"
    return Rule("module_blacklist", module, names, COMMAND_LINE, 1, text)


@lru_cache(maxsize=4)
def _blacklisted_by_the_kernel(command_line: str) -> str:
    # Remembered, as it is asked about for every module there is.
    names = ""
    for word in words(command_line):
        if word == "--":
            break
        key, _, value = word.partition("=")
        if key.replace("-", "_") == "module_blacklist":
            names = value.strip('"')
    return names


def _can_be_set_aside(rule: Rule) -> bool:
    return rule.kind == "blacklist"


def is_denial(rule: Rule) -> bool:
    """Tell whether an `install` line runs nothing but /bin/false or /bin/true, and so keeps the module out."""
    return rule.value.strip() in _DENIALS


def where(rule: Rule) -> str:
    """Spell a rule as `file:line: text`, without what not everyone may read."""
    return f"{rule.file}:{rule.line}: {rule.told}"


def _disabled(module: ModuleName, rule: Rule, why: str, needed_by: str, hint: str = "") -> DisabledByPolicy:
    needed = f"{needed_by} needs {module}, but " if needed_by else f"{module} cannot be used: "
    place = rule.file if rule.file == COMMAND_LINE else f"{rule.file}, line {rule.line}"
    return DisabledByPolicy(
        f"{needed}{why} ({place})",
        module=module,
        evidence=Evidence(file=rule.file, line=rule.line, rule=rule.told, hint=hint or f"change the rule in {place}"),
    )
