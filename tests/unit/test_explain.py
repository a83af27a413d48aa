# SPDX-License-Identifier: LGPL-2.1-or-later
"""`Explain` says what a module is, why it is there, what holds it and what would keep it from loading."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from kmodd.core.diagnosis.explain import BootLoads, Explainer
from kmodd.core.diagnosis.in_use import unexplained
from kmodd.core.events import EventHub, StepStarted
from kmodd.core.planning.policy import Policy
from kmodd.core.registry import Registry
from kmodd.errors import Conflict, Evidence, ModuleTreeMissing, NoSuchModule
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import Fault, FaultKind
from kmodd.model import (
    Explanation,
    Failure,
    LoadedBy,
    LoadedModule,
    ModuleLoad,
    Record,
    Remedy,
    Requester,
    Rule,
    State,
    StepAction,
    Usage,
    User,
)
from kmodd.names import ModuleName

M = ModuleName


class Bench:
    """An explainer over a simulated kernel."""

    def __init__(
        self,
        failures: Mapping[str, Failure] | None = None,
        kernel: SimulatedKernel | None = None,
        boot: "Boot | None" = None,
    ) -> None:
        self.kernel = kernel or SimulatedKernel(pace=0)
        self.hub = EventHub(lambda *_: None)
        self.records: list[Record] = []
        self.registry = Registry(self.kernel.loaded, self.kernel.facts, self.hub, self, lambda: 5)
        self.stop = self.registry.start()
        self.explainer = Explainer(
            loaded=self.kernel.loaded,
            index=self.kernel.index,
            inspection=self.kernel.inspection,
            facts=self.kernel.facts,
            policy=Policy(self.kernel.index),
            registry=self.registry,
            failure=(failures or {}).get,
            boot=BootLoads(self.kernel.index, boot.journal, boot.lists, boot.look_into_image) if boot else None,
        )

    def record(self, record: Record) -> None:
        self.records.append(record)

    async def explain(self, name: str) -> Explanation:
        return await self.explainer.explain(M(name))


async def test_a_dependency_is_needed_by_its_holders() -> None:
    answer = await Bench().explain("jbd2")
    assert (answer.state, answer.references, answer.holders) == (State.LIVE, 1, ("ext4",))
    assert answer.users == (User("module", "ext4", "uses it"),)
    assert not answer.removable
    assert answer.blockers == ("ext4 uses it: unload it first, or together with it.",)
    assert answer.because == "needed by ext4"


async def test_what_user_space_holds_is_named() -> None:
    answer = await Bench().explain("ext4")
    assert answer.users == (User("mount", "/", "/dev/vda1"),)
    assert answer.blockers == ("It is mounted at / (/dev/vda1).",)
    assert answer.because == "loaded before kmodd started, by what is not known"


class Boot:
    """What journal and lists of a boot tell."""

    def __init__(self) -> None:
        self.loads: dict[ModuleName, ModuleLoad] = {}
        self.rules: list[Rule] = []
        self.image: frozenset[ModuleName] | None = None
        self.closed = False
        self.readings = 0

    def look_into_image(self) -> frozenset[ModuleName] | None:
        return self.image

    def journal(self) -> dict[ModuleName, ModuleLoad]:
        self.readings += 1
        if self.closed:
            raise PermissionError(13, "closed")
        return self.loads

    def lists(self) -> list[Rule]:
        if self.closed:
            raise PermissionError(13, "closed")
        return self.rules


AT_BOOT = ModuleLoad(
    M("ext4"), Requester(9, 0, "systemd-modules", "/lib/systemd/systemd-modules-load", "u.service"), time=3
)
LISTED = Rule("autoload", "fs_ext4", "", "/etc/modules-load.d/a.conf", 3, "fs-ext4")


async def test_load_at_boot_is_told_by_the_journal() -> None:
    boot = Boot()
    boot.loads[M("ext4")] = AT_BOOT
    bench = Bench(boot=boot)
    answer = await bench.explain("ext4")
    assert answer.because == "loaded by systemd-modules-load (pid 9, uid 0, u.service)"
    assert answer.loaded_by is not None
    assert (answer.loaded_by.time, answer.loaded_by.client) == (3, "/lib/systemd/systemd-modules-load")
    await bench.explain("ext4")
    assert boot.readings == 1


async def test_load_at_boot_may_be_told_by_a_list() -> None:
    boot = Boot()
    boot.rules = [replace(LISTED, module="loop"), LISTED]
    answer = await Bench(boot=boot).explain("ext4")
    assert answer.because == "loaded before kmodd started; /etc/modules-load.d/a.conf, line 3, lists it"
    assert answer.loaded_by is None, "that it is listed does not say who loaded it"


@pytest.mark.parametrize("closed", [False, True], ids=["not public", "unreadable"])
async def test_what_is_not_known_of_a_load_at_boot_is_said_to_be_unknown(closed: bool) -> None:
    boot = Boot()
    boot.rules, boot.closed = [replace(LISTED, public=False)], closed
    answer = await Bench(boot=boot).explain("ext4")
    says = "; the journal of this boot cannot be read" if closed else ", by what is not known"
    assert answer.because == f"loaded before kmodd started{says}"


async def test_load_in_the_initramfs_is_told_by_what_it_has() -> None:
    """What is older than everything that the image does not have was there before the root file system."""
    boot = Boot()
    loaded = Bench().kernel.loaded.snapshot()
    order = list(reversed(list(loaded)))
    place = order.index(M("ext4"))
    boot.image = frozenset(order[: place + 1])
    begins = "loaded before kmodd started, most likely in the initramfs, which has it"
    assert (await Bench(boot=boot).explain("ext4")).because == begins
    boot.rules = [replace(LISTED, file="/etc/initramfs-tools/modules")]
    listed = f"{begins}; /etc/initramfs-tools/modules, line 3, lists it"
    assert (await Bench(boot=boot).explain("ext4")).because == listed
    boot.rules = []
    for image in (None, boot.image - {M("ext4")}, boot.image - {order[0]}):
        boot.image = image
        assert (await Bench(boot=boot).explain("ext4")).because.endswith("by what is not known")


async def test_journal_of_the_boot_is_about_no_later_load() -> None:
    boot = Boot()
    boot.loads[M("dummy")] = replace(AT_BOOT, module=M("dummy"))
    bench = Bench(boot=boot)
    bench.kernel.modprobe("dummy")
    answer = await bench.explain("dummy")
    assert answer.loaded_by is None
    assert boot.readings == 0


async def test_what_nothing_explains_is_the_kernel() -> None:
    bench = Bench()
    bench.kernel.modprobe("kmodd_test_self_ref")
    answer = await bench.explain("kmodd_test_self_ref")
    assert [user.kind for user in answer.users] == ["kernel"]
    (blocker,) = answer.blockers
    assert blocker == (
        "Mounts, devices, interfaces, traffic control, netfilter, IPVS, IPsec, configfs, open files, mappings, "
        "sockets, tracing and kernel settings "
        "do not explain what uses it: 1 reference that nothing in user space explains."
    )


async def test_a_free_module_is_removable() -> None:
    bench = Bench()
    bench.kernel.modprobe("loop")
    answer = await bench.explain("loop")
    assert (answer.removable, answer.blockers, answer.loadable) == (True, (), True)


async def test_who_loaded_it_is_known_when_it_was_through_us() -> None:
    bench = Bench()
    by = LoadedBy(1000, ":1.7", "ticket 12", 3)
    bench.hub.publish(StepStarted(M("loop"), StepAction.INSERT, by))
    bench.kernel.modprobe("loop")
    bench.registry.look()
    answer = await bench.explain("loop")
    assert answer.loaded_by == by
    assert answer.because == "loaded through kmodd by uid 1000: ticket 12"
    bench.stop()


async def test_a_module_for_hardware_says_what_it_drives() -> None:
    assert (await Bench().explain("virtio_net")).because == "drives eth0"


@pytest.mark.parametrize(
    ("name", "state", "removable", "loadable"),
    [
        ("loop", State.AVAILABLE, False, True),
        ("unix", State.BUILTIN, False, True),
        ("nonsense", State.ABSENT, False, False),
        ("pcspkr", State.DISABLED, False, False),
        ("dccp", State.DISABLED, False, False),
    ],
)
async def test_what_is_not_loaded(name: str, state: State, removable: bool, loadable: bool) -> None:
    answer = await Bench().explain(name)
    assert (answer.state, answer.removable, answer.loadable) == (state, removable, loadable)
    assert bool(answer.blockers) == (state is not State.AVAILABLE)


async def test_the_rule_that_decides_is_named_with_its_place() -> None:
    bench = Bench()
    assert (await bench.explain("pcspkr")).policy == "/etc/modprobe.d/blacklist.conf:3: blacklist pcspkr"
    assert (await bench.explain("dccp")).policy == "/etc/modprobe.d/hardening.conf:2: install dccp /bin/false"
    bench.kernel.change_facts(command_line="module_blacklist=tun")
    assert (await bench.explain("tun")).policy == "/proc/cmdline:1: module_blacklist=tun"
    assert (await bench.explain("loop")).policy == ""


async def test_a_rule_about_a_dependency_blocks_too() -> None:
    bench = Bench()
    bench.kernel.change_rules(Rule("blacklist", "fat", "", "/etc/modprobe.d/x.conf", 4, "blacklist fat"))
    answer = await bench.explain("vfat")
    assert answer.state is State.AVAILABLE
    assert not answer.loadable
    assert "vfat needs fat" in answer.blockers[0]


async def test_a_hung_module_and_who_needs_it() -> None:
    bench = Bench()
    bench.kernel.modprobe("kmodd_test_exit_hang")
    await bench.kernel.executor.insert(bench.kernel.index.path(M("kmodd_test_init_hang")), "", timeout=1)
    await bench.kernel.executor.remove(M("kmodd_test_exit_hang"), timeout=1)
    coming, going = await bench.explain("kmodd_test_init_hang"), await bench.explain("kmodd_test_exit_hang")
    assert (coming.state, going.state) == (State.COMING, State.GOING)
    assert not coming.removable
    assert not coming.loadable
    assert "init() has not returned" in coming.blockers[0]
    assert "exit() has not returned" in going.blockers[0]


async def test_permanent_and_disabled_kernels_block_removal() -> None:
    bench = Bench()
    bench.kernel.modprobe("kmodd_test_permanent")
    assert "no exit function" in (await bench.explain("kmodd_test_permanent")).blockers[0]
    bench.kernel.change_facts(modules_disabled=True)
    assert "kernel.modules_disabled" in (await bench.explain("fuse")).blockers[0]
    assert "kernel.modules_disabled" in (await bench.explain("loop")).blockers[0]


async def test_a_kernel_that_wants_signatures_blocks_unsigned_files() -> None:
    bench = Bench()
    bench.kernel.change_facts(lockdown="integrity")
    assert (await bench.explain("nvidia")).blockers == ("Its file is not signed, and lockdown is integrity.",)
    assert (await bench.explain("loop")).loadable


async def test_a_remembered_failure_is_reported() -> None:
    failure = Failure(M("i8k"), "load", "NoDevice", "…", Evidence(errno=19), 7)
    assert (await Bench({"i8k": failure}).explain("i8k")).failure == failure


async def test_a_name_that_is_nearly_right_gets_a_suggestion() -> None:
    assert "did you mean bonding?" in (await Bench().explain("bondin")).blockers[0]


async def test_without_a_module_tree_it_says_so() -> None:
    bench = Bench()
    bench.kernel.change_facts(tree_present=False)
    assert "no module tree" in (await bench.explain("nonsense")).blockers[0]
    with pytest.raises(ModuleTreeMissing):
        bench.explainer.describe(M("nonsense"))


def test_describe_resolves_one_alias_and_refuses_several() -> None:
    bench = Bench()
    assert bench.explainer.describe(M("fs_ext4")).name == "ext4"
    with pytest.raises(Conflict, match="kmodd_test_alias_twin, kmodd_test_alias_twin2"):
        bench.explainer.describe(M("kmodd_test_shared"))
    with pytest.raises(NoSuchModule, match="did you mean loop"):
        bench.explainer.describe(M("loup"))
    bench.kernel.modprobe("kmodd_test_params")
    assert "an_int" in bench.explainer.writable(M("kmodd_test_params"))
    assert "read_only" not in bench.explainer.writable(M("kmodd_test_params"))


async def test_commands_free_what_holds_it_first_and_then_unload_it() -> None:
    bench = Bench()
    mount = User("mount", "/mnt/a b", "type vfat, source x", remedy=Remedy.UNMOUNT, target="/mnt/a b")
    bench.kernel.modprobe("vfat")
    bench.kernel.hold("vfat", mount)
    vfat, fat = await bench.explain("vfat"), await bench.explain("fat")
    assert vfat.users[0].command == "umount '/mnt/a b'"
    assert vfat.free == ("umount '/mnt/a b'", "kmodctl unload vfat")
    assert fat.free == ("umount '/mnt/a b'", "kmodctl unload fat --dependents")
    assert (await bench.explain("ext4")).free == (), "the root file system is on it"


async def test_bound_device_explains_no_reference() -> None:
    bench = Bench()
    bench.kernel.hold("fuse", User("device", "virtio1", "driver x, bus virtio", remedy=Remedy.NOT_NEEDED))
    answer = await bench.explain("fuse")
    assert [user.kind for user in answer.users] == ["device", "kernel"]
    assert answer.free == (), "unloading it would fail, and nothing is known that helps"


async def test_what_was_not_looked_at_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()

    async def users(_: ModuleName) -> Usage:
        return Usage((), "there are more than 64 mount namespaces")

    monkeypatch.setattr(bench.kernel.inspection, "users", users)
    answer = await bench.explain("ext4")
    assert answer.partial == "there are more than 64 mount namespaces"
    assert answer.users[-1].detail.endswith(
        "that nothing in user space explains (there are more than 64 mount namespaces)"
    )


async def test_commands_for_some_of_the_users_are_not_given_as_those_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    mount = User("mount", "/m", "", remedy=Remedy.UNMOUNT, target="/m")
    bench.kernel.modprobe("fuse")
    bench.kernel.hold("fuse", mount)
    assert (await bench.explain("fuse")).free == ("umount /m", "kmodctl unload fuse")

    async def users(_: ModuleName) -> Usage:
        return Usage((mount,), "it has more users than are listed", crowded=True)

    monkeypatch.setattr(bench.kernel.inspection, "users", users)
    assert (await bench.explain("fuse")).free == ()


async def test_what_failed_in_the_end_is_stuck_no_more() -> None:
    failure = Failure(M("dummy"), "load", "TimedOut", "the init of dummy has not returned", Evidence(), 1, stuck=True)
    answer = await Bench({"dummy": failure}).explain("dummy")
    assert answer.failure is not None
    assert (answer.state, answer.failure.error, answer.failure.stuck) == (State.AVAILABLE, "TimedOut", False)


async def test_a_module_that_crashed_does_not_come_back() -> None:
    failure = Failure(M("dummy"), "load", "Crashed", "the init of dummy crashed the kernel", Evidence(), 1, stuck=True)
    bench = Bench({"dummy": failure})
    bench.kernel.fail_next("dummy", Fault(FaultKind.HANG))
    bench.kernel.machine.start_insert(bench.kernel.index.path(M("dummy")), "")
    answer = await bench.explain("dummy")
    assert (answer.state, answer.blockers) == (State.COMING, ("the init of dummy crashed the kernel.",))


async def test_a_rule_that_modprobe_ignores_is_shown_with_what_makes_it_hold() -> None:
    bench = Bench()
    file = "/etc/modprobe.d/x.conf"
    bench.kernel.change_rules(
        Rule("install", "dummy", "/bin/false", file, 1, "install dummy /bin/false"),
        Rule("softdep", "dummy", "pre: loop", file, 2, "softdep dummy pre: loop"),
    )
    answer = await bench.explain("dummy")
    assert not answer.loadable
    (blocker,) = answer.blockers
    assert f"modprobe ignores install lines of a module with soft dependencies ({file}, line 2)" in blocker
    assert "'softdep dummy pre:'" in blocker


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("dm_zero", "a device-mapper table may (dmsetup table)"),
        ("tcp_bbr", "open TCP sockets may (ss --tcp --info)"),
        ("sch_fq", "what is set up in a network namespace that only an open file keeps may"),
        ("loop", ""),
    ],
)
def test_what_is_not_looked_at_and_may_hold_it_is_said(name: str, guess: str) -> None:
    module = LoadedModule(M(name), 16384, 2, (), State.LIVE)
    detail = "2 references that nothing in user space explains"
    assert unexplained(module).detail == (f"{detail}; {guess}" if guess else detail)
