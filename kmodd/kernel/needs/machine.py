# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices that are there, what input and console hang on, and network interfaces."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from kmodd.kernel.files import listdir, read_text
from kmodd.kernel.needs.devices import below
from kmodd.kernel.proc.facts import present_aliases
from kmodd.model.surface_policy import Want

_DEVICE_MAX = 480
"""Letters of an alias that are shown."""


def devices(root: Path) -> Iterator[Want]:
    """The aliases of all devices that are there."""
    yield from (Want(alias, f"device {alias[:_DEVICE_MAX]}") for alias in dict.fromkeys(present_aliases(root)))


def consoles(root: Path) -> Iterator[Want]:
    """Drivers of keyboards and other input, of the screen and of the consoles that the kernel writes to."""
    sys = Path(os.path.realpath(root / "sys"))
    for folder, start, what in (
        ("input", "input", "input device"),
        ("graphics", "fb", "screen"),
        ("drm", "card", "screen"),
    ):
        for name in listdir(root / "sys/class" / folder):
            if name.startswith(start) and "-" not in name:
                yield from below(root / "sys/class" / folder / name, sys, f"{what} {name}")
    for name in (read_text(root / "sys/class/tty/console/active") or "").split():
        yield from below(root / "sys/class/tty" / name, sys, f"console {name}")


def interfaces(root: Path, kinds: Callable[[], Mapping[str, str]]) -> Iterator[Want]:
    """Kinds of interfaces; of those that are up, and so of the default route and of every session, the drivers as a floor.

    OSError where the kernel cannot be queried.
    """
    sys = Path(os.path.realpath(root / "sys"))
    of_kind = kinds()
    for name in listdir(root / "sys/class/net"):
        folder = root / "sys/class/net" / name
        if name == "lo":
            continue
        up = (read_text(folder / "operstate") or "") not in ("down", "notpresent", "lowerlayerdown")
        evidence = f"interface {name}{', which is up' if up else ''}"
        if name in of_kind:
            yield Want(f"rtnl-link-{of_kind[name]}", evidence, floor=up)
            yield Want(of_kind[name], evidence, floor=up)
        if up:
            yield from below(folder, sys, evidence)
            yield from below(folder / "device", sys, evidence)
            yield from below(folder / "phydev", sys, evidence)
