# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every method of the API ends in options: they may be left out, and what the method's row does not list is refused.

The methods are taken from the API's XML, so one that is added is called too.
"""

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from kmodd.dbus.interface_xml import MAP, OURS, Contract, ContractError, Method, installed
from kmodd.errors import ERRORS
from tests.bus.bench import Bench, bench
from tests.bus.buses import Client, Reply
from tests.bus.test_store import send

METHODS = [
    method
    for interface in installed().interfaces.values()
    for method in interface.methods.values()
    if interface.name.startswith(OURS)
]
BY_NAME = {
    "module": "overlay",
    "name": "overlay",
    "parameters": {},
    "operations": [["load", "overlay", {}]],
    "parameter": "redirect_max",
    "value": "64",
    "enabled": True,
    "blacklisted": True,
    "version": "1",
    "id": "CVE-2026-31431",
}
READING = {"org.kmodd1.inspect", "org.kmodd1.read-history"}
VALUES: dict[str, Any] = {"b": True, "s": "x", "u": 1, "t": 1, "as": ["overlay"], "au": [0]}
IDS = [f"{method.interface.rpartition('.')[2]}.{method.name}" for method in METHODS]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as made:
        made.kernel.modprobe("overlay")
        for _ in range(1000):  # the registry reads what is loaded a moment after the kernel's event
            if "overlay" in made.registry.names():
                break
            await asyncio.sleep(0.01)
        await made.settled()
        made.polkit.mode = "deny"
        yield made


async def ask(client: Client, method: Method, options: dict[str, Variant] | None, path: str) -> str:
    """Call the method with these options, or without the argument; the answer or the refusal as a text."""
    signature = method.short if options is None else method.takes
    try:
        if method.descriptors:
            with tempfile.TemporaryFile() as file:
                return repr(await send(client, [file.fileno()], options or {}, signature=signature))
        given = [BY_NAME[name] for name in method.arguments if name != "options"]
        given += [] if options is None else [options]
        return repr(await client.call(method.name, signature, *given, path=path, interface=method.interface))
    except Reply as refused:
        return str(refused)


@asynccontextmanager
async def path_of(service: Bench, method: Method) -> AsyncIterator[str]:
    """The object that has the method; a job waits as long as the block runs."""
    if method.interface != "org.kmodd1.Job":
        yield "/org/kmodd1"
        return
    release = service.deeds.occupy("dummy")
    async with service.client(0) as root:
        load = asyncio.create_task(root.call("Load", "sa{ss}", "dummy", {}))
        for _ in range(500):
            if service.jobs.all():
                break
            await asyncio.sleep(0.01)
        yield f"/org/kmodd1/job/{service.jobs.all()[0].id}"
        release()
        await load


GAUGE = re.compile(r"\b\d+\.\d+\b")


@pytest.mark.parametrize("method", METHODS, ids=IDS)
async def test_options_may_be_left_out(service: Bench, method: Method) -> None:
    assert method.takes.endswith(MAP)
    async with path_of(service, method) as path, service.client(1000) as user:
        with_none = await ask(user, method, {}, path)
        # Gauges of the machine may move between two calls.
        assert GAUGE.sub("N", await ask(user, method, None, path)) == GAUGE.sub("N", with_none)
        assert "InvalidArgs" not in with_none


@pytest.mark.parametrize("method", METHODS, ids=IDS)
async def test_an_unknown_option_or_another_type_is_refused(service: Bench, method: Method) -> None:
    assert method.options is not None
    async with path_of(service, method) as path, service.client(0) as root:
        before = len(service.polkit.asked)
        for name in ("nonsense", "dry_run", "", "interactive"):
            refused = await ask(root, method, {name: Variant("b", True)}, path)
            assert "InvalidArgs: unknown option; " in refused
            assert refused.endswith(", ".join(method.options) or "none")
        for name, type_ in method.options.items():
            other = "u" if type_ == "s" else "s"
            refused = await ask(root, method, {name: Variant(other, VALUES[other])}, path)
            assert f"InvalidArgs: the option {name} must have type '{type_}'" in refused
        assert len(service.polkit.asked) == before
    assert not service.deeds.done or method.interface == "org.kmodd1.Job"


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_what_changes_something_takes_a_reason_and_what_reads_does_not(method: Method) -> None:
    assert method.options is not None
    reads = method.public or (bool(method.actions) and set(method.actions) <= READING)
    assert ("reason" in method.options) is not reads
    assert "on-behalf-of" in method.options or method.public
    assert set(method.errors) <= {error.name() for error in ERRORS.values()}


def test_no_other_argument_may_be_left_out(tmp_path: Path) -> None:
    assert {method.takes.removesuffix(MAP) for method in METHODS} == {method.short for method in METHODS}
    others = [one for interface in installed().interfaces.values() for one in interface.methods.values()]
    assert all(one.short == one.takes for one in others if one not in METHODS)


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        '<arg name="options" type="a{ss}" direction="in"/>',
        '<arg name="others" type="a{sv}" direction="in"/>',
        '<annotation name="org.kmodd1.Options" value="reason s"/>',
        '<annotation name="org.kmodd1.Options" value="reason"/><arg name="options" type="a{sv}" direction="in"/>',
        '<annotation name="org.kmodd1.Options" value="reason x1"/><arg name="options" type="a{sv}" direction="in"/>',
        '<annotation name="org.kmodd1.Options" value="a b, a s"/><arg name="options" type="a{sv}" direction="in"/>',
    ],
)
def test_a_method_without_options_stops_the_daemon(arguments: str) -> None:
    text = (
        '<node><interface name="org.kmodd1.One"><annotation name="org.kmodd1.Objects" value="/one"/>'
        f'<method name="DoIt"><annotation name="org.kmodd1.Action" value="public"/>{arguments}</method></interface></node>'
    )
    with pytest.raises(ContractError):
        Contract.parse(text)
