# SPDX-License-Identifier: LGPL-2.1-or-later
"""modprobe.d and modules-load.d of the simulated machine: rules it was made with, and kmodd's own files in memory."""

from collections.abc import Callable, Iterable

from kmodd.kernel.modprobe_d import parse_rules
from kmodd.kernel.modules_load_d import parse_modules
from kmodd.kernel.ports import ChangedMeanwhileError
from kmodd.model import Rule
from kmodd.model.configuration import OwnFile, RuleFile, RuleFiles


class SimulatedConfiguration:
    """`kmodd.kernel.ports.Configuration` without a disk."""

    def __init__(self, others: Iterable[Rule], changed: Callable[[tuple[Rule, ...]], None]) -> None:
        """`others` are rules in files kmodd did not write; `changed` is told all of modprobe.d after each change."""
        self._others = tuple(others)
        self._changed = changed
        self._texts: dict[OwnFile, bytes] = {}
        self._copies: dict[OwnFile, bytes] = {}
        self.fault: OSError | None = None
        """What the next writes fail with."""

    def files(self) -> RuleFiles:
        """See Configuration."""
        paths = dict.fromkeys(rule.file for rule in self._others)
        modprobe = [RuleFile(path, tuple(rule for rule in self._others if rule.file == path)) for path in paths]
        modprobe += [
            RuleFile(file, self.parse(file, text)) for file, text in self._texts.items() if file is not OwnFile.AUTOLOAD
        ]
        autoload = self._texts.get(OwnFile.AUTOLOAD)
        return RuleFiles(
            modprobe=tuple(sorted(modprobe, key=lambda one: one.path.rpartition("/")[2])),
            autoload=() if autoload is None else (RuleFile(OwnFile.AUTOLOAD, self.parse(OwnFile.AUTOLOAD, autoload)),),
        )

    def autoload(self) -> list[Rule]:
        """See Configuration."""
        return [rule for file in self.files().autoload for rule in file.rules]

    def read(self, file: OwnFile) -> bytes | None:
        """See Configuration."""
        return self._texts.get(file)

    def write(self, file: OwnFile, text: bytes | None, *, expected: bytes | None) -> None:
        """See Configuration."""
        if self.fault is not None:
            raise self.fault
        if self._texts.get(file) != expected:
            raise ChangedMeanwhileError(file)
        self.edit(file, text)

    def edit(self, file: OwnFile, text: bytes | None) -> None:
        """Write a file behind kmodd's back."""
        if text is None:
            self._texts.pop(file, None)
        else:
            self._texts[file] = text
        self._changed(tuple(rule for one in self.files().modprobe for rule in one.rules))

    def remember(self, file: OwnFile, text: bytes | None) -> None:
        """See Configuration."""
        if text is None:
            self._copies.pop(file, None)
        else:
            self._copies[file] = text

    def is_public(self, file: OwnFile) -> bool:
        """See Configuration."""
        return True

    def remembered(self, file: OwnFile) -> bytes | None:
        """See Configuration."""
        return self._copies.get(file)

    def parse(self, file: OwnFile, text: bytes) -> tuple[Rule, ...]:
        """See Configuration."""
        return tuple(parse_modules(text, file) if file is OwnFile.AUTOLOAD else parse_rules(text, file))
