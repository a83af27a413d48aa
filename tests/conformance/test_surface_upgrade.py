# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kernel is installed in which a dependency moved: where its modprobe cannot load what the system needs, a finding names why."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.config.toml_file import DropIns
from kmodd.core.surface.enforcement import FILE, Enforcement
from kmodd.errors import Conflict
from kmodd.journal.reader import MemoryJournal
from kmodd.kernel.modprobe.modprobe_files import ConfigurationFolders
from kmodd.kernel.modules.index import LibkmodIndex
from kmodd.kernel.modules.installed import InstalledIndexes
from kmodd.kernel.proc.loaded import ProcModules
from kmodd.kernel.simulated.reads import SimulatedNeeds
from kmodd.model import Caller
from kmodd.model.surface import SurfacePlan
from tests.conformance.answers import PlainFacts
from tests.kernel.fakeroot import RELEASE, FakeModule, FakeRoot

NEXT = "6.12.0-test"
POLICY = "etc/kmodd/surface.d/10.toml"
ENFORCE = '[surface]\nmode = "enforce"\n'
DRIVER, PART, SOFT, OTHER, GONE = "realtek_net", "phy_package", "phy_extra", "rxrpc", "decnet"
"""What the system uses; what it needs in the next kernel, and what that may need; what nothing needs, and what the next kernel lacks."""
ROOT_USER = Caller(":1.1", 0)


class System:
    """One kernel that runs, with the driver loaded, and the next one when it is installed."""

    def __init__(self, folder: Path, program: tuple[str, ...]) -> None:
        self.root = folder / "root"
        self._program = program
        files = {
            "proc/modules": f"{DRIVER} 16384 1 - Live 0x0000000000000000\n",
            "etc/modprobe.d/local.conf": "# nothing\n",
            POLICY: ENFORCE,
        }
        gone = FakeModule(GONE, aliases=("net-pf-25",))
        FakeRoot(self.root, [*self._modules(), gone], files).build()
        journal = MemoryJournal(lambda: 0)
        self.journal = journal
        self.index = LibkmodIndex(self.root, RELEASE)
        self.enforcement = Enforcement(
            InstalledIndexes(self.root, scratch=folder),
            SimulatedNeeds(),
            ConfigurationFolders(self.root, RELEASE, memory=folder),
            DropIns(self.root, "surface.d"),
            loaded=ProcModules(self.root),
            facts=PlainFacts("quiet"),
            index=self.index,
            history=journal,
            desired=tuple,
            audit=journal,
            clock=lambda: 0,
        )

    @staticmethod
    def _modules(*depends: str) -> list[FakeModule]:
        return [
            FakeModule(DRIVER, depends=depends, aliases=("net-pf-21",)),
            FakeModule(PART, aliases=("net-pf-23",), softdep=f"pre: {SOFT}"),
            FakeModule(SOFT, aliases=("net-pf-24",)),
            FakeModule(OTHER, aliases=("net-pf-33",)),
        ]

    def install(self) -> None:
        """Install the next kernel."""
        FakeRoot(self.root, self._modules(PART), release=NEXT).build()

    def inserted(self, release: str, module: str = DRIVER) -> list[str]:
        """The modules that modprobe would insert for one in a kernel; empty where it refuses."""
        folder = str(self.root / "etc/modprobe.d")
        command = [*self._program, "-n", "-v", "-d", str(self.root), "-S", release, "-C", folder, module]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = done.stdout.splitlines()
        if any(line.startswith("install ") for line in lines):
            return []  # in a dry run it only says which command would stop it
        return [line.split()[1].rpartition("/")[2].partition(".")[0] for line in lines if line.startswith("insmod ")]

    async def apply(self, *, weaken: bool = False) -> SurfacePlan:
        """As `kmodctl surface apply`."""
        return await self.enforcement.apply(ROOT_USER, weaken=weaken, dry_run=False, reason="")

    async def faults(self, release: str = NEXT) -> list[tuple[str, str, str]]:
        """What `kmodctl surface check --kernel` reports: kind, module and message."""
        return [(fault.kind, fault.module or "", fault.message) for fault in await self.enforcement.check(release)]

    async def needed(self) -> list[tuple[str, str, str]]:
        """Those about modules that the next kernel needs."""
        return [fault for fault in await self.faults() if fault[0] == "needed"]

    @property
    def text(self) -> str:
        """The rule file."""
        path = self.root / FILE.removeprefix("/")
        return path.read_text() if path.exists() else ""


@pytest.fixture
def system(tmp_path: Path, program: tuple[str, ...]) -> Iterator[System]:
    """Before the next kernel is installed."""
    made = System(tmp_path, program)
    yield made
    made.index.close()


async def test_a_finding_names_what_the_next_kernel_needs_and_why(system: System) -> None:
    await system.apply()
    assert system.inserted(RELEASE) == [DRIVER]
    assert system.inserted(RELEASE, PART) == []
    assert await system.faults(RELEASE) == []
    system.install()
    assert system.inserted(NEXT) == [], "the driver would be missing after the reboot"
    assert await system.needed() == [
        ("needed", SOFT, f"{SOFT} is blocked, and needed (soft-dependency: {PART} may need it; kernel {NEXT})"),
        ("needed", PART, f"{PART} is blocked, and needed (dependency: {DRIVER} depends on it; kernel {NEXT})"),
    ]
    before = system.text
    with pytest.raises(Conflict, match=f"2 modules would be allowed again: {SOFT}, {PART}"):
        await system.apply()
    assert (system.text, system.inserted(NEXT)) == (before, []), "nothing is allowed again without a word"
    assert (await system.apply(weaken=True)).release == (SOFT, PART)
    assert system.inserted(NEXT) == [SOFT, PART, DRIVER]
    assert system.inserted(NEXT, OTHER) == [], "nothing needs it"
    assert await system.needed() == []


async def test_a_finding_names_what_a_table_breaks_in_the_next_kernel(system: System) -> None:
    (system.root / POLICY).write_text(f"{ENFORCE}[block.{PART}]\n")
    await system.apply()
    assert await system.faults(RELEASE) == []
    system.install()
    assert system.inserted(NEXT) == []
    breaks = f"{DRIVER} cannot be loaded without {PART}, which is blocked ({system.root / POLICY}, line 3)"
    assert ("breaks", PART, breaks) in await system.faults()
