# SPDX-License-Identifier: LGPL-2.1-or-later
"""A made-up /proc and /sys for the search for users."""

import os
from pathlib import Path

from kmodd.kernel.usage import ProcUsage
from kmodd.model import User
from kmodd.names import ModuleName

ALIASES = {
    "fs-iso9660": ("isofs",),
    "fs-fuse": ("fuse",),
    "char-major-10-223": ("uinput",),
    "devname:snd/seq": ("snd_seq",),
    "block-major-43-0": ("nbd",),
    "rtnl-link-bond": ("bonding",),
    "md-raid5": ("raid456",),
}


class FakeRoot:
    """A root folder with short ways to put things in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kinds: dict[str, str] | OSError = {}

    def put(self, path: str, text: str = "") -> None:
        file = self.path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def link(self, path: str, target: str) -> None:
        """A link; `target` is a path in the root (then it exists) or any text (then it dangles)."""
        place = self.path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)

    def process(self, pid: int, exe: str, opened: tuple[str, ...] = (), *, mountinfo: str = "", ns: str = "") -> None:
        """A process; what it has open are texts of links, of which those that exist here are what they are."""
        self.put(f"proc/{pid}/comm", Path(exe).name + "\n")
        self.put(f"proc/{pid}/mountinfo", mountinfo)
        self.link(f"proc/{pid}/exe", exe)
        if ns:
            self.link(f"proc/{pid}/ns/mnt", ns)
        (self.path / f"proc/{pid}/fd").mkdir()
        for number, target in enumerate(opened):
            self.link(f"proc/{pid}/fd/{number}", target)

    def users(self, name: str) -> list[User]:
        return list(
            ProcUsage(self.path, lambda alias: ALIASES.get(alias, ()), kinds=self._kinds).users(ModuleName(name))
        )

    def _kinds(self) -> dict[str, str]:
        if isinstance(self.kinds, OSError):
            raise self.kinds
        return self.kinds


def number(path: str) -> str:
    """`major:minor` of a device of this machine."""
    device = os.stat(path).st_rdev  # noqa: PTH116 - only its number
    return f"{os.major(device)}:{os.minor(device)}"
