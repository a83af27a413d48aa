# SPDX-License-Identifier: LGPL-2.1-or-later
"""org.kmodd1.Store over a bus: descriptors of every kind, versions, and what polkit is told."""

import array
import asyncio
import gzip
import hashlib
import lzma
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Message, MessageFlag, Variant

from kmodd.core.store.store import HOUR, StoreLimits
from kmodd.kernel.modules.store_files import StoreFiles
from kmodd.kernel.simulated.modules import RELEASE
from tests.bus.bench import Bench, bench
from tests.bus.buses import NAME, PATH, Client, Reply
from tests.bus.test_abuse import nothing_left
from tests.kernel.elf import module_file, pkcs7_message, sign

STORE = "org.kmodd1.Store"
VERMAGIC = f"vermagic={RELEASE} SMP preempt mod_unload modversions "


def module(name: str = "special", version: str = "1.0", *, vermagic: str = VERMAGIC, more: str = "") -> bytes:
    """A module of the simulated kernel."""
    strings = [f"name={name}", f"version={version}", "description=Something special", vermagic, "depends="]
    return module_file([*strings, more] if more else strings, this_module=name, versions={"module_layout": 1})


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as made:
        yield made


@pytest.fixture
async def user(service: Bench) -> AsyncIterator[Client]:
    async with service.client(1000) as client:
        yield client


async def send(client: Client, files: list[int], options: dict[str, Variant], *, signature: str = "ha{sv}") -> Any:
    """Import with these descriptors, and answer the reply's values."""
    flags = MessageFlag.NONE
    message = Message(
        NAME,
        PATH,
        STORE,
        "Import",
        signature=signature,
        body=[0, options] if signature == "ha{sv}" else [0],
        flags=flags,
    )
    message.unix_fds = files
    message.serial = client.transport.next_serial()
    data = bytes(message._marshall(negotiate_unix_fd=True))
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    client.transport._bus._method_return_handlers[message.serial] = lambda reply, error: answer.set_result(
        reply or error
    )
    client.transport._bus.outbox.flush()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    assert client.transport._bus._sock.sendmsg([data], rights) == len(data)
    reply = await asyncio.wait_for(answer, 20)
    if reply.error_name:
        raise Reply(reply.error_name, reply.body[0])
    return reply.body


async def give(client: Client, content: bytes, **options: Any) -> tuple[str, str, str]:
    """Import a file with this content."""
    file = os.memfd_create("module")
    try:
        os.write(file, content)
        kinds = {str: "s", bool: "b"}
        name, version, sha256 = await send(
            client, [file], {key: Variant(kinds[type(value)], value) for key, value in options.items()}
        )
        return name, version, sha256
    finally:
        os.close(file)


async def listed(client: Client) -> list[dict[str, Any]]:
    rows = await client.call("List", interface=STORE)
    return [{key: value.value for key, value in row.items()} for row in rows]


def leftovers(folder: Path) -> list[str]:
    """What is on the disk and no version, and what is in memory."""
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    in_memory = [str(link) for link in links if "kmodd-import" in str(link)]
    return in_memory + [str(path) for path in (folder / "machine/store").rglob(".*")]


async def test_a_module_is_imported_and_listed(service: Bench, user: Client, tmp_path: Path) -> None:
    content = module()
    sha256 = hashlib.sha256(content).hexdigest()
    assert await give(user, content, description="mine") == ("special", "1.0", sha256)
    (row,) = await listed(user)
    assert row["kernel"] == RELEASE
    assert (row["description"], row["active"], row["uid"], row["size"]) == ("mine", False, 1000, len(content))
    first, asked, listing = service.polkit.asked
    assert (first[2], first[3]) == ({"action": "import"}, 0), "asked without a prompt, before anything was read"
    assert (asked[1], listing[1]) == ("org.kmodd1.import-module", "org.kmodd1.read-history")
    assert asked[2]["sha256"] == sha256
    assert (asked[2]["module"], asked[2]["version"], asked[2]["action"]) == ("special", "1.0", "import")
    path = tmp_path / "machine/store/special" / RELEASE / f"{sha256}.ko"
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o600
    assert not leftovers(tmp_path)


async def test_modules_called_like_folders_of_the_store_are_kept(service: Bench, user: Client, tmp_path: Path) -> None:
    for name in ("spool", "index"):
        await give(user, module(name))
        await user.call("Activate", "ssa{sv}", name, "1.0", {}, interface=STORE)
    files = StoreFiles(tmp_path / "machine/store")
    files.prepare()
    assert sorted((entry.name, entry.active) for entry in files.entries()) == [("index", True), ("spool", True)]
    assert all(files.path(entry).exists() for entry in files.entries())


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress], ids=["gz", "xz"])
async def test_a_compressed_module_is_the_same_version(user: Client, pack: Any) -> None:
    first = await give(user, module())
    assert await give(user, pack(module())) == first
    assert len(await listed(user)) == 1


async def test_the_same_bytes_twice_are_one_entry(service: Bench, user: Client) -> None:
    first = await give(user, module())
    assert await give(user, module(), version="other") == first
    assert service.journal.events[-1] == "operation.unchanged"
    assert len(await listed(user)) == 1


async def test_another_file_with_a_taken_version(user: Client) -> None:
    await give(user, module())
    with pytest.raises(Reply, match="Conflict"):
        await give(user, module(more="x=1"), version="1.0")
    _, version, sha256 = await give(user, module(more="x=1"))
    assert version == f"1.0+{sha256[:12]}"


BAD = {
    "empty": (b"", "BadModule", "empty"),
    "text": (b"#!/bin/sh\n" * 40, "BadModule", "not an ELF"),
    "cut": (module()[: len(module()) // 2], "BadModule", "truncated"),
    "executable": (module_file(["name=x"], kind=2), "BadModule", "not a kernel module"),
    "no-struct": (module_file(["name=x"]), "BadModule", "not a kernel module"),
    "names": (module_file(["name=x", VERMAGIC], this_module="y"), "BadModule", "the module name in .modinfo differs"),
    "release": (module_file(["name=x", "vermagic=1.2.3 SMP"], this_module="x"), "WrongKernel", "1.2.3"),
    "gzip": (gzip.compress(module())[:-9], "BadModule", "does not unpack"),
    "bomb": (gzip.compress(module() + bytes(300 << 20), 1), "LimitsExceeded", "256 MiB"),
    "zeros": (gzip.compress(bytes(300 << 20), 1), "BadModule", "not an ELF"),
    "signature": (module() + sign(b"", bytes(60_000))[-40:], "BadSignature", "damaged"),
    "dummy": (module("dummy"), "Shadows", "shadow"),
}


@pytest.mark.parametrize("kind", BAD)
async def test_bad_files_are_distinguished(service: Bench, user: Client, tmp_path: Path, kind: str) -> None:
    content, error, said = BAD[kind]
    if kind == "dummy":
        tree = tmp_path / "machine/lib/modules" / RELEASE
        (tree / "modules.dep").write_text("kernel/drivers/net/dummy.ko:\n")
    with pytest.raises(Reply, match=error) as refused:
        await give(user, content)
    assert said in refused.value.message
    assert [flags for _, _, _, flags in service.polkit.asked] == [0], "there was no prompt"
    assert not leftovers(tmp_path)
    assert await listed(user) == []


async def test_a_shadowing_module_is_imported_with_the_option(user: Client, tmp_path: Path) -> None:
    (tmp_path / "machine/lib/modules" / RELEASE / "modules.builtin").write_text("kernel/drivers/char/special.ko\n")
    with pytest.raises(Reply, match="Shadows"):
        await give(user, module())
    assert (await give(user, module(), shadow=True))[0] == "special"


async def test_what_is_no_file_is_refused_at_once(user: Client, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, flags in ((tmp_path, os.O_RDONLY), (tmp_path / "fifo", os.O_RDWR), (Path("/dev/zero"), os.O_RDONLY)):
        file = os.open(path, flags)
        try:
            with pytest.raises(Reply, match="not a regular file"):
                await asyncio.wait_for(send(user, [file], {}), 10)
        finally:
            os.close(file)


async def test_a_file_that_cannot_be_read_is_refused(user: Client, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(module())
    file = os.open(tmp_path / "x", os.O_WRONLY)
    try:
        with pytest.raises(Reply, match="cannot be read"):
            await send(user, [file], {})
    finally:
        os.close(file)


async def test_descriptors_are_counted_and_closed(service: Bench, user: Client) -> None:
    await give(user, module())
    with nothing_left(service):
        for files, signature in (
            ([], "ha{sv}"),
            ([0] * 2, "ha{sv}"),
            ([0] * 16, "ha{sv}"),
            ([0] * 16, "h"),
        ):
            held = [os.open(os.devnull, os.O_RDONLY) for _ in files]
            with pytest.raises(Reply, match="InvalidArgs"):
                await send(user, held, {}, signature=signature)
            for file in held:
                os.close(file)
        for options in (
            {"nonsense": Variant("b", True)},
            {"version": Variant("s", "../x")},
            {"shadow": Variant("s", "")},
        ):
            file = os.open(os.devnull, os.O_RDONLY)
            with pytest.raises(Reply, match="InvalidArgs"):
                await send(user, [file], options)
            os.close(file)
        await service.settled()


async def test_callers_that_leave_with_a_file_under_way_leave_nothing(service: Bench, tmp_path: Path) -> None:
    service.polkit.mode = "hang"
    async with service.client(0) as root:
        await give(root, module())
        with nothing_left(service):
            for index in range(60):
                client = Client(service.bus.address)
                await client.transport.connect()
                service.users[client.name] = 1000 + index % 20
                call = Message(NAME, PATH, STORE, "Import", signature="ha{sv}", body=[0, {}])
                await client.throw_descriptors(call, 1 + index % 2)
                if index % 3 == 0:
                    await asyncio.sleep(0.05)
                await client.close()
            for _ in range(400):
                await asyncio.sleep(0.02)
                if service.quota.idle and len(service.service.callers) == 1:
                    break
            await service.settled()
        assert service.quota.idle
        assert not leftovers(tmp_path)
        assert len(await listed(root)) == 1


async def test_a_denied_import_leaves_nothing_and_reads_nothing(service: Bench, user: Client, tmp_path: Path) -> None:
    service.polkit.mode = "deny"
    with pytest.raises(Reply, match="AccessDenied"):
        await give(user, module())
    assert service.custom.store._examined == {}
    assert service.journal.events == ["authorization.denied"]
    assert await listed(user) == []
    assert not leftovers(tmp_path)


async def test_the_caller_may_change_his_file_after_it_was_copied(service: Bench, user: Client, tmp_path: Path) -> None:
    service.polkit.mode = "hang"
    path = tmp_path / "x.ko"
    path.write_bytes(module())
    file = os.open(path, os.O_RDONLY)
    task = asyncio.create_task(send(user, [file], {}))
    for details in ({"action": "import"}, {"action": "import", "module": "special"}):
        for _ in range(500):
            await asyncio.sleep(0.01)
            if service.polkit.open:
                break
        assert service.polkit.asked[-1][2].items() >= details.items()
        if "module" not in details:
            service.polkit.answer_open(yes=True)
    path.write_bytes(b"something else")
    service.polkit.answer_open(yes=True)
    assert (await task)[2] == hashlib.sha256(module()).hexdigest()
    os.close(file)


async def test_a_version_is_activated_switched_and_given_up(service: Bench, user: Client, tmp_path: Path) -> None:
    tree = tmp_path / "machine/lib/modules" / RELEASE
    path = tree / "updates/kmodd/special.ko"
    contents = {"1.0": module(), "2.0": module(version="2.0")}
    for content in contents.values():
        await give(user, content)
    for version in ("1.0", "2.0", "1.0"):
        assert await user.call("Activate", "ssa{sv}", "special", version, {}, interface=STORE) == []
        assert path.read_bytes() == contents[version]
        assert path.stat().st_mode & 0o777 == 0o644
        assert "updates/kmodd/special.ko:" in (tree / "modules.dep").read_text()
        assert [row["version"] for row in await listed(user) if row["active"]] == [version]
    assert service.journal.events[-1] == "store.activated"
    with pytest.raises(Reply, match="Conflict"):
        await user.call("Remove", "ss", "special", "1.0", interface=STORE)
    for _ in range(2):
        assert await user.call("Deactivate", "sa{sv}", "special", {}, interface=STORE) == []
        assert not path.exists()
    assert "special" not in (tree / "modules.dep").read_text()
    assert await user.call("Remove", "ss", "special", "1.0", interface=STORE) == []
    assert [row["version"] for row in await listed(user)] == ["2.0"]
    with pytest.raises(Reply, match="NoSuchVersion"):
        await user.call("Remove", "ss", "special", "1.0", interface=STORE)
    with pytest.raises(Reply, match="NoSuchModule"):
        await user.call("Activate", "ssa{sv}", "other", "1.0", {}, interface=STORE)


async def test_a_file_is_examined_before_the_prompt(service: Bench, user: Client, tmp_path: Path) -> None:
    service.polkit.mode = "challenge"
    with pytest.raises(Reply, match="BadModule"):
        await give(user, BAD["zeros"][0])
    with pytest.raises(Reply, match="InteractiveAuthorizationRequired"):
        await give(user, module())
    assert not leftovers(tmp_path)


async def test_what_is_examined_in_an_hour_is_bounded_for_each_user(
    service: Bench, user: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.polkit.mode = "challenge"
    store = service.custom.store
    monkeypatch.setattr(store, "_limits", lambda: StoreLimits(per_hour=3 << 20))
    for refused in ("BadModule", "BadModule", "BadModule", "LimitsExceeded"):
        with pytest.raises(Reply, match=refused):
            await give(user, BAD["text"][0])
    async with service.client(1001) as other:
        with pytest.raises(Reply, match="BadModule"):
            await give(other, BAD["text"][0])
    async with service.client(0) as root:
        for _ in range(4):
            with pytest.raises(Reply, match="BadModule"):
                await give(root, BAD["text"][0])
    now = store._clock()
    monkeypatch.setattr(store, "_clock", lambda: now + HOUR)
    with pytest.raises(Reply, match="BadModule"):
        await give(user, BAD["text"][0])
    assert set(store._examined) == {1000}


async def test_a_dry_run_asks_polkit_and_changes_nothing(service: Bench, user: Client, tmp_path: Path) -> None:
    tree = tmp_path / "machine/lib/modules" / RELEASE
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    dry = {"dry-run": Variant("b", True)}
    said = await give(user, module(), **{"dry-run": True})
    assert said[:2] == ("special", "1.0")
    assert await listed(user) == []
    assert not leftovers(tmp_path)
    assert await give(user, module()) == said
    assert await user.call("Activate", "ssa{sv}", "special", "1.0", dry, interface=STORE) == []
    loading = {**dry, "load": Variant("b", True)}
    assert await user.call("Activate", "ssa{sv}", "special", "1.0", loading, interface=STORE) == ["special"]
    assert not any(row["active"] for row in await listed(user))
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before
    await user.call("Activate", "ssa{sv}", "special", "1.0", {}, interface=STORE)
    assert await user.call("Deactivate", "sa{sv}", "special", dry, interface=STORE) == []
    assert [row["active"] for row in await listed(user)] == [True]
    with pytest.raises(Reply, match="BadModule"):
        await give(user, module()[:200], **{"dry-run": True})
    service.polkit.mode = "deny"
    with pytest.raises(Reply, match="AccessDenied"):
        await give(user, module(), **{"dry-run": True})
    with pytest.raises(Reply, match="AccessDenied"):
        await user.call("Deactivate", "sa{sv}", "special", dry, interface=STORE)


async def test_a_failing_depmod_leaves_everything_as_it_was(service: Bench, user: Client, tmp_path: Path) -> None:
    tree = tmp_path / "machine/lib/modules" / RELEASE
    await give(user, module())
    await give(user, module(version="2.0"))
    await user.call("Activate", "ssa{sv}", "special", "1.0", {}, interface=STORE)
    before = {path.name: path.read_bytes() for path in tree.glob("modules.*")}
    depmod: Any = service.custom.activation._depmod
    depmod._program = "/bin/false"
    with pytest.raises(Reply, match=r"Conflict.*depmod failed with status 1"):
        await user.call("Activate", "ssa{sv}", "special", "2.0", {}, interface=STORE)
    assert {path.name: path.read_bytes() for path in tree.glob("modules.*")} == before
    assert (tree / "updates/kmodd/special.ko").read_bytes() == module()
    assert [row["version"] for row in await listed(user) if row["active"]] == ["1.0"]


async def test_a_signed_module_says_its_signer(user: Client) -> None:
    await give(user, sign(module(), pkcs7_message("ACME modules")))
    (row,) = await listed(user)
    assert (row["signed"], row["signer"]) == (True, "ACME modules")
