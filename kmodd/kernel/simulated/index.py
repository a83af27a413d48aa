# SPDX-License-Identifier: LGPL-2.1-or-later
"""Module files, dependencies, modprobe.d and modules-load.d of the simulated system."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

from kmodd.errors import NoSuchModule
from kmodd.kernel.modprobe.modprobe_d import parse_rules
from kmodd.kernel.modprobe.modules_load_d import parse_modules
from kmodd.kernel.simulated.modules import RELEASE, SimulatedModule
from kmodd.model import ModuleInfo, ParameterInfo, Rule, Target
from kmodd.model.rules import ChangedMeanwhileError, ManagedFile, RuleFile, RuleFiles
from kmodd.names import Alias, ModuleName, canonical
from kmodd.patterns import matches


class SimulatedIndex:
    """Answers as libkmod would for these modules and these rules."""

    def __init__(self, modules: Mapping[ModuleName, SimulatedModule], rules: Iterable[Rule]) -> None:
        self._modules = modules
        self._rules = tuple(rules)
        self._stale = False
        self.version = 0
        """See ModuleIndex."""
        self.closed: dict[str, str] = {}
        """Files of modprobe.d that cannot be read, and why."""
        self._available = tuple(sorted(name for name, module in modules.items() if not module.builtin))
        self._builtins = tuple(sorted(name for name, module in modules.items() if module.builtin))
        self._exact: dict[str, list[ModuleName]] = {}
        self._patterns: list[tuple[str, ModuleName]] = []
        for name, module in modules.items():
            for alias in module.aliases:
                self._add_alias(alias, name)
        self._dependencies: dict[ModuleName, tuple[ModuleName, ...]] = {}

    def change_rules(self, rules: Iterable[Rule]) -> None:
        """Rewrite modprobe.d, as an administrator would."""
        self._rules = tuple(rules)
        self._stale = True

    def refresh(self) -> bool:
        """Whether the rules changed since the last call."""
        stale, self._stale = self._stale, False
        self.version += stale
        return stale

    def unreadable(self) -> Mapping[str, str]:
        """See ModuleIndex."""
        return self.closed

    def forget(self) -> None:
        """See ModuleIndex; nothing is remembered."""

    def lookup(self, name: str) -> tuple[Target, ...]:
        """See ModuleIndex."""
        spelled = canonical(name)
        configured = [
            Target(canonical(rule.value), rule.module)
            for rule in self._rules
            if rule.kind == "alias" and matches(rule.module.replace("-", "_"), spelled)
        ]
        if configured:
            return tuple(configured)
        module = self._modules.get(spelled)
        if module is not None and not module.builtin:
            return (Target(spelled),)
        if any(rule.kind in ("install", "remove") and rule.module == spelled for rule in self._rules):
            return (Target(spelled),)
        names = list(self._exact.get(spelled, ()))
        names += [owner for pattern, owner in self._patterns if matches(pattern, spelled)]
        if not names and module is not None:
            return (Target(spelled),)
        return tuple(Target(owner, spelled) for owner in dict.fromkeys(names))

    def resolve(self, name: ModuleName | Alias) -> tuple[ModuleName, ...]:
        """See ModuleIndex."""
        return tuple(dict.fromkeys(target.name for target in self.lookup(name) if self.exists(target.name)))

    def exists(self, name: ModuleName) -> bool:
        """See ModuleIndex."""
        return name in self._modules

    def is_builtin(self, name: ModuleName) -> bool:
        """See ModuleIndex."""
        module = self._modules.get(name)
        return module is not None and module.builtin

    def path(self, name: ModuleName) -> str:
        """See ModuleIndex."""
        module = self._modules.get(name)
        return module.path if module is not None else ""

    def dependencies(self, name: ModuleName) -> tuple[ModuleName, ...]:
        """See ModuleIndex."""
        cached = self._dependencies.get(name)
        if cached is None:
            order: dict[ModuleName, None] = {}
            self._collect(name, order)
            order.pop(name, None)
            cached = self._dependencies[name] = tuple(order)
        return cached

    def softdeps(self, name: ModuleName) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """See ModuleIndex; of several lines about one module the first counts."""
        lines = [rule.value for rule in self._rules if rule.kind == "softdep" and matches(rule.module, name)]
        if lines:
            return _softdep(lines[0])
        module = self._modules.get(name)
        return (module.softdep_pre, module.softdep_post) if module is not None else ((), ())

    def weakdeps(self, name: ModuleName) -> tuple[str, ...]:
        """See ModuleIndex."""
        module = self._modules.get(name)
        return module.weakdeps if module is not None else ()

    def stamp(self, name: ModuleName) -> object:
        """See ModuleIndex."""
        return self._modules.get(name)

    def info(self, name: ModuleName) -> ModuleInfo:
        """See ModuleIndex."""
        module = self._modules.get(name)
        if module is None:
            raise NoSuchModule(f"no module {name} for kernel {RELEASE}", module=name)
        parameters = tuple(ParameterInfo(each.name, each.type, each.description) for each in module.parameters)
        return ModuleInfo(
            name=name,
            filename=module.path,
            description=module.description,
            license=module.license,
            author=module.author,
            version=module.version,
            srcversion="" if module.builtin else source_version(name),
            vermagic="" if module.builtin else f"{RELEASE} SMP preempt mod_unload modversions ",
            signer="Debian Secure Boot CA" if module.signed and not module.builtin else "",
            signed=module.signed and not module.builtin,
            intree=module.intree,
            firmware=module.firmware,
            depends=tuple(map(canonical, module.depends)),
            softdep_pre=module.softdep_pre,
            softdep_post=module.softdep_post,
            aliases=module.aliases,
            parameters=parameters,
            holds=ModuleName(module.holds) or None,
        )

    def holds(self, name: ModuleName) -> ModuleName:
        """See ModuleIndex."""
        module = self._modules.get(name)
        return ModuleName(module.holds) if module is not None and module.holds else name

    def file_for(self, module: ModuleName) -> ModuleName:
        """See ModuleIndex."""
        if module in self._modules:
            return module
        return next((name for name, each in self._modules.items() if each.holds == module), module)

    def aliases(self, name: ModuleName) -> tuple[str, ...]:
        """See ModuleIndex."""
        module = self._modules.get(name)
        return module.aliases if module is not None and not module.builtin else ()

    def deferred(self) -> AbstractContextManager[None]:
        """See ModuleIndex; there are no files, so nothing is ever pending."""
        return nullcontext()

    def unread(self, names: Iterable[ModuleName]) -> tuple[ModuleName, ...]:
        """See ModuleIndex."""
        del names
        return ()

    def read_facts(self, name: ModuleName) -> object:
        """See ModuleIndex."""
        return name

    def keep_facts(self, name: ModuleName, facts: object) -> None:
        """See ModuleIndex."""

    def rules(self, name: ModuleName) -> tuple[Rule, ...]:
        """See ModuleIndex."""
        return tuple(rule for rule in self._rules if rule.kind != "alias" and _concerns(rule, name))

    def all_rules(self) -> tuple[Rule, ...]:
        """See ModuleIndex."""
        return self._rules

    def available(self) -> Iterable[ModuleName]:
        """See ModuleIndex."""
        return self._available

    def builtins(self) -> Iterable[ModuleName]:
        """See ModuleIndex."""
        return self._builtins

    def parts(self) -> Iterable[ModuleName]:
        """See ModuleIndex."""
        return ()

    def _collect(self, name: ModuleName, order: dict[ModuleName, None]) -> None:
        module = self._modules.get(name)
        if module is None or module.builtin or name in order:
            return
        for needed in map(canonical, module.depends):
            self._collect(needed, order)
        order[name] = None

    def _add_alias(self, alias: str, name: ModuleName) -> None:
        # libkmod treats `-` and `_` as one letter in aliases too (underscores() in libkmod-util.c).
        pattern = alias.replace("-", "_")
        if any(char in pattern for char in "*?["):
            self._patterns.append((pattern, name))
        else:
            self._exact.setdefault(pattern, []).append(name)


def source_version(name: str) -> str:
    """Make up a srcversion that is always the same for one module."""
    return f"{int.from_bytes(name.encode()[:11].ljust(11, b'k')):024X}"[:24]


def _concerns(rule: Rule, name: ModuleName) -> bool:
    if rule.kind in ("install", "remove", "softdep"):
        return matches(rule.module, name)
    return canonical(rule.module) == name


def _softdep(line: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    soft: dict[str, list[str]] = {"pre:": [], "post:": []}
    into: list[str] = []
    for word in line.split():
        if word in soft:
            into = soft[word]
        else:
            into.append(word)
    return tuple(soft["pre:"]), tuple(soft["post:"])


class SimulatedConfiguration:
    """`kmodd.kernel.ports.Configuration` without a disk."""

    def __init__(self, others: Iterable[Rule], changed: Callable[[tuple[Rule, ...]], None]) -> None:
        """`others` are rules in files kmodd did not write; `changed` gets all of modprobe.d after each change."""
        self._others = tuple(others)
        self._changed = changed
        self._texts: dict[ManagedFile, bytes] = {}
        self._copies: dict[ManagedFile, bytes] = {}
        self.fault: OSError | None = None
        """What the next writes fail with."""

    def files(self) -> RuleFiles:
        """See Configuration."""
        paths = dict.fromkeys(rule.file for rule in self._others)
        modprobe = [RuleFile(path, tuple(rule for rule in self._others if rule.file == path)) for path in paths]
        modprobe += [
            RuleFile(file, self.parse(file, text))
            for file, text in self._texts.items()
            if file is not ManagedFile.AUTOLOAD
        ]
        autoload = self._texts.get(ManagedFile.AUTOLOAD)
        return RuleFiles(
            modprobe=tuple(sorted(modprobe, key=lambda file: file.path.rpartition("/")[2])),
            autoload=()
            if autoload is None
            else (RuleFile(ManagedFile.AUTOLOAD, self.parse(ManagedFile.AUTOLOAD, autoload)),),
        )

    def autoload(self) -> list[Rule]:
        """See Configuration."""
        return [rule for file in self.files().autoload for rule in file.rules]

    def read(self, file: ManagedFile) -> bytes | None:
        """See Configuration."""
        return self._texts.get(file)

    def write(self, file: ManagedFile, text: bytes | None, *, expected: bytes | None) -> None:
        """See Configuration."""
        if self.fault is not None:
            raise self.fault
        if self._texts.get(file) != expected:
            raise ChangedMeanwhileError(file)
        self.edit(file, text)

    def edit(self, file: ManagedFile, text: bytes | None) -> None:
        """Write a file behind kmodd's back."""
        if text is None:
            self._texts.pop(file, None)
        else:
            self._texts[file] = text
        self._changed(tuple(rule for file in self.files().modprobe for rule in file.rules))

    def remember(self, file: ManagedFile, text: bytes | None) -> None:
        """See Configuration."""
        if text is None:
            self._copies.pop(file, None)
        else:
            self._copies[file] = text

    def is_public(self, file: ManagedFile) -> bool:
        """See Configuration."""
        return True

    def remembered(self, file: ManagedFile) -> bytes | None:
        """See Configuration."""
        return self._copies.get(file)

    def parse(self, file: ManagedFile, text: bytes) -> tuple[Rule, ...]:
        """See Configuration."""
        return tuple(parse_modules(text, file) if file is ManagedFile.AUTOLOAD else parse_rules(text, file))
