# SPDX-License-Identifier: LGPL-2.1-or-later
"""The modprobe of Debian 13 beside this machine's own: its package and the libraries it needs, unpacked into the cache."""

import subprocess
from pathlib import Path

from tests.vm import cache, host

SUITE = "trixie"
# Its C library too: Debian 12's is older than what it was linked with.
PACKAGES = ("kmod", "libkmod2", "libc6", "liblzma5", "libzstd1", "libssl3t64", "zlib1g")


def modprobe(name: str = "modprobe") -> tuple[str, ...]:
    """The command that runs it, or depmod, where its own arguments may follow."""
    folder = cache.entry("debian13-kmod", cache.digest([Path(__file__), Path(host.__file__)]), _make) / "usr"
    libraries = folder / "lib/x86_64-linux-gnu"
    loader = libraries / "ld-linux-x86-64.so.2"
    return (str(loader), "--library-path", str(libraries), "--argv0", name, str(folder / "bin/kmod"))


def _make(folder: Path) -> None:
    host.unpack_packages(SUITE, PACKAGES, folder)
    subprocess.run(
        [folder / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "--version"], check=True, capture_output=True
    )


if __name__ == "__main__":
    modprobe()
