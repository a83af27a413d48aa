# SPDX-License-Identifier: LGPL-2.1-or-later
"""org.kmodd1.Configuration on the bus: who may do what, what polkit is told, and what everyone may see."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from kmodd.errors import Conflict, NotPermitted
from kmodd.model import Rule
from kmodd.model.rules import ManagedFile
from tests.bus.bench import Bench, bench, record_of
from tests.bus.buses import Client, Reply

INTERFACE = "org.kmodd1.Configuration"
PARAMETERS = {"redirect_max": "64", "metacopy": "Y"}
CHANGES: list[tuple[str, str, tuple[Any, ...], dict[str, str]]] = [
    ("SetAutoload", "sba{ss}a{sv}", ("overlay", True, PARAMETERS, {}),
     {"module": "overlay", "action": "enable-autoload", "parameters": "redirect_max=64 metacopy=Y"}),
    ("SetAutoload", "sba{ss}a{sv}", ("overlay", False, {}, {}), {"module": "overlay", "action": "disable-autoload"}),
    ("SetOptions", "sa{ss}a{sv}", ("overlay", PARAMETERS, {}),
     {"module": "overlay", "action": "set-options", "parameters": "redirect_max=64 metacopy=Y"}),
    ("SetBlacklisted", "sba{sv}", ("v-fat", True, {}), {"module": "v_fat", "action": "blacklist"}),
    ("SetBlacklisted", "sba{sv}", ("vfat", False, {}), {"module": "vfat", "action": "unblacklist"}),
    ("Apply", "a{sv}", ({},), {"action": "apply"}),
    ("Reload", "", (), {"action": "reload-configuration"}),
]  # fmt: skip
members = pytest.mark.parametrize(("member", "signature", "body", "details"), CHANGES)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path, polkit_timeout=20.0) as made:
        yield made


async def ask(client: Client, member: str, signature: str = "", *body: Any) -> Any:
    return await client.call(member, signature, *body, interface=INTERFACE)


def written(service: Bench) -> dict[ManagedFile, bytes | None]:
    """Our files that are there."""
    texts = {file: service.kernel.configuration.read(file) for file in ManagedFile}
    return {file: text for file, text in texts.items() if text is not None}


@members
async def test_details_that_polkit_receives(
    service: Bench, member: str, signature: str, body: tuple[Any, ...], details: dict[str, str]
) -> None:
    service.polkit.mode = "allow"
    async with service.client(1000) as user:
        await ask(user, member, signature, *body)
    ((_, action, told, _),) = service.polkit.asked
    assert action == "org.kmodd1.configure"
    assert {key: told[key] for key in details} == details


@members
async def test_a_no_is_a_no(
    service: Bench, member: str, signature: str, body: tuple[Any, ...], details: dict[str, str]
) -> None:
    service.polkit.mode = "deny"
    async with service.client(1000) as user:
        with pytest.raises(Reply) as refused:
            await ask(user, member, signature, *body)
    assert refused.value.name == "org.freedesktop.DBus.Error.AccessDenied"
    assert written(service) == {}
    assert record_of(service.journal, "authorization.denied").action == details["action"]


async def test_an_impossible_change_prompts_no_user(service: Bench) -> None:
    async with service.client(1000) as user:
        for member, signature, body, name in (
            ("SetAutoload", "sba{ss}a{sv}", ("overlai", True, {}, {}), "NoSuchModule"),
            ("SetOptions", "sa{ss}a{sv}", ("overlay", {"nonsense": "1"}, {}), "UnknownParameter"),
            ("SetBlacklisted", "sba{sv}", ("unix", True, {}), "Builtin"),
        ):
            with pytest.raises(Reply) as refused:
                await ask(user, member, signature, *body)
            assert refused.value.name == f"org.kmodd1.Error.{name}"
    assert service.polkit.asked == []
    assert [(one.action, one.module, one.error, one.uid) for one in service.journal.records] == [
        ("enable-autoload", "overlai", "NoSuchModule", 1000),
        ("set-options", "overlay", "UnknownParameter", 1000),
        ("blacklist", "unix", "Builtin", 1000),
    ]


async def test_without_a_trial_there_is_nothing_to_keep_or_to_revert_and_no_prompt(service: Bench) -> None:
    async with service.client(1000) as user:
        for member in ("Confirm", "Revert"):
            with pytest.raises(Reply, match="no desired state is on trial"):
                await ask(user, member, "a{sv}", {})
        for seconds in (9, 86_401):
            with pytest.raises(Reply, match="a trial takes from 10 to 86400 seconds"):
                await ask(user, "Apply", "a{sv}", {"try-seconds": Variant("u", seconds)})
    assert service.polkit.asked == []


async def test_a_dry_run_that_cannot_be_is_no_event(service: Bench) -> None:
    async with service.client() as root:
        with pytest.raises(Reply):
            await ask(root, "SetBlacklisted", "sba{sv}", "unix", True, {"dry-run": Variant("b", True)})
    assert service.journal.records == []


async def test_everyone_sees_the_rules(service: Bench) -> None:
    service.polkit.mode = "deny"
    async with service.client() as root, service.client(1000) as user:
        await ask(root, "SetOptions", "sa{ss}a{sv}", "overlay", {"redirect_max": "64"}, {})
        rows = await ask(user, "Show")
    (row,) = [row for row in rows if row["module"].value == "overlay"]
    assert {key: variant.value for key, variant in row.items()} == {
        "kind": "options", "module": "overlay", "value": "redirect_max=64", "file": ManagedFile.OPTIONS, "line": 5,
        "ours": True, "masks": [], "shadowed-by": "", "findings": [],
    }  # fmt: skip
    assert service.polkit.asked == []


async def test_errors_and_their_names(service: Bench) -> None:
    files = service.kernel.configuration
    async with service.client() as root:
        files.fault = OSError(30, "EROFS")
        with pytest.raises(Reply) as refused:
            await ask(root, "SetBlacklisted", "sba{sv}", "vfat", True, {})
        assert refused.value.name == NotPermitted.bus_name()
        files.fault = None
        files.edit(ManagedFile.BLACKLIST, b"# mine\n")
        with pytest.raises(Reply) as refused:
            await ask(root, "SetBlacklisted", "sba{sv}", "vfat", True, {})
        assert refused.value.name == Conflict.bus_name()
    assert written(service) == {ManagedFile.BLACKLIST: b"# mine\n"}


async def test_many_callers_at_once_lose_nothing(service: Bench) -> None:
    async with service.client() as root:
        names = [f"m{number}" for number in range(4)]
        await asyncio.gather(*(ask(root, "SetBlacklisted", "sba{sv}", name, True, {}) for name in names))
    text = written(service)[ManagedFile.BLACKLIST] or b""
    assert all(f"blacklist {name}\n".encode() in text for name in names)


@pytest.mark.parametrize("member", ["SetOptions", "SetAutoload"])
async def test_a_right_guess_of_a_closed_files_value_is_answered_as_a_wrong_one(service: Bench, member: str) -> None:
    secret = Rule(
        "options", "loop", "max_part=17", "/etc/modprobe.d/wlan.conf", 1, "options loop max_part=17", public=False
    )
    service.kernel.change_rules(secret)
    service.polkit.mode = "deny"
    async with service.client(1000) as alice:
        answers = []
        for value in ("16", "17", "18"):
            arguments = ("sba{ss}a{sv}", "loop", True) if member == "SetAutoload" else ("sa{ss}a{sv}", "loop")
            with pytest.raises(Reply) as refused:
                await alice.call(member, *arguments, {"max_part": value}, {}, interface="org.kmodd1.Configuration")
            answers.append((refused.value.name, refused.value.message))
    assert len(set(answers)) == 1
    assert answers[0][0] == "org.freedesktop.DBus.Error.AccessDenied"
    async with service.client(0) as root:
        arguments = ("sba{ss}a{sv}", "loop", True) if member == "SetAutoload" else ("sa{ss}a{sv}", "loop")
        with pytest.raises(Reply, match="takes precedence"):
            await root.call(member, *arguments, {"max_part": "16"}, {}, interface="org.kmodd1.Configuration")
