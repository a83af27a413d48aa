# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices bound to a driver of the module."""

from collections.abc import Iterator
from pathlib import Path

from kmodd.kernel.smallfile import listdir, readlink, shown
from kmodd.model import User
from kmodd.names import ModuleName


def bound_devices(root: Path, name: ModuleName) -> Iterator[User]:
    """Devices in the folders of the module's drivers: the device as name, driver and bus as detail.

    A bound device holds no reference by itself: removing the module unbinds it. It is listed because it says what
    the module does and what would stop working.
    """
    drivers = root / "sys/module" / name / "drivers"
    for entry in listdir(drivers):
        bus, _, driver = entry.partition(":")
        for device in listdir(drivers / entry):
            # Links to devices stand beside `module` and the attributes bind, unbind, uevent.
            if device != "module" and readlink(drivers / entry / device):
                yield User("device", shown(device), shown(f"driver {driver}, bus {bus}"))
