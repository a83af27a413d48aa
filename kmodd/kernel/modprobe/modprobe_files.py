# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files of the configuration directories for `Show`, and the three that kmodd writes."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from glob import glob
from pathlib import Path

from kmodd.kernel import atomic_file
from kmodd.kernel.files import Layered, is_public, layered
from kmodd.kernel.modprobe import modprobe_d, modules_load_d
from kmodd.kernel.modprobe.modules_load_d import command_line_rules
from kmodd.model import Rule
from kmodd.model.rules import ManagedFile, RuleFile, RuleFiles

OUT_OF_REACH_MAX = 64
"""Files in folders below the administrator's, at most."""
_NO_CONF = "its name does not end in .conf"
_NO_LINK = "no link in /etc/modules-load.d leads to it"
# module-init-tools read the first until 2011, and modutils the second for Linux 2.4; kmod reads neither.
_FORMER_FILES = dict.fromkeys(("modprobe.conf", "modules.conf"), "modprobe reads /etc/modprobe.d only")


class ConfigurationFolders:
    """`kmodd.kernel.ports.Configuration` below a root folder. Every method reads or writes files: call it in a thread."""

    def __init__(
        self, root: Path, release: str, *, command_line: str = "", memory: Path | None = None, newer: bool = False
    ) -> None:
        """`memory` is a folder of kmodd's own where copies of what was written are kept; None keeps none.

        `newer` if libkmod is 33 or newer.
        """
        self._newer = newer
        self._accepts = modprobe_d.is_newer_configuration_name if newer else modprobe_d.is_configuration_name
        self._root = root
        self._tree = root / "lib/modules" / release
        self._command_line = command_line
        self._memory = memory

    def files(self) -> RuleFiles:
        """Read every file, those that are masked included. What cannot be read says so; OSError for a folder."""
        return RuleFiles(
            modprobe=tuple(self._modprobe()),
            autoload=tuple(self._autoload()),
            command_line=(
                *modules_load_d.command_line_modules(self._command_line),
                *command_line_rules(self._command_line),
            ),
        )

    def autoload(self) -> list[Rule]:
        """What systemd-modules-load would load after the initramfs, now; OSError where that cannot be known."""
        named = modules_load_d.command_line_modules(self._command_line)
        return [
            *(rule for file in self._autoload() if not file.shadowed_by for rule in file.rules),
            *(rule for rule in named if rule.value != modules_load_d.INITRAMFS),
        ]

    def read(self, file: ManagedFile) -> bytes | None:
        """One of our files, None when there is none; OSError for what is not a regular file."""
        return atomic_file.read_file(self._path(file))

    def write(self, file: ManagedFile, text: bytes | None, *, expected: bytes | None) -> None:
        """Put `text` (None: nothing) in the place of `expected`; ChangedMeanwhileError, OSError."""
        path = self._path(file)
        if text is not None:
            atomic_file.replace_file(path, text, expected=expected)
        elif expected is not None:
            atomic_file.remove_file(path, expected=expected)

    def remember(self, file: ManagedFile, text: bytes | None) -> None:
        """Keep a copy (None: none), to show later what an edit changed; OSError."""
        if self._memory is None:
            return
        path = self._memory / Path(file).name
        if text is None:
            path.unlink(missing_ok=True)
        else:
            atomic_file.replace_file(path, text, expected=atomic_file.read_file(path), mode=0o600)

    def remembered(self, file: ManagedFile) -> bytes | None:
        """The copy, when there is one that can be read."""
        try:
            return None if self._memory is None else atomic_file.read_file(self._memory / Path(file).name)
        except OSError:
            return None

    def is_public(self, file: ManagedFile) -> bool:
        """Everyone may read it, or might if there were one."""
        return is_public(self._path(file), self._root)

    def parse(self, file: ManagedFile, text: bytes) -> tuple[Rule, ...]:
        """Read a text as the reader of the file does."""
        if file is ManagedFile.AUTOLOAD:
            return tuple(modules_load_d.parse_modules(text, file))
        return tuple(modprobe_d.parse_rules(text, file))

    def _path(self, file: ManagedFile) -> Path:
        return self._root / file.removeprefix("/")

    def _shown(self, path: str) -> str:
        """A path as the machine itself calls it."""
        return path if self._root == Path("/") else "/" + os.path.relpath(path, self._root)

    def _modprobe(self) -> list[RuleFile]:
        directories = [self._root / name for name in modprobe_d.DIRECTORIES]
        files = [
            self._modprobe_file(file)
            for file in layered(
                directories,
                self._accepts,
                root=self._root,
                passes_over=modprobe_d.is_dangling if self._newer else lambda _: False,
            )
        ]
        files += self._passed_over(directories, self._accepts)
        files += self._out_of_reach("modprobe.d", _FORMER_FILES, modprobe_d.parse_rules)
        softdeps = self._tree / modprobe_d.DEPMOD_SOFTDEPS
        text = modprobe_d.read_text(softdeps, self._root)
        rules = modprobe_d.parse_rules(text.data, str(softdeps), public=text.public)
        files.append(RuleFile(self._shown(str(softdeps)), self._placed(rules), obstacle=text.obstacle))
        # Stable: a file stays before those it masks.
        return sorted(files, key=lambda file: os.fsencode(Path(file.path).name))

    def _modprobe_file(self, layered_file: Layered) -> RuleFile:
        # Not what the folder's listing found a moment ago: it may have been closed, and then written.
        text = modprobe_d.read_text(layered_file.path, self._root)
        lines = modprobe_d.parse_rules(text.data, str(layered_file.path), public=text.public)
        if not layered_file.shadowed_by:
            lines += modprobe_d.ignored_lines(text.data, str(layered_file.path))
        return RuleFile(
            self._shown(str(layered_file.path)),
            self._placed(sorted(lines, key=lambda rule: rule.line)),
            self._shown(layered_file.shadowed_by) if layered_file.shadowed_by else "",
            tuple(map(self._shown, layered_file.masks)),
            text.public,
            obstacle=text.obstacle,
        )

    def _autoload(self) -> list[RuleFile]:
        directories = [self._root / name for name in modules_load_d.DIRECTORIES]
        files = [
            self._autoload_file(file) for file in layered(directories, modules_load_d.is_modules_load, root=self._root)
        ]
        files += self._passed_over(directories, modules_load_d.is_modules_load)
        files += self._out_of_reach("modules-load.d", {"modules": _NO_LINK}, modules_load_d.parse_modules)
        return sorted(files, key=lambda file: os.fsencode(Path(file.path).name))

    def _autoload_file(self, layered_file: Layered) -> RuleFile:
        # The last link is followed: /etc/modules-load.d/modules.conf is a link to /etc/modules on Debian.
        text = modprobe_d.read_text(layered_file.path)
        return RuleFile(
            self._shown(str(layered_file.path)),
            self._placed(modules_load_d.parse_modules(text.data, str(layered_file.path))),
            self._shown(layered_file.shadowed_by) if layered_file.shadowed_by else "",
            tuple(map(self._shown, layered_file.masks)),
            layered_file.public,
            obstacle=text.obstacle,
        )

    def _passed_over(self, directories: Sequence[Path], accepts: Callable[[bytes], bool]) -> list[RuleFile]:
        """Files that are not read because of their names, and that were not put aside on purpose as `x.conf.bak` was."""

        def is_passed_over(name: bytes) -> bool:
            return not accepts(name) and b".conf" not in name and not name.startswith(b"README")

        return [
            RuleFile(self._shown(str(file.path)), (), unread=_NO_CONF)
            for file in layered(directories, is_passed_over, root=self._root)
        ]

    def _out_of_reach(
        self, folder: str, others: Mapping[str, str], parse: Callable[[bytes, str], list[Rule]]
    ) -> list[RuleFile]:
        """The administrator's files with rules that are not read because of their place: below `folder`, and `others`."""
        # Path.glob() of Python 3.11 raises for a link that leads nowhere in some ways; this one passes over it.
        below = sorted(glob("*/*.conf", root_dir=self._root / "etc" / folder))[:OUT_OF_REACH_MAX]  # noqa: PTH207
        places = {self._root / "etc" / folder / name: f"subdirectories of /etc/{folder} are not read" for name in below}
        places |= {self._root / "etc" / name: why for name, why in others.items()}
        read = {
            os.path.realpath(file.path)
            for file in layered([self._root / "etc" / folder], lambda name: name.endswith(b".conf"))
        }
        return [
            RuleFile(self._shown(str(path)), (), unread=why)
            for path, why in places.items()
            if os.path.realpath(path) not in read and parse(modprobe_d.read_text(path, self._root).data, str(path))
        ]

    def _placed(self, rules: list[Rule]) -> tuple[Rule, ...]:
        if self._root == Path("/"):
            return tuple(rules)
        return tuple(replace(rule, file=self._shown(rule.file)) for rule in rules)
