# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may see what others do with a module: `Explain` over the bus."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kmodd.kernel.simulated.modules import Fault
from kmodd.model import Consequence, ConsequenceKind, Remedy, User
from tests.bus.bench import GATEWAY, Bench, bench
from tests.bus.buses import Client, Reply

INSPECT = "org.kmodd1.inspect"
HISTORY = "org.kmodd1.read-history"
OWN = User("process", "/home/alice/own", "pid 8 /dev/loop-control", pid=8, exe="/home/alice/own", owner=1000)
OTHER = User("process", "/srv/secret", "pid 7 /dev/loop0", pid=7, exe="/srv/secret", owner=1001, remedy=Remedy.KILL)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path, loaded=["loop"]) as made:
        made.kernel.hold("loop", OWN, OTHER)
        made.polkit.mode = "challenge"
        yield made


@pytest.fixture
async def alice(service: Bench) -> AsyncIterator[Client]:
    async with service.client(1000) as client:
        yield client


async def explain(
    client: Client, module: str = "loop", *, interactive: bool = False, **options: object
) -> dict[str, Any]:
    variant = client.transport.variant
    wire = {name.replace("_", "-"): variant("b" if value is True else "s", value) for name, value in options.items()}
    answer = await client.call("Explain", "sa{sv}", module, wire, interactive=interactive)
    found = {key: value.value for key, value in answer.items()}
    found["users"] = [{key: value.value for key, value in row.items()} for row in found["users"]]
    return found


async def test_everyone_sees_their_own_processes_and_the_number_of_others(service: Bench, alice: Client) -> None:
    answer = await explain(alice)
    own, others = answer["users"]
    assert own == {
        "kind": "process",
        "name": "/home/alice/own",
        "detail": OWN.detail,
        "pid": 8,
        "exe": "/home/alice/own",
    }
    assert others == {"kind": "process", "name": "", "detail": "1 process of other users", "count": 1}
    assert answer["withheld"] == ["users"]
    assert "secret" not in repr(answer)
    assert [(action, flags) for _, action, _, flags in service.polkit.asked] == [(INSPECT, 0)]
    assert service.journal.events == [], "it is what most callers get"


async def test_who_may_inspect_sees_all_and_is_recorded_once(service: Bench, alice: Client) -> None:
    service.polkit.mode = "allow"
    for _ in range(3):
        answer = await explain(alice)
        assert answer["users"][1]["name"] == "/srv/secret"
        assert answer["users"][1]["command"] == "kill 7"
        assert "withheld" not in answer
    (record,) = service.journal.records
    assert (record.event, record.action, record.module) == ("authorization.granted", "inspect", "loop")
    assert record.exe == "/usr/bin/4711"


async def refused(client: Client, evidence: str = "full", member: str = "Unload") -> Reply:
    options = {"evidence": client.transport.variant("s", evidence)} if evidence else {}
    with pytest.raises(Reply) as caught:
        await client.call(member, "sa{sv}", "loop", options, interactive=True)
    return caught.value


async def test_error_carries_as_much_as_explain_shows(service: Bench, alice: Client) -> None:
    error = await refused(alice)
    assert error.name == "org.kmodd1.Error.InUse"
    assert error.evidence is not None
    assert error.evidence["module"] == "loop"
    own, others = error.evidence["users"]
    assert (own["name"], own["pid"]) == ("/home/alice/own", 8)
    assert others == {"kind": "process", "name": "", "detail": "1 process of other users", "count": 1}
    assert "secret" not in repr(error)
    assert [(action, flags) for _, action, _, flags in service.polkit.asked] == [(INSPECT, 0)], "no prompt for it"


async def test_public_evidence_is_what_everyone_may_see(service: Bench, alice: Client) -> None:
    error = await refused(alice, "public")
    assert error.evidence is not None
    assert error.evidence["users"] == [
        {"kind": "process", "name": "", "detail": "2 processes of other users", "count": 2}
    ]
    assert service.polkit.asked == []


async def test_who_may_inspect_gets_all_the_evidence_with_its_commands(service: Bench, alice: Client) -> None:
    service.polkit.mode = "allow"
    error = await refused(alice)
    assert error.evidence is not None
    assert [(user["name"], user.get("command", "")) for user in error.evidence["users"]] == [
        ("/home/alice/own", ""),
        ("/srv/secret", "kill 7"),
    ]


async def test_error_is_its_sentence_alone_unless_evidence_is_requested(service: Bench, alice: Client) -> None:
    assert (await refused(alice, "")).evidence is None
    for wrong in (alice.transport.variant("s", "all"), alice.transport.variant("b", True)):
        with pytest.raises(Reply, match="InvalidArgs"):
            await alice.call("Unload", "sa{sv}", "loop", {"evidence": wrong})


async def test_evidence_that_is_too_much_for_a_reply_is_left_out(
    service: Bench, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kmodd.dbus.dispatcher.REPLY_MAX", 100)
    error = await refused(alice)
    assert (error.name, error.evidence) == ("org.kmodd1.Error.InUse", None)


async def test_kernels_log_in_the_evidence_is_for_who_may_read_it(service: Bench, alice: Client) -> None:
    service.polkit.mode = "allow"
    options = {"evidence": alice.transport.variant("s", "full")}
    service.kernel.fail_next("kmodd_test_fail", Fault(errno=5, log=("kmodd_test_fail: its own words",)), times=2)
    with pytest.raises(Reply) as caught:
        await alice.call("Load", "sa{ss}a{sv}", "kmodd_test_fail", {}, options)
    assert caught.value.evidence is not None
    assert caught.value.evidence["kernel-log"][-1] == "kmodd_test_fail: its own words"
    assert caught.value.evidence["errno"] == 5
    options["evidence"] = alice.transport.variant("s", "public")
    with pytest.raises(Reply) as caught:
        await alice.call("Load", "sa{ss}a{sv}", "kmodd_test_fail", {}, options)
    assert caught.value.evidence is not None
    assert "kernel-log" not in caught.value.evidence
    assert caught.value.evidence["errno"] == 5


async def test_a_plan_names_what_is_hidden_to_root_and_to_who_may_inspect(service: Bench, alice: Client) -> None:
    service.kernel.modprobe("dummy")
    service.kernel.attach("dummy", Consequence(ConsequenceKind.INTERFACE, "d0", netns="x", owner=0))
    asked: tuple[Any, ...] = "Plan", "a(ssa{ss})a{sv}", [["unload", "dummy", {}]], {}
    service.polkit.mode = "prompt"
    (step,) = await alice.call(*asked, interactive=True)
    assert step["consequences"].value == ["1 network interface of other network namespaces goes with it."]
    assert "d0" not in repr(step)
    assert [flags for _, action, _, flags in service.polkit.asked if action == INSPECT] == [0], "no prompt"
    service.polkit.mode = "allow"
    async with service.client(0) as root:
        for caller in (alice, root):
            (step,) = await caller.call(*asked)
            assert step["consequences"].value == ["Network interface d0 in network namespace x goes with it."]
            assert "d0" in step["message"].value
        with pytest.raises(Reply, match="d0 in network namespace x"):
            await root.call("Unload", "sa{sv}", "dummy", {})
    with pytest.raises(Reply, match="1 network interface of other network namespaces"):
        await alice.call("Unload", "sa{sv}", "dummy", {})


async def test_evidence_names_what_would_go_as_explain_does(service: Bench, alice: Client) -> None:
    service.kernel.modprobe("dummy")
    service.kernel.attach("dummy", Consequence(ConsequenceKind.INTERFACE, "d0", netns="x", owner=0))
    hidden = ["1 network interface of other network namespaces goes with it."]
    named = ["Network interface d0 in network namespace x goes with it."]
    async with service.client(0) as root:
        for caller, mode, evidence, shown in (
            (alice, "deny", "full", hidden),
            (alice, "allow", "full", named),
            (alice, "allow", "public", hidden),
            (root, "deny", "full", named),
            (root, "deny", "public", hidden),
        ):
            service.polkit.mode = mode
            options = {"evidence": caller.transport.variant("s", evidence)}
            with pytest.raises(Reply, match="InUse") as caught:
                await caller.call("Unload", "sa{sv}", "dummy", options)
            assert caught.value.evidence is not None
            assert caught.value.evidence["consequences"] == shown
            assert ("d0" in caught.value.args[0]) is (caller is root and evidence == "full")


async def test_a_row_of_a_batch_names_what_would_go_as_explain_does(service: Bench, alice: Client) -> None:
    service.kernel.modprobe("dummy")
    service.kernel.attach("dummy", Consequence(ConsequenceKind.INTERFACE, "d0", netns="x", owner=0))
    operations = [["load", "vfat", {}], ["unload", "dummy", {}]]
    service.polkit.mode = "allow"
    async with service.client(0) as root:
        for caller, public, named in (
            (alice, False, True),
            (alice, True, False),
            (root, False, True),
            (root, True, False),
        ):
            options = {"atomic": caller.transport.variant("b", False), "public": caller.transport.variant("b", public)}
            _, row = await caller.call("Batch", "a(ssa{ss})a{sv}", operations, options)
            assert row["error"].value == "InUse"
            assert ("d0" in repr(row["consequences"].value)) is named
            assert ("d0" in row["message"].value) is (caller is root and not public)
            assert ("withheld" in row) is public


async def test_root_needs_no_authorisation(service: Bench) -> None:
    async with service.client(0) as root:
        assert "withheld" not in await explain(root)
        assert (await explain(root, public=True))["users"][0]["count"] == 2
    assert service.polkit.asked == []


async def test_no_prompt_where_nothing_is_withheld(service: Bench, alice: Client) -> None:
    assert "withheld" not in await explain(alice, "dummy", interactive=True)
    service.polkit.mode = "allow"
    assert (await explain(alice, public=True))["users"] == [
        {"kind": "process", "name": "", "detail": "2 processes of other users", "count": 2}
    ]
    assert service.polkit.asked == []


async def test_a_prompt_appears_only_where_the_call_allows_it(service: Bench, alice: Client) -> None:
    service.polkit.mode = "deny"
    assert (await explain(alice, interactive=True))["withheld"] == ["users"]
    (record,) = service.journal.records
    assert (record.event, record.extra["POLKIT_ACTION"]) == ("authorization.denied", INSPECT)
    service.polkit.mode = "prompt"
    service.polkit.asked.clear()
    assert (await explain(alice, interactive=True))["withheld"] == ["users"], "nobody answered"
    assert [flags for _, action, _, flags in service.polkit.asked if action == INSPECT] == [0, 1]


async def test_a_polkit_that_fails_gives_the_public_answer(service: Bench, alice: Client) -> None:
    for mode in ("garbage", "error", "hang", "deny"):
        service.polkit.mode = mode
        assert (await explain(alice))["withheld"] == ["users"]


async def test_an_unknown_user_sees_no_details(service: Bench) -> None:
    async with service.client(None) as nobody:
        assert (await explain(nobody))["users"][0]["count"] == 2


async def test_the_history_has_who_loaded_it_but_not_what_others_have_open(service: Bench, alice: Client) -> None:
    async with service.client(0) as root:
        reason = root.transport.variant("s", "secret ticket")
        await root.call("Load", "sa{ss}a{sv}", "dummy", {}, {"reason": reason})
        service.registry.look()
        assert (await explain(root, "dummy"))["loaded-by"]["reason"].value == "secret ticket"
    answer = await explain(alice, "dummy")
    assert (answer["because"], answer["withheld"]) == ("loaded through kmodd", ["loaded-by"])
    assert [action for _, action, _, _ in service.polkit.asked] == [INSPECT, HISTORY]


async def test_callers_see_what_their_own_user_loaded(service: Bench, alice: Client) -> None:
    service.polkit.mode = "allow"
    await alice.call("Load", "sa{ss}a{sv}", "dummy", {}, {"reason": alice.transport.variant("s", "my ticket")})
    service.registry.look()
    service.polkit.mode = "deny"
    service.polkit.asked.clear()
    answer = await explain(alice, "dummy")
    assert (answer["loaded-by"]["uid"].value, answer["loaded-by"]["reason"].value) == (1000, "my ticket")
    assert "withheld" not in answer
    assert service.polkit.asked == []


async def test_the_kernels_log_follows_dmesg_restrict(service: Bench, alice: Client) -> None:
    async with service.client(0) as root:
        with pytest.raises(Reply):
            await root.call("Load", "sa{ss}a{sv}", "kmodd_test_fail", {}, {})
    restricted = await explain(alice, "kmodd_test_fail")
    assert (restricted["failure"]["kernel-log"].value, restricted["withheld"]) == ([], ["kernel-log"])
    service.kernel.change_facts(log_restricted=False)
    answer = await explain(alice, "kmodd_test_fail")
    assert "withheld" not in answer
    assert any("flux capacitor" in line for line in answer["failure"]["kernel-log"].value)


async def test_only_root_and_the_gateway_say_for_whom_they_ask(service: Bench, alice: Client) -> None:
    service.polkit.mode = "allow"
    with pytest.raises(Reply) as refused:
        await explain(alice, on_behalf_of="token x")
    assert refused.value.name == "org.freedesktop.DBus.Error.AccessDenied"
    async with service.client(GATEWAY) as gateway:
        for name in ("token x", "token y", "token x"):
            await explain(gateway, on_behalf_of=name)
    assert [record.on_behalf_of for record in service.journal.records] == ["token x", "token y"]
