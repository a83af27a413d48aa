# SPDX-License-Identifier: LGPL-2.1-or-later
"""A public answer holds nothing that its caller could not read without kmodd.

A machine is filled with secrets that each hold a marker. A user without rights then calls every public member there is: they are
taken from the API's XML, so a member that is added is called too, and a member whose arguments cannot be made is a failure.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from kmodd.dbus.interface_xml import Contract, Method, split
from kmodd.kernel.simulated.modules import Fault, FaultKind
from kmodd.model import Consequence, ConsequenceKind, Rule, User
from tests.bus.bench import Bench, bench
from tests.bus.buses import ROOT, Client, Reply
from tests.bus.test_store import give, module

MARKER = "hunter2"
PRIVATE_NUMBER = "48151623"
ADDRESS = re.compile(r"(?i)ffff[0-9a-f]{8}|c0a8d000")
CONTRACT = Contract.parse((ROOT / "dbus/org.kmodd1.xml").read_text())
PUBLIC = [method for one in CONTRACT.interfaces.values() for method in one.methods.values() if method.public]
MODULES = (
    "loop",
    "tun",
    "dummy",
    "ext4",
    "kmodd_test_params",
    "kmodd_test_init_oops",
    "kmodd_test_fail",
    "special",
    "absent",
)
OPERATIONS: list[Any] = [[[action, name, {}] for action in ("load", "unload", "reload")] for name in MODULES[:7]]
OPTIONS: dict[str, list[dict[str, Variant]]] = {
    "ListModules": [{"state": Variant("s", "all")}],
    "Explain": [{}, {"public": Variant("b", True)}],
}
BY_NAME: dict[str, list[Any]] = {
    "module": list(MODULES),
    "operations": OPERATIONS,
    "interface_name": list(CONTRACT.interfaces),
    "property_name": sorted({name for one in CONTRACT.interfaces.values() for name in one.properties}),
    "value": [Variant("s", "x")],
}
OOPS = (
    "BUG: unable to handle page fault for address: ffffa8c0c05cfc78",
    "RSI: ffff8b2a12345678 RDI: ffffffffc0a8d000 R11: ffffffff9d4d2628",
    f"secret of the kernel: {MARKER}",
)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as made:
        await fill(made)
        made.polkit.mode = "deny"
        yield made


async def fill(service: Bench) -> None:
    """Put a marker wherever something that is not everyone's is kept."""
    kernel = service.kernel
    agent = User("process", f"/srv/{MARKER}", f"pid 7 /dev/{MARKER}", f"kill {MARKER}", 7, f"/srv/{MARKER}", owner=1001)
    kernel.modprobe("loop")
    kernel.hold(
        "loop",
        agent,
        replace(agent, owner=None),
        replace(agent, owner=0, kind="netdev"),
        User("mount", f"/{MARKER}", f"type x, source {MARKER}, in the mount namespace of pid 9", owner=0),
        *(User(kind, MARKER, MARKER, MARKER, words=(MARKER,)) for kind in ("table", "rule", "chain", "set", "object")),
        User("configfs", f"/sys/kernel/config/{MARKER}", "item", words=(MARKER,), owner=0),
    )
    rule = Rule(
        "options", "dummy", f"numdummies={PRIVATE_NUMBER}", "/etc/modprobe.d/closed.conf", 1, MARKER, public=False
    )
    install = Rule("install", "tun", f"/bin/{MARKER}", "/etc/modprobe.d/closed.conf", 2, MARKER, public=False)
    kernel.change_rules(rule, install)
    kernel.fail_next("kmodd_test_init_oops", Fault(FaultKind.OOPS, log=OOPS))
    kernel.fail_next("kmodd_test_fail", Fault(errno=5, log=(f"kmodd_test_fail: {MARKER} ffffffffc0a8d000",)))
    kernel.modprobe("kmodd_test_params", f"secret={PRIVATE_NUMBER}")
    hidden = Consequence(ConsequenceKind.INTERFACE, MARKER, netns=MARKER, owner=0)
    kernel.attach("kmodd_test_params", hidden, replace(hidden, owner=1001, netns="pid 7"))
    async with service.client(0) as root:
        options = {"reason": Variant("s", MARKER), "on-behalf-of": Variant("s", MARKER)}
        await root.call("Load", "sa{ss}a{sv}", "vfat", {}, options)
        for name in ("kmodd_test_init_oops", "kmodd_test_fail"):
            with pytest.raises(Reply):
                await root.call("Load", "sa{ss}a{sv}", name, {}, options)
        service.registry.look()
        await give(root, module(), description=MARKER)
        whole = str([await root.call("Explain", "sa{sv}", name, {}) for name in (*MODULES, "vfat")])
        assert whole.count(MARKER) >= 10, "root sees them"
        assert not ADDRESS.findall(whole)


def arguments(method: Method) -> Iterator[tuple[Any, ...]]:
    """Calls of a member, by its arguments' names; AssertionError for an argument of a new kind."""
    choices = []
    for name, type_ in zip(method.arguments, split(method.takes), strict=True):
        if name == "options":
            given = OPTIONS.get(method.name, [{}])
            choices.append([{**one, "evidence": Variant("s", "full")} for one in given])
        else:
            assert name in BY_NAME, f"say what {method.name} is called with as {name} ({type_})"
            choices.append(BY_NAME[name])
    return product(*choices)


async def said(client: Client, method: Method, *, path: str) -> str:
    """Everything the member answers, refusals included."""
    answers = []
    for values in arguments(method):
        try:
            answers.append(await client.call(method.name, method.takes, *values, path=path, interface=method.interface))
        except Reply as refused:
            answers.append(refused)
    assert answers
    return repr(answers)


def paths(method: Method) -> tuple[str, ...]:
    """Objects that have the member, some of many."""
    if CONTRACT.interfaces[method.interface].objects != "**":
        return ("/org/kmodd1",)
    return ("/org/kmodd1", "/org/kmodd1/module/loop", "/org/kmodd1/module/kmodd_5ftest_5fparams")


async def test_no_public_member_tells_a_secret(service: Bench) -> None:
    async with service.client(1000) as alice:
        for method in PUBLIC:
            for path in paths(method):
                text = await said(alice, method, path=path)
                for secret in (MARKER, PRIVATE_NUMBER):
                    assert secret not in text, f"{method.interface}.{method.name} of {path}"
                assert not ADDRESS.findall(text), f"{method.interface}.{method.name} of {path}"


async def test_the_members_that_read_are_public_and_called() -> None:
    assert {"Explain", "Describe", "Plan", "Show", "List", "GetHealth", "GetAll"} <= {method.name for method in PUBLIC}


async def test_no_signal_tells_a_secret(tmp_path: Path) -> None:
    async with bench(tmp_path) as service, service.client(1000) as alice:
        await alice.listen()
        await fill(service)
        await service.settled()
        assert alice.heard("JobFinished")
        assert MARKER not in repr(alice.signals)
        assert PRIVATE_NUMBER not in repr(alice.signals)
        assert not ADDRESS.findall(repr(alice.signals))


async def test_whose_job_it_is_only_its_own_connection_learns(tmp_path: Path) -> None:
    async with bench(tmp_path) as service, service.client(0) as root, service.client(1000) as alice:
        await alice.listen()
        release = service.deeds.occupy("loop")
        loading = asyncio.create_task(root.call("Load", "sa{ss}a{sv}", "loop", {}, {}))
        for _ in range(500):
            await asyncio.sleep(0.01)
            jobs = [path for path in await objects(root) if "/job/" in path]
            if jobs:
                break
        (path,) = jobs
        job = "org.kmodd1.Job"
        assert await root.get("Sender", path=path, interface=job) == root.name
        assert await alice.get("Sender", path=path, interface=job) == ""
        assert root.name not in repr(await objects(alice))
        release()
        await loading
        await service.settled()
        assert root.name not in repr(alice.signals)


async def objects(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = await client.call("GetManagedObjects", interface="org.freedesktop.DBus.ObjectManager")
    return found
