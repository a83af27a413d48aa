# SPDX-License-Identifier: LGPL-2.1-or-later
"""The index that kmodd makes is the one that `depmod -a` makes of the same tree."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from kmodd.kernel.modules.depmod import Depmod
from kmodd.kernel.modules.trees import ModuleTree, fits
from kmodd.names import ModuleName
from tests.conformance import debian13
from tests.kernel.fakeroot import RELEASE, FakeModule, FakeRoot

MODULES = [
    FakeModule("fat", folder="kernel/fs/fat", exports=("shared",)),
    FakeModule("vfat", ("fat",), folder="kernel/fs/fat", aliases=("fs-vfat",), softdep="pre: nls"),
    FakeModule("nls", folder="kernel/fs/nls", suffix=".ko.xz"),
    FakeModule("driver", folder="kernel/drivers", aliases=("pci:v1d*",)),
    FakeModule("driver", folder="updates/dkms", aliases=("pci:v2d*",)),
    FakeModule("extra-one", ("driver",), folder="extra", aliases=("pci:v2d*",)),
    FakeModule("weak", folder="weak-updates/vendor"),
    FakeModule("top", ("fat",), folder="."),
    FakeModule("char", aliases=("char-major-10-200", "devname:net/char"), folder="misc"),
    FakeModule("unix", builtin=True, aliases=("net-pf-1",), folder="kernel/net/unix"),
]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder on a disk, where a copy is listed in the order of the original: that decides between equal modules.

    tmpfs lists the newest file first, so that a copy, and the tree of links that depmod is shown, are in another order.
    """
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def root(tmp_path: Path) -> FakeRoot:
    root = FakeRoot(tmp_path / "root", MODULES).build()
    order = ["kernel/fs/nls/nls.ko", "kernel/fs/fat/vfat.ko", "kernel/fs/fat/fat.ko", "kernel/drivers/driver.ko"]
    (root.tree / "modules.order").write_text("".join(f"{line}\n" for line in order))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "linked.ko").write_bytes(FakeModule("linked", ("fat",)).content())
    (root.tree / "linked.ko").symlink_to(outside / "linked.ko")
    (root.tree / "more").symlink_to(outside)
    (root.tree / "build").symlink_to(outside)
    return root


def made_by_depmod(tree: Path, folder: Path, program: tuple[str, ...] = ("depmod",)) -> dict[str, bytes]:
    """What `depmod -a` makes of a copy, with the depmod.d of the tree's root."""
    configuration = tree.parents[2] / "etc/depmod.d"
    copy = folder / "copy/lib/modules" / tree.name
    copy.parent.mkdir(parents=True)
    shutil.copytree(tree, copy, symlinks=True)
    for path in copy.glob("modules.*"):
        if path.name not in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            path.unlink()
    command = [*program, "-a", "-C", str(configuration), "-b", str(folder / "copy"), tree.name]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(folder / "copy" / "usr", ignore_errors=True)
    found = index(copy)
    shutil.rmtree(folder / "copy")
    return found


def index(tree: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(tree.glob("modules.*"))}


async def test_after_every_change_it_is_the_same(root: FakeRoot, tmp_path: Path) -> None:
    trees, depmod = ModuleTree(root.root), Depmod(tmp_path / "work", configuration=root.root / "etc/depmod.d")
    source = tmp_path / "source.ko"

    async def compare() -> None:
        await depmod.refresh(root.tree)
        ours, theirs = index(root.tree), made_by_depmod(root.tree, tmp_path)
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].split(b"\n") == theirs[name].split(b"\n"), name

    await compare()
    for version in ("1", "2"):
        module = FakeModule("driver", ("fat",), aliases=(f"pci:v{version}d*",), info=(f"version={version}",))
        source.write_bytes(module.content())
        trees.put(ModuleName("driver"), RELEASE, source)
        await compare()
        assert b"updates/kmodd/driver.ko:" in index(root.tree)["modules.dep"]
    trees.take_away(ModuleName("driver"), RELEASE)
    await compare()
    assert b"updates/dkms/driver.ko:" in index(root.tree)["modules.dep"]


# --- two files below updates ----------------------------------------------------------------------------------------------

OURS = ModuleName("x_y")
BOTH = {(OURS, RELEASE)}
RIVALS = [
    f"updates/{name}{suffix}"
    for name in ("a/x_y", "dkms/x-y", "zz/x-y", "kmodd2/x_y", "x_y")
    for suffix in (".ko", ".ko.xz")
]


@pytest.fixture(scope="module")
def depmod_34() -> tuple[str, ...]:
    command = debian13.modprobe()
    return tuple("depmod" if word == "modprobe" else word for word in command)


def taken(index: dict[str, bytes]) -> str:
    paths = [line.partition(":")[0] for line in index["modules.dep"].decode().splitlines()]
    (path,) = [path for path in paths if "x_y.ko" in path.replace("-", "_")]
    return path


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("rival", RIVALS)
async def test_ours_is_taken_whatever_lies_beside_it_and_in_whatever_order(
    tmp_path: Path, depmod_34: tuple[str, ...], rival: str, *, first: bool
) -> None:
    """By both versions of depmod and by everybody who runs it; and the other file again when ours has gone."""
    root = FakeRoot(tmp_path / "root", [FakeModule("x_y"), FakeModule("other", ("x_y",))]).build()
    trees, depmod = ModuleTree(root.root), Depmod(tmp_path / "work", configuration=root.root / "etc/depmod.d")
    source = tmp_path / "source.ko"
    source.write_bytes(FakeModule("x_y", info=("version=ours",)).content())

    def put_rival() -> None:
        path = root.tree / rival
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(FakeModule("x_y", suffix=".ko.xz" if rival.endswith(".xz") else ".ko").content())

    if first:
        put_rival()
    trees.override(BOTH)
    trees.put(OURS, RELEASE, source)
    if not first:
        put_rival()
    await depmod.refresh(root.tree)
    assert trees.overrides(BOTH)
    for made in (index(root.tree), made_by_depmod(root.tree, tmp_path), made_by_depmod(root.tree, tmp_path, depmod_34)):
        assert taken(made) == "updates/kmodd/x_y.ko"
    trees.take_away(OURS, RELEASE)
    trees.override(())
    await depmod.refresh(root.tree)
    assert taken(index(root.tree)) == rival
    assert not list((root.root / "etc/depmod.d").iterdir())


@pytest.mark.parametrize(
    ("release", "kernel", "is_ours"),
    [
        ("6.1.0-1+x", "6.1.0-1+x", True),
        ("6.1.0-1+x", "6.1.0-1+", False),
        ("6.1.0-1+x", "6.1.0-11+x", False),
        ("6.1.010-1+x", "6.1.0.0-1+x", False),
        ("16.1.0-1+x", "6.1.0-1+x", False),
        ("6.1.0~rc1_a", "6.1.0~rc1_a", True),
    ],
)
def test_an_override_is_for_its_kernel_alone(
    tmp_path: Path, depmod_34: tuple[str, ...], release: str, kernel: str, *, is_ours: bool
) -> None:
    """The kernel of such a line is an expression that is looked for anywhere in the release."""
    modules = [FakeModule("x_y", folder=folder) for folder in ("updates/kmodd", "updates/zz")]
    files = {"etc/depmod.d/admin.conf": "search updates/zz built-in\n"}
    root = FakeRoot(tmp_path / "root", modules, files, release=release).build()
    ModuleTree(root.root).override({(OURS, kernel)})
    line = (root.root / "etc/depmod.d/kmodd.conf").read_text().splitlines()[-1].split()
    assert fits(line[2], release) == is_ours
    for program in (("depmod",), depmod_34):
        made = made_by_depmod(root.tree, tmp_path, program)
        assert taken(made) == ("updates/kmodd/x_y.ko" if is_ours else "updates/zz/x_y.ko")


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("etc/depmod.d/z.conf", "# of the vendor\noverride\tx-y  *\tupdates/zz\n", 2),
        ("lib/depmod.d/z.conf", "override x_y ^6[.] updates/zz\n", 1),
        ("etc/depmod.d/a.conf", "override x_y * updates/zz\n", 0),
        ("run/depmod.d/kmodd.conf", "override x_y * updates/zz\n", 0),
        ("etc/depmod.d/z.conf", "override x_y 5.10.0 updates/zz\noverride other * updates/zz\n", 0),
        ("etc/depmod.d/z.conf.bak", "override x_y * updates/zz\n", 0),
    ],
)
def test_a_line_of_the_administrator_that_goes_before_ours_is_named(
    tmp_path: Path, file: str, text: str, line: int
) -> None:
    """The file that is read last counts, and a file hides those of its name in later folders."""
    modules = [
        FakeModule("x_y", folder="updates/kmodd"),
        FakeModule("x-y" if "x-y" in text else "x_y", folder="updates/zz"),
    ]
    root = FakeRoot(tmp_path / "root", modules, {file: text}).build()
    trees = ModuleTree(root.root)
    trees.override(BOTH)
    found = trees.rival(OURS, RELEASE)
    assert found[:2] == (("/" + file, line) if line else ("", 0))
    if file.startswith("etc/"):  # -C names one folder
        assert taken(made_by_depmod(root.tree, tmp_path)).startswith("updates/zz" if line else "updates/kmodd")


async def test_any_changes_give_the_index_of_depmod(tmp_path: Path) -> None:
    """Ours, others' and the administrator's lines come and go in any order."""
    random = Random(7)  # noqa: S311 - a repeatable order of changes
    root = FakeRoot(tmp_path / "root", [FakeModule("x_y"), FakeModule("user", ("x_y",)), FakeModule("z")]).build()
    trees, depmod = ModuleTree(root.root), Depmod(tmp_path / "work", configuration=root.root / "etc/depmod.d")
    source = tmp_path / "source.ko"
    ours: set[tuple[ModuleName, str]] = set()
    changes = 0
    for step in range(40):
        name = random.choice(["x_y", "z", "new"])
        key = (ModuleName(name), RELEASE)
        kind = random.choice(["ours", "rival", "line"])
        if kind == "ours" and key in ours:
            trees.take_away(*key)
            ours.discard(key)
            trees.override(ours)
        elif kind == "ours":
            source.write_bytes(FakeModule(name, info=(f"version={step}",), exports=(f"symbol{step}",)).content())
            trees.override(ours | {key})
            trees.put(*key, source)
            ours.add(key)
        elif kind == "rival":
            folder = random.choice(["updates", "updates/dkms", "updates/kmodd9", "extra", "a"])
            path = root.tree / folder / f"{name.replace('_', random.choice('-_'))}.ko"
            if path.exists():
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(FakeModule(name).content())
        else:
            line = random.choice(["search built-in updates", "search extra updates built-in", "override z * a"])
            root.write("etc/depmod.d/admin.conf", f"{line}\n")
        await depmod.refresh(root.tree)
        made = index(root.tree)
        expected = made_by_depmod(root.tree, tmp_path)
        assert made.keys() == expected.keys()
        for file, data in made.items():
            assert data == expected[file], (step, file)
        for module, _ in ours:
            assert f"updates/kmodd/{module}.ko:" in made["modules.dep"].decode(), (step, kind, module)
            changes += 1
    assert changes > 20
