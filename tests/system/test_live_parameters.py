# SPDX-License-Identifier: LGPL-2.1-or-later
"""Getters and setters of parameters that hang or crash the kernel: they take a worker, never the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.clock import clock
from tests.system.client import BusError, Client, soon
from tests.system.service import main_pid, serves, workers

if TYPE_CHECKING:
    from tests.vm.machine import Machine

HANG, OOPS = "kmodd_test_param_hang", "kmodd_test_param_oops"
RELEASE = f"/sys/kernel/{HANG}/release"
GET_ALL = "busctl --system --timeout=20 call org.kmodd1 /org/kmodd1/module/{} org.freedesktop.DBus.Properties GetAll s org.kmodd1.Module"
READING = 12.0
"""Seconds in which an answer comes although a getter hangs: three of the daemon's, on a machine that is emulated and shared."""


def hanging(vm: Machine) -> list[int]:
    """Workers that the kernel does not let go."""
    return [pid for pid in workers(vm) if vm.run(["ps", "-o", "stat=", "-p", str(pid)]).stdout.startswith("D")]


def stranger_asks(vm: Machine, module: str) -> str:
    """What an unprivileged user gets for all properties, in time."""
    started = clock()
    answer = vm.check(GET_ALL.format(module.replace("_", "_5f")), user="alice")
    assert clock() - started < READING
    return answer


def test_setter_that_hangs_blocks_no_other_call(vm: Machine, client: Client) -> None:
    client.load(HANG)
    soon(lambda: '"value" "0"' in stranger_asks(vm, HANG), "its values are read")
    daemon = main_pid(vm)
    setting = client.begin("SetParameter", HANG, "value", "1")
    soon(lambda: hanging(vm), "the setter is in the kernel")
    for _ in range(3):
        assert '"value"' not in stranger_asks(vm, HANG)
    assert serves(vm)
    assert main_pid(vm) == daemon
    assert len(hanging(vm)) == 1, "no reader is sent in behind the setter"
    with pytest.raises(BusError, match="has not returned") as refused:
        setting.result(90)
    assert refused.value.name == "TimedOut"
    assert client.refused("SetParameter", HANG, "bystander", "1").name == "Stuck"
    # Another daemon knows nothing of it, and learns it from a reader that does not come back.
    started = clock()
    vm.run(["systemctl", "restart", "kmodd.service"], timeout=60, check=True)
    assert clock() - started < 15
    client.restarted = True
    assert '"value"' not in stranger_asks(vm, HANG)
    assert serves(vm)
    vm.check(f"echo 1 > {RELEASE}")
    soon(lambda: '"value" "1"' in stranger_asks(vm, HANG), "it has let go")
    assert hanging(vm) == []
    assert client.unload(HANG) == [HANG]


def test_value_of_a_getter_that_hangs_is_withheld(vm: Machine, client: Client) -> None:
    client.load(HANG, {"get_hangs": "1"})
    soon(lambda: hanging(vm), "the announcement has it read")
    assert '"value"' not in stranger_asks(vm, HANG)
    started = clock()
    assert client.explain(HANG)["state"] == "live"
    assert client.plan(("load", HANG, {"bystander": "6"}))
    assert client.objects()
    assert clock() - started < READING
    assert len(hanging(vm)) == 1
    assert serves(vm)
    vm.check(f"echo 1 > {RELEASE}")
    soon(lambda: '"value" "0"' in stranger_asks(vm, HANG), "it has let go")
    assert client.unload(HANG) == [HANG]


def test_setter_that_oopses_is_a_crash(vm: Machine, client: Client) -> None:
    client.load(OOPS)
    soon(lambda: '"value" "0"' in stranger_asks(vm, OOPS), "its values are read")
    daemon = main_pid(vm)
    assert client.refused("SetParameter", OOPS, "value", "1").name == "Crashed"
    # The kernel keeps the mutex of its parameters locked: whoever reads one of them hangs until the next boot.
    assert '"value"' not in stranger_asks(vm, OOPS)
    assert hanging(vm) == []
    assert serves(vm)
    assert main_pid(vm) == daemon
