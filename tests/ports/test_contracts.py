# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every port promises: its answer is right, or it raises. No call into the system that fails makes it another one.

Asked of the real ports over a fake root, with each errno at each call they make; and the simulated ports, which make none, answer the
same questions in the same shapes.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from kmodd.core.operations.live_values import GivenValues, LiveValues
from kmodd.core.planning.planner import Planner
from kmodd.errors import KmoddError, ModuleTreeMissing
from kmodd.kernel.atomic_file import read_file, remove_file, replace_file
from kmodd.kernel.modprobe.modprobe_files import ConfigurationFolders
from kmodd.kernel.modules.store_files import StoreFiles
from kmodd.kernel.modules.trees import ModuleTree
from kmodd.kernel.proc.facts import ProcFacts
from kmodd.kernel.proc.loaded import ProcModules
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.model import KernelFacts, LoadedModule
from kmodd.model.rules import ManagedFile, RuleFiles
from kmodd.model.store import StoredModule
from kmodd.names import Alias, ModuleName
from tests.kernel.fakeroot import RELEASE, FakeModule, FakeRoot
from tests.ports.faults import ERRNOS, at_every_call, broken, count
from tests.unit.fakes import facts, load, request

A, B = ModuleName("a"), ModuleName("b")
STORED = StoredModule(A, "1.0", RELEASE, "ab" * 32, 7, imported_at=5, uid=1000)
FILES = {
    "proc/modules": "b 16384 1 a, Live 0x0000000000000000 (OE)\na 16384 0 - Live 0x0000000000000000\n",
    "proc/cmdline": "quiet modprobe.blacklist=c\n",
    "proc/sys/kernel/tainted": "4096\n",
    "proc/sys/kernel/modules_disabled": "1\n",
    "proc/sys/kernel/dmesg_restrict": "1\n",
    "sys/kernel/security/lockdown": "none [integrity] confidentiality\n",
    "sys/module/module/parameters/sig_enforce": "Y\n",
    "sys/module/a/initstate": "live\n",
    "sys/module/a/srcversion": "ABC\n",
    "sys/module/a/version": "1.0\n",
    "sys/module/a/parameters/x": "1\n",
    "sys/module/a/parameters/y": "1\n",
    "sys/module/builtin/version": "1.0\n",
    "etc/modprobe.d/a.conf": "blacklist a\noptions b x=1\n",
    "etc/modprobe.d/kmodd-options.conf": "options b y=1\n",
    "lib/modprobe.d/b.conf": "softdep a pre: b\nalias other b\n",
    "etc/modules-load.d/a.conf": "a\n",
}


@pytest.fixture
def root(tmp_path: Path) -> FakeRoot:
    modules = [
        FakeModule("a", depends=("b",)),
        FakeModule("b", aliases=("pci:v1",)),
        FakeModule("builtin", builtin=True),
    ]
    root = FakeRoot(tmp_path, modules, FILES).build()
    store = StoreFiles(tmp_path / "store")
    store.prepare()
    file = tmp_path / "spooled"
    file.write_bytes(b"module!")
    store.add(file, STORED)
    store.set_active(A, RELEASE, STORED.sha256)
    store.begin_change(A, RELEASE)
    return root


def index(root: FakeRoot, ask: Callable[[Any], Any]) -> Any:
    made = root.index()
    try:
        if made.unreadable():
            raise OSError(errno.EIO, "a rule may be missing, and loads are refused")
        if not made.tree_present:
            made.info(ModuleName("none"))  # raises what every load then raises
            raise AssertionError
        return ask(made)
    finally:
        made.close()


QUESTIONS: dict[str, Callable[[FakeRoot], Any]] = {
    "loaded.raw": lambda root: ProcModules(root.root).raw(),
    "loaded.snapshot": lambda root: ProcModules(root.root).snapshot(),
    "loaded.read": lambda root: ProcModules(root.root).read(A),
    "loaded.read of none": lambda root: ProcModules(root.root).read(ModuleName("none")),
    "loaded.is_builtin": lambda root: ProcModules(root.root).is_builtin(ModuleName("builtin")),
    "loaded.is_builtin of none": lambda root: ProcModules(root.root).is_builtin(A),
    "loaded.parameter_files": lambda root: ProcModules(root.root).parameter_files(A),
    "loaded.instance": lambda root: ProcModules(root.root).instance(A),
    "loaded.attributes": lambda root: ProcModules(root.root).attributes(A),
    "facts.read": lambda root: ProcFacts(root.root, RELEASE).read(),
    "index.rules": lambda root: index(root, lambda made: [(rule.text, rule.line) for rule in made.all_rules()]),
    "index.resolve": lambda root: index(root, lambda made: made.resolve(Alias("pci:v1"))),
    "index.dependencies": lambda root: index(root, lambda made: made.dependencies(A)),
    "index.aliases": lambda root: index(root, lambda made: made.aliases(B)),
    "index.info": lambda root: index(root, lambda made: made.info(A)),
    "index.info of what is built in": lambda root: index(root, lambda made: made.info(ModuleName("builtin"))),
    "configuration.read": lambda root: ConfigurationFolders(root.root, RELEASE).read(ManagedFile.OPTIONS),
    "store.entries": lambda root: sound(StoreFiles(root.root / "store")),
    "store.active": lambda root: StoreFiles(root.root / "store").active(A, RELEASE),
    "store.changes": lambda root: StoreFiles(root.root / "store").changes(),
    "tree.indexed": lambda root: ModuleTree(root.root).indexed(A, RELEASE),
    "tree.another": lambda root: ModuleTree(root.root).another(ModuleName("builtin"), RELEASE),
}


def sound(store: StoreFiles) -> list[StoredModule]:
    entries = store.entries()
    if store.damaged:
        raise OSError(errno.EIO, "one could not be read, and is told of")
    return entries


def forbids(answer: Any) -> Any:
    """Secure Boot may be unknown: it forbids nothing that lockdown does not."""
    if not isinstance(answer, KernelFacts):
        return answer
    return replace(answer, secure_boot=False)


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_is_right_or_there_is_none(root: FakeRoot, question: str) -> None:
    ask = QUESTIONS[question]
    right = forbids(ask(root))
    raised = 0
    for code, number, faults in at_every_call(lambda: ask(root), str(root.root)):
        try:
            answer = forbids(ask(root))
        except (OSError, KmoddError):
            raised += 1
            continue
        where = f"{faults.calls[number]} fails with {errno.errorcode[code]}"
        assert answer == right, where
    assert raised, "no fault at all was noticed"


@pytest.mark.parametrize("question", ["loaded.raw", "loaded.snapshot", "loaded.read", "facts.read", "store.active"])
def test_what_is_not_there_is_an_empty_answer(tmp_path: Path, question: str) -> None:
    answer = QUESTIONS[question](FakeRoot(tmp_path))
    assert (
        answer == KernelFacts(RELEASE, tree_present=False, log_restricted=True)
        if question == "facts.read"
        else not answer
    )


def test_a_listing_of_files_says_which_could_not_be_read(root: FakeRoot) -> None:
    def listed() -> RuleFiles:
        return ConfigurationFolders(root.root, RELEASE).files()

    right = listed()
    kept = {file.path: file.rules for file in (*right.modprobe, *right.autoload)}
    for code, number, faults in at_every_call(listed, str(root.root)):
        try:
            files = listed()
        except OSError:
            continue
        where = f"{faults.calls[number]} fails with {errno.errorcode[code]}"
        told = {file.path: file for file in (*files.modprobe, *files.autoload)}
        assert told.keys() == kept.keys(), where
        lost = [path for path, file in told.items() if file.rules != kept[path] and not _differs_in_who_may_read(file)]
        assert all(told[path].obstacle for path in lost), where


def _differs_in_who_may_read(file: Any) -> bool:
    """Whether everyone may read it could not be seen: then its lines are closed, which is the safe side."""
    return not file.obstacle and all(not rule.public for rule in file.rules)


@pytest.mark.parametrize("code", [*ERRNOS, errno.ENOSPC])
@pytest.mark.parametrize("new", [b"new\n", None])
def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path, new: bytes | None, code: int) -> None:
    path = tmp_path / "kmodd.conf"

    def work() -> None:
        if new is None:
            remove_file(path, expected=b"old\n")
        else:
            replace_file(path, new, expected=b"old\n")

    path.write_bytes(b"old\n")
    total = count(work)
    assert total
    for number in range(total):
        path.write_bytes(b"old\n")
        done = True
        with broken(code, number) as faults:
            try:
                work()
            except OSError:
                done = False
        assert faults.failed
        there = read_file(path)
        assert there in (b"old\n", new), f"call {number}"
        assert there == new or not done, f"call {number}: it was said to be done"
        assert [one.name for one in tmp_path.iterdir()] == ([path.name] if there is not None else [])


def test_the_simulated_ports_answer_in_the_same_shapes() -> None:
    kernel = SimulatedKernel(pace=0.0)
    name = next(iter(kernel.loaded.snapshot()))
    assert isinstance(kernel.loaded.raw(), bytes)
    assert isinstance(kernel.loaded.read(name), LoadedModule)
    assert kernel.loaded.read(ModuleName("none")) is None
    assert not kernel.loaded.is_builtin(ModuleName("none"))
    assert kernel.loaded.attributes(ModuleName("none")) == {}
    assert isinstance(kernel.facts.read(), KernelFacts)
    assert kernel.index.unreadable() == {}
    assert kernel.index.resolve(Alias("none")) == ()
    assert kernel.index.dependencies(ModuleName("none")) == ()
    assert isinstance(kernel.configuration.files(), RuleFiles)
    assert kernel.configuration.read(ManagedFile.OPTIONS) is None


@pytest.mark.parametrize("code", ERRNOS)
def test_a_module_is_not_unknown_because_the_index_cannot_be_read(
    root: FakeRoot, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """And known again when it can, though nothing was written meanwhile."""
    root.write("proc/modules", "")

    def fails(path: str) -> NoReturn:
        raise OSError(code, os.strerror(code), path)

    with monkeypatch.context() as patch:
        patch.setattr("kmodd.kernel.modules.index.index_state", fails)
        made = root.index()
        loaded = ProcModules(root.root)
        values = LiveValues(loaded, SimulatedKernel(pace=0.0).executor, now=lambda: 0.0)
        planner = Planner(made, loaded, Known(), values, given=GivenValues())  # type: ignore[arg-type]
        error = planner.plan(request(load("a"))).error
        assert isinstance(error, ModuleTreeMissing)
        assert errno.errorcode[code] in error.message
    assert [step.module for step in planner.plan(request(load("builtin"))).steps] == []
    assert made.info(A).name == A
    made.close()


class Known:
    """Kernel facts that need no file."""

    def read(self) -> KernelFacts:
        return facts()
