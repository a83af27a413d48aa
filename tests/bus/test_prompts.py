# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a person reads at the prompt is all that would be done."""

import asyncio
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from kmodd.dbus.polkit import message
from kmodd.model import Consequence, ConsequenceKind
from tests.bus.bench import Bench, bench
from tests.bus.buses import ROOT, expanded
from tests.bus.test_consent import LOADING, needing
from tests.bus.test_store import STORE, give

POLICY = ET.parse(ROOT / "polkit/org.kmodd1.policy").getroot()  # noqa: S314 - our own file
FULL = {
    "module": "fat",
    "modules": "fat vfat",
    "parameters": "a=1",
    "consequences": "disk /dev/sda, which holds ext4",
    "version": "2.0",
    "kernel": "6.1.0",
    "endpoint": "ops",
    "target": "x.example",
}


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path, polkit_timeout=10.0) as made:
        yield made


async def shown(service: Bench, *call: Any, **where: Any) -> list[str]:
    """The sentences of every prompt of a call."""
    service.polkit.mode = "prompt"
    async with service.client(1000) as user:
        task = asyncio.create_task(user.call(*call, interactive=True, **where))
        while not task.done():
            service.polkit.answer_open(yes=True)
            await asyncio.sleep(0.01)
        await asyncio.gather(task, return_exceptions=True)
    return service.polkit.messages


async def test_a_load_says_modules_and_parameters(service: Bench) -> None:
    assert await shown(service, "Load", "sa{ss}a{sv}", "vfat", {}, {}) == [
        "Authentication is required to load kernel modules: fat vfat"
    ]
    service.polkit.messages.clear()
    assert await shown(service, "Load", "sa{ss}a{sv}", "dummy", {"numdummies": "3"}, {}) == [
        "Authentication is required to load kernel modules: dummy, with the parameters numdummies=3"
    ]


async def test_an_unload_says_what_goes_and_names_nothing_of_others(service: Bench) -> None:
    service.kernel.modprobe("dummy")
    up = Consequence(ConsequenceKind.INTERFACE, "wg9", up=True, default_route=True)
    service.kernel.attach("dummy", up, Consequence(ConsequenceKind.INTERFACE, "hidden", netns="x", owner=0))
    (sentence,) = await shown(service, "Unload", "sa{sv}", "dummy", {"disconnect": Variant("b", True)})
    assert sentence == (
        "Authentication is required to unload kernel modules: dummy; this takes away network interface wg9, which is up and carries "
        "the default route, 1 network interface of other network namespaces"
    )


async def test_a_refused_unload_does_not_prompt(service: Bench) -> None:
    service.kernel.modprobe("dummy")
    service.kernel.attach("dummy", Consequence(ConsequenceKind.INTERFACE, "wg9", up=True))
    assert await shown(service, "Unload", "sa{sv}", "dummy", {}) == []


async def test_a_version_says_what_comes_with_it(service: Bench) -> None:
    async with service.client(0) as root:
        await give(root, needing(depends="vfat"))
    sentences = await shown(service, "Activate", "ssa{sv}", "special", "1.0", LOADING, interface=STORE)
    assert sentences[0].startswith(
        "Authentication is required to activate version 1.0 of the custom kernel module special, for kernel"
    )
    assert sentences[0].endswith("; this loads or unloads: fat special vfat")


@pytest.mark.parametrize("action", [one.get("id", "") for one in POLICY.iterfind("action")])
def test_every_action_has_a_sentence_without_gaps(action: str) -> None:
    own = message(action, FULL)
    text = own or next(one for one in POLICY.iterfind("action") if one.get("id") == action).findtext("message", "")
    assert text.startswith("Authentication is required to ")
    assert "$(" not in expanded(text, FULL)
    assert "  " not in expanded(text, FULL)
