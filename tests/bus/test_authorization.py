# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may do what, and what polkit is told."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from kmodd.dbus.authorizer import InsecureSameUserAuthority
from kmodd.errors import AccessDenied
from kmodd.model import Caller
from kmodd.names import ModuleName
from tests.bus.bench import GATEWAY, Bench, bench, record_of
from tests.bus.buses import Reply

BATCHES = "a(ssa{ss})a{sv}"
BATCH = [["load", "dummy", {}], ["unload", "loop", {}]]
GUARDED: list[tuple[str, str, tuple[Any, ...]]] = [
    ("Load", "sa{ss}a{sv}", ("dummy", {}, {})),
    ("Unload", "sa{sv}", ("loop", {})),
    ("Reload", "sa{ss}a{sv}", ("loop", {}, {})),
    ("Batch", "a(ssa{ss})a{sv}", (BATCH, {})),
    ("SetParameter", "sss", ("overlay", "redirect_max", "128")),
    ("ResetFailed", "s", ("dummy",)),
    ("GetHistory", "a{sv}", ({},)),
]
members = pytest.mark.parametrize(("member", "signature", "body"), GUARDED, ids=[row[0] for row in GUARDED])


# Of these tests polkit does not answer; in the others a late answer says how busy the machine is.
UNANSWERED = ("test_whatever_is_not_a_yes_is_a_no[hang-", "test_an_unanswered_prompt_times_out")


@pytest.fixture
async def service(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with bench(tmp_path, polkit_timeout=0.1 if request.node.name.startswith(UNANSWERED) else 20.0) as made:
        made.kernel.modprobe("loop")
        made.kernel.modprobe("overlay")
        await asyncio.sleep(0.05)
        yield made


@members
@pytest.mark.parametrize("mode", ["deny", "garbage", "error", "hang", "absent", "nobody"])
async def test_whatever_is_not_a_yes_is_a_no(
    service: Bench, member: str, signature: str, body: tuple[Any, ...], mode: str
) -> None:
    service.polkit.mode = mode
    if mode == "absent":
        await service.polkit.transport.close()
    before = service.kernel.loaded.raw()
    async with service.client(None if mode == "nobody" else 1000) as user:
        with pytest.raises(Reply) as refused:
            await user.call(member, signature, *body)
    assert refused.value.name == "org.freedesktop.DBus.Error.AccessDenied"
    assert service.kernel.loaded.raw() == before
    assert not service.deeds.done
    assert "parameter.set" not in " ".join(service.journal.events)
    record = record_of(service.journal, "authorization.denied")
    assert (record.uid, record.sender, record.exe) == (None if mode == "nobody" else 1000, user.name, "/usr/bin/4711")
    assert record.login_uid == (None if mode == "nobody" else 5000)
    if mode == "hang":
        await asyncio.sleep(0.05)
        assert len(service.polkit.cancelled) == 1
    if mode == "nobody":
        assert not service.polkit.asked


@members
async def test_a_challenge_without_the_flag_is_an_error(
    service: Bench, member: str, signature: str, body: tuple[Any, ...]
) -> None:
    service.polkit.mode = "challenge"
    async with service.client(1000) as user:
        with pytest.raises(Reply, match="InteractiveAuthorizationRequired"):
            await user.call(member, signature, *body)
    assert [flags for *_, flags in service.polkit.asked] == [0]


@members
async def test_root_needs_no_polkit(service: Bench, member: str, signature: str, body: tuple[Any, ...]) -> None:
    await service.polkit.transport.close()
    async with service.client(0) as root:
        await root.call(member, signature, *body)
    assert not [one for one in service.journal.events if one.startswith("authorization")]


async def asked_for(service: Bench, member: str, signature: str, *body: Any) -> list[tuple[str, dict[str, str]]]:
    service.polkit.asked.clear()
    async with service.client(1000) as user:
        await user.call(member, signature, *body)
        assert {sender for sender, *_ in service.polkit.asked} == {user.name}
    return [(action.removeprefix("org.kmodd1."), dict(details)) for _, action, details, _ in service.polkit.asked]


async def test_rules_receive_the_details_of_the_plan(service: Bench) -> None:
    (asked,) = await asked_for(service, "Load", "sa{ss}a{sv}", "vfat", {}, {})
    assert asked[0] == "load"
    assert asked[1]["module"] == "vfat"
    assert asked[1]["action"] == "load"
    assert set(asked[1]["modules"].split()) >= {"vfat", "fat"}
    (asked,) = await asked_for(service, "Load", "sa{ss}a{sv}", "dummy", {"numdummies": "2"}, {})
    assert asked[1]["parameters"] == "numdummies=2"
    (asked,) = await asked_for(service, "SetParameter", "sss", "overlay", "redirect-max", "64")
    assert asked == (
        "set-parameter",
        {"module": "overlay", "modules": "overlay", "parameters": "redirect_max=64", "action": "set-parameter"},
    )
    asked_both = await asked_for(service, "Reload", "sa{ss}a{sv}", "dummy", {}, {})
    assert [action for action, _ in asked_both] == ["load", "unload"]
    assert {details["loaded-by"] for _, details in asked_both} == {"1000"}
    service.kernel.modprobe("loop")
    await asyncio.sleep(0.2)
    (asked,) = await asked_for(service, "Unload", "sa{sv}", "loop", {})
    assert asked[1]["loaded-by"] == "unknown"
    # What the batch itself loads is its caller's by then.
    asked_both = await asked_for(service, "Batch", BATCHES, [["load", "dummy", {}], ["unload", "dummy", {}]], {})
    assert [action for action, _ in asked_both] == ["load", "unload"]
    assert {details["loaded-by"] for _, details in asked_both} == {"1000"}


async def test_a_batch_needs_the_actions_of_its_operations(service: Bench) -> None:
    asked = await asked_for(service, "Batch", "a(ssa{ss})a{sv}", [["load", "dummy", {}]], {})
    assert [action for action, _ in asked] == ["load"]
    asked = await asked_for(service, "Batch", "a(ssa{ss})a{sv}", [["unload", "dummy", {}], ["load", "vfat", {}]], {})
    assert {action for action, _ in asked} == {"load", "unload"}
    assert "module" not in asked[0][1]
    operations = [["set-parameter", "overlay", {"redirect-max": "64"}], ["reset-failed", "vfat", {}]]
    asked = await asked_for(service, "Batch", "a(ssa{ss})a{sv}", operations, {})
    assert [action for action, _ in asked] == ["set-parameter", "load"]
    assert asked[0][1]["parameters"] == "overlay.redirect_max=64"
    assert asked[0][1]["modules"] == "overlay vfat"
    asked = await asked_for(service, "Batch", "a(ssa{ss})a{sv}", operations[:1], {})
    assert [action for action, _ in asked] == ["set-parameter"]


async def test_a_batch_that_sets_a_parameter_needs_that_right(service: Bench) -> None:
    service.polkit.granted = frozenset({"org.kmodd1.load"})
    operations = [["load", "dummy", {}], ["set-parameter", "overlay", {"redirect_max": "64"}]]
    async with service.client(1000) as user:
        with pytest.raises(Reply) as refused:
            await user.call("Batch", "a(ssa{ss})a{sv}", operations, {})
        assert refused.value.name == "org.freedesktop.DBus.Error.AccessDenied"
        assert "dummy" not in service.kernel.loaded.snapshot()
        await user.call("Batch", "a(ssa{ss})a{sv}", [operations[0], ["reset-failed", "overlay", {}]], {})
    assert "dummy" in service.kernel.loaded.snapshot()


async def test_overriding_policy_needs_more(service: Bench) -> None:
    async with service.client(1000) as user:
        await user.call("Load", "sa{ss}a{sv}", "dummy", {}, {"override-policy": user.transport.variant("b", True)})
    assert [row[1] for row in service.polkit.asked] == ["org.kmodd1.load", "org.kmodd1.override-policy"]


async def test_a_granted_request_is_recorded_once_for_each_action(service: Bench) -> None:
    await asked_for(service, "Load", "sa{ss}a{sv}", "dummy", {}, {})
    assert record_of(service.journal, "authorization.granted").module == "dummy"


def granted(service: Bench) -> list[tuple[str, str]]:
    return [
        (record.sender, record.on_behalf_of)
        for record in service.journal.records
        if (record.event, record.extra.get("POLKIT_ACTION")) == ("authorization.granted", "org.kmodd1.read-history")
    ]


async def test_reading_on_does_not_fill_the_history_that_is_read(service: Bench) -> None:
    async with service.client(1000) as user, service.client(1000) as other:
        for _ in range(5):
            await user.call("GetHistory", "a{sv}", {})
        assert granted(service) == [(user.name, "")]
        assert len(service.polkit.asked) == 5, "it is decided each time all the same"
        await other.call("GetHistory", "a{sv}", {})
        assert granted(service) == [(user.name, ""), (other.name, "")]
        service.polkit.mode = "deny"
        with pytest.raises(Reply, match="AccessDenied"):
            await user.call("GetHistory", "a{sv}", {})
        service.polkit.mode = "allow"
        await user.call("GetHistory", "a{sv}", {})
        assert granted(service)[2:] == [(user.name, "")], "and what is decided otherwise is written down"


async def test_each_person_the_gateway_reads_for_is_written_down_once(service: Bench) -> None:
    async with service.client(GATEWAY) as gateway:
        for name in ("token:a", "token:b", "token:a", "token:b"):
            await gateway.call("GetHistory", "a{sv}", {"on-behalf-of": gateway.transport.variant("s", name)})
        assert granted(service) == [(gateway.name, "token:a"), (gateway.name, "token:b")]


async def test_what_changes_something_is_written_down_each_time(service: Bench) -> None:
    async with service.client(1000) as user:
        for _ in range(3):
            await user.call("ResetFailed", "s", "dummy")
    assert service.journal.events.count("authorization.granted") == 3


async def test_what_cannot_succeed_prompts_no_user(service: Bench) -> None:
    hopeless: list[tuple[str, str, tuple[Any, ...]]] = [
        ("Load", "sa{ss}a{sv}", ("nosuch", {}, {})),
        ("Load", "sa{ss}a{sv}", ("../x", {}, {})),
        ("Load", "sa{ss}a{sv}", ("dummy", {"nosuch": "1"}, {})),
        ("Unload", "sa{sv}", ("nosuch", {})),
        ("Batch", "a(ssa{ss})a{sv}", ([["load", "dummy", {}], ["load", "nosuch", {}]], {})),
        ("SetParameter", "sss", ("dummy", "x", "1")),
        ("SetParameter", "sss", ("../../x", "x", "1")),
        ("Activate", "ssa{sv}", ("nosuch", "1", {})),
        ("Deactivate", "sa{sv}", ("nosuch", {})),
        ("Remove", "ss", ("nosuch", "1")),
    ]
    async with service.client(1000) as user:
        for member, signature, body in hopeless:
            interface = "org.kmodd1.Store" if member in {"Activate", "Deactivate", "Remove"} else "org.kmodd1.Manager"
            with pytest.raises(Reply):
                await user.call(member, signature, *body, interface=interface)
    assert not service.polkit.asked
    # What is no name at all is nothing that was tried with a module.
    assert [(one.action, one.module) for one in service.journal.records if one.event == "operation.failed"] == [
        ("load", "nosuch"), ("load", "dummy"), ("unload", "nosuch"), ("load", "nosuch"), ("set-parameter", "dummy"),
        ("activate", "nosuch"), ("deactivate", "nosuch"), ("remove", "nosuch"),
    ]  # fmt: skip


async def test_a_prompt_is_shown_only_when_it_is_needed_and_allowed(service: Bench) -> None:
    service.polkit.mode = "prompt"
    async with service.client(1000) as user:
        load = asyncio.create_task(user.call("Load", "sa{ss}a{sv}", "dummy", {}, {}, interactive=True))
        await asyncio.sleep(0.05)
        assert [flags for *_, flags in service.polkit.asked] == [0, 1]
        service.polkit.answer_open(yes=True)
        assert await load == ["dummy"]


async def test_an_unanswered_prompt_times_out(service: Bench) -> None:
    service.polkit.mode = "prompt"
    async with service.client(1000) as user:
        with pytest.raises(Reply, match="AccessDenied"):
            await user.call("Load", "sa{ss}a{sv}", "dummy", {}, {}, interactive=True)
    await asyncio.sleep(0.05)
    assert len(service.polkit.cancelled) == 1


async def test_a_prompt_goes_with_its_caller(service: Bench) -> None:
    service.polkit.mode = "prompt"
    async with service.client(1000) as user:
        load = asyncio.create_task(user.call("Load", "sa{ss}a{sv}", "dummy", {}, {}, interactive=True))
        await asyncio.sleep(0.05)
        assert service.polkit.open
        load.cancel()
    await asyncio.sleep(0.05)
    assert not service.polkit.open
    assert service.quota.idle
    assert service.kernel.loaded.read(ModuleName("dummy")) is None


async def test_a_third_prompt_is_refused(service: Bench) -> None:
    service.polkit.mode = "prompt"
    async with service.client(1000) as user, service.client(1000) as again:
        loads = [
            asyncio.create_task(one.call("Load", "sa{ss}a{sv}", name, {}, {}, interactive=True))
            for one, name in ((user, "dummy"), (again, "vfat"), (user, "fat"))
        ]
        await asyncio.sleep(0.05)
        service.polkit.answer_open(yes=False)
        answers = await asyncio.gather(*loads, return_exceptions=True)
    assert sorted(answer.name.rpartition(".")[2] for answer in answers if isinstance(answer, Reply)) == [
        "AccessDenied",
        "AccessDenied",
        "LimitsExceeded",
    ]


async def test_a_fifth_operation_is_refused(service: Bench) -> None:
    release = service.deeds.occupy("dummy")
    async with service.client(1000) as user, service.client(1001) as other, service.client(0) as root:
        loads = [asyncio.create_task(user.call("Load", "sa{ss}a{sv}", "dummy", {}, {})) for _ in range(5)]
        roots = [asyncio.create_task(root.call("Load", "sa{ss}a{sv}", "dummy", {}, {})) for _ in range(32)]
        await asyncio.sleep(0.1)
        assert await other.call("Load", "sa{ss}a{sv}", "vfat", {}, {})
        release()
        answers = await asyncio.gather(*loads, return_exceptions=True)
        assert [str(answer) for answer in answers if isinstance(answer, Reply)] == [
            "org.freedesktop.DBus.Error.LimitsExceeded: this user already has 4 operations in progress"
        ]
        assert sum(len(names) for names in await asyncio.gather(*roots)) + sum(map(len, answers[:4])) == 1  # type: ignore[arg-type]


async def test_the_simulations_authority_knows_one_user() -> None:
    authority = InsecureSameUserAuthority(1000)
    await authority.check(Caller(":1.1", 1000), "org.kmodd1.load", {})
    for uid in (None, 0, 1001):
        with pytest.raises(AccessDenied):
            await authority.check(Caller(":1.1", uid), "org.kmodd1.load", {})


async def test_grants_of_dry_runs_are_recorded_once_for_a_connection_and_its_modules(service: Bench) -> None:
    """A harmless call that is granted again and again would push the deeds of others out of the journal."""

    def granted() -> list[str]:
        return [record.label for record in service.journal.records if record.event == "authorization.granted"]

    dry: dict[str, Any] = {"dry-run": Variant("b", True)}
    async with service.client(1000) as user, service.client(1000) as again:
        for _ in range(20):
            await user.call("Load", "sa{ss}a{sv}", "dummy", {}, dry)
        assert granted() == ["dummy"]
        await user.call("Load", "sa{ss}a{sv}", "vfat", {}, dry)
        await again.call("Load", "sa{ss}a{sv}", "dummy", {}, dry)
        assert granted() == ["dummy", "fat vfat", "dummy"]
        await user.call("Load", "sa{ss}a{sv}", "dummy", {}, {})
        assert granted()[3:] == ["dummy"], "what is done is recorded, whatever was rehearsed"
        service.polkit.mode = "deny"
        with pytest.raises(Reply):
            await user.call("Load", "sa{ss}a{sv}", "vfat", {}, dry)
        service.polkit.mode = "allow"
        await user.call("Load", "sa{ss}a{sv}", "vfat", {}, dry)
        assert granted()[4:] == ["fat vfat"], "it was denied in between"
