# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every member has a bound: whatever anybody asks for, the loop is held for a moment only, on a tree of compressed modules.

The service runs on the loop of the test, its callers in a thread: only what the service does counts.
"""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from kmodd.dbus.interface_xml import Contract
from kmodd.kernel.modules.module_file import ModuleFile
from kmodd.model import Record
from tests.bus.bench import bench
from tests.bus.buses import ROOT
from tests.bus.loop_meter import large_files, metered
from tests.bus.questions import MODULES, Question, ask, compressed_root
from tests.kernel.fakeroot import FakeRoot

HELD_MAX = 0.020
REPLY_MAX = 16 << 20
CONTRACT = Contract.parse((ROOT / "dbus/org.kmodd1.xml").read_text())


LONG = "x" * 55
PARAMETERS = [(f"p{number}", "1" * 4000) for number in range(8)]
LOADS = [["load", f"m{number}", {"alpha": "1"}] for number in range(256)]
PLAIN = [["load", f"m{number}", {}] for number in range(MODULES - 256, MODULES)]
WRONG = [["load", f"m{number}_", {}] for number in range(256)]
# The base of two hundred loaded modules, so that every operation takes all of them out and one in.
RELOADS = [["reload", "base", {}]] * 256
DEPENDENTS = {"dependents": Variant("b", True)}
BATCH = "a(ssa{ss})a{sv}"
MODULE = "/org/kmodd1/module/m1"

QUESTIONS = [
    *(
        Question("org.kmodd1.Manager", member, BATCH, (operations, options))
        for member in ("Plan", "Batch")
        for operations, options in (
            (LOADS, {}),
            (PLAIN, {}),
            (WRONG, {}),
            (RELOADS, DEPENDENTS),
            (RELOADS[:5], DEPENDENTS),
        )
    ),
    Question("org.kmodd1.Manager", "Load", "sa{ss}a{sv}", ("m300", {"alpha": "1"}, {})),
    Question("org.kmodd1.Manager", "Load", "sa{ss}a{sv}", (LONG, {}, {})),
    Question("org.kmodd1.Manager", "Load", "sa{ss}a{sv}", ("m301", dict(PARAMETERS), {})),
    Question("org.kmodd1.Manager", "Hold", "sa{ss}a{sv}", ("m306", {"alpha": "1"}, {})),
    Question("org.kmodd1.Manager", "Unload", "sa{sv}", ("base", DEPENDENTS)),
    Question("org.kmodd1.Manager", "Reload", "sa{ss}a{sv}", ("base", {"alpha": "1"}, DEPENDENTS)),
    Question("org.kmodd1.Manager", "SetParameter", "sss", ("m2", "alpha", "2")),
    Question("org.kmodd1.Manager", "Explain", "s", ("base",)),
    Question("org.kmodd1.Manager", "Describe", "s", ("m302",)),
    Question("org.kmodd1.Manager", "ListModules", "a{sv}", ({"state": Variant("s", "all")},)),
    Question("org.kmodd1.Manager", "GetHealth"),
    Question("org.kmodd1.Manager", "GetMetrics"),
    Question("org.kmodd1.Manager", "GetHistory", "a{sv}", ({"limit": Variant("u", 1000)},)),
    Question("org.kmodd1.Manager", "ResetFailed", "s", ("m1",)),
    Question("org.kmodd1.Configuration", "SetAutoload", "sba{ss}a{sv}", ("m303", True, {"alpha": "1"}, {})),
    Question("org.kmodd1.Configuration", "SetOptions", "sa{ss}a{sv}", ("m304", {"alpha": "1"}, {})),
    Question("org.kmodd1.Configuration", "SetBlacklisted", "sba{sv}", ("m305", True, {"hard": Variant("b", True)})),
    Question("org.kmodd1.Configuration", "Show"),
    Question("org.kmodd1.Configuration", "GetDrift"),
    Question("org.kmodd1.Configuration", "Apply", "a{sv}", ({},)),
    Question("org.kmodd1.Configuration", "Confirm"),
    Question("org.kmodd1.Configuration", "Revert"),
    Question("org.kmodd1.Configuration", "Reload"),
    Question("org.kmodd1.Store", "List"),
    Question("org.kmodd1.Store", "Activate", "ssa{sv}", ("m1", "1", {})),
    Question("org.kmodd1.Store", "Deactivate", "sa{sv}", ("m1", {})),
    Question("org.kmodd1.Store", "Remove", "ssa{sv}", ("m1", "1", {})),
    Question("org.kmodd1.Surface", "GetSummary"),
    Question("org.kmodd1.Surface", "Get"),
    Question("org.kmodd1.Surface", "GetRoutes", "s", ("m300",)),
    Question("org.kmodd1.Surface", "GetNeeded"),
    Question("org.kmodd1.Surface", "Plan"),
    Question("org.kmodd1.Surface", "Apply", "a{sv}", ({},)),
    Question("org.kmodd1.Surface", "Confirm"),
    Question("org.kmodd1.Surface", "Revert"),
    Question("org.kmodd1.Surface", "Check"),
    Question("org.kmodd1.Surface", "Respond", "sa{sv}", ("", {"modules": Variant("as", [f"m{n}" for n in range(64)])})),
    Question("org.kmodd1.Surface", "GetResponses"),
    Question("org.kmodd1.Surface", "EndResponse", "s", ("CVE-2026-31431",)),
    Question("org.kmodd1.Surface", "GetRefused"),
    Question("org.kmodd1.Surface", "Lock"),
    Question("org.kmodd1.Job", "Cancel", path="/org/kmodd1/job/1"),
    Question("org.freedesktop.DBus.ObjectManager", "GetManagedObjects"),
    Question("org.freedesktop.DBus.Properties", "Get", "ss", ("org.kmodd1.Module", "Signer"), MODULE),
    Question("org.freedesktop.DBus.Properties", "GetAll", "s", ("",), "/org/kmodd1/module/m3"),
    Question(
        "org.freedesktop.DBus.Properties", "Set", "ssv", ("org.kmodd1.Module", "Signer", Variant("s", "")), MODULE
    ),
    Question("org.freedesktop.DBus.Introspectable", "Introspect", path="/org/kmodd1/module"),
    Question("org.freedesktop.DBus.Peer", "Ping"),
    Question("org.freedesktop.DBus.Peer", "GetMachineId"),
]
# It takes a descriptor, and the work is a process of its own: tests/bus/test_store.py.
ELSEWHERE = {("org.kmodd1.Store", "Import")}


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> FakeRoot:
    """See `compressed_root`."""
    return compressed_root(tmp_path_factory.mktemp("compressed"))


@pytest.fixture
def unpacked_by(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads that opened a module's file, for each time."""
    threads: list[int] = []

    class Counted(ModuleFile):
        def __init__(self, *arguments: Any) -> None:
            threads.append(threading.get_ident())
            super().__init__(*arguments)

    monkeypatch.setattr("kmodd.kernel.modules.module_file.ModuleFile", Counted)
    return threads


def test_every_member_has_a_question() -> None:
    asked = {(question.interface, question.member) for question in QUESTIONS} | ELSEWHERE
    assert asked == {
        (interface.name, method) for interface in CONTRACT.interfaces.values() for method in interface.methods
    }


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda each: f"{each.interface.rpartition('.')[2]}.{each.member}")
async def test_no_question_holds_the_loop(
    tmp_path: Path, compressed: FakeRoot, unpacked_by: list[int], question: Question
) -> None:
    async with bench(tmp_path, root=compressed) as service:
        service.polkit.mode = "deny"
        await ask(service, Question("org.freedesktop.DBus.Peer", "Ping"))
        unpacked_by.clear()
        with metered() as meter:
            size = await ask(service, question)
        assert meter.longest < HELD_MAX, meter.callback
        assert size < REPLY_MAX
        assert threading.get_ident() not in unpacked_by


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda each: f"{each.interface.rpartition('.')[2]}.{each.member}")
async def test_no_question_reads_a_large_file_on_the_loop(
    tmp_path: Path, compressed: FakeRoot, question: Question
) -> None:
    """The module's indexes are mapped; everything larger is read in a thread."""
    async with bench(tmp_path, root=compressed) as service:
        service.polkit.mode = "deny"
        with large_files() as read:
            await ask(service, question)
        assert not read


async def test_an_answer_of_any_size_is_a_reply_or_a_limit(tmp_path: Path) -> None:
    """A thousand records with 32 lines of a kilobyte would have the bus hang up on the daemon."""
    question = Question("org.kmodd1.Manager", "GetHistory", "a{sv}", ({"limit": Variant("u", 1000)},))
    async with bench(tmp_path) as service:
        record = Record("module.failed", "m", extra={})
        for lines, fits in ((2, True), (32, False)):
            service.journal.records[:] = [replace(record, kernel_log=("x" * 1024,) * lines)] * 1000
            with metered() as meter:
                size = await ask(service, question, uid=0)
            assert meter.longest < HELD_MAX, meter.callback
            assert (size > 2 << 20) is fits
            assert size < REPLY_MAX
        assert await ask(service, Question("org.freedesktop.DBus.Peer", "Ping"))
