# SPDX-License-Identifier: LGPL-2.1-or-later
"""A rule that cannot be read refuses: no fault of the machine turns a file of modprobe.d into one without rules."""

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kmodd.core.operations.live_values import GivenValues, LiveValues
from kmodd.core.planning.planner import Planner
from kmodd.core.planning.policy import Policy
from kmodd.core.rules.rules import judge
from kmodd.errors import DisabledByPolicy
from kmodd.kernel.modprobe import modprobe_d
from kmodd.kernel.modprobe.modprobe_files import ConfigurationFolders
from kmodd.kernel.modules.index import LibkmodIndex
from kmodd.kernel.proc.loaded import ProcModules
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.model import Plan
from kmodd.names import ModuleName
from tests.kernel.fakeroot import FakeModule, FakeRoot
from tests.ports.faults import at_every_call
from tests.unit.fakes import SeenValues, facts, load, request, unload

RULE = "blacklist a\ninstall a /bin/false\n"
FOLDER = "etc/modprobe.d"
A = ModuleName("a")


class KnownFacts:
    """Kernel facts that need no file."""

    def read(self) -> object:
        return facts()


@pytest.fixture
def root(tmp_path: Path) -> FakeRoot:
    root = FakeRoot(tmp_path, [FakeModule("a"), FakeModule("b")], {f"{FOLDER}/no.conf": RULE}).build()
    root.write("proc/modules", "")
    return root


def plan(root: FakeRoot, index: LibkmodIndex, *modules: str) -> Plan:
    loaded = ProcModules(root.root)
    values = LiveValues(loaded, SimulatedKernel(pace=0.0).executor, now=lambda: 0.0)
    planner = Planner(index, loaded, KnownFacts(), values, given=GivenValues())  # type: ignore[arg-type]
    return planner.plan(request(*map(load, modules)))


def test_no_fault_of_the_machine_makes_a_forbidden_module_loadable(root: FakeRoot) -> None:
    """At the first reading, with every errno at every call."""

    def work() -> None:
        root.index().rules(A)

    for code, number, faults in at_every_call(work, str(root.root)):
        try:
            index = root.index()
        except OSError:
            continue
        where = f"{faults.calls[number]} fails with {errno.errorcode[code]}"
        assert faults.failed, where
        try:
            planned = plan(root, index, "a")
        except OSError:
            continue
        assert not [step for step in planned.steps if step.error is None], where


def test_no_fault_of_the_machine_at_a_later_look_loses_a_rule(root: FakeRoot) -> None:
    def work() -> None:
        index = root.index()
        (root.root / FOLDER / "other.conf").write_text("blacklist b\n")
        index.refresh()

    for code, number, faults in at_every_call(work, str(root.root)):
        (root.root / FOLDER / "other.conf").unlink(missing_ok=True)
        where = f"call {number} fails with {errno.errorcode[code]}"
        try:
            work()
        except OSError:
            continue
        index = root.index()
        assert faults.failed, where
        # And when it is over, all is well again, without anything having been written.
        index.refresh()
        assert {rule.module for rule in index.all_rules()} == {"a", "b"}, where


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ENOMEM])
def test_a_file_is_read_again_when_the_fault_is_over_though_it_did_not_change(root: FakeRoot, code: int) -> None:
    path = root.root / FOLDER / "no.conf"
    real = modprobe_d.read_text
    with pytest.MonkeyPatch.context() as patch:

        def fails(file: str | Path, root: Path = Path("/")) -> modprobe_d.RuleText:
            if str(file) != str(path):
                return real(file, root)
            return modprobe_d.RuleText(obstacle=modprobe_d.why_unread(file, OSError(code, "")), unknown=True)

        patch.setattr("kmodd.kernel.modules.index.read_text", fails)
        index = root.index()
        assert index.unreadable() == {str(path): f"cannot be read ({errno.errorcode[code]})"}
        assert not index.refresh(), "nothing is different from the last look"
        (step,) = plan(root, index, "b").steps
        assert isinstance(step.error, DisabledByPolicy)
        assert step.error.evidence.file == str(path)
        assert str(path) in step.error.message
    assert index.refresh()
    assert not index.unreadable()
    assert plan(root, index, "b").error is None
    assert isinstance(plan(root, index, "a").error, DisabledByPolicy)


LOOK = """
import sys
from pathlib import Path
from kmodd.kernel.modprobe import modprobe_d
from kmodd.kernel.modules.index import LibkmodIndex
modprobe_d.HIDDEN = (sys.argv[3],)
print(*LibkmodIndex(Path(sys.argv[1]), sys.argv[2]).unreadable().items())
"""


def closed(path: Path, hidden: Path) -> str:
    """As a file of another user is to a daemon that has no right to override modes."""
    del hidden
    path.write_text(RULE)
    path.chmod(0)
    return "cannot be read (EACCES)"


def in_a_closed_folder(path: Path, hidden: Path) -> str:
    """As /root is below ProtectHome=."""
    (hidden / "no.conf").write_text(RULE)
    path.symlink_to(hidden / "no.conf")
    hidden.chmod(0)
    return f"leads to {hidden}/no.conf, which cannot be read (EACCES)"


def out_of_sight(path: Path, hidden: Path) -> str:
    """As /tmp is below PrivateTmp=."""
    path.symlink_to(hidden / "private/no.conf")
    return f"leads to {hidden}/private/no.conf, which kmodd cannot see"


def far_too_large(path: Path, hidden: Path) -> str:
    del hidden
    with path.open("wb") as file:
        file.truncate(modprobe_d.FILE_MAX + 1)
    return "is larger than 1 MiB"


@pytest.mark.parametrize("make", [closed, in_a_closed_folder, out_of_sight, far_too_large])
def test_what_kmodd_cannot_read_and_modprobe_can_is_known_to_be_unread(
    root: FakeRoot, tmp_path_factory: pytest.TempPathFactory, make: Callable[[Path, Path], str]
) -> None:
    """By a process as the daemon is: root without a capability."""
    hidden = tmp_path_factory.mktemp("hidden")
    path = root.root / FOLDER / "no2.conf"
    why = make(path, hidden)
    program = [sys.executable, "-c", LOOK, str(root.root), root.release, f"{hidden}/private"]
    if os.geteuid() == 0:
        program = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *program]
    done = subprocess.run(
        program,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    hidden.chmod(0o700)
    assert done.stdout == f"{(str(path), why)}\n"


def test_a_file_that_cannot_be_read_is_a_finding(root: FakeRoot) -> None:
    far_too_large(root.root / FOLDER / "no2.conf", root.root)
    index = root.index()
    shown = asyncio.run(judge(ConfigurationFolders(root.root, root.release).files(), {}, index, Policy(index), facts()))
    findings = [(one.rule.file, finding.kind) for one in shown for finding in one.findings]
    assert (f"/{FOLDER}/no2.conf", "unreadable") in findings


@pytest.mark.parametrize("target", ["nowhere.conf", "no.conf/below", "m.conf"])
def test_a_link_that_leads_nowhere_for_modprobe_either_refuses_nothing(root: FakeRoot, target: str) -> None:
    (root.root / FOLDER / "m.conf").symlink_to(target)
    index = root.index()
    assert not index.unreadable()
    assert plan(root, index, "b").error is None


def test_a_folder_that_cannot_be_listed_refuses(root: FakeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = os.fsencode(root.root / FOLDER), os.listdir

    def refused(path: bytes) -> list[bytes]:
        if path == folder:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refused)
        index = root.index()
        assert index.unreadable() == {os.fsdecode(folder): "cannot be read (EIO)"}
        assert isinstance(plan(root, index, "b").error, DisabledByPolicy)
    assert index.refresh()
    assert plan(root, index, "b").error is None


def planner_of(kernel: SimulatedKernel) -> Planner:
    kernel.index.closed["/etc/modprobe.d/secret.conf"] = "cannot be read (EACCES)"
    return Planner(kernel.index, kernel.loaded, kernel.facts, SeenValues(kernel), given=GivenValues())


def test_only_what_inserts_is_refused() -> None:
    kernel = SimulatedKernel(pace=0.0)
    planner = planner_of(kernel)
    loaded = next(module.name for module in kernel.loaded.snapshot().values() if not module.references)
    assert planner.plan(request(load(loaded))).error is None, "it is loaded already"
    assert planner.plan(request(unload(loaded))).error is None
    refused = planner.plan(request(load("dummy"), override_policy=True))
    assert isinstance(refused.error, DisabledByPolicy), "nothing overrides a line that nobody has seen"


def test_a_rule_that_can_be_read_is_reported_first() -> None:
    kernel = SimulatedKernel(pace=0.0)
    rules = [rule for rule in kernel.index.all_rules() if rule.kind == "blacklist"]
    name = next(rule.module for rule in rules if kernel.index.exists(ModuleName(rule.module)))
    error = planner_of(kernel).plan(request(load(name))).error
    assert error is not None
    assert "blacklisted" in error.message
