"""The second layer: the test modules of ``tests/modules``, built against the headers of the guest's kernel."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.vm import broken, cache, host, rootfs
from tests.vm.progress import say

SOURCES = Path(__file__).resolve().parent.parent / "modules"


def build() -> Path:
    """The cache entry with ``good/`` (for ``updates/kmodd-test``) and ``broken/`` (for ``/usr/lib/kmodd-test``)."""
    base = rootfs.build()
    key = cache.digest([cache.identity(base), SOURCES, Path(__file__), Path(broken.__file__)])
    return cache.entry("modules", key, lambda folder: _make(base, folder), prune=True)


def _make(base: Path, folder: Path) -> None:
    host.install_missing()
    say("building the test modules")
    release = rootfs.release(base)
    work = folder / "work"
    shutil.copytree(SOURCES, work)
    headers = base / "headers"
    tree = headers / "usr/src" / f"linux-headers-{release}"
    host.run(["make", "-C", str(tree), f"M={work}", f"KMODD_HEADERS={headers}", "-j2", "modules"])
    good = folder / "good"
    good.mkdir()
    for module in sorted(work.glob("*.ko")):
        host.run(["strip", "--strip-debug", "-o", str(good / module.name), str(module)])
    # Debian 12's kmod reads both compressions, its kernel neither: libkmod has to unpack them.
    host.run(["xz", "--check=crc32", str(good / "kmodd_test_xz.ko")])
    host.run(["zstd", "-q", "--rm", str(good / "kmodd_test_zst.ko")])
    signed = folder / "signed"
    signed.mkdir()
    member = f"./usr/lib/modules/{release}/kernel/drivers/net/dummy.ko"
    host.run(["tar", "-C", str(signed), "-xf", str(base / "root.tar"), "--strip-components=8", member])
    broken.make(signed / "dummy.ko", good / "kmodd_test_good.ko", folder / "broken")
    for done in (work, signed):
        shutil.rmtree(done)
