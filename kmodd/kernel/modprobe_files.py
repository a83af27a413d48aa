# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration folders as files: what `Show` tells of, and the three that kmodd writes itself."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kmodd.kernel import atomic_file, modprobe_d, modules_load_d
from kmodd.kernel.command_line import command_line_rules
from kmodd.kernel.layers import Layered, is_public, layered
from kmodd.model import Rule
from kmodd.model.configuration import OwnFile, RuleFile, RuleFiles


class ConfigurationFolders:
    """`kmodd.kernel.ports.Configuration` below a root folder. Every method reads or writes files: call it in a thread."""

    def __init__(self, root: Path, release: str, *, command_line: str = "", memory: Path | None = None) -> None:
        """`memory` is a folder of kmodd's own where copies of what was written are kept; None keeps none."""
        self._root = root
        self._tree = root / "lib/modules" / release
        self._command_line = command_line
        self._memory = memory

    def files(self) -> RuleFiles:
        """Read every file, those that are masked included."""
        return RuleFiles(
            modprobe=tuple(self._modprobe()),
            autoload=tuple(self._autoload()),
            command_line=(
                *modules_load_d.command_line_modules(self._command_line),
                *command_line_rules(self._command_line),
            ),
        )

    def autoload(self) -> list[Rule]:
        """What systemd-modules-load would load after the initramfs, now."""
        named = modules_load_d.command_line_modules(self._command_line)
        return [
            *(rule for file in self._autoload() if not file.shadowed_by for rule in file.rules),
            *(rule for rule in named if rule.value != modules_load_d.INITRAMFS),
        ]

    def read(self, file: OwnFile) -> bytes | None:
        """One of our files, None when there is none; OSError for what is no regular file."""
        return atomic_file.read_file(self._path(file))

    def write(self, file: OwnFile, text: bytes | None, *, expected: bytes | None) -> None:
        """Put `text` (None: nothing) in the place of `expected`; ChangedMeanwhileError, OSError."""
        path = self._path(file)
        if text is not None:
            atomic_file.replace_file(path, text, expected=expected)
        elif expected is not None:
            atomic_file.remove_file(path, expected=expected)

    def remember(self, file: OwnFile, text: bytes | None) -> None:
        """Keep a copy (None: none), to show later what an edit changed; OSError."""
        if self._memory is None:
            return
        path = self._memory / Path(file).name
        if text is None:
            path.unlink(missing_ok=True)
        else:
            atomic_file.replace_file(path, text, expected=atomic_file.read_file(path), mode=0o600)

    def remembered(self, file: OwnFile) -> bytes | None:
        """The copy, when there is one that can be read."""
        try:
            return None if self._memory is None else atomic_file.read_file(self._memory / Path(file).name)
        except OSError:
            return None

    def is_public(self, file: OwnFile) -> bool:
        """Everyone may read it, or might if there were one."""
        return is_public(self._path(file))

    def parse(self, file: OwnFile, text: bytes) -> tuple[Rule, ...]:
        """Read a text as whoever reads the file does."""
        if file is OwnFile.AUTOLOAD:
            return tuple(modules_load_d.parse_modules(text, file))
        return tuple(modprobe_d.parse_rules(text, file))

    def _path(self, file: OwnFile) -> Path:
        return self._root / file.removeprefix("/")

    def _shown(self, path: str) -> str:
        """A path as the machine itself calls it."""
        return path if self._root == Path("/") else "/" + os.path.relpath(path, self._root)

    def _modprobe(self) -> list[RuleFile]:
        directories = [self._root / name for name in modprobe_d.DIRECTORIES]
        found = [self._modprobe_file(one) for one in layered(directories, modprobe_d.is_configuration_name)]
        found += self._passed_over(directories, modprobe_d.is_configuration_name)
        softdeps = self._tree / modprobe_d.DEPMOD_SOFTDEPS
        found.append(RuleFile(self._shown(str(softdeps)), self._placed(modprobe_d.read_rules(softdeps))))
        # Stable: a file stays before those it masks.
        return sorted(found, key=lambda one: os.fsencode(Path(one.path).name))

    def _modprobe_file(self, one: Layered) -> RuleFile:
        # Not what the folder's listing found a moment ago: it may have been closed, and then written.
        data, public = modprobe_d.read_text(one.path)
        lines = modprobe_d.parse_rules(data, str(one.path), public=public)
        if not one.shadowed_by:
            lines += modprobe_d.ignored_lines(data, str(one.path))
        return RuleFile(
            self._shown(str(one.path)),
            self._placed(sorted(lines, key=lambda rule: rule.line)),
            self._shown(one.shadowed_by) if one.shadowed_by else "",
            tuple(map(self._shown, one.masks)),
            public,
        )

    def _autoload(self) -> list[RuleFile]:
        directories = [self._root / name for name in modules_load_d.DIRECTORIES]
        found = [
            RuleFile(
                self._shown(str(one.path)),
                self._placed(_modules(one.path)),
                self._shown(one.shadowed_by) if one.shadowed_by else "",
                tuple(map(self._shown, one.masks)),
                one.public,
            )
            for one in layered(directories, modules_load_d.is_modules_load)
        ]
        found += self._passed_over(directories, modules_load_d.is_modules_load)
        return sorted(found, key=lambda one: os.fsencode(Path(one.path).name))

    def _passed_over(self, directories: Sequence[Path], accepts: Callable[[bytes], bool]) -> list[RuleFile]:
        """Files that nobody reads for their name, and that were not put aside on purpose as `x.conf.bak` was."""

        def is_passed_over(name: bytes) -> bool:
            return not accepts(name) and b".conf" not in name and not name.startswith(b"README")

        return [RuleFile(self._shown(str(one.path)), (), read=False) for one in layered(directories, is_passed_over)]

    def _placed(self, rules: list[Rule]) -> tuple[Rule, ...]:
        if self._root == Path("/"):
            return tuple(rules)
        return tuple(replace(one, file=self._shown(one.file)) for one in rules)


def _modules(path: Path) -> list[Rule]:
    # Only regular files end by themselves; /etc/modules-load.d/modules.conf is a link to /etc/modules on Debian.
    try:
        return modules_load_d.parse_modules(path.read_bytes(), str(path)) if path.is_file() else []
    except OSError:
        return []
