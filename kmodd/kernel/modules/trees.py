# SPDX-License-Identifier: LGPL-2.1-or-later
"""Module trees of installed kernels, kmodd's directory `updates/kmodd` in them, and its lines for depmod.

depmod's built-in order is "updates before everything else" (depmod.d(5)), so a file there takes precedence over the kernel's
own module of that name, for modprobe, udev and the initramfs, whether kmodd runs or not. Of two files below `updates`, DKMS's
and kmodd's, depmod takes the one that readdir(3) returns first or last, depending on the file system
(depmod_module_is_higher_priority() in tools/depmod.c, kmod 30 and 34). An `override` line precedes every `search` line and
that order, so each active version has one in `etc/depmod.d/kmodd.conf`; of several that match the one read last wins, by
file name.
"""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from kmodd.errors import Conflict, Evidence
from kmodd.kernel.atomic_file import copy_whole, read_file, remove_durably, remove_file, replace_file, sync_folder
from kmodd.kernel.files import listdir, read_bytes, read_if_there
from kmodd.model.modules import Trees
from kmodd.model.rules import ChangedMeanwhileError
from kmodd.names import ModuleName, canonical, is_release
from kmodd.releases import by_age, compare

_OVER = ("updates", "extra", "weak-updates")
"""Folders that depmod ranks before the kernel's own by default (depmod.d(5)), or that distributions rank so."""
_FILES_MAX = 4096
_MODULE = re.compile(r"(.+)\.ko(?:\.gz|\.xz|\.zst)?")


class ModuleTrees:
    """What lies below /lib/modules of a root folder."""

    def __init__(self, root: Path, release: str) -> None:
        self._folder = root / "lib/modules"
        self._release = release
        self._order: tuple[object, frozenset[str]] = (None, frozenset())

    def stamp(self) -> object:
        """What changes when `look` would answer otherwise: some stats. A file counts when depmod has seen it."""
        own = self._folder / self._release
        files = [own / "modules.order", own / "modules.dep"]
        files += [self._folder / release / "modules.dep.bin" for release in listdir(self._folder)]
        return tuple((str(path), _changed(path)) for path in files)

    def look(self) -> Trees:
        """Some listings; the list of the kernel's own modules is read once. Blocking: that list may have megabytes."""
        newer = [
            release
            for release in listdir(self._folder)
            if compare(release, self._release) > 0 and (self._folder / release / "modules.dep.bin").is_file()
        ]
        return Trees(tuple(sorted(newer, key=by_age)), tuple(self._replaced()))

    def _replaced(self) -> Iterator[tuple[str, str]]:
        tree = self._folder / self._release
        own: frozenset[str] | None = None
        for path in self._others(tree):
            match = _MODULE.fullmatch(path.name)
            if match is None:
                continue
            own = self._own(tree) if own is None else own
            name = canonical(match[1])
            if name in own:
                yield name, f"/{path.relative_to(self._folder.parent.parent)}"

    def _others(self, tree: Path) -> Iterator[Path]:
        count = 0
        for folder in _OVER:
            for place, _, names in os.walk(tree / folder):
                for name in sorted(names):
                    count += 1
                    if count > _FILES_MAX:
                        return
                    yield Path(place, name)

    def _own(self, tree: Path) -> frozenset[str]:
        """Names in modules.order, which the kernel's build makes and depmod does not touch."""
        path = tree / "modules.order"
        try:
            stamp: object = path.stat().st_mtime_ns
        except OSError:
            stamp = None
        if self._order[0] != stamp or stamp is None:
            text = (read_bytes(path, 4 << 20) or b"").decode("utf-8", "replace")
            names = (_MODULE.fullmatch(line.rpartition("/")[2]) for line in text.splitlines())
            self._order = stamp, frozenset(canonical(match[1]) for match in names if match is not None)
        return self._order[1]


def _changed(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


FOLDER = "updates/kmodd"
OVERRIDES = "etc/depmod.d/kmodd.conf"
_OVERRIDES_MARK = (
    b"# Written by kmodd, which replaces this file as a whole: do not edit it, kmodctl(1) store changes it.\n"
)
_CONFIGURATION = ("etc/depmod.d", "run/depmod.d", "usr/local/lib/depmod.d", "usr/lib/depmod.d", "lib/depmod.d")
"""Where depmod looks; a file goes before those of its name in later folders (depmod.d(5))."""
_DEP_MAX = 64 << 20
_SUFFIX = re.compile(r"\.ko(\.(gz|xz|zst))?$")


class ModuleTree:
    """All trees below one root. Methods block on the disk; OSError is the disk's."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._modules = root / "lib/modules"

    def kernels(self) -> tuple[str, ...]:
        """Releases that have a tree with an index and modules, sorted."""
        with suppress(OSError):
            return tuple(
                sorted(
                    path.name
                    for path in self._modules.iterdir()
                    if is_release(path.name) and (path / "modules.dep").is_file() and (path / "kernel").is_dir()
                )
            )
        return ()

    def folder(self, kernel: str) -> Path:
        """The tree of a kernel."""
        return self._modules / kernel

    def path(self, name: ModuleName, kernel: str) -> Path:
        """Where our file of this name belongs."""
        return self._modules / kernel / FOLDER / f"{name}.ko"

    def put(self, name: ModuleName, kernel: str, source: Path) -> None:
        """Put a copy of the file in its place."""
        path = self.path(name, kernel)
        for folder in (path.parent.parent, path.parent):
            if not folder.is_dir():
                folder.mkdir()
                folder.chmod(0o755)  # whatever the umask: everybody may look a module up
                sync_folder(folder.parent)
        copy_whole(source, path, 0o644)

    def take_away(self, name: ModuleName, kernel: str) -> None:
        """Remove our file of this name."""
        path = self.path(name, kernel)
        remove_durably(path)
        for folder in (path.parent, path.parent.parent):
            with suppress(OSError):  # not empty, or not there
                folder.rmdir()

    def override(self, modules: Collection[tuple[ModuleName, str]]) -> None:
        """Have depmod take our files for these modules and kernels, and for no others, whatever else has their names.

        A line whose file is not there changes nothing. Conflict for a file in the place of ours that kmodd did not write.
        """
        path = self._root / OVERRIDES
        there = read_file(path)
        if there is not None and not there.startswith(_OVERRIDES_MARK):
            hint = "mv /etc/depmod.d/kmodd.conf /etc/depmod.d/local.conf"
            raise Conflict(
                f"/{OVERRIDES} was not written by kmodd, and is not changed",
                evidence=Evidence(file=f"/{OVERRIDES}", hint=hint),
            )
        text = _lines(modules)
        if text == there:
            return
        try:
            if text is None and there is not None:
                remove_file(path, expected=there)
            elif text is not None:
                if not path.parent.is_dir():
                    path.parent.mkdir(parents=True)
                    path.parent.chmod(0o755)  # whatever the umask: depmod may run as any user
                replace_file(path, text, expected=there)
        except ChangedMeanwhileError as error:
            raise Conflict(
                f"/{OVERRIDES} was changed by another program at the same time",
                evidence=Evidence(file=f"/{OVERRIDES}", hint="try again"),
            ) from error
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error

    def overrides(self, modules: Collection[tuple[ModuleName, str]]) -> bool:
        """Tell whether `override` was last called with these, and its file is as it was written; OSError."""
        return read_file(self._root / OVERRIDES) == _lines(modules)

    def rival(self, name: ModuleName, kernel: str) -> tuple[str, int, str]:
        """The `override` line that goes before ours: its file, number and text; empty where there is none. OSError."""
        override = "", 0, ""
        for path in self._configuration():
            if path.name <= Path(OVERRIDES).name or not path.is_file():
                continue
            for number, line in enumerate((read_file(path.resolve()) or b"").splitlines(), 1):
                words = os.fsdecode(line).split()
                if (
                    words[:1] == ["override"]
                    and len(words) > 3
                    and canonical(words[1]) == name
                    and fits(words[2], kernel)
                ):
                    override = f"/{path.relative_to(self._root)}", number, " ".join(words)
        return override

    def _configuration(self) -> list[Path]:
        """The files that depmod reads, in that order."""
        files: dict[str, Path] = {}
        for folder in _CONFIGURATION:
            with suppress(FileNotFoundError):
                for path in (self._root / folder).iterdir():
                    if path.suffix == ".conf" and not path.name.startswith(".") and not path.is_dir():
                        files.setdefault(path.name, path)
        return [files[name] for name in sorted(files, key=os.fsencode)]

    def indexed(self, name: ModuleName, kernel: str) -> str:
        """The file that modprobe would take, as the index names it; empty for none."""
        for line in (read_if_there(self._modules / kernel / "modules.dep", _DEP_MAX) or b"").splitlines():
            path = os.fsdecode(line.partition(b":")[0])
            if _module_of(path) == name:
                return path
        return ""

    def is_ours(self, path: str) -> bool:
        """An indexed file lies in our folder."""
        return path.startswith(FOLDER + "/")

    def another(self, name: ModuleName, kernel: str) -> str:
        """A module of this name that is not ours: its path in the tree, `built-in`, or empty."""
        path = self.indexed(name, kernel)
        if path and not self.is_ours(path):
            return path
        for line in (read_if_there(self._modules / kernel / "modules.order", _DEP_MAX) or b"").splitlines():
            if _module_of(os.fsdecode(line)) == name and path:
                return os.fsdecode(line)  # ours goes before it now
        for line in (read_if_there(self._modules / kernel / "modules.builtin", _DEP_MAX) or b"").splitlines():
            if _module_of(os.fsdecode(line)) == name:
                return "built-in"
        return ""


def fits(pattern: str, kernel: str) -> bool:
    """Tell whether the kernel of an `override` line is this one: `*`, or an expression of regex(7) found anywhere in the release.

    One that Python reads otherwise than regcomp(3) counts as fitting, since it may.
    """
    try:
        return pattern == "*" or re.search(pattern, kernel) is not None
    except (re.error, RecursionError):
        return True


def _lines(modules: Collection[tuple[ModuleName, str]]) -> bytes | None:
    if not modules:
        return None
    # Brackets, since depmod drops a backslash where it joins lines (getline_wrapped() in shared/util.c).
    lines = [
        f"override {name} ^{''.join(f'[{sign}]' if sign in '.+' else sign for sign in kernel)}$ {FOLDER}\n"
        for name, kernel in sorted(modules)
    ]
    return _OVERRIDES_MARK + "".join(lines).encode()


def _module_of(path: str) -> ModuleName:
    return canonical(_SUFFIX.sub("", path.rpartition("/")[2]))
