# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodd's own files on a disk: what is asked is written, what cannot be is an error that says why, and nothing is lost."""

import asyncio
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kmodd.core.events import ConfigurationChanged
from kmodd.core.planning.policy import Policy
from kmodd.core.rules.configuration import Configuration
from kmodd.errors import (
    BadParameter,
    Builtin,
    Conflict,
    DisabledByPolicy,
    KmoddError,
    LimitsExceeded,
    ModuleTreeMissing,
    NoSuchModule,
    NotPermitted,
    UnknownParameter,
)
from kmodd.kernel.modprobe.modprobe_files import ConfigurationFolders
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.model import Caller, Rule
from kmodd.model.rules import ManagedFile, RuleAction, RuleChange
from kmodd.names import ModuleName
from tests.unit.fakes import Broadcaster, Journal, Ticks

CALLER = Caller(":1.7", 1000, exe="/usr/bin/kmodctl")
FOLDERS = ("etc/modprobe.d", "etc/modules-load.d", "var/lib/kmodd")


class Disk(ConfigurationFolders):
    """The folders, where a fault can be ordered for one file."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, "6.1.0", memory=root / "var/lib/kmodd")
        self.root = root
        self.faults: dict[ManagedFile, int] = {}
        self.meddle: bytes | None = None

    def write(self, file: ManagedFile, text: bytes | None, *, expected: bytes | None) -> None:
        if file in self.faults:
            raise OSError(self.faults[file], os.strerror(self.faults[file]))
        if self.meddle is not None:
            self.path(file).write_bytes(self.meddle)
        super().write(file, text, expected=expected)

    def path(self, file: ManagedFile) -> Path:
        return self.root / file[1:]

    def text(self, file: ManagedFile) -> str:
        return self.path(file).read_text()

    def lines(self, file: ManagedFile) -> list[str]:
        """What others read of it."""
        text = self.text(file) if self.path(file).exists() else ""
        return [line.replace("\t", " ").strip() for line in text.splitlines() if line and not line.startswith("#")]

    @property
    def everything(self) -> dict[str, bytes]:
        """Every file below /etc with its content."""
        return {str(path): path.read_bytes() for path in (self.root / "etc").rglob("*") if path.is_file()}


@dataclass
class Bench:
    """A configuration over a folder."""

    root: Path
    rules: Iterable[Rule] = ()
    journal: Journal = field(default_factory=Journal)
    hub: Broadcaster = field(default_factory=Broadcaster)

    def __post_init__(self) -> None:
        for folder in FOLDERS:
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self.disk = Disk(self.root)
        self.kernel = SimulatedKernel(rules_in_force=self.rules, loaded=())
        self.configuration = Configuration(
            self.disk, self.kernel.index, self.kernel.facts, Policy(self.kernel.index),
            audit=self.journal, events=self.hub, clock=Ticks(),
        )  # fmt: skip

    async def ask(self, action: RuleAction, module: str = "loop", **options: object) -> None:
        """Write a change."""
        given = options.pop("parameters", {})
        assert isinstance(given, dict)
        change = RuleChange(action, ModuleName(module), tuple(given.items()), **options)  # type: ignore[arg-type]
        self.configuration.check(change)
        await self.configuration.write(change, CALLER)

    async def refused(self, kind: type[KmoddError], action: RuleAction, module: str = "loop", **options: object) -> str:
        """Write a change that must fail and leave every file as it was; the sentence."""
        before = self.disk.everything
        with pytest.raises(kind) as raised:
            await self.ask(action, module, **options)
        assert self.disk.everything == before
        assert not [name for name in self.disk.everything if name.endswith(".new")]
        return f"{raised.value.message} / {raised.value.evidence.hint}"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_autoload_with_parameters(bench: Bench) -> None:
    await bench.ask(RuleAction.ENABLE_AUTOLOAD, parameters={"max_loop": "8"}, reason="disk images")
    assert bench.disk.lines(ManagedFile.AUTOLOAD) == ["loop"]
    assert bench.disk.lines(ManagedFile.OPTIONS) == ["options loop max_loop=8"]
    assert "# Reason: disk images\n" in bench.disk.text(ManagedFile.AUTOLOAD)
    (record,) = bench.journal.records
    assert (record.event, record.module, record.action, record.result) == (
        "configuration.changed", "loop", "enable-autoload", "changed",
    )  # fmt: skip
    assert record.extra["FILE"] == f"{ManagedFile.OPTIONS} {ManagedFile.AUTOLOAD}"
    assert (record.uid, record.reason, record.sender) == (1000, "disk images", ":1.7")
    assert bench.hub.published == [
        ConfigurationChanged(ModuleName("loop"), (ManagedFile.OPTIONS, ManagedFile.AUTOLOAD))
    ]


async def test_undoing_leaves_no_trace(bench: Bench) -> None:
    await bench.ask(RuleAction.ENABLE_AUTOLOAD, parameters={"max_loop": "8"})
    await bench.ask(RuleAction.BLACKLIST_HARD, "dummy", reason="not here")
    assert bench.disk.lines(ManagedFile.BLACKLIST) == [
        "blacklist dummy",
        "softdep dummy pre:",
        "install dummy /bin/false",
    ]
    await bench.ask(RuleAction.DISABLE_AUTOLOAD)
    await bench.ask(RuleAction.SET_OPTIONS)
    await bench.ask(RuleAction.UNBLACKLIST, "dummy")
    assert bench.disk.everything == {}


async def test_asking_for_what_is_changes_nothing(bench: Bench) -> None:
    for _ in range(2):
        await bench.ask(RuleAction.BLACKLIST)
    assert bench.journal.events == ["configuration.changed", "operation.unchanged"]
    assert len(bench.hub.published) == 1
    await bench.ask(RuleAction.UNBLACKLIST, "dummy")
    assert bench.journal.events[2:] == ["operation.unchanged"]


async def test_a_dry_run_writes_and_tells_nothing(bench: Bench) -> None:
    await bench.ask(RuleAction.BLACKLIST, dry_run=True)
    assert (bench.disk.everything, bench.journal.records, bench.hub.published) == ({}, [], [])


async def test_a_dry_run_finds_an_edit(bench: Bench) -> None:
    await bench.ask(RuleAction.BLACKLIST)
    bench.disk.path(ManagedFile.BLACKLIST).write_text(bench.disk.text(ManagedFile.BLACKLIST) + "blacklist dummy\n")
    await bench.refused(Conflict, RuleAction.UNBLACKLIST, dry_run=True)


# --- what is refused before anybody is asked for a password ----------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "action", "module", "parameters", "says"),
    [
        (NoSuchModule, RuleAction.ENABLE_AUTOLOAD, "lop", {}, "did you mean loop?"),
        (NoSuchModule, RuleAction.SET_OPTIONS, "lop", {"a": "1"}, "did you mean loop?"),
        (NoSuchModule, RuleAction.ENABLE_AUTOLOAD, "fs_vfat", {}, "write vfat"),
        (UnknownParameter, RuleAction.SET_OPTIONS, "loop", {"max_lop": "1"}, "did you mean max_loop?"),
        (UnknownParameter, RuleAction.ENABLE_AUTOLOAD, "loop", {"max_lop": "1"}, "did you mean max_loop?"),
        (BadParameter, RuleAction.SET_OPTIONS, "loop", {"max_loop": "many"}, "an integer"),
        (Builtin, RuleAction.SET_OPTIONS, "unix", {"a": "1"}, "kernel command line"),
        (Builtin, RuleAction.BLACKLIST, "unix", {}, "has no effect"),
    ],
)
async def test_impossible_requests(
    bench: Bench, kind: type[KmoddError], action: RuleAction, module: str, parameters: dict[str, str], says: str
) -> None:
    assert says in await bench.refused(kind, action, module, parameters=parameters)
    assert bench.journal.records == []


async def test_what_does_not_exist_can_be_kept_out_and_taken_away(bench: Bench) -> None:
    await bench.ask(RuleAction.BLACKLIST_HARD, "someday")
    assert bench.disk.lines(ManagedFile.BLACKLIST) == [
        "blacklist someday",
        "softdep someday pre:",
        "install someday /bin/false",
    ]
    for action in (RuleAction.DISABLE_AUTOLOAD, RuleAction.SET_OPTIONS, RuleAction.UNBLACKLIST):
        await bench.ask(action, "someday")
    assert bench.disk.everything == {}


async def test_without_a_module_tree_the_error_says_so(bench: Bench) -> None:
    bench.kernel.change_facts(tree_present=False)
    await bench.refused(ModuleTreeMissing, RuleAction.ENABLE_AUTOLOAD, "lop")


async def test_autoload_of_what_is_blacklisted_would_be_in_vain(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [Rule("blacklist", "loop", "", "/etc/modprobe.d/x.conf", 3, "blacklist loop")])
    assert "/etc/modprobe.d/x.conf, line 3" in await bench.refused(DisabledByPolicy, RuleAction.ENABLE_AUTOLOAD)
    await bench.ask(RuleAction.DISABLE_AUTOLOAD)


async def test_hard_where_another_install_line_comes_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [Rule("install", "loop", "/bin/x", "/etc/modprobe.d/a.conf", 3, "install loop /bin/x")])
    assert "/etc/modprobe.d/a.conf, line 3" in await bench.refused(Conflict, RuleAction.BLACKLIST_HARD)
    await bench.ask(RuleAction.BLACKLIST)


async def test_hard_where_a_softdep_line_that_comes_first_makes_install_lines_void(tmp_path: Path) -> None:
    def line(value: str, file: str) -> Rule:
        return Rule("softdep", "loop", value, file, 3, f"softdep loop {value}")

    first = Bench(tmp_path, [line("pre: dummy", "/etc/modprobe.d/a.conf")])
    message = await first.refused(Conflict, RuleAction.BLACKLIST_HARD)
    assert "/etc/modprobe.d/a.conf, line 3, makes modprobe ignore every install line about loop" in message
    # One that is read after ours, or leads nowhere, does not.
    for rule in (line("pre: dummy", "/lib/modules/6.1/modules.softdep"), line("pre: nosuch", "/etc/modprobe.d/a.conf")):
        await Bench(tmp_path, [rule]).ask(RuleAction.BLACKLIST_HARD)


@pytest.mark.parametrize(
    ("file", "conflict"),
    [("/usr/lib/modprobe.d/systemd.conf", True), ("/proc/cmdline", True), ("/etc/modprobe.d/a.conf", False)],
)
async def test_options_where_another_line_has_the_last_word(tmp_path: Path, file: str, conflict: bool) -> None:
    bench = Bench(tmp_path, [Rule("options", "loop", "max_loop=4 max_part=1", file, 3, "options loop max_loop=4")])
    asked = {"max_loop": "8"}
    if conflict:
        assert file in await bench.refused(Conflict, RuleAction.SET_OPTIONS, parameters=asked)
        assert file in await bench.refused(Conflict, RuleAction.ENABLE_AUTOLOAD, parameters=asked)
    else:
        await bench.ask(RuleAction.SET_OPTIONS, parameters=asked)
    await bench.ask(RuleAction.SET_OPTIONS, parameters={"max_loop": "4"})
    await bench.ask(RuleAction.SET_OPTIONS)


# --- other people's files --------------------------------------------------------------------------------------------


async def test_a_foreign_file_is_never_touched(bench: Bench) -> None:
    bench.disk.path(ManagedFile.OPTIONS).write_text("options loop max_loop=1\n")
    said = await bench.refused(Conflict, RuleAction.SET_OPTIONS, parameters={"max_loop": "8"})
    assert said.startswith(f"{ManagedFile.OPTIONS} was not written by kmodd")
    (record,) = bench.journal.records
    assert (record.event, record.error, record.extra["FILE"]) == ("operation.failed", "Conflict", ManagedFile.OPTIONS)


async def test_an_edit_is_a_conflict_that_shows_the_difference(bench: Bench) -> None:
    await bench.ask(RuleAction.SET_OPTIONS, parameters={"max_loop": "8"})
    path = bench.disk.path(ManagedFile.OPTIONS)
    path.write_text(path.read_text().replace("max_loop=8", "max_loop=9"))
    said = await bench.refused(Conflict, RuleAction.SET_OPTIONS, "dummy", parameters={"numdummies": "2"})
    assert "was edited since kmodd wrote it" in said
    assert "-options loop max_loop=8 | +options loop max_loop=9" in said
    (row,) = [row for row in await bench.configuration.show() if row.rule.file == ManagedFile.OPTIONS]
    assert row.ours
    assert [finding.kind for finding in row.findings] == ["edited"]
    assert "+options loop max_loop=9" in row.findings[0].message
    # Undoing the edit is enough.
    path.write_text(path.read_text().replace("max_loop=9", "max_loop=8"))
    await bench.ask(RuleAction.SET_OPTIONS, "dummy", parameters={"numdummies": "2"})


async def test_a_closed_file_is_reported_without_values(bench: Bench) -> None:
    await bench.ask(RuleAction.SET_OPTIONS, parameters={"max_loop": "8"})
    path = bench.disk.path(ManagedFile.OPTIONS)
    path.chmod(0o600)
    await bench.ask(RuleAction.SET_OPTIONS, parameters={"max_loop": "9"})
    assert [one.extra["PARAMETERS"] for one in bench.journal.records] == ["max_loop=8", "max_loop=…"]
    path.write_text(path.read_text().replace("max_loop=9", "max_loop=77"))
    said = await bench.refused(Conflict, RuleAction.SET_OPTIONS, "dummy", parameters={"numdummies": "2"})
    assert "was edited since kmodd wrote it" in said
    (row,) = [row for row in await bench.configuration.show() if row.rule.file == ManagedFile.OPTIONS]
    assert [finding.kind for finding in row.findings] == ["edited"]
    assert "77" not in said + row.findings[0].message


async def test_a_file_that_was_removed_is_written_again(bench: Bench) -> None:
    await bench.ask(RuleAction.BLACKLIST)
    bench.disk.path(ManagedFile.BLACKLIST).unlink()
    await bench.ask(RuleAction.BLACKLIST, "dummy")
    assert bench.disk.lines(ManagedFile.BLACKLIST) == ["blacklist dummy"]


async def test_a_link_is_neither_followed_nor_replaced(bench: Bench) -> None:
    target = bench.root / "etc/shadow"
    target.write_text("secret\n")
    bench.disk.path(ManagedFile.BLACKLIST).symlink_to(target)
    assert "is a symbolic link" in await bench.refused(Conflict, RuleAction.BLACKLIST)
    assert bench.disk.path(ManagedFile.BLACKLIST).is_symlink()
    assert target.read_text() == "secret\n"


async def test_a_folder_in_its_place(bench: Bench) -> None:
    bench.disk.path(ManagedFile.BLACKLIST).mkdir()
    await bench.refused(Conflict, RuleAction.BLACKLIST)


async def test_a_concurrent_writer(bench: Bench) -> None:
    bench.disk.meddle = b"blacklist mine\n"
    with pytest.raises(Conflict, match="at the same time"):
        await bench.ask(RuleAction.BLACKLIST)
    assert bench.disk.text(ManagedFile.BLACKLIST) == "blacklist mine\n"


async def test_many_at_once_lose_nothing(bench: Bench) -> None:
    names = [f"m{number}" for number in range(30)]
    await asyncio.gather(*(bench.ask(RuleAction.BLACKLIST, name) for name in names))
    assert sorted(bench.disk.lines(ManagedFile.BLACKLIST)) == sorted(f"blacklist {name}" for name in names)


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EROFS, "/etc/modprobe.d is on a read-only file system"),
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EACCES, "may not be written"),
        (errno.EIO, "cannot be written (EIO)"),
    ],
)
async def test_faults_of_the_disk(bench: Bench, number: int, says: str) -> None:
    await bench.ask(RuleAction.BLACKLIST, "dummy")
    bench.disk.faults[ManagedFile.BLACKLIST] = number
    assert says in await bench.refused(NotPermitted, RuleAction.BLACKLIST)
    assert bench.journal.records[-1].errno == number


async def test_a_missing_folder(bench: Bench) -> None:
    (bench.root / "etc/modprobe.d").rmdir()
    assert "no such directory: /etc/modprobe.d" in await bench.refused(NotPermitted, RuleAction.BLACKLIST)


async def test_two_files_are_written_both_or_none(bench: Bench) -> None:
    await bench.ask(RuleAction.SET_OPTIONS, "dummy", parameters={"numdummies": "2"})
    bench.disk.faults[ManagedFile.AUTOLOAD] = errno.ENOSPC
    await bench.refused(NotPermitted, RuleAction.ENABLE_AUTOLOAD, parameters={"max_loop": "8"})


async def test_the_copy_for_showing_edits_may_be_lost(bench: Bench) -> None:
    (bench.root / "var/lib/kmodd").rmdir()
    await bench.ask(RuleAction.BLACKLIST)
    bench.disk.path(ManagedFile.BLACKLIST).write_text(bench.disk.text(ManagedFile.BLACKLIST) + "blacklist dummy\n")
    assert "was edited" in await bench.refused(Conflict, RuleAction.UNBLACKLIST)


async def test_a_file_does_not_grow_for_ever(bench: Bench) -> None:
    many = (bench.ask(RuleAction.BLACKLIST, f"m{number}", reason="x" * 1000) for number in range(300))
    ended = await asyncio.gather(*many, return_exceptions=True)
    assert {type(one) for one in ended if one is not None} == {LimitsExceeded}
    assert ended.count(None) > 200
    assert len(bench.disk.text(ManagedFile.BLACKLIST)) <= 256 * 1024


async def test_a_caller_that_leaves_does_not_stop_a_write(bench: Bench) -> None:
    change = RuleChange(RuleAction.BLACKLIST, ModuleName("loop"))
    asking = asyncio.create_task(bench.configuration.write(change, CALLER))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await bench.ask(RuleAction.BLACKLIST)  # waits for its turn
    assert bench.disk.lines(ManagedFile.BLACKLIST) == ["blacklist loop"]
    assert bench.journal.events == ["configuration.changed", "operation.unchanged"]
