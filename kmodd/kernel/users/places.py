# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the configuration of the system names a user of a module: file and line, by which it comes back at the next boot."""

import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from kmodd.kernel.files import listdir, read_text
from kmodd.kernel.users.mount import unescaped
from kmodd.model import Remedy, User
from kmodd.text import shown

_FILE_MAX = 1 << 18
_FILES_MAX = 256
_SYSCTL_FOLDERS = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d")
"""In the order of rank (sysctl.d(5)): a file masks others of its name."""
_SYSCTL_FILE = "etc/sysctl.conf"
_ARRAY_FILES = ("etc/mdadm/mdadm.conf", "etc/mdadm.conf")
_SETTING = re.compile(r"-?\s*(?P<key>[^=\s]+)\s*=\s*(?P<value>.*?)\s*")
_Place = tuple[str, int]


class Places:
    """Reads the files for the first user that one of them may name; what is not there names nothing."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def located(self, user: User) -> User:
        """The user with file and line; as it is where none is known."""
        place = self._place(user)
        return replace(user, file=shown(place[0]), line=place[1]) if place else user

    def _place(self, user: User) -> _Place | None:
        match user.remedy:
            case Remedy.UNMOUNT | Remedy.UNMOUNT_TREE if user.pid is None:
                return self._mounts.get(user.target)
            case Remedy.SWAP_OFF:
                return self._swaps.get(user.target)
            case Remedy.REMOVE_MAPPING:
                return self._mappings.get(user.target)
            case Remedy.UNEXPORT:
                return self._exports.get(user.words[1])
            case Remedy.STOP_ARRAY:
                return self._arrays.get(user.target)
            case Remedy.SET_SYSCTL if user.words:
                name, value = user.name, user.detail
                place, set_to = self._settings.get(name, (None, ""))
                return place if set_to == value else None
        return None

    def _lines(self, path: str) -> Iterator[tuple[int, str]]:
        """Of a file that everyone may read: who may see the user may see this."""
        with suppress(OSError):
            if (self._root / path).stat().st_mode & stat.S_IROTH:
                # Followed: Debian has /etc/sysctl.conf as a link in /etc/sysctl.d.
                yield from enumerate((read_text((self._root / path).resolve(), _FILE_MAX) or "").splitlines(), 1)

    def _words(self, path: str) -> Iterator[tuple[list[str], _Place]]:
        for number, line in self._lines(path):
            words = line.split()
            if words and not words[0].startswith("#"):
                yield words, (f"/{path}", number)

    @cached_property
    def _mounts(self) -> dict[str, _Place]:
        """By the path, fstab(5)."""
        return {unescaped(words[1]): place for words, place in self._words("etc/fstab") if len(words) > 2}

    @cached_property
    def _swaps(self) -> dict[str, _Place]:
        return {
            unescaped(words[0]): place
            for words, place in self._words("etc/fstab")
            if len(words) > 2 and words[2] == "swap"
        }

    @cached_property
    def _mappings(self) -> dict[str, _Place]:
        """By the name, crypttab(5)."""
        return {words[0]: place for words, place in self._words("etc/crypttab")}

    @cached_property
    def _exports(self) -> dict[str, _Place]:
        """By the path, exports(5)."""
        folder = "etc/exports.d"
        files = (f"{folder}/{name}" for name in sorted(listdir(self._root / folder))[:_FILES_MAX])
        paths = ["etc/exports", *(path for path in files if path.endswith(".exports"))]
        lines = [each for path in paths for each in self._words(path)]
        return {unescaped(words[0]): place for words, place in reversed(lines) if len(words) > 1}

    @cached_property
    def _arrays(self) -> dict[str, _Place]:
        """By the device, mdadm.conf(5)."""
        lines = (each for path in _ARRAY_FILES for each in self._words(path))
        return {words[1]: place for words, place in lines if words[0].upper() == "ARRAY" and len(words) > 1}

    @cached_property
    def _settings(self) -> dict[str, tuple[_Place, str]]:
        """By the name, with the value; the last line of the last file counts (sysctl.d(5)), and sysctl.conf(5) after all of them."""
        files: dict[str, str] = {}
        for folder in _SYSCTL_FOLDERS:
            for name in listdir(self._root / folder):
                if name.endswith(".conf"):
                    files.setdefault(name, f"{folder}/{name}")
        settings: dict[str, tuple[_Place, str]] = {}
        paths = [files[name] for name in sorted(files)[:_FILES_MAX]]
        # Where it is linked into the folder as 99-sysctl.conf, it was read.
        for path in [*paths, *([_SYSCTL_FILE] if "99-sysctl.conf" not in files else [])]:
            for number, line in self._lines(path):
                if found := _SETTING.fullmatch(line.strip()):
                    settings[found["key"].replace("/", ".")] = ((f"/{path}", number), found["value"])
        return settings
