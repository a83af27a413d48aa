# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is done is what was authorized: when the machine changes while somebody types a password, nothing else comes of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from kmodd.kernel.simulated.modules import RELEASE
from kmodd.model import Consequence, ConsequenceKind
from tests.bus.bench import Bench, bench
from tests.bus.buses import Client, Reply
from tests.bus.test_store import STORE, VERMAGIC, give, listed, module
from tests.kernel.elf import module_file

LOADING = {"load": Variant("b", True)}
Race = Callable[[Bench, Client], Awaitable[None]]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path, polkit_timeout=10.0) as made:
        made.kernel.modprobe("loop")
        await asyncio.sleep(0.05)
        yield made


async def during_the_prompt(service: Bench, caller: Client, member: str, *call: Any, race: Race, **where: Any) -> Any:
    """Call, let something happen while polkit is asked, say yes to everything, and answer what came of the call."""
    service.polkit.mode = "hang"
    task = asyncio.create_task(caller.call(member, *call, **where))
    for _ in range(2000):
        if service.polkit.open or task.done():
            break
        await asyncio.sleep(0.005)
    assert service.polkit.open, task
    service.polkit.mode = "allow"
    async with service.client(0) as root:
        await race(service, root)
    service.polkit.answer_open(yes=True)
    return await task


def loaded(service: Bench) -> set[str]:
    return set(service.kernel.loaded.snapshot())


async def unload(service: Bench, *names: str) -> None:
    for name in names:
        service.kernel.rmmod(name)
    await asyncio.sleep(0.05)


async def load(service: Bench, *names: str) -> None:
    for name in names:
        service.kernel.modprobe(name)
    await asyncio.sleep(0.05)


KERNEL_RACES: dict[str, tuple[list[str], tuple[Any, ...], Race, str]] = {
    "a dependency was removed, so it would be loaded too": (
        ["fat"], ("Load", "sa{ss}a{sv}", "vfat", {}, {}), lambda service, _: unload(service, "fat"), "Conflict",
    ),
    "a dependency was removed, so a batch would load it too": (
        ["fat"], ("Batch", "a(ssa{ss})a{sv}", [["load", "vfat", {}]], {}), lambda service, _: unload(service, "fat"), "Conflict",
    ),
    "the module and its dependency were removed, so a reload would load both": (
        ["vfat"], ("Reload", "sa{ss}a{sv}", "vfat", {}, {}), lambda service, _: unload(service, "vfat", "fat"), "Conflict",
    ),
    "a dependent was loaded, so it would be removed too": (
        ["fat"], ("Unload", "sa{sv}", "fat", {"dependents": Variant("b", True)}), lambda service, _: load(service, "vfat"), "Conflict",
    ),
    "the module is gone": (
        ["dummy"], ("Unload", "sa{sv}", "dummy", {}), lambda service, _: unload(service, "dummy"), "",
    ),
    "the module whose parameter is set is gone": (
        ["overlay"], ("SetParameter", "sss", "overlay", "redirect_max", "7"), lambda service, _: unload(service, "overlay"), "NotLoaded",
    ),
}  # fmt: skip


@pytest.mark.parametrize("race", KERNEL_RACES)
async def test_a_changed_machine_widens_no_consent(service: Bench, race: str) -> None:
    before, call, happens, error = KERNEL_RACES[race]
    await load(service, *before)
    after: set[str] = set()

    async def happening(service: Bench, root: Client) -> None:
        await happens(service, root)
        after.update(loaded(service))

    async with service.client(1000) as user:
        if error:
            with pytest.raises(Reply, match=error):
                await during_the_prompt(service, user, *call, race=happening)
        else:
            await during_the_prompt(service, user, *call, race=happening)
    assert loaded(service) == after


ONLY = {"only-modules": Variant("as", ["vfat", "vfat", "dummy"])}
BATCH = "a(ssa{ss})a{sv}"


@pytest.mark.parametrize(
    ("call", "outside"),
    [
        (("Load", "sa{ss}a{sv}", "vfat", {}, ONLY), "fat"),
        (("Load", "sa{ss}a{sv}", "loop", {}, ONLY), "loop"),
        (("Load", "sa{ss}a{sv}", "fs-vfat", {}, ONLY), "fat"),
        (("Load", "sa{ss}a{sv}", "dummy", {}, {"only-modules": Variant("as", [])}), "dummy"),
        (("Unload", "sa{sv}", "ext4", {"dependents": Variant("b", True), **ONLY}), "ext4"),
        (("Unload", "sa{sv}", "msdos", {"unused-dependencies": Variant("b", True), "only-modules": Variant("as", ["msdos"])}), "fat"),
        (("Reload", "sa{ss}a{sv}", "loop", {"max_loop": "4"}, ONLY), "loop"),
        (("Batch", BATCH, [["load", "dummy", {}], ["load", "vfat", {}]], ONLY), "fat"),
        (("Batch", BATCH, [["load", "dummy", {}], ["load", "vfat", {}]], {**ONLY, "atomic": Variant("b", False)}), "fat"),
        (("SetParameter", "sssa{sv}", "overlay", "redirect_max", "7", ONLY), "overlay"),
    ],
)  # fmt: skip
async def test_no_module_but_those_named_is_touched(service: Bench, call: tuple[Any, ...], outside: str) -> None:
    """As a dependency, a dependent, behind an alias: the plan decides, not what the call names. Root is held to it as well."""
    await load(service, "overlay", *(["msdos"] if "msdos" in call else []))
    before = loaded(service)
    for uid in (0, 1000):
        async with service.client(uid) as user:
            with pytest.raises(
                Reply, match=f"AccessDenied: the call would affect {outside}.*, outside of only-modules"
            ):
                await user.call(*call)
    assert loaded(service) == before
    assert not service.polkit.asked, "nobody is asked for what cannot be"
    refused = [record for record in service.journal.records if record.event == "operation.failed"]
    assert [(record.uid, record.error) for record in refused] == [(0, "AccessDenied"), (1000, "AccessDenied")]


async def test_the_modules_named_are_touched(service: Bench) -> None:
    only = {"only-modules": Variant("as", ["vfat", "fat"])}
    async with service.client(1000) as user:
        assert await user.call("Load", "sa{ss}a{sv}", "vfat", {}, only) == ["fat", "vfat"]
        assert await user.call("Unload", "sa{sv}", "vfat", only) == ["vfat"]
        for bad in (["../x"], ["vfat"] * 65):
            with pytest.raises(Reply, match="InvalidArgs"):
                await user.call("Load", "sa{ss}a{sv}", "vfat", {}, {"only-modules": Variant("as", bad)})


@pytest.mark.parametrize(
    ("member", "call"),
    [("Load", ("sa{ss}a{sv}", "vfat", {}, ONLY)), ("Batch", (BATCH, [["load", "vfat", {}]], ONLY))],
)
async def test_a_plan_that_grows_during_the_prompt_touches_no_other_module(
    service: Bench, member: str, call: tuple[Any, ...]
) -> None:
    await load(service, "fat")

    async def happening(service: Bench, root: Client) -> None:
        await unload(service, "fat")

    async with service.client(1000) as user:
        with pytest.raises(Reply, match="AccessDenied: the call would affect fat, outside of only-modules"):
            await during_the_prompt(service, user, member, *call, race=happening)
    assert not loaded(service) & {"fat", "vfat"}


UP = Consequence(ConsequenceKind.INTERFACE, "wg9", up=True)


@pytest.mark.parametrize(
    "became", [replace(UP, default_route=True), replace(UP, name="wg8"), Consequence(ConsequenceKind.UNKNOWN, "")]
)
async def test_what_goes_with_a_module_is_what_was_shown(service: Bench, became: Consequence) -> None:
    await load(service, "dummy")
    service.kernel.attach("dummy", UP)
    options = {"disconnect": Variant("b", True)}

    async def happening(service: Bench, root: Client) -> None:
        service.kernel.detach("dummy")
        service.kernel.attach("dummy", became)

    async with service.client(1000) as user:
        with pytest.raises(Reply, match="Conflict"):
            await during_the_prompt(service, user, "Unload", "sa{sv}", "dummy", options, race=happening)
        assert "dummy" in loaded(service)
        assert await during_the_prompt(service, user, "Unload", "sa{sv}", "dummy", options, race=nothing) == ["dummy"]


async def test_what_comes_up_during_the_prompt_is_not_taken_away(service: Bench) -> None:
    await load(service, "dummy")

    async def happening(service: Bench, root: Client) -> None:
        service.kernel.attach("dummy", UP)

    async with service.client(1000) as user:
        with pytest.raises(Reply, match="wg9"):
            await during_the_prompt(service, user, "Unload", "sa{sv}", "dummy", {}, race=happening)
    assert "dummy" in loaded(service)


async def nothing(service: Bench, root: Client) -> None:
    """Happens."""


async def test_a_module_whose_file_is_another_one_is_not_loaded(
    service: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody activated a version of their own in the store: that is not what was authorized."""
    index: Any = service.kernel.index
    path = index.path

    async def happening(service: Bench, root: Client) -> None:
        monkeypatch.setattr(index, "path", lambda name: f"{path(name)}.other" if name == "dummy" else path(name))
        monkeypatch.setattr(index, "version", index.version + 1)

    async with service.client(1000) as user:
        with pytest.raises(Reply, match="Conflict"):
            await during_the_prompt(service, user, "Load", "sa{ss}a{sv}", "dummy", {}, {}, race=happening)
    assert "dummy" not in loaded(service)


# --- the store ----------------------------------------------------------------------------------------------------------


async def activate(root: Client, version: str) -> None:
    await root.call("Activate", "ssa{sv}", "special", version, {}, interface=STORE)


async def deactivate(root: Client) -> None:
    await root.call("Deactivate", "sa{sv}", "special", {}, interface=STORE)


async def replace_version(root: Client, version: str, content: bytes) -> None:
    """The same label, or the same bytes, for another entry."""
    await root.call("Remove", "ss", "special", version, interface=STORE)
    await give(root, content, version=version)


STORE_RACES: dict[str, tuple[str, tuple[Any, ...], Race, str, str]] = {
    "another version is active than the one to be taken out": (
        "1.0", ("Deactivate", "sa{sv}", "special", {}), lambda _, root: activate(root, "2.0"), "Conflict", "2.0",
    ),
    "another version is active than the one to be replaced": (
        "1.0", ("Activate", "ssa{sv}", "special", "3.0", {}), lambda _, root: activate(root, "2.0"), "Conflict", "2.0",
    ),
    "the version to be activated is another file": (
        "", ("Activate", "ssa{sv}", "special", "2.0", {}),
        lambda _, root: replace_version(root, "2.0", module(version="9")), "Conflict", "",
    ),
    "the version to be activated is the same file, imported again": (
        "", ("Activate", "ssa{sv}", "special", "2.0", {}),
        lambda _, root: replace_version(root, "2.0", module(version="2.0")), "Conflict", "",
    ),
    "the version to be removed was activated": (
        "", ("Remove", "ss", "special", "2.0"), lambda _, root: activate(root, "2.0"), "Conflict", "2.0",
    ),
    "the version to be removed is the same file, imported again": (
        "", ("Remove", "ss", "special", "2.0"),
        lambda _, root: replace_version(root, "2.0", module(version="2.0")), "Conflict", "",
    ),
    "it was taken out by somebody else": (
        "1.0", ("Deactivate", "sa{sv}", "special", {}), lambda _, root: deactivate(root), "", "",
    ),
    "it was activated by somebody else": (
        "", ("Activate", "ssa{sv}", "special", "1.0", {}), lambda _, root: activate(root, "1.0"), "", "1.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("race", STORE_RACES)
async def test_a_changed_store_widens_no_consent(service: Bench, race: str) -> None:
    active, call, happens, error, active_after = STORE_RACES[race]
    async with service.client(0) as root:
        for version in ("1.0", "2.0", "3.0"):
            await give(root, module(version=version))
        if active:
            await activate(root, active)
    after: list[dict[str, Any]] = []

    async def happening(service: Bench, root: Client) -> None:
        await happens(service, root)
        after.extend(await listed(root))

    async with service.client(1000) as user:
        if error:
            with pytest.raises(Reply, match=error):
                await during_the_prompt(service, user, *call, race=happening, interface=STORE)
        else:
            await during_the_prompt(service, user, *call, race=happening, interface=STORE)
        assert await listed(user) == after
    assert [row["version"] for row in after if row["active"]] == [active_after] * bool(active_after)


def needing(*, depends: str = "", softdep: str = "") -> bytes:
    facts = [
        "name=special",
        "version=1.0",
        VERMAGIC,
        f"depends={depends}",
        *([f"softdep={softdep}"] if softdep else []),
    ]
    return module_file(facts, this_module="special", versions={"module_layout": 1})


async def test_polkit_receives_every_module_that_comes_with_a_version(service: Bench) -> None:
    async with service.client(0) as root:
        _, _, sha256 = await give(root, needing(depends="vfat", softdep="pre: dummy post: nosuchmodule"))
    service.polkit.mode = "deny"
    async with service.client(1000) as user:
        with pytest.raises(Reply, match="AccessDenied"):
            await user.call("Activate", "ssa{sv}", "special", "1.0", LOADING, interface=STORE)
        with pytest.raises(Reply, match="AccessDenied"):
            await user.call("Activate", "ssa{sv}", "special", "1.0", {}, interface=STORE)
    loading, placing = (details for _, _, details, _ in service.polkit.asked)
    assert loading["modules"] == "dummy fat special vfat"
    assert placing["modules"] == "special"
    for details in (loading, placing):
        assert (details["module"], details["version"], details["kernel"]) == ("special", "1.0", RELEASE)
        assert details["sha256"] == sha256


async def test_polkit_receives_who_loaded_what_a_version_replaces(service: Bench) -> None:
    async with service.client(0) as root:
        await give(root, module("dummy"), shadow=True)
    async with service.client(1000) as user:
        await user.call("Load", "sa{ss}a{sv}", "dummy", {}, {})
        service.polkit.asked.clear()
        service.polkit.mode = "deny"
        for options in (LOADING, {}):
            with pytest.raises(Reply, match="AccessDenied"):
                await user.call("Activate", "ssa{sv}", "dummy", "1.0", options, interface=STORE)
        service.kernel.rmmod("dummy")
        await load(service, "dummy")
        with pytest.raises(Reply, match="AccessDenied"):
            await user.call("Activate", "ssa{sv}", "dummy", "1.0", LOADING, interface=STORE)
    assert [details.get("loaded-by") for _, _, details, _ in service.polkit.asked] == ["1000", None, "unknown"]


async def test_removing_names_every_kernels_version_and_content(service: Bench) -> None:
    other = "6.1.0-other"
    tree = Path(service.custom.store._trees.folder(RELEASE)).with_name(other)
    (tree / "kernel").mkdir(parents=True)
    for name in ("modules.dep", "modules.order", "modules.builtin"):
        (tree / name).touch()
    async with service.client(0) as root:
        first = await give(root, module())
        second = await give(root, module(vermagic=f"vermagic={other} SMP preempt mod_unload modversions "))
    async with service.client(1000) as user:
        await user.call("Remove", "ss", "special", "1.0", interface=STORE)
        assert await listed(user) == []
    ((_, _, details, _),) = service.polkit.asked
    assert set(details["kernel"].split()) == {RELEASE, other}
    assert set(details["sha256"].split()) == {first[2], second[2]}
