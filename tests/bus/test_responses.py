# SPDX-License-Identifier: LGPL-2.1-or-later
"""org.kmodd1.Surface: answering a vulnerability, ending the response, and what was refused."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from kmodd.model import Record
from kmodd.model.rules import ManagedFile
from kmodd.model.surface import OwnedRule, Response, Vulnerability
from kmodd.names import ModuleName
from tests.bus.bench import Bench, bench
from tests.bus.buses import Client, Reply

SURFACE = "org.kmodd1.Surface"


def plain(value: Any) -> Any:
    """A reply without variants."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


async def call(client: Client, member: str, *arguments: Any, **options: Variant) -> Any:
    values = {key.replace("_", "-"): value for key, value in options.items()}
    signature = "s" * len(arguments) + "a{sv}"
    return plain(await client.call(member, signature, *arguments, values, interface=SURFACE))


def blacklist(service: Bench) -> str:
    """What kmodd's file says."""
    text = service.kernel.configuration.read(ManagedFile.BLACKLIST)
    return "" if text is None else text.decode().replace("\t", " ")


async def set_blacklisted(client: Client, module: str, *, hard: bool, reason: str) -> None:
    values = {"hard": Variant("b", hard), "reason": Variant("s", reason)}
    await client.call("SetBlacklisted", "sba{sv}", module, True, values, interface="org.kmodd1.Configuration")


async def test_a_response_writes_rules_proves_them_and_ends_them(tmp_path: Path) -> None:
    async with bench(tmp_path) as service, service.client() as client:
        before = await call(client, "Respond", "CVE-2026-31431", dry_run=Variant("b", True))
        assert (before["stage"], before["proven"], before["modules"]) == ("assessed", False, ["overlay"])
        (kernel,) = before["kernels"]
        assert kernel["verdict"] == "unknown"
        assert "overlay" in kernel["open-requests"]["overlay"]
        assert await call(client, "GetResponses") == []
        done = await call(client, "Respond", "CVE-2026-31431", reason=Variant("s", "ticket 1"))
        assert (done["stage"], done["proven"], done["still-loaded"]) == ("responded", True, {})
        (kernel,) = done["kernels"]
        assert (kernel["blocked"], kernel["open-requests"]) == (True, {})
        assert kernel["requests"] > 1
        assert "install overlay /bin/false" in blacklist(service)
        (kept,) = await call(client, "GetResponses")
        assert (kept["id"], kept["rules"], kept["fixed"]) == ("CVE-2026-31431", ["overlay"], ["6.1.170"])
        assert await call(client, "EndResponse", "CVE-2026-31431") == ["overlay"]
        assert blacklist(service) == ""
        assert await call(client, "GetResponses") == []
    events = [record.event for record in service.journal.records if record.event.startswith("response.")]
    assert events == ["response.begun", "response.ended"]


async def test_what_is_in_use_stops_it_and_nothing_is_written(tmp_path: Path) -> None:
    async with bench(tmp_path) as service, service.client() as client:
        options = {"modules": Variant("as", ["fat"])}
        await client.call("Load", "sa{ss}a{sv}", "vfat", {}, {})
        stopped = await call(client, "Respond", "", **options)
        assert stopped["stage"] == "in-use"
        (use,) = stopped["uses"]
        assert (use["in-use"], use["holders"]) == (True, ["vfat"])
        assert (blacklist(service), await call(client, "GetResponses")) == ("", [])
        done = await call(client, "Respond", "", force_in_use=Variant("b", True), **options)
        assert (done["stage"], done["proven"]) == ("responded", False), "it is still loaded"
        assert list(done["still-loaded"]) == ["fat"]
        assert all(kernel["blocked"] for kernel in done["kernels"])


async def test_an_unused_module_is_unloaded(tmp_path: Path) -> None:
    async with bench(tmp_path) as service, service.client() as client:
        await client.call("Load", "sa{ss}a{sv}", "overlay", {}, {})
        done = await call(client, "Respond", "CVE-2026-31431")
        assert (done["unloaded"], done["proven"]) == (["overlay"], True)
        assert service.kernel.loaded.read(ModuleName("overlay")) is None


async def test_rules_see_who_loaded_what_is_unloaded(tmp_path: Path) -> None:
    async with bench(tmp_path, polkit_timeout=10.0) as service, service.client(1000) as user:
        await user.call("Load", "sa{ss}a{sv}", "overlay", {}, {})
        service.polkit.asked.clear()
        service.polkit.mode = "hang"
        task = asyncio.create_task(call(user, "Respond", "CVE-2026-31431"))
        await until(lambda: bool(service.polkit.open))
        service.kernel.rmmod("overlay")
        service.kernel.modprobe("overlay")
        await asyncio.sleep(0.1)
        service.polkit.mode = "allow"
        service.polkit.answer_open(yes=True)
        done = await task
        asked = {action: details for _, action, details, _ in service.polkit.asked}
        assert asked["org.kmodd1.unload"]["loaded-by"] == "1000"
        assert done["still-loaded"] == {"overlay": "overlay was loaded by another user since authorization; try again"}
        assert "install overlay /bin/false" in blacklist(service), "kept out all the same from the next boot on"
        service.polkit.asked.clear()
        again = await call(user, "Respond", "CVE-2026-31431")
        assert {details["loaded-by"] for _, _, details, _ in service.polkit.asked} == {"unknown"}
        assert again["unloaded"] == ["overlay"]


async def until(holds: Callable[[], bool]) -> None:
    """Wait for it, at most ten seconds."""
    for _ in range(2000):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it does not come about")


@pytest.mark.parametrize("hard", [True, False])
async def test_the_end_leaves_the_rules_of_others(tmp_path: Path, *, hard: bool) -> None:
    async with bench(tmp_path) as service, service.client() as client:
        await set_blacklisted(client, "overlay", hard=hard, reason="policy 12")
        before = blacklist(service)
        await call(client, "Respond", "CVE-2026-31431")
        (kept,) = await call(client, "GetResponses")
        assert kept["rules"] == ([] if hard else ["overlay"])
        await call(client, "EndResponse", "CVE-2026-31431")
        assert blacklist(service) == before


async def test_a_rule_that_was_changed_since_stays(tmp_path: Path) -> None:
    async with bench(tmp_path) as service, service.client() as client:
        await call(client, "Respond", "CVE-2026-31431")
        await set_blacklisted(client, "overlay", hard=True, reason="for good")
        assert await call(client, "EndResponse", "CVE-2026-31431") == []
        assert "# Reason: for good\nblacklist overlay" in blacklist(service)


async def test_a_rule_that_another_response_needs_becomes_its_own(tmp_path: Path) -> None:
    async with bench(tmp_path) as service, service.client() as client:
        await call(client, "Respond", "CVE-2026-31431")
        await call(client, "Respond", "", modules=Variant("as", ["overlay", "vfat"]))
        assert await call(client, "EndResponse", "CVE-2026-31431") == []
        (kept,) = await call(client, "GetResponses")
        assert (kept["id"], sorted(kept["rules"])) == ("module:overlay,vfat", ["overlay", "vfat"])
        assert "install overlay /bin/false" in blacklist(service)
        assert sorted(await call(client, "EndResponse", "module:overlay,vfat")) == ["overlay", "vfat"]
        assert blacklist(service) == ""


OVERLAY, LOOP = ModuleName("overlay"), ModuleName("loop")
FIXED = {"fixed": Variant("as", ["6.1.170"])}


@pytest.mark.parametrize(
    ("modules", "options", "of_what"),
    [
        (["loop"], FIXED, "modules"),
        (["overlay", "loop"], FIXED, "modules"),
        (["overlay"], {}, "fixed versions"),
        (["overlay"], {"fixed": Variant("as", ["6.1.100"])}, "fixed versions"),
        (["overlay"], FIXED | {"unaffected_from": Variant("s", "6.1.128")}, "fixed versions"),
        (["overlay"], FIXED | {"unaffected_before": Variant("s", "7.0")}, "fixed versions"),
    ],
)
async def test_a_response_keeps_its_modules_and_versions_until_it_ends(
    tmp_path: Path, modules: list[str], options: dict[str, Variant], of_what: str
) -> None:
    async with bench(tmp_path) as service, service.client() as client:
        key = "CVE-2026-31431"
        await call(client, "Respond", key)
        before, rules = await call(client, "GetResponses"), blacklist(service)
        with pytest.raises(Reply, match=f"Conflict: the response {key} has other {of_what}; end it first"):
            await call(client, "Respond", key, modules=Variant("as", modules), **options)
        assert (await call(client, "GetResponses"), blacklist(service)) == (before, rules)
        again = await call(client, "Respond", key, modules=Variant("as", ["overlay"]), **FIXED)
        assert again["stage"] == "responded"
        await call(client, "EndResponse", key)
        anew = await call(client, "Respond", key, modules=Variant("as", modules), **options)
        assert (anew["stage"], anew["modules"]) == ("responded", modules)


async def test_polkit_sees_every_module_whose_rule_a_response_owns(tmp_path: Path) -> None:
    async with bench(tmp_path, polkit_timeout=20.0) as service, service.client(1000) as user:
        record = Vulnerability("CVE-2026-31431", (LOOP,))
        service.kept_responses.write([Response(record, (OwnedRule(OVERLAY), OwnedRule(LOOP)))])
        service.polkit.mode = "allow"
        await call(user, "EndResponse", "CVE-2026-31431")
        (details,) = (details for _, _, details, _ in service.polkit.asked)
        assert (details["modules"], "module" in details) == ("loop overlay", False)


async def test_a_response_that_changes_during_the_prompt_is_not_ended(tmp_path: Path) -> None:
    async with bench(tmp_path, polkit_timeout=10.0) as service, service.client(1000) as user, service.client() as root:
        await call(root, "Respond", "CVE-2026-31431")
        service.polkit.mode = "hang"
        task = asyncio.create_task(call(user, "EndResponse", "CVE-2026-31431"))
        await until(lambda: bool(service.polkit.open))
        await call(root, "EndResponse", "CVE-2026-31431")
        await call(root, "Respond", "CVE-2026-31431", modules=Variant("as", ["loop"]))
        service.polkit.answer_open(yes=True)
        with pytest.raises(Reply, match="Conflict: the response CVE-2026-31431 changed since authorization; try again"):
            await task
        assert "install loop /bin/false" in blacklist(service)


async def test_the_modules_of_source_files_are_part_of_the_name(tmp_path: Path) -> None:
    async with bench(tmp_path) as service, service.client() as client:
        named = {"modules": Variant("as", ["overlay"]), "files": Variant("as", ["drivers/block/loop.c"])}
        done = await call(client, "Respond", "", **named)
        assert (done["id"], done["modules"]) == ("module:overlay,loop", ["overlay", "loop"])
        with pytest.raises(Reply, match="NoSuchResponse"):
            await call(client, "EndResponse", "module:overlay")
        assert await call(client, "EndResponse", "module:overlay,loop") == ["overlay", "loop"]


ONLY = Variant("as", ["overlay", "vfat"])


async def test_a_response_affects_only_modules(tmp_path: Path) -> None:
    async with bench(tmp_path) as service, service.client() as client:
        refused = "AccessDenied: the call would affect loop, outside of only-modules"
        for dry_run in (True, False):
            options = {"modules": Variant("as", ["overlay", "loop"]), "dry_run": Variant("b", dry_run)}
            with pytest.raises(Reply, match=refused):
                await call(client, "Respond", "", only_modules=ONLY, **options)
        assert (blacklist(service), service.polkit.asked) == ("", [])
        await call(client, "Respond", "CVE-2026-31431", only_modules=ONLY)
        (kept,) = service.kept_responses.read()
        service.kept_responses.write([replace(kept, rules=(*kept.rules, OwnedRule(LOOP)))])
        with pytest.raises(Reply, match=refused):
            await call(client, "EndResponse", "CVE-2026-31431", only_modules=ONLY)
        assert "install overlay /bin/false" in blacklist(service)
        service.kept_responses.write([kept])
        assert await call(client, "EndResponse", "CVE-2026-31431", only_modules=ONLY) == ["overlay"]
    refusals = [record for record in service.journal.records if record.error.endswith("AccessDenied")]
    assert [record.action for record in refusals] == ["respond", "end-response"]


@pytest.mark.parametrize(
    ("key", "options", "error"),
    [
        ("CVE-2026-99999", {}, "NoSuchResponse"),
        ("", {}, "InvalidArgs"),
        ("copy-fail", {"modules": Variant("as", ["overlay"])}, "InvalidArgs"),
        ("", {"modules": Variant("as", ["../x"])}, "InvalidArgs"),
        ("", {"modules": Variant("as", ["x"] * 65)}, "InvalidArgs"),
        (
            "",
            {"modules": Variant("as", [f"x{n}" for n in range(64)]), "files": Variant("as", ["drivers/block/loop.c"])},
            "InvalidArgs",
        ),
        ("CVE-2026-31431", {"fixed": Variant("as", ["6.1.x"]), "modules": Variant("as", ["overlay"])}, "InvalidArgs"),
        ("CVE-2026-31431", {"files": Variant("as", ["net/core/skbuff.c"])}, "InvalidArgs"),
    ],
)
async def test_bad_requests(tmp_path: Path, key: str, options: dict[str, Variant], error: str) -> None:
    async with bench(tmp_path) as service, service.client() as client:
        with pytest.raises(Reply) as raised:
            await call(client, "Respond", key, **options)
        assert raised.value.name.endswith(error)
        assert blacklist(service) == ""


async def test_versions_decide_and_a_fixed_kernel_is_left_alone(tmp_path: Path) -> None:
    async with bench(tmp_path) as service, service.client() as client:
        release = service.kernel.facts.read().release
        builder = "(debian-kernel@lists.debian.org)"
        text = f"{release} {builder} #1 SMP Debian 6.1.170-1 (2026-05-01)"
        service.kernel.installed.versions[release] = text
        done = await call(client, "Respond", "CVE-2026-31431")
        assert (done["stage"], done["kernels"][0]["verdict"]) == ("assessed", "fixed")
        assert (blacklist(service), await call(client, "GetResponses")) == ("", [])
        service.kernel.installed.versions[release] = text.replace("170", "169")
        done = await call(client, "Respond", "CVE-2026-31431")
        assert (done["stage"], done["kernels"][0]["verdict"]) == ("responded", "affected")


async def test_polkit_is_asked_with_the_response_and_its_modules(tmp_path: Path) -> None:
    async with bench(tmp_path, polkit_timeout=20.0) as service, service.client(1000) as user:
        service.polkit.mode = "allow"
        await call(user, "Respond", "CVE-2026-31431")
        await call(user, "EndResponse", "CVE-2026-31431")
        asked = [(action, details["response"], details["modules"]) for _, action, details, _ in service.polkit.asked]
        assert asked == [
            ("org.kmodd1.surface", "CVE-2026-31431", "overlay"),
            ("org.kmodd1.unload", "CVE-2026-31431", "overlay"),
            ("org.kmodd1.surface-allow", "CVE-2026-31431", "overlay"),
        ]
        service.polkit.mode = "deny"
        with pytest.raises(Reply):
            await call(user, "Respond", "CVE-2026-31431")
        assert blacklist(service) == ""


async def test_refused_attempts_are_counted_with_the_command_that_allows_them(tmp_path: Path) -> None:
    async with bench(tmp_path) as service, service.client() as client:
        await call(client, "Respond", "CVE-2026-31431")
        extra = {
            "ALIAS": "net-pf-33",
            "COMM": "try",
            "UNIT": "evil.service",
            "FILE": ManagedFile.BLACKLIST,
            "LINE": "6",
        }
        record = Record("module.refused", "refused", module="overlay", uid=1000, exe="/usr/bin/try", extra=extra)
        service.journal.records[:] = [record]
        service.journal.record(Record("module.refused", "", module="overlay", uid=1000, exe="/usr/bin/try",
                                      extra={**extra, "COUNT": "41"}))  # fmt: skip
        service.journal.record(
            Record("module.refused", "", module="x", uid=1, extra={"FILE": "/etc/modprobe.d/a.conf"})
        )
        rows = await call(client, "GetRefused")
        mine = next(row for row in rows if row["alias"] == "net-pf-33")
        assert (mine["count"], mine["uid"], mine["unit"], mine["exe"]) == (42, 1000, "evil.service", "/usr/bin/try")
        assert (mine["response"], mine["allow"]) == ("CVE-2026-31431", "kmodctl respond end CVE-2026-31431")
        other = next(row for row in rows if row["modules"] == ["x"])
        assert other["allow"] == "change or remove it in /etc/modprobe.d/a.conf"
