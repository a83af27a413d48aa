# SPDX-License-Identifier: LGPL-2.1-or-later
"""The reply of `ListModules`: loaded, available and built-in modules."""

from collections.abc import Iterable, Iterator
from fnmatch import translate
from re import compile as compile_pattern

from kmodd.core.planning.policy import Policy, command_line_rule
from kmodd.errors import DisabledByPolicy, InvalidArgs
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.ports import LoadedModules, ModuleIndex
from kmodd.model import LoadedModule, Rule, State
from kmodd.names import ModuleName, parse_glob
from kmodd.patterns import is_pattern, matches

SELECTIONS = ("loaded", "available", "builtin", "all")


@dataclass(frozen=True, slots=True)
class ListedModule:
    """One row."""

    name: ModuleName
    state: State
    loaded: LoadedModule | None = None
    """Size, references, holders and taint of what is loaded; None otherwise."""


class Listing:
    """Lists modules from memory and /proc/modules; a thousand rows take a few milliseconds."""

    def __init__(self, loaded: LoadedModules, index: ModuleIndex, policy: Policy, command_line: str) -> None:
        """`command_line` is the kernel's own: its `module_blacklist=` cannot change while it runs."""
        self._loaded = loaded
        self._index = index
        self._policy = policy
        self._command_line = command_line
        self._rules: tuple[Rule, ...] | None = None
        self._disabled: frozenset[ModuleName] = frozenset()

    def modules(self, selection: str = "loaded", match: str = "") -> list[ListedModule]:
        """List a selection: loaded ones first, newest first as the kernel has them, then the others by name.

        `match` is a pattern over canonical names. InvalidArgs names what is wrong.
        """
        if selection not in SELECTIONS:
            raise InvalidArgs(f"state must be one of {', '.join(SELECTIONS)}", argument="state")
        rows = list(self._select(selection))
        if match:
            fits = compile_pattern(translate(parse_glob(match))).match
            rows = [row for row in rows if fits(row.name)]
        return rows

    def refresh(self) -> None:
        """Notice changed indexes and rules; `disabled` answers by what was last noticed."""
        self._index.refresh()

    def disabled(self) -> frozenset[ModuleName]:
        """Every module that a rule forbids to load by name."""
        rules = self._index.all_rules()
        # The index hands out the same tuple as long as no file changed.
        if rules is not self._rules:
            self._disabled = frozenset(self._forbidden(rules))
            self._rules = rules
        return self._disabled

    def _select(self, selection: str) -> Iterator[ListedModule]:
        snapshot = self._loaded.snapshot()
        if selection in {"loaded", "all"}:
            for module in snapshot.values():
                yield ListedModule(module.name, module.state, module)
        if selection == "loaded":
            return
        self._index.refresh()
        if selection == "builtin":
            yield from (ListedModule(name, State.BUILTIN) for name in self._index.builtins())
            return
        rest = [name for name in self._index.available() if name not in snapshot]
        disabled = self.disabled()
        rows = [ListedModule(name, State.DISABLED if name in disabled else State.AVAILABLE) for name in rest]
        if selection == "all":
            files = set(rest)
            rows += [
                ListedModule(name, State.BUILTIN)
                for name in self._index.builtins()
                if name not in files and name not in snapshot
            ]
            rows.sort(key=lambda row: row.name)
        yield from rows

    def _forbidden(self, rules: Iterable[Rule]) -> Iterator[ModuleName]:
        named = {
            name
            for rule in rules
            if rule.kind in {"blacklist", "install"}
            for name in self._named(ModuleName(rule.module))
        }
        patterns = [rule.module for rule in rules if rule.kind == "install" and is_pattern(rule.module)]
        named |= {name for name in self._index.available() if any(matches(pattern, name) for pattern in patterns)}
        named |= {name for name in self._index.available() if command_line_rule(name, self._command_line)}
        for name in named:
            try:
                self._policy.check_load(name, self._command_line)
            except DisabledByPolicy:
                yield name

    def _named(self, name: ModuleName) -> tuple[ModuleName, ...]:
        """The module of this name, or those that have it as an alias."""
        return (name,) if self._index.exists(name) else self._index.resolve(name)
