# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy for the attack surface and responses over HTTP: the real gateway, the service, and polkit to order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kmodd.model.rules import ManagedFile
from tests.bus.bench import GATEWAY, Bench, bench
from tests.bus.buses import PATH, Client
from tests.gateway.processes import Gateway, Reply, gateway, wait_for

POLICY = '[surface]\nmode = "enforce"\n[allow.dccp]\nreason = "ticket 3"\n'
TIGHTEN, WEAKEN, UNLOAD, INSPECT = (
    f"org.kmodd1.{action}" for action in ("surface", "surface-allow", "unload", "inspect")
)


class Served:
    """The gateway, and what stands behind it."""

    def __init__(self, service: Bench, made: Gateway) -> None:
        self.service = service
        self.gateway = made

    async def ask(self, method: str, path: str, body: object = None, *, token: str = "") -> Reply:
        """One request, while the service answers."""
        return await asyncio.to_thread(self.gateway.ask, method, path, body, token=token)

    async def document(self, method: str, path: str, body: object = None, *, token: str = "") -> Any:
        """The answer to a request that succeeds."""
        reply = await self.ask(method, path, body, token=token)
        assert reply.status == 200, reply.body
        return reply.document

    def text(self, file: ManagedFile) -> str:
        """A rule file."""
        return (self.service.kernel.configuration.read(file) or b"").decode().replace("\t", " ")

    def asked(self) -> list[str]:
        """The actions that polkit was asked about since the last time."""
        actions = [action for _, action, _, _ in self.service.polkit.asked]
        self.service.polkit.asked.clear()
        return actions


@asynccontextmanager
async def serving(folder: Path, policy: str = POLICY) -> AsyncIterator[Served]:
    """A gateway of the user kmodd-gateway, before a service with a policy for the attack surface."""
    async with bench(folder, surface_policy=policy) as service, Client(service.bus.address) as client:
        before = await names(client)
        starting = gateway(folder, service.bus.address, "[limits]\nrate = 0\n", ready=False)
        made = await asyncio.to_thread(starting.__enter__)
        try:
            connected: set[str] = set()
            while not connected:
                connected = await names(client) - before
            service.users.update(dict.fromkeys(connected, GATEWAY))
            served = Served(service, made)
            await asyncio.to_thread(wait_for, lambda: made.ask("GET", "/health").status == 200)
            yield served
        finally:
            await asyncio.to_thread(starting.__exit__, None, None, None)


async def names(client: Client) -> set[str]:
    """The connections to the bus."""
    bus = "org.freedesktop.DBus"
    (listed,) = await client.transport.call(bus, PATH, bus, "ListNames", "", (), timeout=5.0)
    return set(listed)


async def test_the_policy_is_planned_tried_and_confirmed(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        plan = await served.document("GET", "/v1/surface/plan")
        decided = {row["module"]: (row["blocked"], row["because"]) for row in plan["modules"]}
        assert (plan["mode"], decided["dccp"]) == ("enforce", (False, "allow"))
        blocked = plan["block"]
        assert [name for name, (is_blocked, _) in decided.items() if is_blocked] == blocked != []
        needed = await served.document("GET", "/v1/surface/needed")
        assert {row["source"] for row in needed["modules"]} & {"loaded", "dependency"}
        assert set(served.asked()) == {INSPECT}
        dry = await served.document("POST", "/v1/surface/apply", {"dry_run": True})
        assert (dry["block"], served.text(ManagedFile.SURFACE)) == (blocked, "")
        tried = await served.document("POST", "/v1/surface/apply", {"try_seconds": 600, "reason": "ticket 4"})
        assert tried["until"] > 0
        assert (served.text(ManagedFile.SURFACE), "install" in served.text(ManagedFile.SURFACE_TRIAL)) == ("", True)
        faults = (await served.document("GET", "/v1/surface/check"))["faults"]
        assert "trial" in {fault["kind"] for fault in faults}
        again = await served.ask("POST", "/v1/surface/apply")
        assert (again.status, again.document["type"]) == (409, "urn:kmodd:error:Conflict")
        served.asked()
        kept = await served.document("POST", "/v1/surface/confirm", {"reason": "it works"})
        assert (kept["message"], kept["modules"]) == ("Rules on trial confirmed", blocked)
        assert served.asked() == [TIGHTEN]
        assert f"install {blocked[0]} /bin/false" in served.text(ManagedFile.SURFACE)
        assert served.text(ManagedFile.SURFACE_TRIAL) == ""
        assert (await served.ask("POST", "/v1/surface/revert")).status == 409
        records = [row for row in served.service.journal.records if row.event == "policy.applied"]
        record = records[-1]
        assert record.action == "surface-confirm"
        assert (record.reason, record.on_behalf_of.startswith("token root (")) == ("it works", True)


async def test_a_trial_is_reverted(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        tried = await served.document("POST", "/v1/surface/apply", {"try_seconds": 600})
        reverted = await served.document("POST", "/v1/surface/revert")
        assert reverted == {"message": "Rules on trial reverted", "modules": tried["block"]}
        assert served.text(ManagedFile.SURFACE_TRIAL) == ""


async def test_to_tighten_is_one_scope_and_one_action_and_to_weaken_another(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        tightens = served.gateway.make_token("tightens", "surface", "unload")
        weakens = served.gateway.make_token("weakens", "surface-allow")
        await served.document("POST", "/v1/surface/apply", token=tightens)
        blocked = served.text(ManagedFile.SURFACE)
        (tmp_path / "machine/etc/kmodd/surface.d/10.toml").write_text('[surface]\nmode = "off"\n')
        assert (await served.ask("POST", "/v1/surface/apply", token=tightens)).status == 409
        assert (await served.ask("POST", "/v1/surface/apply", {"weaken": True}, token=tightens)).status == 403
        assert (await served.ask("POST", "/v1/surface/apply", {"weaken": True}, token=weakens)).status == 403
        both = served.gateway.make_token("both", "surface", "surface-allow")
        served.service.polkit.granted = frozenset({TIGHTEN})
        refused = await served.ask("POST", "/v1/surface/apply", {"weaken": True}, token=both)
        assert (refused.status, refused.document["type"]) == (403, "urn:kmodd:error:AccessDenied")
        assert served.text(ManagedFile.SURFACE) == blocked
        served.service.polkit.granted = frozenset({TIGHTEN, WEAKEN})
        served.asked()
        allowed = await served.document("POST", "/v1/surface/apply", {"weaken": True}, token=both)
        assert allowed["release"]
        assert served.asked() == [TIGHTEN, WEAKEN]
        assert served.text(ManagedFile.SURFACE) == ""


async def test_a_vulnerability_is_answered_and_the_response_ended(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        tightens = served.gateway.make_token("tightens", "surface", "unload", "read")
        weakens = served.gateway.make_token("weakens", "surface-allow", "read")
        cve = {"id": "CVE-2026-31431"}
        assert (await served.ask("POST", "/v1/responses", cve, token=weakens)).status == 403
        reader = served.gateway.make_token("dry", "surface")
        assert (await served.ask("POST", "/v1/responses", cve, token=reader)).status == 403, "it unloads"
        dry = await served.document("POST", "/v1/responses", {**cve, "dry_run": True}, token=reader)
        (kernel,) = dry["kernels"]
        assert (dry["stage"], "overlay" in kernel["open_requests"]) == ("assessed", True)
        served.asked()
        done = await served.document("POST", "/v1/responses", {**cve, "reason": "ticket 5"}, token=tightens)
        assert (done["stage"], done["proven"]) == ("responded", True)
        assert served.asked() == [TIGHTEN, UNLOAD]
        assert "install overlay /bin/false" in served.text(ManagedFile.BLACKLIST)
        (kept,) = (await served.document("GET", "/v1/responses", token=tightens))["responses"]
        assert (kept["id"], kept["rules"]) == ("CVE-2026-31431", ["overlay"])
        assert (await served.ask("DELETE", "/v1/responses/CVE-2026-31431", token=tightens)).status == 403
        ended = await served.document("DELETE", "/v1/responses/CVE-2026-31431?reason=fixed", token=weakens)
        assert ended == {"message": "Response CVE-2026-31431 ended", "modules": ["overlay"]}
        assert served.asked() == [WEAKEN]
        assert served.text(ManagedFile.BLACKLIST) == ""
        gone = await served.ask("DELETE", "/v1/responses/CVE-2026-31431", token=weakens)
        assert (gone.status, gone.document["type"]) == (404, "urn:kmodd:error:NoSuchResponse")


async def test_what_is_in_use_is_reported_and_nothing_changes(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        assert (await served.ask("POST", "/v1/modules/vfat/load")).status == 200
        stopped = await served.document("POST", "/v1/responses", {"modules": ["fat"]})
        (use,) = stopped["uses"]
        assert (stopped["stage"], use["in_use"], use["holders"]) == ("in-use", True, ["vfat"])
        assert served.text(ManagedFile.BLACKLIST) == ""
        forced = await served.document("POST", "/v1/responses", {"modules": ["fat"], "force_in_use": True})
        assert (forced["stage"], list(forced["still_loaded"])) == ("responded", ["fat"])
        assert (await served.document("DELETE", "/v1/responses/module:fat"))["modules"] == ["fat"]


async def test_names_of_modules_are_data_in_an_outcome(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        done = await served.document("POST", "/v1/responses", {"modules": ["xt-LOG"], "dry_run": True})
        assert list(done["kernels"][0]["placements"]) == ["xt_LOG"]


async def test_a_token_for_some_modules_names_them(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        limited = served.gateway.make_token("limited", "admin", modules=["overlay", "tun"])
        for body in (
            {"id": "CVE-2026-31431"},
            {"id": "CVE-2026-31431", "modules": ["overlay"]},
            {"modules": ["overlay", "loop"]},
            {"modules": ["overlay"], "files": ["fs/fat/dir.c"]},
        ):
            assert (await served.ask("POST", "/v1/responses", body, token=limited)).status == 403, body
        assert (await served.ask("POST", "/v1/surface/apply", {"dry_run": True}, token=limited)).status == 403
        assert served.service.polkit.asked == []
        done = await served.document("POST", "/v1/responses", {"modules": ["overlay"]}, token=limited)
        assert (done["id"], done["stage"]) == ("module:overlay", "responded")
        await served.document("POST", "/v1/responses", {"modules": ["loop"]})
        assert (await served.ask("DELETE", "/v1/responses/module:loop", token=limited)).status == 403
        assert (await served.ask("DELETE", "/v1/responses/module:overlay,loop", token=limited)).status == 403
        assert "install loop /bin/false" in served.text(ManagedFile.BLACKLIST)
        ended = await served.document("DELETE", "/v1/responses/module:overlay", token=limited)
        assert ended["modules"] == ["overlay"]


async def test_a_token_for_some_modules_ends_no_rule_of_another(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        limited = served.gateway.make_token("limited", "admin", modules=["overlay"])
        body = {"modules": ["overlay"], "files": ["drivers/block/loop.c"]}
        assert (await served.document("POST", "/v1/responses", body))["id"] == "module:overlay,loop"
        assert (await served.ask("DELETE", "/v1/responses/module:overlay", token=limited)).status == 404
        assert (await served.ask("DELETE", "/v1/responses/module:overlay,loop", token=limited)).status == 403
        (kept,) = served.service.kept_responses.read()
        earlier = replace(kept, vulnerability=replace(kept.vulnerability, id="module:overlay"))
        served.service.kept_responses.write([earlier])
        served.asked()
        refused = await served.ask("DELETE", "/v1/responses/module:overlay", token=limited)
        assert (refused.status, served.asked()) == (403, [])
        assert refused.document["detail"] == "the call would affect loop, outside of only-modules"
        assert "install loop /bin/false" in served.text(ManagedFile.BLACKLIST)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, "name a CVE, or modules"),
        ({"id": "CVE-26-1"}, "a response is named by its CVE"),
        ({"modules": ["../x"]}, "a module name is"),
        ({"modules": ["fat"] * 65}, "at most 64 elements"),
        ({"modules": ["fat"], "fixed": ["6\u0000"]}, "a version is"),
        ({"modules": ["fat"], "unaffected_from": "6.1\u0000"}, "a version is"),
        ({"modules": ["fat"], "files": ["fs/../x.c"]}, "a source file is named by its path"),
        ({"modules": ["fat"], "dry_run": 1}, "dry_run"),
    ],
)
async def test_what_is_no_vulnerability_is_refused(served: Gateway, body: object, detail: str) -> None:
    reply = served.ask("POST", "/v1/responses", body)
    assert (reply.status, reply.document["type"]) == (400, "urn:kmodd:error:InvalidArgs")
    assert detail in reply.document["detail"]


def test_the_lock_of_the_kernel_is_not_for_http(served: Gateway) -> None:
    paths = served.ask("GET", "/openapi.json").document["paths"]
    assert not [path for path in paths if "lock" in path]
    assert served.ask("POST", "/v1/surface/lock").status in (404, 405)
