# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy for the attack surface: its files, what decides, and what is written, on a simulated kernel."""

import asyncio
import errno
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from kmodd.config.toml_file import parse_document
from kmodd.core.rules.managed_files import is_intact
from kmodd.core.surface.enforcement import FILE, Enforcement
from kmodd.core.surface.policy import read_policy
from kmodd.core.surface.rule_file import TRIAL_FILE as TRIAL
from kmodd.core.surface.rule_file import trial_end
from kmodd.core.trial import TRIAL_MAX, TRIAL_MIN, TrialDeadline, check_trial
from kmodd.errors import Conflict, InvalidArgs, ModuleTreeMissing, NotPermitted
from kmodd.journal.reader import MemoryJournal
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import SimulatedModule
from kmodd.model import Caller, HistoryEntry, HistoryQuery, Record, Rule
from kmodd.model.settings import Document
from kmodd.model.surface import Because, Decision, Mode, Reading, SurfacePlan, Want
from kmodd.names import ModuleName

ROOT = Path(__file__).resolve().parents[2]
NOW = int(datetime(2026, 11, 30, tzinfo=UTC).timestamp() * 1_000_000)
MODULES = (
    SimulatedModule("vfat", depends=("fat",), aliases=("fs-vfat",)),
    SimulatedModule("fat"),
    SimulatedModule("btrfs", aliases=("fs-btrfs",), softdep_pre=("crc32c",)),
    SimulatedModule("crc32c"),
    SimulatedModule("rxrpc", aliases=("net-pf-33",)),
    SimulatedModule("kafs", depends=("rxrpc",), aliases=("fs-afs",)),
    SimulatedModule("usb-storage", aliases=("usb:v0781p5406d*",)),
    SimulatedModule("softdog"),
)
ENFORCE = '[surface]\nmode = "enforce"\n'
ROOT_USER = Caller(":1.1", 0)


class Folder:
    """The files of surface.d, in memory."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def changed(self) -> bool:
        return True

    def read(self) -> Sequence[Document]:
        return [parse_document(text, name) for name, text in sorted(self.texts.items())]


class Journal(MemoryJournal):
    """Can fail to be read."""

    fault: OSError | None = None

    def read(self, query: HistoryQuery) -> list[HistoryEntry]:
        if self.fault is not None:
            raise self.fault
        return super().read(query)


class Bench:
    """A kernel and its policy."""

    def __init__(self, text: str = ENFORCE, *rules: Rule, loaded: tuple[str, ...] = ()) -> None:
        self.kernel = SimulatedKernel(MODULES, rules_in_force=rules, loaded=loaded, pace=0)
        self.journal = Journal(lambda: NOW)
        self.folder = Folder()
        self.folder.texts["10.toml"] = text
        self.desired: list[tuple[ModuleName, str]] = []
        self.now = NOW
        self.enforcement = self.daemon()

    def daemon(self) -> Enforcement:
        """What a daemon that was just started has."""
        return Enforcement(
            self.kernel.installed,
            self.kernel.needs,
            self.kernel.configuration,
            self.folder,
            loaded=self.kernel.loaded,
            facts=self.kernel.facts,
            index=self.kernel.index,
            history=self.journal,
            desired=lambda: self.desired,
            audit=self.journal,
            clock=lambda: self.now,
        )

    def want(self, *wants: Want, source: str = "mounts", fault: str = "") -> None:
        self.kernel.needs.readings = (Reading(source, wants, fault),)

    async def decision(self, module: str) -> Decision:
        plan = await self.enforcement.plan()
        return next(decision for decision in plan.decisions if decision.module == module)

    async def apply(self, *, weaken: bool = False, dry_run: bool = False, trial: int = 0) -> SurfacePlan:
        return await self.enforcement.apply(ROOT_USER, weaken=weaken, dry_run=dry_run, reason="", trial=trial)

    async def kinds(self) -> list[tuple[str, str]]:
        return [(fault.kind, fault.module or "") for fault in await self.enforcement.check("")]

    @property
    def text(self) -> str:
        return (self.kernel.configuration.read(FILE) or b"").decode()

    @property
    def tried(self) -> str:
        return (self.kernel.configuration.read(TRIAL) or b"").decode()


def rule(kind: str, module: str, value: str, file: str) -> Rule:
    return Rule(kind, module, value, file, 1, f"{kind} {module} {value}")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[surfac]\nmode = "off"', "line 1: unknown setting surfac; did you mean surface?"),
        (
            '[surface]\nmode = "enforced"',
            "line 2: surface.mode must be one of off, audit, enforce; did you mean enforce?",
        ),
        (
            '[surface]\nscope = ["usrns"]',
            "line 2: scope must be a list of unprivileged, userns, device, hardware; did you mean",
        ),
        ('[surface]\nprofile = ["bas"]\n[profile.base.block.x]', "line 2: no profile bas; did you mean base?"),
        ("[allow.x]\nids = []", "line 2: unknown setting allow.x.ids; expected: reason, until, when"),
        ('[allow.x]\nuntil = "2027-01-01"', "line 2: until must be a date such as 2027-03-31, without quotes"),
        ('[block.x]\nwhen.kernel = ">="', "line 2: kernel must be a comparison"),
        ('[block."a/b"]', "line 1: a/b is not a module name"),
        ("[block.usb-storage]\n[block.usb_storage]", "line 2: usb_storage is already described in x.toml, line 1"),
    ],
)
def test_an_invalid_file_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(Conflict) as caught:
        read_policy([parse_document(text, "x.toml")])
    assert message in caught.value.message


def test_a_file_says_what_it_says() -> None:
    policy = read_policy(
        [
            parse_document('[surface]\nmode = "audit"\nscope = ["device"]\nprofile = ["p"]', "a.toml"),
            parse_document(
                '[allow.sctp]\nreason = "SIGTRAN"\nuntil = 2027-03-31\n[profile.p.block.usb-storage]\nids = ["CIS 1.1.1.9"]',
                "b.toml",
            ),
        ]
    )
    assert (policy.mode, policy.scope, policy.profiles) == (Mode.AUDIT, ("device",), ("p",))
    assert policy.allow[ModuleName("sctp")].until == date(2027, 3, 31)
    storage = policy.profiled[ModuleName("usb_storage")]
    assert (storage.written, storage.ids, storage.place) == ("usb-storage", ("CIS 1.1.1.9",), "b.toml, line 4")


def test_shipped_profiles_are_valid_and_only_block() -> None:
    files = sorted((ROOT / "install/surface.d").glob("*.toml"))
    documents = [parse_document(path.read_text(), path.name) for path in files]
    names = ["base", "cis-debian12-l1", "cis-debian12-l2", "stig-rhel8", "stig-rhel9", "stig-rhel10", "stig-ubuntu2204"]
    policy = read_policy([*documents, parse_document(f"[surface]\nprofile = {names}", "own.toml")])
    assert policy.profiles == tuple(names)
    assert (policy.allow, policy.block) == ({}, {})
    cis = {name: rule for name, rule in policy.profiled.items() if rule.profile.startswith("cis")}
    assert cis[ModuleName("usb_storage")].ids == ("CIS 1.1.1.9", "kernel_module_usb-storage_disabled")
    assert {"sctp", "squashfs"} <= set(cis)


@pytest.mark.parametrize(
    ("profile", "modules", "rule", "example"),
    [
        ("stig-rhel8", 9, r"RHEL-08-04\d{4}", ("RHEL-08-040020", "V-230493", "kernel_module_uvcvideo_disabled")),
        ("stig-rhel9", 8, r"RHEL-09-2\d{5}", ("RHEL-09-213045", "V-257804", "kernel_module_atm_disabled")),
        ("stig-rhel10", 5, r"RHEL-10-70\d{4}", ("RHEL-10-701100", "V-281312", "kernel_module_can_disabled")),
        (
            "stig-ubuntu2204",
            1,
            r"UBTU-22-29\d{4}",
            ("UBTU-22-291010", "V-260540", "kernel_module_usb-storage_disabled"),
        ),
    ],
)
def test_each_module_of_a_stig_has_the_ids_of_one_rule(
    profile: str, modules: int, rule: str, example: tuple[str, ...]
) -> None:
    path = ROOT / f"install/surface.d/{profile}.toml"
    own = parse_document(f'[surface]\nprofile = ["{profile}"]', "own.toml")
    profiled = read_policy([parse_document(path.read_text(), path.name), own]).profiled
    assert len(profiled) == len({each.ids for each in profiled.values()}) == modules
    assert example in {each.ids for each in profiled.values()}
    for each in profiled.values():
        version, vulnerability, name = each.ids
        assert re.fullmatch(rule, version)
        assert re.fullmatch(r"V-2[2-8]\d{4}", vulnerability)
        assert name == f"kernel_module_{each.written}_disabled"


# --- decisions --------------------------------------------------------------------------------------------------------


async def test_what_nothing_needs_is_blocked_within_the_scope_only() -> None:
    plan = await Bench().enforcement.plan()
    assert {decision.module for decision in plan.decisions} == {"vfat", "fat", "btrfs", "crc32c", "rxrpc", "kafs"}
    assert all(decision.because is Because.DEFAULT for decision in plan.decisions)


async def test_a_need_is_closed_over_dependencies_and_soft_dependencies() -> None:
    bench = Bench()
    bench.want(Want("fs-vfat", "mounted at /mnt"), Want("btrfs", "mounted at /srv"))
    needs = await bench.enforcement.needs("")
    assert needs.reasons[ModuleName("fat")][0].evidence == "vfat depends on it"
    assert needs.reasons[ModuleName("crc32c")][0].source == "soft-dependency"
    assert (await bench.decision("fat")).because is Because.NEEDED
    assert not (await bench.decision("crc32c")).blocked


async def test_a_floor_is_blocked_by_nothing() -> None:
    bench = Bench(f"{ENFORCE}[block.fat]\n")
    bench.want(Want("fs-vfat", "mounted at /boot/efi", floor=True))
    decision = await bench.decision("fat")
    assert (decision.blocked, decision.because) == (False, Because.FLOOR)
    (remark,) = (await bench.enforcement.plan()).remarks
    assert (remark.kind, remark.module, remark.file, remark.line) == ("floor", "fat", "10.toml", 3)


@pytest.mark.parametrize(
    ("text", "because", "blocked"),
    [
        ("[block.rxrpc]\n[allow.rxrpc]", Because.BLOCK, True),
        ("[allow.rxrpc]", Because.ALLOW, False),
        ("", Because.NEEDED, False),
        ("[block.rxrpc]\nuntil = 2026-11-29", Because.NEEDED, False),
        ("[block.rxrpc]\nuntil = 2026-11-30", Because.BLOCK, True),
        ('[block.rxrpc]\nwhen.kernel = "<1"', Because.NEEDED, False),
    ],
)
async def test_the_stronger_one_decides(text: str, because: Because, blocked: bool) -> None:
    bench = Bench(ENFORCE + text)
    bench.want(Want("rxrpc", "a test"))
    decision = await bench.decision("rxrpc")
    assert (decision.because, decision.blocked) == (because, blocked)


@pytest.mark.parametrize(
    ("condition", "blocked"),
    [
        ("until = 2026-11-29", True),
        ("until = 2026-11-30", False),
        ('when.kernel = "<1"', True),
        ('when.kernel = ">=1"', False),
    ],
)
async def test_a_table_that_does_not_apply_allows_nothing(condition: str, blocked: bool) -> None:
    bench = Bench(f"{ENFORCE}[allow.kafs]\n{condition}\n")
    assert [(await bench.decision(name)).blocked for name in ("kafs", "rxrpc")] == [blocked, blocked]


async def test_a_profile_blocks_what_is_not_needed_in_any_reach() -> None:
    text = '[surface]\nmode = "enforce"\nprofile = ["p"]\n[profile.p.block.usb-storage]\nids = ["CIS 1.1.1.9"]\n'
    bench = Bench(text)
    assert (await bench.decision("usb_storage")).because is Because.PROFILE
    # An initramfs for any machine has the driver, which says nothing of this one.
    bench.kernel.needs.image = Reading("initramfs", (Want("usb_storage", "in /boot/initrd.img"),))
    assert (await bench.decision("usb_storage")).because is Because.PROFILE
    bench.want(Want("usb:v0781p5406d0", "device"), source="devices")
    assert (await bench.decision("usb_storage")).because is Because.NEEDED


async def test_what_breaks_is_named() -> None:
    bench = Bench(f"{ENFORCE}[block.rxrpc]\n[allow.kafs]\n")
    assert (await bench.decision("rxrpc")).breaks == ("kafs",)


async def test_history_desired_state_and_what_is_loaded_count() -> None:
    bench = Bench(loaded=("vfat",))
    bench.journal.record(Record("module.loaded", "x", module="btrfs", exe="/usr/bin/x"))
    bench.desired.append((ModuleName("rxrpc"), "a.toml, line 2"))
    needs = await bench.enforcement.needs("")
    assert needs.reasons[ModuleName("vfat")][0].source == "loaded"
    assert needs.reasons[ModuleName("btrfs")][0].evidence == "loaded on 2026-11-30 by /usr/bin/x"
    assert needs.reasons[ModuleName("rxrpc")][0].evidence == "a.toml, line 2"
    with pytest.raises(ModuleTreeMissing):
        await bench.enforcement.needs("9.9")


@pytest.mark.parametrize("source", ["journal", "units"])
async def test_nothing_counts_as_not_needed_where_a_source_cannot_be_read(source: str) -> None:
    bench = Bench(f"{ENFORCE}[block.kafs]\n")
    if source == "journal":
        bench.journal.fault = OSError(errno.EIO, "x")
    else:
        bench.want(source="units", fault="cannot be read (EACCES)")
    assert (await bench.decision("vfat")).because is Because.UNKNOWN
    assert (await bench.decision("kafs")).blocked
    assert ("unreadable", "") in await bench.kinds()


# --- rules ------------------------------------------------------------------------------------------------------------


async def test_rules_are_written_as_scanners_and_libkmod_want_them() -> None:
    bench = Bench('[surface]\nmode = "enforce"\nscope = []\n[block.usb-storage]\nreason = "policy 12"\n[block.btrfs]\n')
    await bench.apply()
    assert is_intact(bench.text.encode())
    assert "\n# Reason: policy 12\nblacklist usb-storage\ninstall usb-storage /bin/false\n" in bench.text
    assert "\nsoftdep btrfs pre:\nblacklist btrfs\ninstall btrfs /bin/false\n" in bench.text
    before = bench.text
    # Our own line hides the soft dependency from modprobe, and must not be lost for that.
    assert (await bench.apply()).block == ()
    assert bench.text == before
    assert await bench.kinds() == []
    assert [entry.record.event for entry in bench.journal.read(HistoryQuery())] == [
        "policy.applied",
        "operation.unchanged",
    ]


async def test_audit_and_dry_run_write_nothing() -> None:
    bench = Bench('[surface]\nmode = "audit"\n')
    plan = await bench.apply()
    assert any(decision.blocked for decision in plan.decisions)
    bench.folder.texts["10.toml"] = ENFORCE
    assert len((await bench.apply(dry_run=True)).block) == 6
    assert bench.text == ""


async def test_nothing_is_allowed_again_without_being_told_to() -> None:
    bench = Bench()
    await bench.apply()
    bench.folder.texts["20.toml"] = "[allow.kafs]\n"
    before = bench.text
    with pytest.raises(Conflict, match=r"2 modules would be allowed again: kafs, rxrpc"):
        await bench.apply()
    assert bench.text == before
    plan = await bench.apply(weaken=True)
    assert plan.release == ("kafs", "rxrpc")
    assert "rxrpc" not in bench.text


@pytest.mark.parametrize(
    ("kind", "value"), [("install", "/sbin/modprobe -i btrfs"), ("softdep", "pre: crc32c"), ("install", "logger x")]
)
async def test_a_line_that_is_read_first_and_undoes_a_rule_is_named(kind: str, value: str) -> None:
    bench = Bench(ENFORCE, rule(kind, "btrfs", value, "/etc/modprobe.d/00-a.conf"))
    with pytest.raises(Conflict) as caught:
        await bench.apply()
    assert (caught.value.evidence.file, caught.value.evidence.line) == ("/etc/modprobe.d/00-a.conf", 1)
    assert bench.text == ""


async def test_a_line_that_comes_later_is_named_by_the_check() -> None:
    bench = Bench()
    await bench.apply()
    others = [rule for rule in bench.kernel.index.all_rules() if rule.file == FILE]
    bench.kernel.change_rules(rule("install", "btrfs", "/sbin/modprobe -i btrfs", "/etc/modprobe.d/00-a.conf"), *others)
    assert await bench.kinds() == [("undone", "btrfs")]


async def test_an_edited_file_is_not_touched() -> None:
    bench = Bench()
    await bench.apply()
    edited = bench.text.replace("install fat /bin/false\n", "").encode()
    bench.kernel.configuration.edit(FILE, edited)
    with pytest.raises(Conflict, match="was edited since kmodd wrote it"):
        await bench.apply()
    assert await bench.kinds() == [("edited", "")]
    bench.kernel.configuration.edit(FILE, b"install fat /bin/false\n")
    with pytest.raises(Conflict, match="was not written by kmodd"):
        await bench.apply()


@pytest.mark.parametrize("public", [True, False])
async def test_an_edit_is_shown_only_where_everyone_may_read_it(monkeypatch: pytest.MonkeyPatch, public: bool) -> None:
    """The sentence goes to the journal, to health and to whoever may ask for a check."""
    bench = Bench()
    await bench.apply()
    bench.kernel.configuration.edit(FILE, bench.text.encode() + b"options fat secret=1\n")
    monkeypatch.setattr(type(bench.kernel.configuration), "is_public", lambda *_: public)
    with pytest.raises(Conflict) as error:
        await bench.apply()
    assert ("secret=1" in f"{error.value} {error.value.evidence}") is public


async def test_a_fault_of_the_disk_is_reported() -> None:
    bench = Bench()
    bench.kernel.configuration.fault = OSError(errno.EROFS, "x")
    with pytest.raises(NotPermitted, match="read-only file system"):
        await bench.apply()
    assert bench.text == ""


async def test_a_blocked_module_that_is_loaded_is_no_need() -> None:
    bench = Bench()
    await bench.apply()
    bench.kernel.insmod("btrfs")
    assert await bench.kinds() == [("loaded", "btrfs")]


async def test_a_module_that_a_new_kernel_needs_is_named() -> None:
    bench = Bench()
    await bench.apply()
    bench.want(Want("fat", "interface eth0, which is up", floor=True), source="network")
    assert await bench.kinds() == [("needed", "fat")]
    bench.folder.texts["10.toml"] = '[surface]\nmode = "off"\n'
    assert ("superfluous", "vfat") in await bench.kinds()


# --- trial ------------------------------------------------------------------------------------------------------------


def last(bench: Bench) -> Record:
    return bench.journal.read(HistoryQuery(limit=1))[0].record


async def ended(bench: Bench) -> None:
    for _ in range(2000):
        if not bench.tried:
            return
        await asyncio.sleep(0.005)
    pytest.fail("the trial goes on")


async def test_confirmed_rules_are_those_that_were_tried() -> None:
    bench, straight = Bench(), Bench()
    plan = await bench.apply(trial=60)
    assert plan.until == NOW + 60_000_000
    assert bench.text == ""
    assert "# On trial until 2026-11-30 00:01:00 UTC (" in bench.tried
    assert "install rxrpc /bin/false" in bench.tried
    assert ("trial", "") in await bench.kinds()
    confirmed = await bench.enforcement.confirm(ROOT_USER, "")
    assert confirmed.block == plan.block
    assert bench.tried == ""
    await straight.apply()
    assert bench.text == straight.text
    assert await bench.kinds() == []
    await bench.enforcement.close()
    assert bench.text == straight.text, "what was confirmed does not end with kmodd"


async def test_a_trial_that_nobody_confirms_ends() -> None:
    bench = Bench()
    bench.now = NOW - 60_000_000
    await bench.apply(trial=60)
    bench.now = NOW
    # Another process, after a crash: the time is over.
    after = bench.daemon()
    after.start()
    await ended(bench)
    await after.close()
    record = last(bench)
    assert (record.action, record.reason) == ("surface-revert", "the trial was not confirmed in time")
    assert "rxrpc" in record.extra["ALLOWED"].split()
    with pytest.raises(Conflict, match="no rules are on trial"):
        await bench.enforcement.confirm(ROOT_USER, "")
    await bench.enforcement.close()


async def test_a_trial_goes_on_over_a_crash_and_ends_with_an_orderly_stop() -> None:
    bench = Bench()
    await bench.apply(trial=60)
    after = bench.daemon()
    after.start()
    await asyncio.sleep(0.02)
    assert bench.tried
    await after.close()
    assert not bench.tried
    assert last(bench).reason == "kmodd was stopped"
    await bench.enforcement.close()


async def test_while_rules_are_on_trial_no_others_are_applied() -> None:
    bench = Bench()
    await bench.apply(trial=60)
    for trial in (0, 60):
        with pytest.raises(Conflict, match="on trial until 2026-11-30 00:01:00 UTC"):
            await bench.apply(trial=trial)
    assert "rxrpc" in (await bench.enforcement.revert(ROOT_USER, "")).release
    assert not bench.tried
    await bench.apply()
    assert bench.text
    await bench.enforcement.close()


async def test_a_trial_allows_nothing() -> None:
    bench = Bench()
    await bench.apply()
    bench.want(Want(ModuleName("rxrpc"), "it is mounted"))
    with pytest.raises(Conflict, match="would be allowed again: rxrpc"):
        await bench.apply(weaken=True, trial=60)
    assert not bench.tried
    await bench.enforcement.close()


async def test_a_rule_that_does_not_act_begins_no_trial() -> None:
    bench = Bench(ENFORCE, rule("install", "rxrpc", "/sbin/modprobe -i rxrpc", "/etc/modprobe.d/00-a.conf"))
    with pytest.raises(Conflict, match=r"00-a\.conf"):
        await bench.apply(trial=60)
    assert not bench.tried
    await bench.enforcement.close()


async def test_an_edited_trial_is_not_kept_and_does_not_outlive_the_daemon() -> None:
    bench = Bench()
    await bench.apply(trial=60)
    edited = bench.tried.replace("install rxrpc /bin/false", "install rxrpc /bin/sh")
    bench.kernel.configuration.edit(TRIAL, edited.encode())
    with pytest.raises(Conflict, match="edited"):
        await bench.enforcement.confirm(ROOT_USER, "")
    assert bench.text == ""
    assert trial_end(edited.encode()) == 0
    after = bench.daemon()
    after.start()
    await ended(bench)
    await after.close()
    await bench.enforcement.close()


async def test_nothing_that_was_allowed_since_is_blocked_by_confirming() -> None:
    bench = Bench()
    await bench.apply(trial=60)
    tried = bench.tried
    other = Bench(ENFORCE + '[block.softdog]\nreason = "x"\n')
    await other.apply()
    bench.kernel.configuration.edit(FILE, other.text.encode())
    with pytest.raises(Conflict, match="was changed since the trial began"):
        await bench.enforcement.confirm(ROOT_USER, "")
    assert (bench.text, bench.tried) == (other.text, tried)
    await bench.enforcement.close()


@pytest.mark.parametrize("seconds", [0, TRIAL_MIN - 1, TRIAL_MAX + 1])
def test_a_trial_takes_seconds_to_a_day(seconds: int) -> None:
    with pytest.raises(InvalidArgs):
        check_trial(seconds)


async def test_a_trial_ends_though_the_system_fails_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a thread to be had, for example: the rules may not stay for that."""
    attempts: list[int] = []

    async def end() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr("kmodd.core.trial.TRIAL_RETRY", 0.01)
    deadline = TrialDeadline(lambda: NOW, end)
    deadline.set(NOW)
    for _ in range(1000):
        if len(attempts) == 2:
            break
        await asyncio.sleep(0.005)
    await deadline.close()
    assert len(attempts) == 2
