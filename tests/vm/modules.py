"""The second layer: the test modules of ``tests/modules``, built with the compiler and the headers of the guest's kernel."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.vm import broken, builder, cache, host, rootfs, suite
from tests.vm.progress import say

SOURCES = Path(__file__).resolve().parent.parent / "modules"

_TOOLS = ("make", "xz-utils", "zstd")
_BUILD = """
# BTF would need pahole, and nothing here reads it.
make -C /usr/src/linux-headers-{release} M=/modules CONFIG_DEBUG_INFO_BTF_MODULES= -j2 modules
cd /modules
strip --strip-debug *.ko
# The stock kernel of Debian 12 reads neither compression: libkmod has to unpack them.
xz --check=crc32 kmodd_test_xz.ko
zstd -q --rm kmodd_test_zst.ko
cp *.ko *.ko.xz *.ko.zst /out/
"""


def build() -> Path:
    """The cache entry with ``good/`` (for ``updates/kmodd-test``) and ``broken/`` (for ``/usr/lib/kmodd-test``)."""
    base = rootfs.build()
    key = cache.digest([cache.identity(base), SOURCES, Path(__file__), Path(builder.__file__), Path(broken.__file__)])
    return cache.entry(suite.chosen().kind("modules"), key, lambda folder: _make(base, folder), prune=True)


def _make(base: Path, folder: Path) -> None:
    host.install_missing()
    say("building the test modules")
    release = rootfs.release(base)
    good, signed = folder / "good", folder / "signed"
    inputs = {"/usr": base / "headers/usr", "/modules": SOURCES}
    builder.run([*rootfs.tools(base), *_TOOLS], _BUILD.format(release=release), inputs, good)
    signed.mkdir()
    stock = f"./usr/lib/modules/{release}/kernel/drivers/net/dummy.ko*"
    archive = str(base / "root.tar")
    host.run(["tar", "-C", str(signed), "-xf", archive, "--strip-components=8", "--wildcards", stock])
    for compressed in signed.glob("*.xz"):
        host.run(["unxz", str(compressed)])
    broken.make(signed / "dummy.ko", good / "kmodd_test_good.ko", folder / "broken")
    shutil.rmtree(signed)
