"""The third layer: a disk to boot from, made of the root file system, the guest's configuration and the test modules."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.vm import cache, host, modules, privilege, rootfs, suite
from tests.vm.progress import say

GUEST = Path(__file__).resolve().parent / "guest"
# Sparse on the host; room for tests that write.
DISK_SIZE = "3G"

_ASSEMBLE = """
set -eu
mkdir -m 0755 "$1"
# The guest's kernel fills /dev itself, and a user namespace cannot make device nodes.
tar -C "$1" --exclude='./dev/*' -xpf "$2"
"$3/setup" "$1" "$3" "$4"
mke2fs -q -t ext4 -m 0 -E root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1 -L kmodd-vm -d "$1" "$5" "$6"
chmod 0666 "$5"
rm -rf "$1"
"""


@dataclass(frozen=True)
class Image:
    """What QEMU boots: a base disk nobody writes to, its kernel and its initial RAM disk."""

    folder: Path
    rootfs: Path
    suite: suite.Suite

    @property
    def disk(self) -> Path:
        return self.folder / "disk.qcow2"

    @property
    def kernel(self) -> Path:
        return self.rootfs / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.rootfs / "initrd"

    @property
    def release(self) -> str:
        """The guest's ``uname -r``."""
        return rootfs.release(self.rootfs)

    @property
    def identity(self) -> str:
        """Changes whenever the disk is made anew."""
        return cache.identity(self.folder)


def build(*, fresh: bool = False) -> Image:
    """The image for the sources as they are now, from the cache when it is there."""
    base = rootfs.build(fresh=fresh)
    test_modules = modules.build()
    chosen = suite.chosen()
    key = cache.digest([cache.identity(base), cache.identity(test_modules), GUEST, Path(__file__)])
    return Image(
        cache.entry(chosen.kind("image"), key, lambda folder: _make(base, test_modules, folder), prune=True),
        base,
        chosen,
    )


def _make(base: Path, test_modules: Path, folder: Path) -> None:
    host.install_missing()
    say("making the disk")
    with privilege.scratch() as work:
        shutil.copyfile(base / "root.tar", work / "root.tar")
        shutil.copytree(GUEST, work / "guest")
        shutil.copytree(test_modules, work / "modules")
        raw = work / "disk.raw"
        paths = [work / "root", work / "root.tar", work / "guest", work / "modules", raw]
        host.run([*privilege.elevated(), "sh", "-c", _ASSEMBLE, "sh", *(str(path) for path in paths), DISK_SIZE])
        host.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(folder / "disk.qcow2")])
    (folder / "disk.qcow2").chmod(0o444)
