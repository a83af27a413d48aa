# SPDX-License-Identifier: LGPL-2.1-or-later
"""The simulated kernel answers as the real one does: error codes, log lines, states, counts and events."""

import asyncio
import errno
from typing import TYPE_CHECKING

import pytest

from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import Fault, SimulatedModule, SimulatedParameter, split_arguments
from kmodd.model import Outcome, Rule, State, Uevent, User
from kmodd.model.arguments import spell
from kmodd.names import ModuleName

if TYPE_CHECKING:
    from kmodd.kernel.ports import Kernel

M = ModuleName


@pytest.fixture
def kernel() -> SimulatedKernel:
    return SimulatedKernel(pace=0)


async def insert(kernel: SimulatedKernel, name: str, arguments: str = "", timeout: float = 30) -> Outcome:
    return await kernel.executor.insert(kernel.index.path(M(name)), arguments, timeout=timeout)


async def remove(kernel: SimulatedKernel, name: str, timeout: float = 30) -> Outcome:
    return await kernel.executor.remove(M(name), timeout=timeout)


def state(kernel: SimulatedKernel, name: str) -> State | None:
    module = kernel.loaded.read(M(name))
    return module.state if module else None


def test_it_has_the_shape_of_a_kernel(kernel: SimulatedKernel) -> None:
    shaped: Kernel = kernel  # mypy says whether
    assert shaped.simulated
    assert len(list(shaped.index.available())) >= 40
    assert {M("kernel"), M("unix")} <= set(shaped.index.builtins())


async def test_a_load_and_an_unload_are_seen_everywhere(kernel: SimulatedKernel) -> None:
    mark = kernel.log.mark()
    assert (await insert(kernel, "loop", "max_part=2")).errno == 0
    assert mark.lines() == ("loop: module loaded",)
    assert kernel.loaded.raw().startswith(b"loop 32768 0 - Live 0x")
    values = {value.name: value.value for value in kernel.loaded.parameters(M("loop"))}
    assert values["max_part"] == "3", "loop rounds it up"
    assert (await remove(kernel, "loop")).errno == 0
    assert state(kernel, "loop") is None
    assert kernel.queued == (Uevent("add", M("loop")), Uevent("remove", M("loop")))


@pytest.mark.parametrize(
    ("name", "code", "line"),
    [
        ("ext4", errno.EEXIST, None),
        ("vfat", errno.ENOENT, "vfat: Unknown symbol"),
        ("kmodd_test_nodev", errno.ENODEV, None),
        ("kmodd_test_fail", errno.EIO, "kmodd_test_fail: "),
        ("kmodd_test_bad_file", errno.ENOEXEC, "Invalid ELF"),
        ("kmodd_test_bad_signature", errno.EKEYREJECTED, None),
        ("kmodd_test_wrong_kernel", errno.ENOEXEC, "kmodd_test_wrong_kernel: version magic '"),
        ("kvm_intel", errno.EOPNOTSUPP, "kvm: no hardware support"),
    ],
)
async def test_a_load_that_fails(kernel: SimulatedKernel, name: str, code: int, line: str | None) -> None:
    before, mark = kernel.loaded.raw(), kernel.log.mark()
    outcome = await insert(kernel, name)
    assert (outcome.kind, outcome.errno) == ("done", code)
    own = [text for text in mark.lines() if "taints kernel" not in text and "verification failed" not in text]
    assert own == [] if line is None else own[0].startswith(line)
    assert kernel.loaded.raw() == before
    assert kernel.queued == ()


async def test_a_path_that_is_no_module(kernel: SimulatedKernel) -> None:
    assert (await kernel.executor.insert("/nowhere.ko", "", timeout=1)).errno == errno.ENOENT


@pytest.mark.parametrize(
    ("facts", "code", "line"),
    [
        ({"modules_disabled": True}, errno.EPERM, None),
        ({"lockdown": "integrity"}, errno.EPERM, "Lockdown: "),
        ({"signature_enforced": True}, errno.EKEYREJECTED, "Loading of unsigned module is rejected"),
        (
            {"command_line": "ro module_blacklist=a,kmodd-test-good"},
            errno.EPERM,
            "Module kmodd_test_good is blacklisted",
        ),
    ],
)
async def test_the_kernel_forbids_it(
    kernel: SimulatedKernel, facts: dict[str, object], code: int, line: str | None
) -> None:
    kernel.change_facts(**facts)
    mark = kernel.log.mark()
    assert (await insert(kernel, "kmodd_test_good")).errno == code
    assert not mark.lines() if line is None else mark.lines()[0].startswith(line)


async def test_why_an_unload_fails(kernel: SimulatedKernel) -> None:
    for name in ("kmodd_test_permanent", "kmodd_test_self_ref", "kmodd_test_dep_a", "kmodd_test_dep_b"):
        kernel.modprobe(name)
    assert (await remove(kernel, "kmodd_test_permanent")).errno == errno.EBUSY
    assert (await remove(kernel, "kmodd_test_self_ref")).errno == errno.EAGAIN
    assert (await remove(kernel, "kmodd_test_dep_a")).errno == errno.EAGAIN
    assert (await remove(kernel, "dummy")).errno == errno.ENOENT
    kernel.loaded.write_parameter(M("kmodd_test_self_ref"), "hold", "0")
    assert (await remove(kernel, "kmodd_test_self_ref")).errno == 0
    kernel.change_facts(modules_disabled=True)
    assert (await remove(kernel, "kmodd_test_dep_b")).errno == errno.EPERM
    assert b"kmodd_test_permanent 16384 0 [permanent], Live" in kernel.loaded.raw()
    assert b"kmodd_test_dep_a 16384 1 kmodd_test_dep_b, Live" in kernel.loaded.raw()


async def test_what_user_space_holds_stays_until_it_lets_go(kernel: SimulatedKernel) -> None:
    kernel.modprobe("overlay")
    mount = User("mount", "/merged", "overlay")
    kernel.hold("overlay", mount)
    assert (await remove(kernel, "overlay")).errno == errno.EAGAIN
    assert (await kernel.inspection.users(M("overlay"))).users == (mount,)
    kernel.end_hang("overlay")
    assert (await remove(kernel, "overlay")).errno == 0


async def test_an_unsigned_module_taints(kernel: SimulatedKernel) -> None:
    kernel.modprobe("nvidia")
    module = kernel.loaded.read(M("nvidia"))
    assert module is not None
    assert module.taint == "POE"
    assert kernel.facts.read().taint == (1 << 0) | (1 << 12) | (1 << 13)
    assert [flag[0] for flag in kernel.facts.taint_flags(kernel.facts.read().taint)] == ["P", "O", "E"]


async def test_a_hang_is_given_up_and_comes_back_late(kernel: SimulatedKernel) -> None:
    outcome = await insert(kernel, "kmodd_test_init_wait", "error=-19", timeout=2)
    assert (outcome.kind, outcome.duration_usec) == ("timed-out", 2_000_000)
    module = kernel.loaded.read(M("kmodd_test_init_wait"))
    assert module is not None
    assert (module.state, module.references) == (State.COMING, 1)
    assert (await remove(kernel, "kmodd_test_init_wait")).errno == errno.EBUSY
    assert (await insert(kernel, "loop")).worker != outcome.worker, "another worker serves the others"
    late: list[Outcome] = []
    kernel.executor.on_return(outcome.worker, late.append)
    assert kernel.executor.abandoned == 1
    kernel.release("kmodd_test_init_wait")
    assert [(answer.kind, answer.errno) for answer in late] == [("done", errno.ENODEV)]
    assert kernel.executor.abandoned == 0
    assert state(kernel, "kmodd_test_init_wait") is None


async def test_a_hang_for_ever_cannot_be_released(kernel: SimulatedKernel) -> None:
    await insert(kernel, "kmodd_test_init_hang", timeout=1)
    with pytest.raises(ValueError, match="forever"):
        kernel.release("kmodd_test_init_hang")
    second = await insert(kernel, "kmodd_test_init_hang", timeout=1)
    assert second.kind == "timed-out", "a second load waits for the first"
    assert kernel.executor.abandoned == 2


async def test_an_exit_that_hangs(kernel: SimulatedKernel) -> None:
    kernel.modprobe("kmodd_test_exit_wait")
    assert (await remove(kernel, "kmodd_test_exit_wait", timeout=1)).kind == "timed-out"
    module = kernel.loaded.read(M("kmodd_test_exit_wait"))
    assert module is not None
    assert (module.state, module.references) == (State.GOING, -1)
    kernel.release("kmodd_test_exit_wait")
    assert kernel.queued[-1] == Uevent("remove", M("kmodd_test_exit_wait"))


@pytest.mark.parametrize("name", ["kmodd_test_init_oops", "kmodd_test_exit_oops"])
async def test_an_oops_kills_the_worker_and_leaves_the_module(kernel: SimulatedKernel, name: str) -> None:
    mark = kernel.log.mark()
    outcome = await insert(kernel, name)
    if name == "kmodd_test_exit_oops":
        outcome = await remove(kernel, name)
    assert outcome.kind == "crashed"
    assert any(line.startswith("Oops: 0002") for line in mark.lines())
    assert f"[{name}]" in mark.lines()[-1]
    assert kernel.facts.read().taint & (1 << 7)
    assert state(kernel, name) in {State.COMING, State.GOING}
    assert (await insert(kernel, "loop")).errno == 0


async def test_a_slow_load_finishes_without_a_caller(kernel: SimulatedKernel) -> None:
    outcome = await insert(kernel, "kmodd_test_slow", "ms=5000", timeout=1)
    assert outcome.kind == "timed-out"
    late: list[Outcome] = []
    kernel.executor.on_return(outcome.worker, late.append)
    await asyncio.sleep(0.01)
    assert late == [Outcome("done", 0, 5_000_000, outcome.worker)]
    assert state(kernel, "kmodd_test_slow") is State.LIVE


async def test_a_cancelled_caller_does_not_stop_the_kernel() -> None:
    # Slower than the others: on a busy machine this test does not run again before some milliseconds have passed.
    kernel = SimulatedKernel(pace=0.2)
    call = asyncio.ensure_future(insert(kernel, "kmodd_test_slow"))
    await asyncio.sleep(0.002)
    assert state(kernel, "kmodd_test_slow") is State.COMING
    call.cancel()
    await asyncio.sleep(1)
    assert call.cancelled()
    assert state(kernel, "kmodd_test_slow") is State.LIVE


async def test_two_loads_of_one_file_share_a_result() -> None:
    kernel = SimulatedKernel(pace=0.01)
    outcomes = await asyncio.gather(*(insert(kernel, "kmodd_test_slow") for _ in range(3)))
    assert {outcome.errno for outcome in outcomes} == {0}
    assert [event.action for event in kernel.queued] == ["add"]


async def test_a_load_waits_for_a_dependency_that_is_coming() -> None:
    modules = (
        SimulatedModule("base", init_seconds=1, signed=True),
        SimulatedModule("top", depends=("base",)),
        SimulatedModule("never", init_seconds=60),
        SimulatedModule("lost", depends=("never",)),
    )
    kernel = SimulatedKernel(modules, pace=0.001)
    base, top = await asyncio.gather(insert(kernel, "base"), insert(kernel, "top"))
    assert (base.errno, top.errno) == (0, 0)
    _, lost = await asyncio.gather(insert(kernel, "never", timeout=90), insert(kernel, "lost", timeout=60))
    assert (lost.kind, lost.errno, lost.duration_usec) == ("done", errno.EBUSY, 30_000_000)


async def test_outcomes_can_be_scripted(kernel: SimulatedKernel) -> None:
    kernel.fail_next("loop", Fault(errno=errno.ENOMEM, log=("loop: out of memory",)), times=2)
    kernel.fail_next("kmodd_test_fail", None)
    assert [(await insert(kernel, "loop")).errno for _ in range(3)] == [errno.ENOMEM, errno.ENOMEM, 0]
    assert (await insert(kernel, "kmodd_test_fail")).errno == 0


async def test_events_come_to_one_reader_and_an_overflow_is_reported(kernel: SimulatedKernel) -> None:
    got: list[Uevent] = []

    async def read() -> None:
        async for event in kernel.uevents.events():
            got.append(event)  # noqa: PERF401 - what came so far is looked at while it runs

    reader = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    kernel.modprobe("vfat")
    await asyncio.sleep(0)
    assert got == [Uevent("add", M("fat")), Uevent("add", M("vfat"))]
    kernel.rmmod("vfat")
    kernel.overflow()
    kernel.uevents.close()
    await reader
    assert kernel.queued == (Uevent("overflow"),)


def test_behind_our_back_a_failure_is_an_oserror(kernel: SimulatedKernel) -> None:
    with pytest.raises(OSError, match="Resource temporarily unavailable"):
        kernel.rmmod("jbd2")
    with pytest.raises(OSError, match="No such device"):
        kernel.modprobe("i8k")


def test_the_index(kernel: SimulatedKernel) -> None:
    index = kernel.index
    assert index.resolve(M("fs_ext4")) == ("ext4",)
    assert index.resolve(M("kmodd_test_shared")) == ("kmodd_test_alias_twin", "kmodd_test_alias_twin2")
    assert index.resolve(M("pci:v00008086d0000100Esv1sd2bc3sc4i5")) == ("e1000",)
    assert index.resolve(M("nothing")) == ()
    assert index.dependencies(M("bridge")) == ("llc", "stp")
    assert index.softdeps(M("kmodd_test_soft")) == (("kmodd_test_soft_pre",), ("kmodd_test_soft_post",))
    assert not index.refresh()
    kernel.change_rules(Rule("softdep", "loop", "pre: dummy post: veth tun", "f", 1, "…"))
    assert index.refresh()
    assert index.softdeps(M("loop")) == (("dummy",), ("veth", "tun"))


def test_the_arguments_are_split_as_the_kernel_does() -> None:
    text = spell([("a", "1 2"), ("b", "x=y"), ("c", "")])
    assert split_arguments(text + " flag d-e=1 -- f=2") == [
        ("a", "1 2"),
        ("b", "x=y"),
        ("c", ""),
        ("flag", None),
        ("d_e", "1"),
    ]


@pytest.mark.parametrize(
    ("kind", "text", "held"),
    [
        ("bool", "1", "Y"),
        ("bool", "off", "N"),
        ("bool", None, "Y"),
        ("int", "0x10", "16"),
        ("int", "010", "8"),
        ("byte", "255", "255"),
        ("hexint", "31", "0x1f"),
        ("array of int", "1,0x2", "1,2"),
        ("charp", "", ""),
    ],
)
def test_values_read_back_as_the_kernel_spells_them(kind: str, text: str | None, held: str) -> None:
    assert SimulatedParameter("p", kind).take(text) == held


@pytest.mark.parametrize(
    ("kind", "text", "code"),
    [
        ("bool", "maybe", errno.EINVAL),
        ("int", None, errno.EINVAL),
        ("int", "1_0", errno.EINVAL),
        ("int", " 1", errno.EINVAL),
        ("int", "", errno.EINVAL),
        ("int", "2147483648", errno.ERANGE),
        ("byte", "-1", errno.ERANGE),
        ("charp", "x" * 1025, errno.ENOSPC),
        ("array of int", ",".join("1" * 1025), errno.EINVAL),
    ],
)
def test_values_the_kernel_refuses(kind: str, text: str | None, code: int) -> None:
    with pytest.raises(OSError, match=r"\w") as caught:
        SimulatedParameter("p", kind).take(text)
    assert caught.value.errno == code


def test_live_parameters_obey_their_modes(kernel: SimulatedKernel) -> None:
    name = M("kmodd_test_params")
    kernel.modprobe(name)
    values = {value.name: value for value in kernel.loaded.parameters(name)}
    assert "hidden" not in values
    assert values["secret"].value is None
    assert {v.name: v.value for v in kernel.loaded.parameters(name, private=True)}["root_read_only"] == "8"
    kernel.loaded.write_parameter(name, "level", "7\n")
    assert {v.name: v.value for v in kernel.loaded.parameters(name)}["level"] == "6"
    for parameter, value, code in (
        ("level", "10", errno.ERANGE),
        ("read_only", "1", errno.EACCES),
        ("hidden", "1", errno.ENOENT),
    ):
        with pytest.raises(OSError, match=r"\w") as caught:
            kernel.loaded.write_parameter(name, parameter, value)
        assert caught.value.errno == code
