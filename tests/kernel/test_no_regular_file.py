# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is not a regular file in a configuration folder stops nothing: it is passed over, and reported."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kmodd.core.planning.policy import Policy
from kmodd.core.rules.rules import judge
from kmodd.kernel.modprobe.modprobe_d import DEPMOD_SOFTDEPS, FILE_MAX
from kmodd.kernel.modprobe.modprobe_files import ConfigurationFolders
from kmodd.names import Alias, ModuleName
from tests.kernel.fakeroot import FakeModule, FakeRoot
from tests.unit.fakes import facts

LOADING = "etc/modules-load.d"
RULES = "etc/modprobe.d"
OPEN = """
import sys
from pathlib import Path
from kmodd.kernel.modules.index import LibkmodIndex
from kmodd.names import Alias, ModuleName
index = LibkmodIndex(Path(sys.argv[1]), sys.argv[2])
print(*index.resolve(Alias("first-alias")), *index.resolve(Alias("last-alias")), *index.softdeps(ModuleName("a"))[0])
"""
"""In a process of its own: a call that blocks in the kernel can be ended no other way."""


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 << 30)


def dead_link(path: Path) -> None:
    path.symlink_to("nowhere.conf")


def null(path: Path) -> None:
    path.symlink_to(os.devnull)


OBSTACLES = [
    (fifo, "is a FIFO, and modprobe blocks until something writes to it"),
    (unix_socket, "is not a regular file"),
    (zeros, "is not a regular file"),
    (huge, f"is larger than {FILE_MAX >> 20} MiB"),
    (Path.mkdir, ""),
    (dead_link, ""),
    (null, ""),
]


@pytest.fixture
def root(tmp_path: Path) -> FakeRoot:
    return FakeRoot(
        tmp_path,
        [FakeModule("a"), FakeModule("b")],
        {
            f"{RULES}/a-first.conf": "alias first-alias a\nsoftdep a pre: b\n",
            f"{RULES}/z-last.conf": "alias last-alias b\n",
            f"{LOADING}/a.conf": "a\n",
        },
    ).build()


@pytest.mark.parametrize(("make", "reason"), OBSTACLES, ids=lambda value: getattr(value, "__name__", ""))
def test_the_other_files_are_read_and_this_one_is_reported(
    root: FakeRoot, make: Callable[[Path], None], reason: str
) -> None:
    for folder in (RULES, LOADING):
        make(root.root / folder / "m.conf")
    done = subprocess.run(
        [sys.executable, "-c", OPEN, root.root, root.release],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout.split() == ["a", "b", "b"]
    index = root.index()
    assert index.resolve(Alias("last-alias")) == (ModuleName("b"),)
    files = ConfigurationFolders(root.root, root.release).files()
    shown = asyncio.run(judge(files, {}, index, Policy(index), facts()))
    findings = [(one.rule.file, f.kind, f.message) for one in shown for f in one.findings if f.kind == "unreadable"]
    told = f"{reason}: remove it, or put a regular file in its place"
    expected = [(f"/{folder}/m.conf", "unreadable", f"/{folder}/m.conf {told}") for folder in (LOADING, RULES)]
    assert findings == (expected if reason else [])


def test_a_fifo_for_depmods_soft_dependencies_is_a_tree_that_cannot_be_used(root: FakeRoot) -> None:
    (root.tree / DEPMOD_SOFTDEPS).unlink()
    fifo(root.tree / DEPMOD_SOFTDEPS)
    index = root.index()
    assert not index.tree_present
    with pytest.raises(Exception, match="is a FIFO"):
        index.info(ModuleName("nowhere"))


@pytest.mark.parametrize("index", ["dep", "alias", "symbols", "builtin", "builtin.alias"])
def test_a_fifo_for_an_index_is_a_tree_that_cannot_be_used(root: FakeRoot, index: str) -> None:
    path = root.tree / f"modules.{index}.bin"
    path.unlink()
    fifo(path)
    command = [sys.executable, "-c", OPEN, str(root.root), root.release]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30, env=environment)
    assert done.stdout.split() == ["b"], "what modprobe.d says is known, no module is"


def test_a_fifo_that_becomes_a_file_is_read(root: FakeRoot) -> None:
    path = root.root / RULES / "m.conf"
    fifo(path)
    index = root.index()
    path.unlink()
    path.write_text("alias middle-alias a\n")
    assert index.refresh()
    assert index.resolve(Alias("middle-alias")) == (ModuleName("a"),)
