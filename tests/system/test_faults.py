# SPDX-License-Identifier: LGPL-2.1-or-later
"""Modules that hang or crash the kernel: callers hear of it in time, and everybody else is served all the while.

The tests build on each other's ruins: what hangs forever comes last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.clock import clock
from tests.system.client import BusError, Client, Kmodctl, Pending, named, record, records, soon, texts
from tests.system.service import main_pid, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.machine import Machine

T = "kmodd_test_"
JOB = "org.kmodd1.Job"


@pytest.fixture(autouse=True)
def nobody_waits(vm: Machine, client: Client) -> Iterator[None]:
    """Whatever a test has done to the kernel, the daemon is the same process and answers at once."""
    before = vm.check("cat /proc/sys/kernel/random/boot_id"), main_pid(vm)
    client.restarted = False
    yield
    assert vm.check("cat /proc/sys/kernel/random/boot_id") == before[0]
    if not client.restarted:
        assert main_pid(vm) == before[1]
    served(client)
    assert "Traceback" not in vm.journal("-u", "kmodd.service")


def served(client: Client, *, other: str = f"{T}good") -> None:
    """Reading takes no second, and loading and unloading something else works."""
    took = []
    for member, arguments in (
        ("ListModules", ({},)),
        ("Explain", (f"{T}dep_a", {})),
        ("GetHealth", ()),
        ("ListModules", ({},)),
    ):
        call = client.begin(member, *arguments)
        call.result()
        took.append(call.seconds)
    # The machine is emulated and shared: one of them may have been out of luck.
    assert sorted(took)[len(took) // 2] < 1.0, took
    assert client.load(other) == [other]
    assert client.unload(other) == [other]


def job_of(client: Client, module: str) -> tuple[str, dict[str, Any]]:
    """Path and properties of the job about a module."""

    def find() -> tuple[str, dict[str, Any]] | None:
        for path, interfaces in client.objects().items():
            if interfaces.get(JOB, {}).get("Module") == module:
                return path, interfaces[JOB]
        return None

    found = soon(find, f"a job about {module}")
    assert found is not None
    return found


def seen_stuck(client: Client, module: str, *, action: str) -> None:
    """Everything that tells of a module tells that it is stuck."""
    explained = client.explain(module)
    assert explained["state"] == ("coming" if action == "load" else "going")
    assert (explained["removable"], explained["loadable"]) == (False, False)
    failure = explained["failure"]
    assert (failure["action"], failure["stuck"]) == (action, True)
    assert failure["error"] in {"TimedOut", "Stuck"}
    for member, arguments in (("Load", ({}, {})), ("Unload", ({},)), ("Reload", ({}, {})), ("ResetFailed", ())):
        assert client.refused(member, module, *arguments).name == "Stuck"
    health = client.call("GetHealth")
    assert health["status"] != "ok"
    assert [check["module"] for check in health["checks"] if check["name"] == "stuck-module"].count(module) == 1


def given_up(call: Pending, seconds: float) -> None:
    """The caller got its answer when it had asked for it."""
    with pytest.raises(BusError, match=r"has not returned after \d s") as caught:
        call.result()
    assert caught.value.name == "TimedOut"
    # The first call of a connection waits for an inspector to be started, too: it names the caller's program for the record.
    assert seconds <= call.seconds < seconds + 10


def restart(vm: Machine, client: Client) -> float:
    """Restart the daemon as an administrator does; how long that took."""
    client.restarted = True
    begun = clock()
    vm.run(["systemctl", "restart", "kmodd.service"], timeout=60, check=True)
    took = clock() - begun
    assert show(vm, "Result") == "success"
    return took


def release(vm: Machine, module: str) -> None:
    """Let go."""
    vm.check(f"echo 1 > /sys/kernel/{module}/release")


def test_slow_init_is_waited_for(vm: Machine, client: Client) -> None:
    call = client.begin("Load", f"{T}slow", {"ms": "4000"}, {})
    path, job = job_of(client, f"{T}slow")
    assert (job["Action"], job["State"], job["Sender"]) == ("load", "running", "")
    # Only the connection that began it is shown which one that is, and not in an answer that everybody gets.
    assert client.properties(path, JOB)["Sender"] == client.name
    assert client.refused("Cancel", path=path, interface=JOB).name == "Busy"
    served(client)
    assert call.result() == [f"{T}slow"]
    soon(lambda: path not in client.objects(), "the job is gone")
    assert int(record(vm, f"KMODD_MODULE={T}slow", "KMODD_EVENT=module.loaded")["KMODD_DURATION_USEC"]) >= 4_000_000


def test_waiting_operation_can_be_cancelled_by_its_owner(vm: Machine, client: Client) -> None:
    client.unload(f"{T}slow")
    alice, module = Client(vm, user="alice"), f"{T}init_wait"
    running = client.begin("Load", module, {}, named({"timeout": 600}))
    job_of(client, module)
    waiting = client.begin("Unload", module, named({"reason": "never mind"}))

    def find() -> str:
        found = client.objects().items()
        return next((path for path, one in found if one.get(JOB, {}).get("State") == "waiting"), "")

    path = soon(find, "it waits")
    refusal = alice.refused("Cancel", path=path, interface=JOB)
    assert refusal.name in {"AccessDenied", "InteractiveAuthorizationRequired"}
    alice.process.end()
    client.call("Cancel", path=path, interface=JOB)
    with pytest.raises(BusError, match="was cancelled while waiting") as caught:
        waiting.result()
    assert caught.value.name == "Conflict"
    assert not running.done
    release(vm, module)
    assert running.result() == [module]
    assert record(vm, "KMODD_REASON=never mind")["KMODD_ERROR"] == "Conflict"
    client.unload(module)


def test_init_that_hangs_until_it_is_released(vm: Machine, client: Client, kmodctl: Kmodctl) -> None:
    module = f"{T}init_wait"
    mark = client.mark()
    call = client.begin("Load", module, {}, named({"timeout": 2, "reason": "hang"}))
    behind = client.begin("Load", module, {}, {})
    served(client)
    given_up(call, 2)
    with pytest.raises(BusError, match="is stuck"):
        behind.result()
    seen_stuck(client, module, action="load")
    path, job = job_of(client, module)
    assert job["State"] == "stuck"
    assert client.refused("Cancel", path=path, interface=JOB).name == "Stuck"
    written = record(vm, "KMODD_REASON=hang")
    assert (written["KMODD_EVENT"], written["KMODD_ERROR"]) == ("operation.stuck", "TimedOut")
    assert "/stack" in written["KMODD_HINT"]
    ended = kmodctl("load", module)
    assert ended.code == 12
    assert "reset-failed" in ended.err
    assert kmodctl("reset-failed", module).code == 12
    assert "stuck" in kmodctl("status").out
    served(client)
    release(vm, module)
    soon(lambda: client.explain(module)["state"] == "live", "it is through")
    client.signal("JobFinished", mark, "the job ends", fits=lambda one: module in one["arguments"])
    failure = client.explain(module)["failure"]
    assert (failure["error"], failure["stuck"]) == ("TimedOut", False)
    assert record(vm, f"KMODD_MODULE={module}", "KMODD_EVENT=operation.released")
    client.call("ResetFailed", module)
    assert "failure" not in client.explain(module)
    assert client.explain(module)["because"].startswith("loaded through kmodd")
    assert client.unload(module) == [module]


def test_init_that_hangs_and_then_fails(vm: Machine, client: Client) -> None:
    module = f"{T}init_wait"
    given_up(client.begin("Load", module, {"error": "-5"}, named({"timeout": 2})), 2)
    release(vm, module)
    soon(lambda: client.explain(module)["state"] == "available", "it is gone")
    soon(lambda: not client.explain(module)["failure"]["stuck"], "the kernel has let go")
    call = client.begin("Load", module, {}, {})
    soon(lambda: vm.run(["test", "-e", f"/sys/kernel/{module}/release"]).code == 0, "it waits again")
    release(vm, module)
    assert call.result() == [module]
    assert "failure" not in client.explain(module), "success clears it"
    client.unload(module)


def test_exit_that_hangs_until_it_is_released(vm: Machine, client: Client) -> None:
    module = f"{T}exit_wait"
    client.load(module)
    given_up(client.begin("Unload", module, named({"timeout": 2})), 2)
    seen_stuck(client, module, action="unload")
    served(client)
    release(vm, module)
    soon(lambda: client.explain(module)["state"] == "available", "it is gone")
    soon(lambda: not client.explain(module)["failure"]["stuck"], "the kernel has let go")
    client.call("ResetFailed", module)


def test_module_without_exit_stays(client: Client) -> None:
    client.load(f"{T}permanent")
    assert client.refused("Unload", f"{T}permanent", {}).name == "NotRemovable"
    assert client.refused("Reload", f"{T}permanent", {}, {}).name == "NotRemovable"


@pytest.mark.parametrize("action", ["load", "unload"])
def test_crash_of_the_kernel(vm: Machine, client: Client, kmodctl: Kmodctl, action: str) -> None:
    module = f"{T}init_oops" if action == "load" else f"{T}exit_oops"
    if action == "unload":
        client.load(module)
    call = client.begin("Load", module, {}, {}) if action == "load" else client.begin("Unload", module, {})
    with pytest.raises(BusError, match="crashed the kernel") as caught:
        call.result()
    assert caught.value.name == "Crashed"
    assert call.seconds < 10
    explained = client.explain(module)
    assert (explained["failure"]["error"], explained["failure"]["stuck"]) == ("Crashed", True)
    assert "until reboot" in " ".join(explained["blockers"])
    assert "BUG: kernel NULL pointer dereference" in " ".join(explained["failure"]["kernel-log"])
    written = record(vm, f"KMODD_MODULE={module}", "KMODD_EVENT=operation.crashed")
    lines = texts(written["KMODD_KERNEL_LOG"])
    assert "BUG: kernel NULL pointer dereference" in lines[0]
    assert any("RIP" in line and "oops_" in line for line in lines)
    assert client.call("GetHealth")["status"] == "failing"
    assert client.refused("ResetFailed", module).name == "Stuck"
    ended = kmodctl(action, module)
    assert ended.code == 12
    assert "until reboot" in kmodctl("why", module).out
    served(client)
    assert client.load(f"{T}dep_c")[-1] == f"{T}dep_c"
    client.unload(f"{T}dep_a", dependents=True)


def test_restart_forgets_nothing(vm: Machine, client: Client) -> None:
    usual = restart(vm, client)
    for module in (f"{T}init_wait", f"{T}exit_wait"):
        if "exit" in module:
            client.load(module)
            given_up(client.begin("Unload", module, named({"timeout": 2})), 2)
        else:
            given_up(client.begin("Load", module, {}, named({"timeout": 2, "reason": "outlives a restart"})), 2)
    # Under emulation, beside other machines, the start alone may take most of ten seconds: what hangs adds nothing to it.
    assert restart(vm, client) < max(10, usual + 3)
    seen_stuck(client, f"{T}init_wait", action="load")
    seen_stuck(client, f"{T}exit_wait", action="unload")
    for module in (f"{T}init_oops", f"{T}exit_oops"):
        assert client.explain(module)["failure"]["error"] == "Crashed"
        assert client.refused("Load", module, {}, {}).name == "Stuck"
    served(client)
    begin = vm.check("date +@%s.%N").strip()
    release(vm, f"{T}init_wait")
    release(vm, f"{T}exit_wait")
    soon(lambda: client.explain(f"{T}init_wait")["state"] == "live", "it is through")
    soon(lambda: client.explain(f"{T}exit_wait")["state"] == "available", "it is gone")
    # What an earlier daemon gave up is the doing of who had asked for it, not of somebody else.
    loaded_by = soon(lambda: client.explain(f"{T}init_wait").get("loaded-by"), "it is known who loaded it")
    assert loaded_by is not None
    assert (loaded_by["uid"], loaded_by["reason"]) == (0, "outlives a restart")
    for module in (f"{T}init_wait", f"{T}exit_wait"):
        about = ("--since", begin, f"KMODD_MODULE={module}")
        soon(lambda: records(vm, *about, "KMODD_EVENT=operation.released"), "it is written down")  # noqa: B023 - called now
        assert {one["KMODD_EVENT"] for one in records(vm, *about)} == {"operation.released"}
    for module in (f"{T}init_wait", f"{T}exit_wait"):
        soon(lambda name=module: not client.explain(name)["failure"]["stuck"], "the kernel has let go")  # type: ignore[misc]
        client.call("ResetFailed", module)
    client.unload(f"{T}init_wait")


def test_four_may_be_stuck_and_no_more(vm: Machine, client: Client) -> None:
    client.load(f"{T}exit_hang")
    client.load(f"{T}exit_wait")
    # Time enough for three workers to be started at once under emulation: the calls have to reach the kernel.
    stuck = [
        client.begin("Load", f"{T}init_hang", {}, named({"timeout": 6})),
        client.begin("Unload", f"{T}exit_hang", named({"timeout": 6})),
        client.begin("Load", f"{T}init_wait", {}, named({"timeout": 6})),
    ]
    for call in stuck:
        given_up(call, 6)
    served(client)
    given_up(client.begin("Unload", f"{T}exit_wait", named({"timeout": 6})), 6)
    for module in ("init_hang", "init_wait"):
        seen_stuck(client, f"{T}{module}", action="load")
    limit = client.refused("Load", f"{T}good", {}, named({"reason": "one too many"}))
    assert limit.name == "LimitsExceeded"
    assert record(vm, "KMODD_REASON=one too many")["KMODD_ERROR"] == "LimitsExceeded"
    assert client.call("GetHealth")["status"] == "failing"
    release(vm, f"{T}exit_wait")
    soon(lambda: client.explain(f"{T}exit_wait")["state"] == "available", "it is gone")

    def begun() -> bool:
        try:
            return bool(client.load(f"{T}good"))
        except BusError as error:
            # The worker's end is noticed a moment after the module is gone.
            assert error.name == "LimitsExceeded"  # noqa: PT017 - nothing else
            return False

    soon(begun, "there is room again")
    client.unload(f"{T}good")
    release(vm, f"{T}init_wait")
    assert len(records(vm, "KMODD_EVENT=operation.stuck")) >= 4


def test_restart_with_what_never_comes_back(vm: Machine, client: Client) -> None:
    first = restart(vm, client)
    assert min(first, restart(vm, client)) < 15
    seen_stuck(client, f"{T}init_hang", action="load")
    seen_stuck(client, f"{T}exit_hang", action="unload")
