# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `modprobe NAME` inserts on a system where nothing is loaded, whether kmodd would obey the same rules or not.

Follows insmod() in tools/modprobe.c and kmod_module_probe_insert_module() in libkmod (kmod 30 and 34): `blacklist` acts on the
module that an alias stands for, never on names and dependencies; the first `install` line acts, unless the module has soft
dependencies; a failure ends the list, except that of a soft dependency.
"""

from dataclasses import dataclass, field

from kmodd.core.planning.planned_state import chain
from kmodd.core.planning.policy import Meaning, Policy, command_line_rule, meaning, succeeds
from kmodd.kernel.ports import ModuleIndex
from kmodd.model import Rule, Target
from kmodd.names import ModuleName


@dataclass(slots=True)
class Resolution:
    """What comes of one request."""

    targets: tuple[Target, ...] = ()
    """The modules that the request stands for."""
    inserted: dict[ModuleName, ModuleName] = field(default_factory=dict)
    """Modules in the order of insertion, each with the target that it is inserted for."""
    rules: dict[ModuleName, Rule] = field(default_factory=dict)
    """The rule that keeps a module out."""
    commands: dict[ModuleName, Rule] = field(default_factory=dict)
    """Modules for which a command is run; what it loads is not known."""

    def why_not(self, module: ModuleName, target: ModuleName, index: ModuleIndex) -> Rule | None:
        """The rule that keeps the module out when the target is requested: its own, or that of what comes before it."""
        for name in (module, target, *index.dependencies(module), *index.dependencies(target)):
            if name in self.rules:
                return self.rules[name]
        return None


class Resolver:
    """Answers for one index and one kernel command line."""

    def __init__(self, index: ModuleIndex, command_line: str) -> None:
        self._index = index
        self._policy = Policy(index)
        self._command_line = command_line

    def load(self, request: str) -> Resolution:
        """`modprobe -q -- REQUEST`, as the kernel calls it."""
        targets = self._index.lookup(request)
        taken = targets
        if len(targets) > 1:
            taken = tuple(target for target in targets if not self._policy.blacklists(target.name)) or targets[:1]
        resolution = Resolution(targets)
        for target in targets:
            rule = self._policy.blacklist_line(target.name)
            if target.alias and rule is not None:
                resolution.rules[target.name] = rule
        for target in dict.fromkeys(taken):
            if not (target.alias and target.name in resolution.rules):
                self._insert(target, resolution)
        return resolution

    def by_alias(self, target: Target) -> Resolution:
        """What udev does for a device whose alias stands for the target; it applies `blacklist` to the target always."""
        resolution = Resolution((target,))
        rule = self._policy.blacklist_line(target.name)
        if rule is not None:
            resolution.rules[target.name] = rule
        else:
            self._insert(target, resolution)
        return resolution

    def _insert(self, target: Target, resolution: Resolution) -> None:
        """Walk the list of one module; nothing is done for one that is there already, its soft dependencies included."""
        if self._index.is_builtin(target.name) or target.name in resolution.inserted:
            return
        for link in chain(self._index, target, ""):
            name = link.target.name
            if self._index.is_builtin(name) or name in resolution.inserted:
                continue
            if not self._goes_on(name, target.name, resolution) and link.required:
                return

    def _goes_on(self, name: ModuleName, target: ModuleName, resolution: Resolution) -> bool:
        """Insert one module, if nothing forbids it; False when modprobe gets an error."""
        line = self._policy.acting_install(name)
        kind = Meaning.PERMISSION if line is None else meaning(line)
        if line is not None and kind is Meaning.REFUSAL:
            resolution.rules[name] = line
            return succeeds(line)
        if line is not None and kind is Meaning.COMMAND:
            resolution.commands[name] = line
            return True
        if not self._index.exists(name):
            return False
        blocked = command_line_rule(name, self._command_line)
        if blocked is not None:
            resolution.rules[name] = blocked
            return False
        present = {*resolution.inserted, *resolution.commands}
        if not all(need in present or self._index.is_builtin(need) for need in self._index.dependencies(name)):
            return False  # the kernel finds symbols missing
        resolution.inserted[name] = target
        return True
