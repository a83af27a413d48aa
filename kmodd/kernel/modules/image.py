# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a kernel image says of its version: the text that `uname -rv` prints when it runs.

Of an image for x86 the text stands in the setup header (Documentation/arch/x86/boot.rst, kernel_version). Other images are
compressed as a whole and say nothing.
"""

import os
from contextlib import suppress
from pathlib import Path

from kmodd.kernel.files import NOWHERE, note, read_text

NAMES = ("boot/vmlinuz-{}", "lib/modules/{}/vmlinuz", "usr/lib/modules/{}/vmlinuz")
_HEADER = 0x202
_OFFSET = 0x20E - _HEADER
_SECTOR = 0x200
_TEXT_MAX = 512
_RUNNING = "Linux version "


def running_version(root: Path) -> str:
    """`6.1.0-31-amd64 (…) #1 SMP … Debian 6.1.128-1 (2025-02-07)`, from /proc/version; empty when unknown."""
    text = read_text(root / "proc/version") or ""
    return text.removeprefix(_RUNNING) if text.startswith(_RUNNING) else ""


def image_version(root: Path, release: str) -> str:
    """The same of the image that is installed for a release; empty when there is none, or it does not say."""
    for name in NAMES:
        with suppress(OSError):
            text = _text(root / name.format(release))
            if text.partition(" ")[0] == release:
                return text
    return ""


def _text(path: Path) -> str:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in NOWHERE:
            note(error)
        raise
    try:
        header = os.pread(file, 16, _HEADER)
        if header[:4] != b"HdrS":
            return ""
        place = int.from_bytes(header[_OFFSET : _OFFSET + 2], "little")
        data = os.pread(file, _TEXT_MAX, place + _SECTOR) if place else b""
    finally:
        os.close(file)
    return data.partition(b"\0")[0].decode("ascii", "replace")
