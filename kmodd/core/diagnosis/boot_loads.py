# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is known of modules that were loaded before kmodd started: the journal of this boot, and the lists that are read at boot."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from kmodd.errors import KmoddError
from kmodd.kernel.ports import ModuleIndex
from kmodd.model import ModuleLoad, Rule
from kmodd.names import ModuleName, parse_module_or_alias


class BootLoads:
    """Read when it is needed first: an idle daemon does without the library of the journal."""

    def __init__(
        self,
        index: ModuleIndex,
        journal: Callable[[], Mapping[ModuleName, ModuleLoad]],
        lists: Callable[[], Sequence[Rule]],
    ) -> None:
        """`journal` answers the loads that the journal of this boot tells, `lists` the modules that are to be loaded at boot.

        Both block, and run in a thread; OSError of what cannot be read.
        """
        self._index = index
        self._journal = journal
        self._lists = lists
        self._loads: Mapping[ModuleName, ModuleLoad] | None = None
        self._rules: Sequence[Rule] = ()
        self.unread = ""
        """What of it could not be read last, as a noun; empty when everything could."""

    async def read(self) -> None:
        """Before the questions below. What cannot be read is named in `unread`, and tried again the next time."""
        self.unread = ""
        if self._loads is None:
            try:
                self._loads = await asyncio.to_thread(self._journal)
            except OSError:
                self.unread = "the journal of this boot"
        try:
            self._rules = await asyncio.to_thread(self._lists)
        except OSError:
            self._rules = ()
            self.unread = self.unread or "the list of modules to load at boot"

    def load_of(self, name: ModuleName) -> ModuleLoad | None:
        """Who loaded it at boot, as the journal has it."""
        return (self._loads or {}).get(name)

    def rule_of(self, name: ModuleName) -> Rule | None:
        """The line that has it loaded at boot, of a file that everyone may read."""
        return next((rule for rule in self._rules if rule.public and self._names(rule, name)), None)

    def _names(self, rule: Rule, name: ModuleName) -> bool:
        try:
            return name in self._index.resolve(parse_module_or_alias(rule.module))
        except KmoddError:
            return False
