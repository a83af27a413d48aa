# SPDX-License-Identifier: LGPL-2.1-or-later
"""Switching versions: what fails is undone, what a crash cut short is undone at the next start, and health sees the rest."""

import asyncio
import errno
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from kmodd.core.health.store import StoreWatch
from kmodd.core.operations.execution import FormerState
from kmodd.core.planning.consequence_text import disconnecting
from kmodd.core.store.activation import Activation, AuthorizedContent
from kmodd.core.store.store import StoreCatalogue
from kmodd.errors import BadSignature, Conflict, InUse, KmoddError, LimitsExceeded, NoSuchVersion
from kmodd.kernel.modules.store_files import StoreFiles
from kmodd.kernel.modules.trees import ModuleTree
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import RELEASE
from kmodd.model import (
    Caller,
    Consequence,
    ConsequenceKind,
    Operation,
    OperationResult,
    Plan,
    Request,
    Result,
    Step,
    StepAction,
    Verb,
)
from kmodd.model.store import IndexNotMadeError, StoredModule
from kmodd.names import ModuleName
from tests.unit.fakes import Broadcaster, Journal

NAME = ModuleName("dummy")
CALLER = Caller(":1.7", 0)


class Crash(BaseException):
    """The daemon is gone."""


class FakeDepmod:
    """Writes the index that depmod would, or fails."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.runs = 0

    async def refresh(self, tree: Path) -> None:
        self.runs += 1
        if self.error is not None:
            raise self.error
        ours = sorted(str(path.relative_to(tree)) for path in (tree / "updates").rglob("*.ko"))
        own = ["kernel/dummy.ko"] if not ours else []
        (tree / "modules.dep").write_text("".join(f"{path}:\n" for path in [*ours, *own]))


class FakeReloader:
    """Notes what is loaded, or refuses."""

    def __init__(self) -> None:
        self.done: list[tuple[str, dict[str, str]]] = []
        self.disconnects: list[bool] = []
        self.error: KmoddError | None = None
        self.refusal: KmoddError | None = None

    def plan(self, request: Request) -> Plan:
        if self.refusal is not None:
            raise self.refusal
        return Plan(request, ((NAME,),), ())

    async def execute(self, plan: Plan, caller: Caller) -> Sequence[OperationResult]:
        (operation,) = plan.request.operations
        self.disconnects.append(plan.request.disconnect)
        self.done.append((operation.verb.value, dict(operation.parameters)))
        if self.error is not None:
            return (OperationResult(NAME, Result.FAILED, self.error),)
        return (OperationResult(NAME, Result.CHANGED, touched=(NAME,)),)

    async def former(self, name: ModuleName) -> FormerState:
        return FormerState((("numdummies", "3"), ("gone", "1")))


class Stage:
    """Everything, on a folder."""

    def __init__(self, folder: Path, *, loaded: bool = False) -> None:
        self.kernel = SimulatedKernel(pace=0.0, loaded=["dummy"] if loaded else [])
        self.folder = folder
        self.files = StoreFiles(folder / "store")
        self.trees = ModuleTree(folder)
        self.tree = folder / "lib/modules" / RELEASE
        (self.tree / "kernel").mkdir(parents=True, exist_ok=True)
        (self.tree / "modules.order").write_text("kernel/dummy.ko\n")
        if not (self.tree / "modules.dep").exists():
            (self.tree / "modules.dep").write_text("kernel/dummy.ko:\n")
        self.files.prepare()
        self.catalogue = StoreCatalogue(RELEASE)
        self.catalogue.fill(self.files.entries())
        self.depmod, self.reloader, self.journal = FakeDepmod(), FakeReloader(), Journal()
        self.activation = Activation(
            self.files, self.trees, self.depmod, self.catalogue, index=self.kernel.index, loaded=self.kernel.loaded,
            facts=self.kernel.facts,
            operations=cast("Any", self.reloader), lock=asyncio.Lock(), audit=self.journal, events=Broadcaster(),
        )  # fmt: skip
        self.watch = StoreWatch(self.files, self.trees, self.catalogue, is_changing=self.activation.is_changing)

    def authorized(self, path: str) -> str:
        step = Step(StepAction.INSERT, NAME, path=path, because="requested")
        return AuthorizedContent(self.trees, self.catalogue).sha256(step)

    def add(self, version: str, kernel: str = RELEASE) -> StoredModule:
        content = f"{version} {kernel}".encode()
        entry = StoredModule(NAME, version, kernel, hashlib.sha256(content).hexdigest(), len(content))
        (self.folder / "spooled").write_bytes(content)
        self.files.add(self.folder / "spooled", entry)
        self.catalogue.put(entry)
        return entry

    @property
    def state(self) -> tuple[str, str, list[str], bool]:
        """(content of the file in the tree, what the index takes, active versions, a change is under way)."""
        active = [(entry.name, entry.kernel) for entry in self.files.entries() if entry.active]
        assert self.trees.overrides(active) or self.files.changes()
        path = self.trees.path(NAME, RELEASE)
        return (
            path.read_text() if path.exists() else "",
            self.trees.indexed(NAME, RELEASE),
            [entry.version for entry in self.files.entries() if entry.active],
            bool(self.files.changes()),
        )

    def names(self) -> list[str]:
        return [check.name for check in self.watch.findings()]


NONE: tuple[str, str, list[str], bool] = ("", "kernel/dummy.ko", [], False)
FIRST = (f"1 {RELEASE}", "updates/kmodd/dummy.ko", ["1"], False)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path, loaded=True)


async def test_a_reload_keeps_the_parameters_that_the_version_still_has(stage: Stage) -> None:
    assert await stage.activation.activate(stage.add("1"), CALLER, load=True) == (NAME,)
    assert stage.reloader.done == [("reload", {"numdummies": "3"})]
    assert stage.state == FIRST
    assert stage.journal.events == ["store.activated"]


async def test_a_switch_that_would_touch_other_modules_than_were_authorized_is_undone(stage: Stage) -> None:
    """Planned again once the version lies in the tree: its file, not what the store knows of it, says what comes with it."""
    entry = stage.add("1")
    switch = stage.activation.foresee(NAME, RELEASE, entry, load=True)
    assert switch.modules == (NAME,)
    before = stage.state
    other = Step(StepAction.INSERT, ModuleName("other"))
    stage.reloader.plan = lambda request: Plan(request, ((NAME,),), (other,))  # type: ignore[method-assign]
    with pytest.raises(Conflict, match="now includes other"):
        await stage.activation.switch(switch, Caller(":1.8", 1000))
    assert stage.state == before
    assert not stage.reloader.done
    assert stage.journal.events == ["operation.failed"]


async def test_a_module_that_another_user_loaded_since_authorization_is_not_reloaded(stage: Stage) -> None:
    by: list[int | None] = [1000]
    stage.reloader.plan = lambda request: Plan(  # type: ignore[method-assign]
        request, ((NAME,),), (), loaders=tuple((NAME, uid) for uid in by)
    )
    switch = stage.activation.foresee(NAME, RELEASE, stage.add("1"), load=True)
    assert switch.loaders == ((NAME, 1000),)
    before = stage.state
    for other in (0, None):
        by[:] = [other]
        with pytest.raises(Conflict, match="dummy was loaded by another user since authorization"):
            await stage.activation.switch(switch, Caller(":1.8", 1000))
        assert stage.state == before
        assert not stage.reloader.done
    await stage.activation.switch(switch, Caller(":1.9", 0))
    assert stage.state == FIRST, "for root no rule decides"


async def test_a_dry_run_says_what_would_be_reloaded(stage: Stage) -> None:
    entry = stage.add("1")
    assert await stage.activation.activate(entry, CALLER, load=True, dry_run=True) == (NAME,)
    assert await stage.activation.activate(entry, CALLER, load=False, dry_run=True) == ()
    assert (stage.state, stage.depmod.runs, stage.reloader.done, stage.journal.events) == (NONE, 0, [], [])
    await stage.activation.activate(entry, CALLER, load=False)
    assert await stage.activation.activate(entry, CALLER, load=True, dry_run=True) == ()
    assert await stage.activation.deactivate(entry, CALLER, load=True, dry_run=True) == (NAME,)
    assert stage.state == FIRST


async def test_a_dry_run_ends_with_what_is_in_the_way(stage: Stage) -> None:
    entry = stage.add("1")
    stage.reloader.refusal = InUse("held", module=NAME)
    with pytest.raises(InUse):
        await stage.activation.activate(entry, CALLER, load=True, dry_run=True)
    stage.files.path(entry).write_bytes(b"another")
    with pytest.raises(Conflict, match="not what was imported"):
        await stage.activation.activate(entry, CALLER, load=False, dry_run=True)
    assert stage.state == NONE


async def test_a_read_only_tree_leaves_nothing_to_undo(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = stage.add("1")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(stage.trees, "put", refuse)
    with pytest.raises(Conflict, match="read-only"):
        await stage.activation.activate(entry, CALLER, load=True)
    assert stage.state == NONE
    assert (stage.depmod.runs, stage.files.changes()) == (0, [])


async def test_damaged_facts_are_a_finding(stage: Stage) -> None:
    path = stage.files.path(stage.add("1")).with_suffix(".json")
    path.write_text("{")
    stage.catalogue.fill(stage.files.entries())
    (found,) = stage.watch.findings()
    assert (found.name, found.status) == ("store-file-changed", "degraded")
    assert str(path) in found.message


async def test_an_interrupted_change_is_a_finding_of_an_empty_store_too(stage: Stage) -> None:
    assert stage.names() == []
    (stage.folder / "store" / NAME / "6.99.0").mkdir(parents=True)
    (stage.folder / "store" / NAME / "6.99.0/changing").touch()
    assert stage.names() == ["store-change-interrupted"]


async def test_a_change_under_way_is_none_that_was_interrupted(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []
    stage.activation.on_settled = lambda: told.append(stage.names())

    async def look(tree: Path) -> None:
        told.append(["changing" if stage.files.changes() else "", *stage.names()])
        await FakeDepmod.refresh(stage.depmod, tree)

    monkeypatch.setattr(stage.depmod, "refresh", look)
    await stage.activation.activate(stage.add("1"), CALLER, load=False)
    assert told == [["changing", "store"], ["store"]]
    stage.depmod.error = IndexNotMadeError("depmod failed")
    with pytest.raises(Conflict):
        await stage.activation.activate(stage.add("2"), CALLER, load=False)
    assert "store-change-interrupted" in told[-1], "it could not be undone either"


async def test_what_is_active_already_is_left_alone(stage: Stage) -> None:
    entry = stage.add("1")
    await stage.activation.activate(entry, CALLER, load=False)
    assert await stage.activation.activate(entry, CALLER, load=True) == ()
    assert stage.depmod.runs == 1
    assert stage.journal.events[-1] == "operation.unchanged"


async def test_a_version_that_does_not_load_leaves_the_former_one(stage: Stage) -> None:
    await stage.activation.activate(stage.add("1"), CALLER, load=False)
    stage.reloader.error = BadSignature("no", module=NAME)
    with pytest.raises(BadSignature):
        await stage.activation.activate(stage.add("2"), CALLER, load=True)
    assert stage.state == FIRST
    assert stage.journal.events[-1] == "operation.failed"


async def test_a_version_that_would_cut_something_live_leaves_the_former_one_and_says_what_to_do(stage: Stage) -> None:
    await stage.activation.activate(stage.add("1"), CALLER, load=False)
    up = Consequence(ConsequenceKind.INTERFACE, "dummy0", up=True)
    stage.reloader.error = disconnecting(NAME, (up,), Operation(Verb.RELOAD, NAME))
    with pytest.raises(InUse, match="dummy0") as caught:
        await stage.activation.activate(stage.add("2"), CALLER, load=True)
    assert caught.value.evidence.hint == f"kmodctl store activate {NAME} 2 --load --disconnect"
    assert stage.state == FIRST
    stage.reloader.error = None
    entry = stage.catalogue.one(NAME, "2", RELEASE)
    switch = stage.activation.foresee(NAME, RELEASE, entry, load=True, disconnect=True)
    assert await stage.activation.switch(switch, CALLER) == (NAME,)
    assert stage.reloader.disconnects == [False, True]
    assert stage.state[2] == ["2"]


async def test_what_the_failure_left_unloaded_is_loaded_again(stage: Stage) -> None:
    await stage.activation.activate(stage.add("1"), CALLER, load=False)
    real = stage.reloader.execute

    async def back(plan: Plan, caller: Caller) -> Sequence[OperationResult]:
        stage.kernel.modprobe("dummy")
        return await real(plan, caller)

    async def lose(plan: Plan, caller: Caller) -> Sequence[OperationResult]:
        stage.kernel.rmmod("dummy")
        error = BadSignature("no", module=NAME, touched=(NAME, "holder"))
        stage.reloader.error = error.after(((NAME, "dummy stays unloaded"), ("holder", "holder stays unloaded")))
        result = await real(plan, caller)
        stage.reloader.error = None
        stage.reloader.execute = back  # type: ignore[method-assign]
        return result

    stage.reloader.execute = lose  # type: ignore[method-assign]
    said = r"^no; holder stays unloaded; dummy was loaded again as before$"
    with pytest.raises(BadSignature, match=said) as caught:
        await stage.activation.activate(stage.add("2"), CALLER, load=True)
    assert caught.value.touched == ("holder",)
    assert [verb for verb, _ in stage.reloader.done] == ["reload", "load"]


@pytest.mark.parametrize(
    ("error", "typed"),
    [
        (IndexNotMadeError("depmod failed with status 1"), Conflict),
        (OSError(28, "full"), LimitsExceeded),
        (OSError(30, "read-only"), Conflict),
    ],
)
@pytest.mark.parametrize("former", [True, False])
async def test_a_step_that_fails_is_undone(
    stage: Stage, error: Exception, typed: type[KmoddError], *, former: bool
) -> None:
    if former:
        await stage.activation.activate(stage.add("1"), CALLER, load=False)
    stage.depmod.error = error
    with pytest.raises(typed):
        await stage.activation.activate(stage.add("2"), CALLER, load=False)
    stage.depmod.error = None
    await stage.activation.recover()
    assert stage.state == (FIRST if former else NONE)


STEPS = ["begin_change", "override", "put", "take_away", "refresh", "indexed", "set_active", "end_change"]


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("former", [True, False])
@pytest.mark.parametrize("wanted", ["activate", "deactivate"])
async def test_a_crash_at_any_step_is_undone_or_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, wanted: str, *, former: bool, after: bool
) -> None:
    stage = Stage(tmp_path)
    first, second = stage.add("1"), stage.add("2")
    if former or wanted == "deactivate":
        await stage.activation.activate(first, CALLER, load=False)
    before = stage.state
    owner = next(one for one in (stage.files, stage.trees, stage.depmod) if hasattr(one, step))
    real = getattr(owner, step)

    def crash(*arguments: object) -> object:
        if after:
            real(*arguments)
        raise Crash

    async def crash_later(*arguments: object) -> None:
        if after:
            await real(*arguments)
        raise Crash

    monkeypatch.setattr(owner, step, crash_later if step == "refresh" else crash)
    try:
        if wanted == "activate":
            await stage.activation.activate(second, CALLER, load=False)
        else:
            await stage.activation.deactivate(first, CALLER, load=False)
        crashed = False
    except Crash:
        crashed = True
    again = Stage(tmp_path)
    await again.activation.recover()
    done = (f"2 {RELEASE}", "updates/kmodd/dummy.ko", ["2"], False) if wanted == "activate" else NONE
    assert again.state in (before, done)
    assert crashed or again.state == done


async def test_the_end_of_the_daemon_does_not_wait_for_depmod(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    entry = stage.add("1")
    waiting = asyncio.Event()

    async def hang(tree: Path) -> None:
        waiting.set()
        await asyncio.Event().wait()

    stage.depmod.refresh = hang  # type: ignore[method-assign]
    task = asyncio.create_task(stage.activation.activate(entry, CALLER, load=False))
    await waiting.wait()
    await asyncio.wait_for(stage.activation.close(), 1)
    with pytest.raises(asyncio.CancelledError):
        await task
    again = Stage(tmp_path)
    await again.activation.recover()
    assert again.state == NONE


async def test_a_stored_file_that_was_changed_is_not_activated(stage: Stage) -> None:
    entry = stage.add("1")
    await stage.watch.read()
    assert stage.names() == ["store"]
    stage.files.path(entry).write_text("something else")
    with pytest.raises(Conflict, match="not what was imported"):
        await stage.activation.activate(entry, CALLER, load=False)
    assert stage.state == NONE
    assert stage.names() == ["store"], "it is still as it was when it was read"
    reading = stage.watch.reading()
    assert reading is not None
    await reading
    assert stage.names() == ["store-file-changed"]
    assert stage.watch.reading() is None
    await stage.watch.close()


async def test_health_names_a_later_kernel_without_a_version(stage: Stage) -> None:
    await stage.activation.activate(stage.add("1"), CALLER, load=False)
    for release in ("5.0.0", "9.9.9"):
        tree = stage.folder / "lib/modules" / release
        (tree / "kernel").mkdir(parents=True)
        (tree / "modules.dep").touch()
    await stage.watch.read()
    (found,) = stage.watch.findings()
    assert found.name == "store-version-missing"
    assert "9.9.9" in found.message
    assert found.module == NAME
    assert found.message.endswith("after a reboot into it dummy is missing.")
    (tree / "modules.dep").write_text("kernel/drivers/net/dummy.ko.xz:\n")
    await stage.watch.read()
    assert "into it kernel/drivers/net/dummy.ko.xz is used." in next(iter(stage.watch.findings())).message
    (tree / "modules.dep").write_text("")
    (tree / "modules.builtin").write_text("kernel/drivers/net/dummy.ko\n")
    await stage.watch.read()
    assert "into it the built-in dummy is used." in next(iter(stage.watch.findings())).message
    other = stage.add("1", "9.9.9")
    assert "kmodctl store activate dummy 1 --kernel 9.9.9" in next(iter(stage.watch.findings())).hint
    await stage.activation.activate(other, CALLER, load=True)
    assert not stage.reloader.done  # that kernel does not run
    await stage.watch.read()
    assert stage.names() == ["store"]
    await stage.watch.close()


async def test_a_version_is_found_for_its_kernel(stage: Stage) -> None:
    here, there, only = stage.add("1"), stage.add("1", "9.9.9"), stage.add("2", "9.9.9")
    one = stage.catalogue.one
    assert one(NAME, "1") == here
    assert one(NAME, "1", "9.9.9") == there
    assert one(NAME, "2") == only
    for version, kernel in (("3", ""), ("2", RELEASE)):
        with pytest.raises(NoSuchVersion):
            one(NAME, version, kernel)


# --- what may be loaded -------------------------------------------------------------------------------------------------


async def test_file_of_the_store_has_the_content_that_was_activated(tmp_path: Path) -> None:
    """While a version is activated it is loaded before it is the active one; undone, the former one counts again."""
    stage = Stage(tmp_path, loaded=True)
    first, second = stage.add("1"), stage.add("2")
    path = str(stage.trees.path(NAME, RELEASE))
    asked: list[str] = []

    def execute(run: object = stage.reloader.execute) -> object:
        async def noted(plan: Plan, caller: Caller) -> Sequence[OperationResult]:
            asked.append(stage.authorized(path))
            return await run(plan, caller)  # type: ignore[operator, no-any-return]

        return noted

    stage.reloader.execute = execute()  # type: ignore[method-assign, assignment]
    assert stage.authorized(path) == ""
    await stage.activation.activate(first, CALLER, load=True)
    await stage.activation.activate(second, CALLER, load=True)
    assert asked == [first.sha256, second.sha256]
    assert stage.authorized(path) == second.sha256
    stage.reloader.error = BadSignature("refused", module=NAME)
    with pytest.raises(BadSignature):
        await stage.activation.activate(first, CALLER, load=True)
    assert asked[2] == first.sha256
    assert stage.authorized(path) == second.sha256
    for other in (str(stage.tree / "kernel/dummy.ko"), "/etc/passwd", path.replace(RELEASE, "0.0.1")):
        assert stage.authorized(other) == ""


# --- which file the index takes -------------------------------------------------------------------------------------------


async def test_an_index_that_another_file_is_in_is_a_finding(stage: Stage) -> None:
    """Some other program ran depmod, and its order is another one than it was."""
    await stage.activation.activate(stage.add("1"), CALLER, load=False)
    await stage.watch.read()
    assert stage.names() == ["store"]
    (stage.tree / "modules.dep").write_text("updates/dkms/dummy.ko.xz:\n")
    await stage.watch.read()
    (found,) = stage.watch.findings()
    assert (found.name, found.module, found.status) == ("store-index", NAME, "degraded")
    assert found.message == (
        f"The module index of kernel {RELEASE} takes updates/dkms/dummy.ko.xz and not the active version 1 of dummy."
    )
    assert found.hint == f"kmodctl store activate dummy 1 --kernel {RELEASE}"
    await stage.activation.activate(next(iter(stage.catalogue.all())), CALLER, load=False)
    await stage.watch.read()
    assert stage.names() == ["store"], "as the hint says"


async def test_an_index_that_cannot_be_read_is_a_finding_and_is_not_read_all_the_time(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.activation.activate(stage.add("1"), CALLER, load=False)
    reads = 0

    def fails(*_: object) -> str:
        nonlocal reads
        reads += 1
        raise OSError(errno.EIO, "bad disk")

    monkeypatch.setattr(stage.trees, "indexed", fails)
    await stage.watch.read()
    for _ in range(3):
        assert stage.names() == ["store-index"]
    assert stage.watch.reading() is None
    assert reads == 1


async def test_the_lines_for_depmod_are_watched_and_written_again_at_the_start(stage: Stage) -> None:
    await stage.activation.activate(stage.add("1"), CALLER, load=False)
    await stage.watch.read()
    path = stage.folder / "etc/depmod.d/kmodd.conf"
    path.unlink()
    (found,) = stage.watch.findings()
    assert (found.name, found.hint) == ("store-index", "systemctl restart kmodd")
    await stage.activation.recover()
    assert stage.names() == ["store"]
    path.write_text("override dummy * updates\n")
    await stage.activation.recover()
    assert path.read_text() == "override dummy * updates\n", "it is somebody else's now"
    with pytest.raises(Conflict, match="was not written by kmodd") as caught:
        await stage.activation.activate(stage.add("2"), CALLER, load=False)
    assert caught.value.evidence.hint == "mv /etc/depmod.d/kmodd.conf /etc/depmod.d/local.conf"
    assert not stage.files.changes()
    path.unlink()
    await stage.activation.recover()
    assert stage.state == FIRST
    assert stage.names() == ["store"]
