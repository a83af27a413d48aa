# SPDX-License-Identifier: LGPL-2.1-or-later
"""Operations beside each other, and beside what others do behind our back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.system.client import BusError, Client, clear, loaded, named, soon

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.machine import Machine

T = "kmodd_test_"
# Two of them are in the kernel at the same time.
PROCESSORS = 2


@pytest.fixture(autouse=True)
def nothing_left(vm: Machine) -> Iterator[None]:
    """Each test begins without test modules."""
    yield
    clear(vm)


def test_many_loads_of_one_module_at_once(vm: Machine, client: Client) -> None:
    clients = [client, *(Client(vm) for _ in range(2))]
    calls = [one.begin("Load", f"{T}slow", {"ms": "300"}, {}) for one in clients for _ in range(17)]
    answers, limited = [], 0
    for call in calls:
        try:
            answers.append(call.result())
        except BusError as error:
            assert error.name == "LimitsExceeded"  # noqa: PT017 - one of many answers
            limited += 1
    assert sorted(answers, reverse=True)[:1] == [[f"{T}slow"]]
    assert answers.count([f"{T}slow"]) == 1
    assert answers.count([]) + limited == len(calls) - 1
    for one in clients[1:]:
        one.process.end()
    assert client.unload(f"{T}slow") == [f"{T}slow"]


def test_load_against_unload_in_a_loop(vm: Machine, client: Client) -> None:
    changed = {"Load": 0, "Unload": 0}
    for _ in range(15):
        pair = (
            client.begin("Load", f"{T}dep_c", {}, {}),
            client.begin("Unload", f"{T}dep_a", named({"dependents": True})),
        )
        for member, call in zip(changed, pair, strict=True):
            try:
                changed[member] += bool(call.result())
            except BusError as error:
                # The machine changed between the two, which is said; never anything else.
                assert error.name in {"Conflict", "Busy", "InUse"}, error  # noqa: PT017 - one of many answers
    assert min(changed.values()) > 0
    client.unload(f"{T}dep_a", dependents=True)
    assert loaded(vm) == set()
    assert client.explain(f"{T}dep_a")["state"] == "available"


def test_others_load_and_unload_behind_our_back(vm: Machine, client: Client) -> None:
    script = f"for turn in $(seq 15); do modprobe {T}dep_c; modprobe -r {T}dep_c {T}dep_b {T}dep_a; done; true"
    other = vm.start(script)
    answers = 0
    while other.code is None:
        for call in (client.begin("Load", f"{T}dep_c", {}, {}), client.begin("Unload", f"{T}dep_c", {})):
            try:
                call.result()
                answers += 1
            except BusError as error:
                assert error.name in {"Conflict", "Busy", "InUse", "UnknownSymbol"}, error  # noqa: PT017 - see above
    assert answers > 0
    client.unload(f"{T}dep_a", dependents=True)
    soon(lambda: loaded(vm) == set(), "all gone")
    names = {row["name"] for row in client.call("ListModules", {})}
    assert names == {line.split()[0] for line in vm.check("cat /proc/modules").splitlines()}
