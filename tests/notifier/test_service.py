# SPDX-License-Identifier: LGPL-2.1-or-later
"""The notifier's calls go through the daemon's gate: validation, then the user's quota, then polkit, and the caller must be there."""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Message, MessageFlag, MessageType, Variant

from kmodd.dbus.interface_xml import Method, installed
from kmodd.dbus.polkit import Polkit
from kmodd.dbus.transport import Transport
from kmodd.journal.writer import Logger
from kmodd.notifier.endpoints import Endpoints, Machine
from kmodd.notifier.outbox import Outbox
from kmodd.notifier.service import NAME, PATH, Service
from tests.bus.buses import Client, FakePolkit, PrivateBus, Reply
from tests.unit.fakes import Journal

HOOK: Any = ("AddWebhook", "ssa{sv}", "hook", "https://hooks.example.org/secret-path", {})


@dataclass
class Desk:
    """The notifier's side of the bus."""

    bus: PrivateBus
    polkit: FakePolkit
    operator: Endpoints
    service: Service
    journal: Journal
    users: dict[str, int] = field(default_factory=dict)

    @asynccontextmanager
    async def client(self, uid: int) -> AsyncIterator[Client]:
        async with Client(self.bus.address) as client:
            self.users[client.name] = uid
            yield client

    @property
    def endpoints(self) -> list[str]:
        return [str(row["name"][1]) for row in self.operator.status().endpoints]


@pytest.fixture
async def desk(tmp_path: Path, logger: Logger) -> AsyncIterator[Desk]:
    bus = PrivateBus(tmp_path, f'<allow own="{NAME}"/><allow send_destination="{NAME}"/>')
    transport = Transport(bus.address)
    await transport.connect()
    (tmp_path / "state").mkdir()
    outbox, journal, users = Outbox(tmp_path / "queue"), Journal(), dict[str, int]()
    machine = Machine("web1", lambda: 1_700_000_000_000_000, random.random, secrets.token_bytes)
    operator = Endpoints(tmp_path / "notify.toml", tmp_path / "state", outbox, logger, machine, lambda: "")
    operator.start()
    bugs: list[str] = []

    async def credentials(sender: str) -> tuple[int | None, int]:
        return users.get(sender, 0), 4711

    async def executable(pid: int) -> str:
        return "/usr/bin/kmodctl"

    service = Service(
        transport, installed(NAME), operator,
        authority=Polkit(transport, timeout=2.0, prompt_timeout=10.0), audit=journal,
        report=lambda what, error: bugs.append(f"{what}: {error!r}"), executable=executable,
        login_uid=lambda pid, uid: 5000, machine_id=lambda: "0" * 32, credentials=credentials,
    )  # fmt: skip
    await service.start()
    async with FakePolkit(bus.address) as polkit:
        yield Desk(bus, polkit, operator, service, journal, users)
    await service.close()
    await transport.close()
    await operator.close()
    outbox.close()
    bus.close()
    assert not bugs
    assert service.quota.idle


async def call(client: Client, member: str, signature: str = "", *body: Any, interactive: bool = True) -> Any:
    flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else MessageFlag.NONE
    message = Message(NAME, PATH, NAME, member, flags=flags, signature=signature, body=list(body))
    reply = await asyncio.wait_for(client.transport._bus.call(message), 20)
    assert reply is not None
    if reply.message_type is MessageType.ERROR:
        raise Reply(str(reply.error_name), reply.body[0])
    return reply.body[0] if reply.body else None


async def prompted(desk: Desk, count: int = 1) -> None:
    for _ in range(1000):
        if len(desk.polkit.open) >= count:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"{len(desk.polkit.open)} prompts are open, not {count}")


HOPELESS: dict[str, Any] = {
    "a bad name": ("AddWebhook", "ssa{sv}", "Bad Name", "https://x.example/", {}),
    "no URL": ("AddWebhook", "ssa{sv}", "hook", "ftp://x.example/", {}),
    "an unknown option": ("AddWebhook", "ssa{sv}", "hook", "https://x.example/", {"nosuch": Variant("s", "x")}),
    "another type": ("AddWebhook", "ssa{sv}", "hook", "https://x.example/", {"timeout": Variant("s", "x")}),
    "a bad key": ("AddWebhook", "ssa{sv}", "hook", "https://x.example/", {"key": Variant("s", "whsec_AAAA")}),
    "an unknown format": ("AddWebhook", "ssa{sv}", "hook", "https://x.example/", {"format": Variant("s", "xml")}),
    "an unknown event": ("AddWebhook", "ssa{sv}", "hook", "https://x.example/", {"events": Variant("as", ["nosuch"])}),
    "an unknown severity": ("AddWebhook", "ssa{sv}", "hook", "https://x.example/", {"severity": Variant("s", "bad")}),
    "a timeout out of range": ("AddWebhook", "ssa{sv}", "hook", "https://x.example/", {"timeout": Variant("u", 3600)}),
    "a taken name": ("AddWebhook", "ssa{sv}", "there", "https://x.example/", {}),
    "no recipient": ("AddEmail", "sasa{sv}", "mail", [], {}),
    "a bad recipient": ("AddEmail", "sasa{sv}", "mail", ["nobody"], {}),
    "mail without a server": ("AddEmail", "sasa{sv}", "mail", ["ops@example.org"], {}),
    "an unknown endpoint to remove": ("Remove", "s", "nosuch"),
    "an unknown endpoint to test": ("Test", "s", "nosuch"),
    "an unknown endpoint to disable": ("SetEnabled", "sb", "nosuch", False),
}


@pytest.mark.parametrize("what", HOPELESS)
async def test_no_prompt_for_what_cannot_succeed(desk: Desk, what: str) -> None:
    async with desk.client(0) as root:
        await call(root, "AddWebhook", "ssa{sv}", "there", "https://there.example/", {})
    async with desk.client(1000) as user:
        with pytest.raises(Reply, match=r"InvalidArgs|Conflict|NoSuchEndpoint"):
            await call(user, *HOPELESS[what])
    assert not desk.polkit.asked
    assert desk.endpoints == ["there"]


BY_NAME: dict[str, Any] = {
    "endpoint": "hook",
    "name": "hook",
    "url": "https://x.example/",
    "to": ["ops@example.org"],
    "enabled": True,
}
METHODS = list(installed(NAME).interfaces[NAME].methods.values())


@pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
async def test_options_may_be_left_out_and_unknown_ones_are_refused(desk: Desk, method: Method) -> None:
    assert method.options is not None
    assert ("reason" in method.options) is not method.public
    desk.polkit.mode = "deny"
    arguments = [BY_NAME[name] for name in method.arguments if name != "options"]

    async def answer(signature: str, *options: dict[str, Variant]) -> str:
        try:
            return repr(await call(root, method.name, signature, *arguments, *options))
        except Reply as refused:
            return str(refused)

    async with desk.client(0) as root:
        with_none = await answer(method.takes, {})
        assert "InvalidArgs: unknown" not in with_none
        if not method.name.startswith("Add"):  # which does it, and refuses the name the second time
            assert await answer(method.short) == with_none
        assert "InvalidArgs: unknown option" in await answer(method.takes, {"nonsense": Variant("b", True)})
        for name, type_ in method.options.items():
            other = Variant("s" if type_ == "u" else "u", "x" if type_ == "u" else 1)
            assert f"InvalidArgs: the option {name} must have type '{type_}'" in await answer(
                method.takes, {name: other}
            )


async def test_for_whom_and_why_is_written_down(desk: Desk) -> None:
    said = {"reason": Variant("s", "the pager"), "on-behalf-of": Variant("s", "token ops")}
    async with desk.client(0) as root:
        await call(root, "AddWebhook", "ssa{sv}", "hook", "https://there.example/", said)
        await call(root, "SetEnabled", "sba{sv}", "hook", False, said)
        await call(root, "Remove", "sa{sv}", "hook", said)
    done = [record for record in desk.journal.records if record.event == "notifier.managed"]
    assert [(record.reason, record.on_behalf_of) for record in done] == [("the pager", "token ops")] * 3
    async with desk.client(1000) as user:
        with pytest.raises(Reply, match="AccessDenied: this user may not use on-behalf-of"):
            await call(user, "AddWebhook", "ssa{sv}", "hook", "https://there.example/", said)
    assert not desk.polkit.asked


async def test_the_prompt_says_name_and_host_and_no_secret(desk: Desk) -> None:
    async with desk.client(1000) as user:
        await call(user, *HOOK)
        await call(user, "SetEnabled", "sb", "hook", False)
        await call(user, "Remove", "s", "hook")
    assert [details for _, _, details, _ in desk.polkit.asked] == [
        {"action": action, "endpoint": "hook", "target": "hooks.example.org"}
        for action in ("add-webhook", "disable", "remove")
    ]
    desk.polkit.asked.clear()
    desk.polkit.mode = "prompt"
    async with desk.client(1000) as user:
        task = asyncio.create_task(call(user, *HOOK))
        await prompted(desk)
        desk.polkit.answer_open(yes=True)
        await task
    assert desk.polkit.messages[-1] == (
        "Authentication is required to send notifications about kernel modules to a new webhook, hook, at hooks.example.org"
    )
    assert "secret-path" not in str(desk.polkit.asked) + str(desk.polkit.messages)


async def test_one_users_prompts_lock_no_other_user_out(desk: Desk) -> None:
    """Eight connections with eight calls each once held every place there was, root's too, for two minutes."""
    desk.polkit.mode = "prompt"
    clients = [Client(desk.bus.address) for _ in range(8)]
    for client in clients:
        await client.__aenter__()
        desk.users[client.name] = 1000
    flood = [
        asyncio.create_task(call(client, "AddWebhook", "ssa{sv}", f"h{n}", "https://x.example/", {}))
        for n in range(8)
        for client in clients
    ]
    await prompted(desk, 2)
    await asyncio.sleep(0.3)
    assert len(desk.polkit.open) == 2, "two prompts of one user at once"
    async with desk.client(0) as root:
        await asyncio.wait_for(call(root, *HOOK), 2)
    async with desk.client(1001) as other:
        task = asyncio.create_task(call(other, "Remove", "s", "hook"))
        await prompted(desk, 3)
        desk.polkit.answer_open(yes=True)
        await asyncio.wait_for(task, 2)
    answers = await asyncio.gather(*flood, return_exceptions=True)
    assert sum(isinstance(one, Reply) and "LimitsExceeded" in one.name for one in answers) == 62
    for client in clients:
        await client.__aexit__(None, None, None)


async def test_a_prompt_goes_with_its_caller_and_its_answer_does_nothing(desk: Desk) -> None:
    desk.polkit.mode = "prompt"
    async with desk.client(1000) as user:
        task = asyncio.create_task(call(user, *HOOK))
        await prompted(desk)
    for _ in range(500):
        if desk.polkit.cancelled:
            break
        await asyncio.sleep(0.005)
    assert len(desk.polkit.cancelled) == 1
    desk.polkit.answer_open(yes=True)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.1)
    assert desk.endpoints == []


@pytest.mark.parametrize("mode", ["deny", "garbage", "error", "challenge"])
async def test_whatever_is_not_a_yes_is_a_no_and_recorded(desk: Desk, mode: str) -> None:
    desk.polkit.mode = mode
    async with desk.client(1000) as user:
        with pytest.raises(Reply, match=r"AccessDenied|InteractiveAuthorizationRequired"):
            await call(user, *HOOK, interactive=False)
    assert desk.endpoints == []
    (record,) = desk.journal.records
    assert (record.event, record.uid, record.login_uid) == ("notifier.refused", 1000, 5000)
    assert record.message.startswith("add-webhook hook: refused: ")


async def test_an_endpoint_that_changed_during_the_prompt_is_left_alone(desk: Desk) -> None:
    async with desk.client(0) as root:
        await call(root, *HOOK)
        desk.polkit.mode = "prompt"
        async with desk.client(1000) as user:
            task = asyncio.create_task(call(user, "Remove", "s", "hook"))
            await prompted(desk)
            await call(root, "Remove", "s", "hook")
            await call(root, "AddWebhook", "ssa{sv}", "hook", "https://other.example/", {})
            desk.polkit.answer_open(yes=True)
            with pytest.raises(Reply, match="Conflict"):
                await task
    assert desk.endpoints == ["hook"]


async def test_everyone_may_look(desk: Desk) -> None:
    async with desk.client(1000) as user:
        assert (await call(user, "GetStatus"))["rules"].value == 0
        assert await call(user, "GetMetrics")
    assert not desk.polkit.asked
