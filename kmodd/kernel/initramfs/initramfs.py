# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compares an initramfs of Debian's initramfs-tools or dracut with the files it was made from.

Times are compared first, which costs a few stat(2) calls. Only if a file is newer is the image read, in a thread of the
caller: a file rewritten with the same content makes nothing stale.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from kmodd.kernel.files import listdir, read_bytes
from kmodd.kernel.initramfs.cpio import members
from kmodd.kernel.modprobe.modprobe_d import ModprobeFolders
from kmodd.kernel.modules.compression import Damaged, Unsupported
from kmodd.model.modules import BootImage
from kmodd.names import ModuleName, canonical

_RULES = (
    "etc/modprobe.d",
    "usr/local/lib/modprobe.d",
    "usr/lib/modprobe.d",
    "lib/modprobe.d",
    "etc/modules-load.d",
    "usr/lib/modules-load.d",
)
"""Folders whose files are compared. Which of them an image has is its maker's choice; only those it has count."""
_ALWAYS = "etc/modprobe.d"
"""The one folder that initramfs-tools takes even when it is empty, and dracut when it makes an image for this machine."""
_TOLD = 8
"""Differences listed individually."""
_KEPT_MAX = 8 << 20
"""Bytes of names and rules that are remembered of an image."""
_TOOLS, _DRACUT = "initramfs-tools", "dracut"
# Debian's dracut writes the first as well; what is inside tells the two apart.
_NAMES = ("boot/initrd.img-{}", "boot/initramfs-{}.img")
_MARKS = ("usr/lib/dracut/", "lib/dracut/")
"""Where dracut says in its images what it made them of."""
_FOR_THIS_MACHINE = "hostonly-files"
_OWN = {"initramfs-tools": ("etc/initramfs-tools/modules",), "dracut": ("etc/dracut.conf", "etc/dracut.conf.d")}
_COMPRESSED = (".gz", ".xz", ".zst")
_MODULES = (".ko", *(f".ko{end}" for end in _COMPRESSED))


class Initramfs:
    """The initramfs of one kernel release below a root folder."""

    def __init__(self, root: Path, release: str) -> None:
        self._root = root
        self._release = release
        self._known: tuple[object, BootImage | None] | None = None

    def stamp(self) -> object:
        """Changes when anything does that decides; some dozen stats."""
        return tuple((str(path), _time(path)) for path in (*self._images(), *self._sources()))

    def look(self) -> BootImage | None:
        """Compare; None where this kernel has no initramfs. May read the image, some hundred milliseconds: use a thread."""
        stamp = self.stamp()
        if self._known is None or self._known[0] != stamp:
            self._known = stamp, self._look()
        return self._known[1]

    def modules(self) -> frozenset[ModuleName] | None:
        """The modules that the image has; None where there is none, or it cannot be read. Reads the image: use a thread."""
        path = next((path for path in self._images() if _time(path)), None)
        if path is None:
            return None
        try:
            names = self._contents(path)
        except (OSError, Damaged, Unsupported):
            return None
        files = (_plain(name).rpartition("/")[2] for name in names if name.endswith(_MODULES))
        return frozenset(canonical(file.removesuffix(".ko")) for file in files)

    def _images(self) -> list[Path]:
        return [self._root / name.format(self._release) for name in _NAMES]

    def _sources(self) -> Iterator[Path]:
        # As libkmod finds them; a tree that is the root's has no modules.softdep.
        for folders in (_RULES[:4], _RULES[4:]):
            yield from map(Path, ModprobeFolders(self._root, [self._root / folder for folder in folders]).files())
        for names in _OWN.values():
            for name in names:
                path = self._root / name
                yield path
                yield from (path / inner for inner in listdir(path))
        yield self._root / "lib/modules" / self._release / "modules.dep"

    def _look(self) -> BootImage | None:
        path = next((path for path in self._images() if _time(path)), None)
        if path is None:
            return None
        kind, shown, made = self._maker(path), self._shown(path), _time(path)
        newer = [source for source in self._sources() if _time(source) > made and self._concerns(source, kind)]
        if not newer and not self._vanished(made):
            return BootImage(self._release, shown, kind)
        try:
            members = self._contents(path)
        except (OSError, Damaged, Unsupported):
            changed = tuple(f"{self._shown(source)} is newer" for source in newer)
            return BootImage(self._release, shown, kind, _bounded(changed))
        if any(name.startswith(_MARKS) for name in members):
            kind = _DRACUT
        newer = [source for source in newer if self._concerns(source, kind)]
        differences = (*self._rules(members, kind), *self._modules(members), *self._lists(newer))
        return BootImage(self._release, shown, kind, _bounded(differences), by_content=True)

    def _maker(self, path: Path) -> str:
        """Who makes it, by its name and what is installed."""
        if path.name.startswith("initramfs-"):
            return _DRACUT
        tools = any(_time(self._root / folder / "update-initramfs") for folder in ("usr/sbin", "sbin"))
        return _DRACUT if not tools and _time(self._root / "usr/bin/dracut") else _TOOLS

    def _concerns(self, source: Path, kind: str) -> bool:
        others = [name for other, names in _OWN.items() if other != kind for name in names]
        return not any(source.is_relative_to(self._root / name) for name in others)

    def _vanished(self, made: int) -> bool:
        """A folder of rules changed since: perhaps a file was removed, which leaves no file that is newer."""
        return any(_time(self._root / folder) > made for folder in _RULES)

    def _contents(self, path: Path) -> Mapping[str, tuple[int, bytes]]:
        """(size, content where it is a rules file) of the members that matter, by name."""
        found: dict[str, tuple[int, bytes]] = {}
        kept = 0
        for name, size, content in members(path, _is_rules):
            if _is_rules(name) or name.startswith(_MARKS) or name.endswith(_MODULES):
                found[name] = (size, content or b"")
                kept += len(name) + len(content or b"")
            if kept > _KEPT_MAX:
                raise Damaged("too many rules and modules")
        return found

    def _rules(self, members: Mapping[str, tuple[int, bytes]], kind: str) -> Iterator[str]:
        inside = {_below_usr(name): value for name, value in members.items() if _is_rules(name)}
        taken = {name.rpartition("/")[0] for name in inside}
        if kind != _DRACUT or any(name.startswith(_MARKS) and name.endswith(_FOR_THIS_MACHINE) for name in members):
            taken.add(_ALWAYS)
        there = set()
        for folder in _RULES:
            if _below_usr(f"{folder}/").rstrip("/") not in taken:
                continue
            for name in listdir(self._root / folder):
                path = self._root / folder / name
                if not name.endswith(".conf") or name.startswith("."):
                    continue
                key = _below_usr(f"{folder}/{name}")
                if key in there:
                    continue
                there.add(key)
                # Path.resolve() raises for a link to itself, realpath() does not.
                content = read_bytes(os.path.realpath(path)) or b""
                if key not in inside:
                    yield f"it lacks {self._shown(path)}"
                elif inside[key][1] != content:
                    yield f"{self._shown(path)} has changed"
        yield from (f"it still has /{key}" for key in sorted(inside.keys() - there))

    def _modules(self, members: Mapping[str, tuple[int, bytes]]) -> Iterator[str]:
        """Modules whose file on disk changed, by place and size."""
        prefix = f"lib/modules/{self._release}/"
        index = self._index()
        for name, (size, _) in members.items():
            place = name.removeprefix("usr/")
            if not place.startswith(prefix) or not name.endswith(_MODULES):
                continue
            inside = place.removeprefix(prefix)
            module = _plain(inside).rpartition("/")[2]
            now = index.get(module)
            if now is None:
                yield f"it has {module}, which no longer exists"
            elif _plain(now) != _plain(inside):
                yield f"it has {module} from {inside}, but {now} is in effect"
            # Where it is packed otherwise than on the disk, sizes say nothing.
            elif now == inside and _size(self._root / prefix / now) != size:
                yield f"{module} has changed"

    def _index(self) -> dict[str, str]:
        """The file of each module in effect, from modules.dep: `NAME.ko` to its path below the tree."""
        text = read_bytes(self._root / "lib/modules" / self._release / "modules.dep", 16 << 20) or b""
        files = {}
        for line in text.decode("utf-8", "replace").splitlines():
            path = line.partition(":")[0]
            files[_plain(path).rpartition("/")[2]] = path
        return files

    def _lists(self, newer: list[Path]) -> Iterator[str]:
        own = [self._root / name for names in _OWN.values() for name in names]
        for source in newer:
            if any(source == path or source.is_relative_to(path) for path in own):
                yield f"{self._shown(source)} is newer"

    def _shown(self, path: Path) -> str:
        return "/" + str(path.relative_to(self._root))


def _is_rules(name: str) -> bool:
    return name.endswith(".conf") and name.rpartition("/")[0] in _RULES


def _plain(path: str) -> str:
    """A module's path as if it were not compressed."""
    return next((path.removesuffix(end) for end in _COMPRESSED if path.endswith(end)), path)


def _below_usr(name: str) -> str:
    return name.removeprefix("usr/") if name.startswith("usr/lib/") else name


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _bounded(texts: tuple[str, ...]) -> tuple[str, ...]:
    more = len(texts) - _TOLD
    return texts if more <= 0 else (*texts[:_TOLD], f"and {more} more")
