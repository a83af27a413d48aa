# SPDX-License-Identifier: LGPL-2.1-or-later
"""The aliases of the devices that are there now."""

from collections.abc import Iterator
from pathlib import Path

from kmodd.kernel.smallfile import listdir, read_text


def present_aliases(root: Path) -> Iterator[str]:
    """The modalias of every device of every bus, of the classes that have one (input, dmi), and of the processor.

    Walks the flat lists of /sys/bus and /sys/class rather than the tree of devices: some milliseconds.
    """
    sys = root / "sys"
    for bus in listdir(sys / "bus"):
        devices = sys / "bus" / bus / "devices"
        yield from _aliases(devices)
    for name in listdir(sys / "class"):
        yield from _aliases(sys / "class" / name)
    processor = read_text(sys / "devices/system/cpu/modalias", 1 << 16)
    if processor:
        yield processor


def _aliases(folder: Path) -> Iterator[str]:
    for device in listdir(folder):
        alias = read_text(folder / device / "modalias")
        if alias:
            yield alias
