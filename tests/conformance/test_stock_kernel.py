# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every module of Debian's stock kernel: kmodd plans what modprobe does, and a hard blacklisting by kmodd keeps it out."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from kmodd.core.planning.planner import Planner
from kmodd.core.planning.policy import Policy
from kmodd.core.rules.managed_files import Entry, render
from kmodd.core.rules.rules import judge
from kmodd.kernel.modprobe.modprobe_files import ConfigurationFolders
from kmodd.kernel.modules.index import LibkmodIndex
from kmodd.kernel.proc.loaded import ProcModules
from kmodd.model import Operation, Request, Verb
from kmodd.model.rules import ManagedFile, Severity
from kmodd.names import ModuleName, canonical, parse_module_or_alias
from tests.conformance.answers import PlainFacts, unread
from tests.conformance.conftest import HOST
from tests.vm import rootfs

FILE = ManagedFile.BLACKLIST.removeprefix("/")
AT_ONCE = 400
"""Names on one command line."""


class Stock:
    """The indexes of the stock kernel, and modprobe below the shim."""

    def __init__(self, folder: Path, shim: Path) -> None:
        image = rootfs.build()
        self.release = rootfs.release(image)
        self.root = folder / "root"
        self.root.mkdir()
        tar = ["tar", "-x", "-C", str(self.root), "-f", str(image / "root.tar"), "--wildcards"]
        subprocess.run([*tar, f"*lib/modules/{self.release}/modules.*"], check=True)
        if not (self.root / "lib").exists():
            (self.root / "lib").symlink_to("usr/lib")
        (folder / "state/module").mkdir(parents=True)
        (folder / "state/cmdline").write_text("quiet\n")
        self._environment = {
            "LD_PRELOAD": str(shim),
            "SHIM_STATE": str(folder / "state"),
            "LC_ALL": "C",
            "PATH": "/usr/sbin",
        }
        tree = self.root / "lib/modules" / self.release
        lines = (tree / "modules.dep").read_text().splitlines()
        self.modules = [canonical(Path(line.partition(":")[0]).name.partition(".")[0]) for line in lines]
        for line in lines:
            # libkmod forgets dependencies that have no file; a dry run does not look into it.
            path = tree / line.partition(":")[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        builtins = (tree / "modules.builtin").read_text().splitlines()
        self.builtins = [canonical(Path(line).name.partition(".")[0]) for line in builtins]
        aliases = [
            line.split()[1] for line in (tree / "modules.alias").read_text().splitlines() if line.startswith("alias ")
        ]
        self.aliases = [re.sub(r"\[[^\]]*\]|[*?]", "0", alias) for alias in aliases]

    def write(self, text: bytes) -> None:
        """Put kmodd's own file in its place."""
        path = self.root / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)

    def shown(self, program: tuple[str, ...], names: Iterable[str]) -> list[str]:
        """What modprobe would do for each of the names."""
        asked = list(names)
        command = [
            *program,
            "-n",
            "-v",
            "-d",
            str(self.root),
            "-S",
            self.release,
            "-C",
            str(self.root / FILE),
            "-a",
            "--",
        ]
        lines: list[str] = []
        for start in range(0, len(asked), AT_ONCE):
            done = subprocess.run(
                [*command, *asked[start : start + AT_ONCE]], env=self._environment, capture_output=True, text=True
            )
            lines += done.stdout.splitlines()
        return lines

    def plan(self, names: Iterable[str]) -> dict[str, list[str]]:
        """What kmodd would insert for each of the names."""
        (self.root / FILE).unlink(missing_ok=True)
        (self.root / "proc").mkdir(exist_ok=True)
        (self.root / "proc/modules").write_text("")
        index = LibkmodIndex(self.root, self.release)
        try:
            planner = Planner(index, ProcModules(self.root), PlainFacts("quiet"), unread(self.root))
            plans = {
                name: planner.plan(Request((Operation(Verb.LOAD, parse_module_or_alias(name)),))) for name in names
            }
        finally:
            index.close()
        return {name: [step.module for step in plan.steps if step.error is None] for name, plan in plans.items()}


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory, shim: Path) -> Stock:
    """The kernel of the virtual machine's image."""
    return Stock(tmp_path_factory.mktemp("stock"), shim)


def test_plans_for_the_stock_kernel_are_what_modprobe_does(stock: Stock) -> None:
    # Each alias that begins otherwise than the one before it, and every fifth of the others: there are thousands of alike ones.
    first = {alias.partition(":")[0]: alias for alias in stock.aliases}
    names = list(dict.fromkeys([*stock.modules, *stock.builtins, *first.values(), *stock.aliases[::5]]))
    plans = stock.plan(names)
    assert len(plans) > 1500
    differ = {}
    for name, planned in plans.items():
        lines = [line.split()[1] for line in stock.shown(HOST, [name]) if line.startswith("insmod ")]
        # A dry run names a module again where another one needs it too.
        shown = list(dict.fromkeys(canonical(Path(path).name.partition(".")[0]) for path in lines))
        if shown != planned:
            differ[name] = (shown, planned)
    assert not differ


def test_a_hard_blacklist_holds_for_every_module_by_name_by_alias_and_as_a_dependency(
    stock: Stock, program: tuple[str, ...]
) -> None:
    assert len(stock.modules) > 1000
    text = render(ManagedFile.BLACKLIST, {name: Entry(hard=True) for name in stock.modules}) or b""
    stock.write(text)
    shown = stock.shown(program, stock.modules)
    assert [line for line in shown if line.startswith("insmod ")] == []
    assert len([line for line in shown if line.startswith("install /bin/false")]) >= len(stock.modules)
    assert [line for line in stock.shown(program, stock.aliases) if line.startswith("insmod ")] == []
    # modprobe ignores install lines of modules with soft dependencies: without the softdep lines some get in.
    stock.write(b"".join(line for line in text.splitlines(keepends=True) if not line.startswith(b"softdep")))
    assert len([line for line in stock.shown(program, stock.modules) if line.startswith("insmod ")]) > 10


def test_one_hard_blacklisted_module_with_soft_dependencies_is_kept_out(stock: Stock, program: tuple[str, ...]) -> None:
    lines = (stock.root / "lib/modules" / stock.release / "modules.softdep").read_text().splitlines()
    modules = sorted({canonical(line.split()[1]) for line in lines if line.startswith("softdep ")})
    assert len(modules) > 10
    for module in modules:
        stock.write(render(ManagedFile.BLACKLIST, {ModuleName(module): Entry(hard=True)}) or b"")
        shown = stock.shown(program, [module])
        assert shown[-1].startswith("install /bin/false"), module
        assert not [line for line in shown if line.startswith("insmod ") and f"/{module}.ko" in line.replace("-", "_")]


PACKAGES = Path(__file__).parent / "packages"
"""What packages of Debian 12 ship: cups-filters, dkms, kmod, mdadm, multipath-tools, ndctl, systemd, tuned and udev."""
OTHERS = """\
# of kmod in Ubuntu
blacklist evbug
blacklist usbmouse
blacklist usbkbd
blacklist eepro100
blacklist de4x5
blacklist eth1394
blacklist snd_intel8x0m
blacklist snd_aw2
blacklist prism54
blacklist bcm43xx
blacklist garmin_gps
blacklist asus_acpi
blacklist snd_pcsp
blacklist pcspkr
blacklist amd76x_edac
# of guides to hardening
install cramfs /bin/true
install freevxfs /bin/true
install jffs2 /bin/true
install hfs /bin/true
install hfsplus /bin/true
install udf /bin/true
install dccp /bin/true
install rds /bin/true
install tipc /bin/true
blacklist usb-storage
"""


@pytest.mark.parametrize("files", ["the image's", "packages'", "lists of modules of many kernels"])
def test_what_distributions_ship_and_mean_is_no_warning(stock: Stock, tmp_path: Path, files: str) -> None:
    root = tmp_path / "root"
    shutil.copytree(stock.root / "lib/modules", root / "lib/modules")
    archive = ["tar", "-x", "-C", str(root), "-f", str(rootfs.build() / "root.tar"), "--wildcards"]
    subprocess.run([*archive, *(f"*/kernel/*/{name}.ko" for name in ("md-mod", "dummy", "bonding", "ifb"))], check=True)
    if files == "the image's":
        subprocess.run([*archive, "*/modprobe.d/*", "*/modules-load.d/*", "./etc/modules"], check=False)
    elif files == "packages'":
        shutil.copytree(PACKAGES, root, dirs_exist_ok=True)
    else:
        (root / "etc/modprobe.d").mkdir(parents=True)
        (root / "etc/modprobe.d/blacklist.conf").write_text(OTHERS)
    if not (root / "usr/lib").exists():
        (root / "usr").mkdir(exist_ok=True)
        (root / "usr/lib").symlink_to("../lib")
    index = LibkmodIndex(root, stock.release)
    try:
        read = ConfigurationFolders(root, stock.release).files()
        rules = asyncio.run(judge(read, {}, index, Policy(index), PlainFacts("quiet").read()))
    finally:
        index.close()
    assert len([rule for rule in rules if "modules.softdep" not in rule.rule.file]) > 2
    told = [finding for rule in rules for finding in rule.findings]
    assert [finding for finding in told if finding.severity is Severity.WARNING] == []
    assert told == [] or files != "the image's"
