# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an unprivileged user learns from the public members on a real machine: nothing of other users, no kernel address."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kmodd.dbus.interface_xml import Contract
from tests.system.client import ROOT, BusError, Client, soon

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.machine import Machine

T = "kmodd_test_"
# Sixteen decimal digits that begin with a one are a time in microseconds.
ADDRESS = re.compile(r"(?i)ffff[0-9a-f]{8}|\b0x[0-9a-f]{8,}\b|\b(?!1[0-9]{15}\b)[0-9a-f]{16}\b")
MARKER = "marker-of-root"
CONTRACT = Contract.parse(Path("dbus/org.kmodd1.xml").read_text())
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "org.kmodd1.Manager.Plan": ([["load", "dummy", {}], ["unload", f"{T}chardev", {}]], {}),
    "org.kmodd1.Manager.ListModules": ({"state": {"variant": ["s", "all"]}},),
    "org.freedesktop.DBus.Properties.Get": ("org.kmodd1.Manager", "Health"),
    "org.freedesktop.DBus.Properties.GetAll": ("",),
}
ABOUT = (f"{T}chardev", f"{T}init_oops", f"{T}good")


@pytest.fixture(scope="module")
def alice(vm: Machine) -> Iterator[Client]:
    made = Client(vm, user="alice")
    yield made
    made.process.end()


@pytest.fixture(scope="module")
def secrets(vm: Machine, client: Client) -> None:
    """A process of root's that holds a module, a load with a reason, and an oops."""
    vm.check("sysctl kernel.dmesg_restrict=1")
    client.load(f"{T}good", reason=MARKER)
    client.load(f"{T}chardev", reason=MARKER)
    vm.check(f"cp /usr/bin/sleep /root/{MARKER}")
    vm.start(["sh", "-c", f"exec /root/{MARKER} 600 < /dev/{T}chardev"])
    soon(lambda: MARKER in json.dumps(client.explain(f"{T}chardev")["users"]), "it is open")
    with pytest.raises(BusError, match="crashed the kernel"):
        client.load(f"{T}init_oops", reason=MARKER)


def answers(user: Client) -> str:
    """Everything that public members answer, as text."""
    found: list[Any] = [user.objects()]
    paths = [ROOT, *(f"/org/kmodd1/module/{name.replace('_', '_5f')}" for name in ABOUT[::2])]
    for interface in CONTRACT.interfaces.values():
        for method in interface.methods.values():
            if not method.public or method.name in {"Set", "GetManagedObjects"}:
                continue
            takes = method.takes
            choices: list[tuple[Any, ...]] = (
                [(name, {}) for name in ABOUT] if takes == "sa{sv}" else [({},)] if takes == "a{sv}" else [()]
            )
            member = f"{interface.name}.{method.name}"
            for arguments in [ARGUMENTS[member]] if member in ARGUMENTS else choices:
                where = paths if interface.objects == "**" else paths[:1]
                for path in where:
                    taken = ("org.kmodd1.Module", "State") if method.name == "Get" and path != ROOT else arguments
                    found.append(user.call(method.name, *taken, path=path, interface=interface.name, signature=takes))
    return json.dumps(found)


@pytest.mark.usefixtures("secrets")
def test_a_user_without_rights_learns_nothing_of_others_and_no_address(client: Client, alice: Client) -> None:
    said = answers(alice)
    assert MARKER not in said
    assert "Call Trace" not in said
    assert not ADDRESS.findall(said)
    held = alice.explain(f"{T}chardev")
    assert (held["users"][0]["kind"], held["users"][0]["count"]) == ("process", 1)
    crashed = alice.explain(f"{T}init_oops")
    assert (crashed["failure"]["error"], crashed["failure"]["kernel-log"]) == ("Crashed", [])
    assert MARKER in json.dumps(client.explain(f"{T}chardev"))


@pytest.mark.usefixtures("secrets")
def test_what_root_and_the_journal_have_of_an_oops_holds_no_address(vm: Machine, client: Client) -> None:
    lines = client.explain(f"{T}init_oops")["failure"]["kernel-log"]
    assert "BUG: kernel NULL pointer dereference" in lines[0]
    assert any("RIP: 0010:" in line and "oops_" in line and "+0x" in line for line in lines)
    assert not ADDRESS.findall("\n".join(lines))
    kept = vm.check(
        "journalctl -u kmodd -o cat --output-fields=KMODD_KERNEL_LOG,MESSAGE --no-pager; cat /run/kmodd/state/failures.json"
    )
    assert not ADDRESS.findall(kept)
    assert "ffff" in vm.check("dmesg"), "the kernel's own log has some"


@pytest.mark.usefixtures("secrets")
def test_the_kernels_log_is_public_where_dmesg_is(vm: Machine, alice: Client) -> None:
    vm.check("sysctl kernel.dmesg_restrict=0")
    try:
        lines = alice.explain(f"{T}init_oops")["failure"]["kernel-log"]
        assert any("NULL pointer dereference" in line for line in lines)
        assert not ADDRESS.findall("\n".join(lines))
    finally:
        vm.check("sysctl kernel.dmesg_restrict=1")
