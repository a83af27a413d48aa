# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every rule in force, looked up by module."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from kmodd.kernel.modprobe_d import softdep_names
from kmodd.model import Rule
from kmodd.names import ModuleName

_PATTERN_KINDS = frozenset({"install", "remove", "softdep"})
"""Kinds whose module is a pattern for libkmod (fnmatch); blacklist and options are compared letter by letter."""
_WILD = frozenset("*?[\\")


class Rulebook:
    """Rules in reading order: files by name, the kernel's command line last."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.all = tuple(rules)
        self._exact: dict[str, list[int]] = {}
        self._patterns: list[int] = []
        self._answers: dict[ModuleName, tuple[Rule, ...]] = {}
        for position, rule in enumerate(self.all):
            if rule.kind == "alias":
                continue
            if rule.kind in _PATTERN_KINDS and not _WILD.isdisjoint(rule.module):
                self._patterns.append(position)
            else:
                self._exact.setdefault(rule.module, []).append(position)

    def about(self, name: ModuleName) -> tuple[Rule, ...]:
        """Rules that concern a module, aliases left out. Of several install (or remove, softdep) lines the first acts."""
        known = self._answers.get(name)
        if known is None:
            found = self._exact.get(name, [])
            wild = [position for position in self._patterns if fnmatchcase(name, self.all[position].module)]
            known = tuple(self.all[position] for position in (sorted(found + wild) if wild else found))
            if known:  # callers may ask for any name: only those with rules are worth remembering
                self._answers[name] = known
        return known

    def softdeps(self, name: ModuleName) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(pre, post) of the first line about it: kmod_module_get_softdeps stops there and ignores further lines."""
        for rule in self.about(name):
            if rule.kind == "softdep":
                return softdep_names(rule.value)
        return (), ()
