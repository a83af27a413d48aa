# SPDX-License-Identifier: LGPL-2.1-or-later
"""The strictest policy on Debian's stock kernel: modprobe inserts nothing that it blocks, and all that the machine needs."""

import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from kmodd.cli.commands.surface_report import read_controls
from kmodd.config.toml_file import DropIns
from kmodd.core.surface.enforcement import FILE, Enforcement
from kmodd.journal.reader import MemoryJournal
from kmodd.kernel.modprobe.modprobe_files import ConfigurationFolders
from kmodd.kernel.modules.index import LibkmodIndex
from kmodd.kernel.modules.installed import InstalledIndexes
from kmodd.kernel.proc.loaded import ProcModules
from kmodd.kernel.simulated.reads import SimulatedNeeds
from kmodd.model import Caller
from kmodd.model.surface import Reading, Want
from kmodd.names import canonical
from tests.conformance.answers import PlainFacts
from tests.conformance.conftest import HOST
from tests.conformance.test_stock_kernel import AT_ONCE, Stock

POLICY = """\
[surface]
mode = "enforce"
scope = ["unprivileged", "userns", "device", "hardware"]
profile = [
    "base", "cis-debian12-l1", "cis-debian12-l2", "stig-rhel8", "stig-rhel9", "stig-rhel10", "stig-ubuntu2204",
]
"""
PROFILES = Path(__file__).resolve().parents[2] / "install/surface.d"
NEEDED = ("fs-ext4", "fs-vfat", "virtio_net", "virtio_blk", "dm_crypt", "fs-btrfs")


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory, shim: Path) -> Stock:
    """The kernel of the virtual machine's image."""
    return Stock(tmp_path_factory.mktemp("policy"), shim)


def inserted(stock: Stock, requests: Iterable[str]) -> set[str]:
    """The modules that modprobe would insert for these, with the rules below the root."""
    asked: Sequence[str] = list(requests)
    command = [
        *HOST,
        "-n",
        "-v",
        "-d",
        str(stock.root),
        "-S",
        stock.release,
        "-C",
        str(stock.root / "etc/modprobe.d"),
        "-a",
        "--",
    ]
    modules: set[str] = set()
    for start in range(0, len(asked), AT_ONCE):
        done = subprocess.run(
            [*command, *asked[start : start + AT_ONCE]], env=stock._environment, capture_output=True, text=True
        )
        modules |= {
            canonical(Path(path).name.partition(".")[0])
            for path in re.findall(r"^insmod (\S+)", done.stdout, re.MULTILINE)
        }
    return modules


async def test_modprobe_inserts_nothing_that_is_blocked_and_all_that_is_needed(stock: Stock, tmp_path: Path) -> None:
    root = stock.root
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/modules").write_text("")
    own, shipped = root / "etc/kmodd/surface.d", root / "usr/lib/kmodd/surface.d"
    own.mkdir(parents=True)
    shipped.mkdir(parents=True)
    (own / "10.toml").write_text(POLICY)
    for path in PROFILES.glob("*.toml"):
        (shipped / path.name).write_bytes(path.read_bytes())
    (root / "etc/modprobe.d").mkdir(parents=True, exist_ok=True)
    sources, journal = SimulatedNeeds(), MemoryJournal(lambda: 0)
    sources.readings = (Reading("mounts", tuple(Want(request, "a test", floor=True) for request in NEEDED)),)
    index = LibkmodIndex(root, stock.release)
    enforcement = Enforcement(
        InstalledIndexes(root, scratch=tmp_path),
        sources,
        ConfigurationFolders(root, stock.release, memory=tmp_path),
        DropIns(root, "surface.d"),
        loaded=ProcModules(root),
        facts=PlainFacts("quiet"),
        index=index,
        history=journal,
        desired=tuple,
        audit=journal,
        clock=lambda: 0,
    )
    try:
        plan = await enforcement.apply(Caller(":1.1", 0), weaken=False, dry_run=False, reason="")
        blocked, allowed = set(plan.block), {each.module for each in plan.decisions if not each.blocked}
        print(f"{len(blocked)} blocked, {len(allowed)} allowed, {len(plan.text or b'')} bytes")
        assert len(blocked) > 800, "the cloud kernel has fewer modules than others"
        # A module that root alone can have loaded is in no scope.
        assert blocked & {"ext4", "vfat", "fat", "nls_cp437", "btrfs", "xor", "virtio_net", "dm_crypt", "dm_mod"} <= {
            "nls_cp437"
        }
        loaded = inserted(stock, [*stock.modules, *stock.aliases])
        assert loaded & blocked == set()
        assert {"btrfs", "dm_crypt"} & set(stock.modules) <= loaded
        assert not [fault for fault in await enforcement.check("") if fault.kind != "floor"]
        text = (root / FILE.removeprefix("/")).read_text()
        assert re.search(r"^\s*install\s+usb-storage\s+(?:/bin/false|/bin/true)$", text, re.MULTILINE)
        for path in PROFILES.glob("stig-*.toml"):
            for control in read_controls(str(path)):
                # The STIG's own check looks for both lines, also of a module that the kernel does not have.
                spelled = control.ids[2].removeprefix("kernel_module_").removesuffix("_disabled")
                assert re.search(rf"^install {spelled} /bin/false$", text, re.MULTILINE), control
                assert re.search(rf"^blacklist {spelled}$", text, re.MULTILINE), control
        assert re.search(r"^softdep nfsd pre:$|^install nfsd /bin/false$", text, re.MULTILINE)
    finally:
        index.close()
