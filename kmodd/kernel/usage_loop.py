# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loop devices that are set up."""

from collections.abc import Iterator
from pathlib import Path

from kmodd.kernel.smallfile import listdir, read_text, shown
from kmodd.model import User
from kmodd.names import ModuleName


def loop_devices(root: Path, name: ModuleName) -> Iterator[User]:
    """Devices of module `loop` with their backing files; a device without one is not set up and holds nothing.

    `mount -o loop` makes devices that the kernel takes down with their last user (`autoclear`): the detail says so.
    """
    if name != "loop":
        return
    for device in listdir(root / "sys/block"):
        folder = root / "sys/block" / device / "loop"
        backing = read_text(folder / "backing_file") if device.startswith("loop") else None
        if backing:
            itself = ", detaches itself" if read_text(folder / "autoclear") == "1" else ""
            yield User("loop", shown(f"/dev/{device}"), shown(backing) + itself)
