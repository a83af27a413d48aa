# SPDX-License-Identifier: LGPL-2.1-or-later
"""File systems that are mounted or to be mounted, swap areas and encrypted volumes."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from kmodd.kernel.files import read_if_there
from kmodd.kernel.needs.devices import BlockDevices
from kmodd.model.surface_policy import Want

FLOOR = frozenset({"/", "/usr", "/boot", "/boot/efi", "/efi", "/etc", "/var"})
"""Mount points without which the system does not start."""
_ESCAPE = re.compile(r"\\([0-7]{3})")
_NO_TYPE = frozenset({"", "none", "auto", "swap", "bind"})
_SIZE_MAX = 16 << 20
# What cryptsetup needs to open a LUKS or plain volume of the usual kinds; a volume that is not open does not say.
_CIPHERS = ("dm_crypt", "crypto-aes", "crypto-xts", "crypto-cbc", "crypto-essiv", "crypto-sha256", "crypto-sha512")


def mounts(root: Path) -> Iterator[Want]:
    """What is mounted in the system's own namespace; OSError where that cannot be read."""
    blocks = BlockDevices(root)
    for line in _text(root / "proc/1/mountinfo", required=True).splitlines():
        front, _, back = line.partition(" - ")
        fields, rest = front.split(), back.split(" ")
        if len(fields) < 5 or len(rest) < 2:
            continue
        point, number, type_, source = _unescaped(fields[4]), fields[2], rest[0], _unescaped(rest[1])
        options = rest[2] if len(rest) > 2 else ""
        yield from _file_system(type_, options, f"mounted at {point}", floor=point in FLOOR)
        if point in FLOOR:
            name = blocks.name_of(number, source)
            if name:
                yield from blocks.stack(name, f"{name}, mounted at {point}")


def swaps(root: Path) -> Iterator[Want]:
    """What the swap areas in use lie on."""
    blocks = BlockDevices(root)
    for line in _text(root / "proc/swaps").splitlines()[1:]:
        path, kind, *_ = [*line.split(), "", ""]
        if kind == "partition":
            name = blocks.name_of("", _unescaped(path))
            yield from blocks.stack(name, f"swap area {name}")


def fstab(root: Path) -> Iterator[Want]:
    """What the administrator's table mounts, now or on request."""
    for number, line in enumerate(_text(root / "etc/fstab").splitlines(), 1):
        fields = line.split()
        if len(fields) < 3 or fields[0].startswith("#"):
            continue
        options = fields[3] if len(fields) > 3 else ""
        for type_ in fields[2].split(","):
            point = _unescaped(fields[1])
            floor = point in FLOOR and "noauto" not in options.split(",")
            yield from _file_system(type_, options, f"/etc/fstab, line {number}: {point}", floor=floor)


def crypttab(root: Path) -> Iterator[Want]:
    """Encrypted volumes, open or not."""
    for number, line in enumerate(_text(root / "etc/crypttab").splitlines(), 1):
        fields = line.split()
        if len(fields) < 2 or fields[0].startswith("#"):
            continue
        evidence = f"/etc/crypttab, line {number}"
        yield from (Want(request, evidence) for request in _CIPHERS)
        options = fields[3].split(",") if len(fields) > 3 else []
        for option in options:
            name, _, value = option.partition("=")
            if name in ("cipher", "hash"):
                yield from (Want(f"crypto-{part}", evidence) for part in re.split(r"[-:]", value) if part)
            elif name.startswith("integrity"):
                yield Want("dm_integrity", evidence)


def _file_system(type_: str, options: str, evidence: str, *, floor: bool) -> Iterator[Want]:
    type_ = type_.partition(".")[0]  # fuse.sshfs
    if type_ in _NO_TYPE:
        return
    yield Want(f"fs-{type_}", evidence, floor=floor)
    yield Want(type_, evidence, floor=floor)
    for option in options.split(","):
        name, _, value = option.partition("=")
        if name in ("iocharset", "nls") and value:
            yield Want(f"nls_{value}", evidence, floor=floor)
        elif name == "codepage" and value:
            yield Want(f"nls_cp{value.removeprefix('cp')}", evidence, floor=floor)
    if type_ in ("vfat", "msdos"):
        # The tables of names that the kernel of Debian and most others take without an option.
        yield from (
            Want(table, evidence, floor=floor) for table in ("nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8")
        )


def _text(path: Path, *, required: bool = False) -> str:
    """Empty where there is no such file; OSError where it cannot be read."""
    # Some systems have a link in place of the file.
    data = read_if_there(os.path.realpath(path), _SIZE_MAX)
    if data is None and required:
        raise FileNotFoundError(2, "no such file", str(path))
    return (data or b"").decode("utf-8", "replace")


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda escape: chr(int(escape[1], 8)), text)
