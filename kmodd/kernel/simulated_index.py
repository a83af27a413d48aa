# SPDX-License-Identifier: LGPL-2.1-or-later
"""Module files, dependencies and modprobe.d of the simulated kernel."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from kmodd.errors import NoSuchModule
from kmodd.kernel.simulated_modules import RELEASE, SimulatedModule
from kmodd.model import ModuleInfo, ParameterInfo, Rule
from kmodd.names import Alias, ModuleName, canonical


class SimulatedIndex:
    """Answers as libkmod would for these modules and these rules."""

    def __init__(self, modules: Mapping[ModuleName, SimulatedModule], rules: Iterable[Rule]) -> None:
        self._modules = modules
        self._rules = tuple(rules)
        self._stale = False
        self._available = tuple(sorted(name for name, module in modules.items() if not module.builtin))
        self._builtins = tuple(sorted(name for name, module in modules.items() if module.builtin))
        self._exact: dict[str, list[ModuleName]] = {}
        self._patterns: list[tuple[str, ModuleName]] = []
        for name, module in modules.items():
            for alias in module.aliases:
                self._add_alias(alias, name)
        self._dependencies: dict[ModuleName, tuple[ModuleName, ...]] = {}

    def change_rules(self, rules: Iterable[Rule]) -> None:
        """Write modprobe.d anew, as an administrator would."""
        self._rules = tuple(rules)
        self._stale = True

    def refresh(self) -> bool:
        """Tell whether the rules changed since last asked."""
        stale, self._stale = self._stale, False
        return stale

    def forget(self) -> None:
        """See ModuleIndex; nothing is remembered."""

    def resolve(self, name: ModuleName | Alias) -> tuple[ModuleName, ...]:
        """See ModuleIndex."""
        spelled = canonical(name)
        if spelled in self._modules:
            return (spelled,)
        configured = [
            canonical(rule.value) for rule in self._rules if rule.kind == "alias" and _matches(spelled, rule.module)
        ]
        if configured:
            return tuple(dict.fromkeys(configured))
        found = list(self._exact.get(spelled, ()))
        found += [module for pattern, module in self._patterns if fnmatchcase(spelled, pattern)]
        return tuple(dict.fromkeys(found))

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
        known = self._dependencies.get(name)
        if known is None:
            order: dict[ModuleName, None] = {}
            self._collect(name, order)
            order.pop(name, None)
            known = self._dependencies[name] = tuple(order)
        return known

    def softdeps(self, name: ModuleName) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """See ModuleIndex; of several lines for one module the last one read wins."""
        lines = [rule.value for rule in self._rules if rule.kind == "softdep" and canonical(rule.module) == name]
        if lines:
            return _softdep(lines[-1])
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
            raise NoSuchModule(f"there is no module {name} for kernel {RELEASE}", module=name)
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
        )

    def rules(self, name: ModuleName) -> tuple[Rule, ...]:
        """See ModuleIndex."""
        return tuple(rule for rule in self._rules if rule.kind != "alias" and canonical(rule.module) == name)

    def all_rules(self) -> tuple[Rule, ...]:
        """See ModuleIndex."""
        return self._rules

    def available(self) -> Iterable[ModuleName]:
        """See ModuleIndex."""
        return self._available

    def builtins(self) -> Iterable[ModuleName]:
        """See ModuleIndex."""
        return self._builtins

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


def _matches(spelled: str, pattern: str) -> bool:
    return fnmatchcase(spelled, pattern.replace("-", "_"))


def _softdep(line: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found: dict[str, list[str]] = {"pre:": [], "post:": []}
    into: list[str] = []
    for word in line.split():
        if word in found:
            into = found[word]
        else:
            into.append(word)
    return tuple(found["pre:"]), tuple(found["post:"])
