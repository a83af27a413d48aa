# SPDX-License-Identifier: LGPL-2.1-or-later
"""org.kmodd1.Surface.Lock: what is pending, what would break, and that it is refused or done."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from kmodd.client import Client as LibraryClient
from kmodd.core.desired.trial import ApplyTrial
from kmodd.errors import Busy
from kmodd.model import Outcome
from kmodd.model.surface import Reading, Want
from tests.bus.bench import Bench, bench, record_of
from tests.bus.test_responses import call

DRY = Variant("b", True)


def kinds(plan: dict[str, Any]) -> list[tuple[str, str]]:
    return [(row["kind"], row.get("module", "")) for row in plan["pending"]]


def locked(service: Bench) -> bool:
    return service.kernel.facts.read().modules_disabled


async def test_it_locks_what_is_settled_and_says_what_is_lost(tmp_path: Path) -> None:
    async with bench(tmp_path, loaded=("loop",)) as service, service.client() as client:
        wants = (Want("fs-vfat", "/etc/fstab, line 7: /media/stick"), Want("loop", "/etc/fstab, line 8: /mnt"))
        service.kernel.needs.readings = (Reading("fstab", wants), Reading("units", fault="cannot be read (EACCES)"))
        plan = await call(client, "Lock", dry_run=DRY)
        assert (plan["locked"], plan["pending"]) == (False, [])
        lost = {row["module"]: (row["source"], row["evidence"]) for row in plan["breaks"] if "module" in row}
        assert lost == {"vfat": ("fstab", "/etc/fstab, line 7: /media/stick")}, "not fat, which comes with it"
        assert [row for row in plan["breaks"] if "fault" in row] == [
            {"source": "units", "fault": "cannot be read (EACCES)"}
        ]
        assert not locked(service)
        assert (await call(client, "Lock", reason=Variant("s", "ticket 1")))["locked"] is True
        assert locked(service)
        assert service.registry.facts().modules_disabled
        assert await call(client, "Lock") == {"locked": True, "pending": [], "breaks": []}
    record = record_of(service.journal, "policy.locked")
    assert (record.uid, record.reason, record.extra) == (0, "ticket 1", {"BREAKS": "vfat"})
    assert record_of(service.journal, "operation.unchanged").action == "surface-lock"


async def test_a_device_whose_driver_is_not_loaded_refuses_it(tmp_path: Path) -> None:
    async with bench(tmp_path, loaded=("veth",)) as service, service.client() as client:
        service.driverless += ["rtnl-link-dummy", "rtnl-link-veth", "acpi:NONE:"]
        assert kinds(await call(client, "Lock", dry_run=DRY)) == [("device", "dummy")]
        with pytest.raises(Exception, match="while something is pending: the device rtnl-link-dummy has no driver"):
            await call(client, "Lock")
        assert not locked(service)
        failed = record_of(service.journal, "operation.failed")
        assert (failed.action, failed.error) == ("surface-lock", "Conflict")
        # A device whose module nothing may load waits for nothing.
        await client.call("SetBlacklisted", "sba{sv}", "dummy", True, {}, interface="org.kmodd1.Configuration")
        assert kinds(await call(client, "Lock", dry_run=DRY)) == []


async def test_a_response_whose_module_is_loaded_and_a_lease_refuse_it(tmp_path: Path) -> None:
    async with bench(tmp_path) as service, service.client() as client:
        options = {"modules": Variant("as", ["fat"]), "force_in_use": Variant("b", True)}
        await client.call("Load", "sa{ss}a{sv}", "vfat", {}, {})
        assert (await call(client, "Respond", "", **options))["still-loaded"].keys() == {"fat"}
        assert kinds(await call(client, "Lock", dry_run=DRY)) == [("response", "fat")]
        await call(client, "EndResponse", "module:fat")
        holder = await LibraryClient.connect(service.bus.address)
        try:
            lease = await holder.hold("dummy", {})
            assert kinds(await call(client, "Lock", dry_run=DRY)) == [("lease", "dummy")]
            with pytest.raises(Exception, match="dummy could not be unloaded when its lease ends"):
                await call(client, "Lock")
            os.close(lease)
        finally:
            await holder.close()
        assert not locked(service)


async def test_an_operation_that_begins_while_the_plan_is_made_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(tmp_path) as service, service.client() as client:
        jobs: list[int] = []

        class Devices(list[str]):
            """Read last."""

            def __iter__(self) -> Iterator[str]:
                jobs.append(service.jobs.add("load", "dummy", ":1.9"))
                return super().__iter__()

        monkeypatch.setattr(service, "driverless", Devices())
        with pytest.raises(Exception, match=r"an operation is under way \(load dummy\)"):
            await call(client, "Lock")
        assert not locked(service)
        service.jobs.finish(jobs[0], "done")


async def test_a_trial_that_begins_while_the_plan_is_made_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(tmp_path) as service, service.client() as client:
        begun: list[bool] = []

        class Devices(list[str]):
            """Read last."""

            def __iter__(self) -> Iterator[str]:
                begun.append(True)
                return super().__iter__()

        monkeypatch.setattr(service, "driverless", Devices())
        monkeypatch.setattr(ApplyTrial, "told", property(lambda _: "the desired state is on trial" if begun else ""))
        with pytest.raises(Exception, match="the desired state is on trial"):
            await call(client, "Lock")
        assert not locked(service)


async def test_no_operation_begins_while_the_kernel_is_being_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(tmp_path) as service, service.client() as client:
        lock, refused = service.kernel.executor.lock, []

        async def load_meanwhile(*, timeout: float) -> Outcome:
            try:
                service.jobs.add("load", "dummy", ":1.9")
            except Busy as error:
                refused.append(error.message)
            return await lock(timeout=timeout)

        monkeypatch.setattr(service.kernel.executor, "lock", load_meanwhile)
        assert (await call(client, "Lock"))["locked"] is True
        assert refused == ["loading and unloading of modules is being disabled"]
        service.jobs.finish(service.jobs.add("load", "dummy", ":1.9"), "done")
