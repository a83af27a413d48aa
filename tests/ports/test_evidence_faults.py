# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is told beside an answer: the kernel's log, the journal, the users of a module. What cannot be read is said to be missing."""

import asyncio
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kmodd.core.audit.records import History
from kmodd.errors import LimitsExceeded, NotPermitted
from kmodd.journal.reader import JournalReader
from kmodd.kernel.proc.kmsg import Kmsg, SharedKmsg
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import Fault
from kmodd.kernel.users.inspector_client import Inspector
from kmodd.kernel.users.tasks import Budget
from kmodd.model import Caller, HistoryQuery, Usage
from kmodd.names import ModuleName
from tests.kernel.test_inspector import READ, USER, scripted
from tests.kernel.usage_root import FakeRoot
from tests.ports.faults import ERRNOS, broken, count
from tests.unit.fakes import load
from tests.unit.test_operations import make_bench

if TYPE_CHECKING:
    from kmodd.kernel.ports import LogMark

LOOP = ModuleName("loop")


# --- the kernel's log -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_lines_that_cannot_be_read_are_said_to_be_missing(tmp_path: Path, *, shared: bool) -> None:
    """With every errno at every call, from the mark on."""
    device = tmp_path / "kmsg"
    device.write_bytes(b"6,1,1,-;old\n")
    descriptor = os.open(device, os.O_RDONLY)
    log = SharedKmsg(descriptor) if shared else Kmsg(device)

    def work() -> tuple[tuple[str, ...], str]:
        mark: LogMark = log.mark()
        try:
            with device.open("ab") as file:
                file.write(b"6,2,2,-;new\n")
            return mark.lines(), mark.fault
        finally:
            mark.close()

    assert work() == (("new",), "")
    only = str(tmp_path)
    missing = 0
    for code in ERRNOS:
        for number in range(count(work, only)):
            with broken(code, number, only) as faults:
                try:
                    lines, fault = work()
                except OSError:
                    continue
            assert faults.failed
            if lines != ("new",):
                missing += 1
                assert fault == errno.errorcode[code], faults.calls[number]
    assert missing
    assert work() == (("new",), ""), "and it is over when it is over"
    os.close(descriptor)


def test_no_log_at_all_is_no_fault(tmp_path: Path) -> None:
    mark = Kmsg(tmp_path / "kmsg").mark()
    assert (mark.lines(), mark.fault) == ((), "")


async def test_a_record_says_that_lines_of_the_kernel_are_missing() -> None:
    bench = make_bench(SimulatedKernel(pace=0.0))
    mark = bench.kernel.log.mark

    class Unread:
        """A mark whose lines cannot be read."""

        fault = "EIO"

        def lines(self) -> tuple[str, ...]:
            return ()

        def close(self) -> None:
            mark().close()

    bench.kernel.log.mark = Unread  # type: ignore[method-assign, assignment]
    bench.kernel.fail_next("dummy", Fault(errno=errno.ENODEV))
    (result,) = await bench.do(load("dummy"))
    assert result.error is not None
    assert result.error.evidence.log_fault == "EIO"
    bench.check_quiet()
    (record,) = [record for record in bench.journal.records if record.result == "failed"]
    assert record.extra["KERNEL_LOG_FAULT"] == "EIO"


# --- the journal ----------------------------------------------------------------------------------------------------------


class FailingReader:
    """A journal with one record, of which one call fails."""

    def __init__(self, failing: str, code: int) -> None:
        self.failing = failing
        self.code = code
        self.closed = False
        self.left = 1

    def call(self, name: str) -> None:
        if name == self.failing:
            raise OSError(self.code, os.strerror(self.code))

    def add_match(self, *args: str) -> None:
        self.call("add_match")

    def seek_tail(self) -> None:
        self.call("seek_tail")

    def seek_realtime(self, realtime: int) -> None:
        self.call("seek_realtime")

    def get_next(self) -> Mapping[str, object]:
        self.call("get_next")
        return self.get_previous()

    def get_previous(self) -> Mapping[str, object]:
        if not self.left:
            self.call("get_previous")
            return {}
        self.left -= 1
        return {"KMODD_EVENT": "module.loaded", "KMODD_MODULE": "loop", "MESSAGE": "loaded"}

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("code", [errno.EIO, errno.EBADMSG, errno.EACCES, errno.EMFILE, errno.ENOENT])
@pytest.mark.parametrize("failing", ["open", "add_match", "seek_tail", "get_previous", "seek_realtime", "get_next"])
async def test_a_journal_that_cannot_be_read_is_not_empty(failing: str, code: int) -> None:
    """Not even the part that was read before is an answer: nobody would know that it is one."""
    reader = FailingReader(failing, code)

    def opened() -> FailingReader:
        reader.call("open")
        return reader

    history = History(JournalReader(opened))
    query = HistoryQuery(oldest=failing in {"seek_realtime", "get_next"})
    with pytest.raises((NotPermitted, LimitsExceeded)) as caught:
        await history.read(query, Caller(":1.1", 0))
    assert errno.errorcode[code] in caught.value.message
    assert reader.closed == (failing != "open")


# --- the users of a module ------------------------------------------------------------------------------------------------


def test_a_search_that_could_not_read_something_says_so(tmp_path: Path) -> None:
    """The machine's faults, at every call; of a file that is gone or closed, nothing is said."""
    root = FakeRoot(tmp_path)
    root.process(
        1, "/sbin/init", mountinfo="25 1 7:0 / /m rw - iso9660 /dev/loop0 rw\n", ns="mnt:[1]", user_ns="user:[1]"
    )
    root.process(7, "/bin/dd", ("/dev/full",), ns="mnt:[1]", user_ns="user:[1]", cgroup="/system.slice/dd.service")
    root.put("sys/block/loop0/loop/backing_file", "/srv/image\n")
    root.put("sys/class/net/bond0/operstate", "up\n")
    root.put("proc/net/protocols", "protocol size\n")
    root.kinds = {"bond0": "bond"}

    def search() -> tuple[list[object], str]:
        budget = Budget()
        found: list[object] = []
        for name in ("isofs", "loop", "bonding"):
            found += root.found(name, budget)
        return found, budget.partial

    right, partial = search()
    assert len(right) == 3
    assert not partial
    missed = 0
    for code in (errno.EIO, errno.EMFILE, errno.ENOMEM):
        for number in range(count(search, str(tmp_path))):
            with broken(code, number, str(tmp_path)) as faults:
                try:
                    found, partial = search()
                except OSError:
                    continue  # the process ends, and its answer is missing
            if found != right:
                missed += 1
                assert errno.errorcode[code] in partial, faults.calls[number]
    assert missed


LATE = """
if "search" in order:
    time.sleep(1.0)
    send({"modules": ["loop"], "user": USER | {"name": "/late"}})
    send({"end": True, "partial": "", "crowded": []})
"""


async def test_an_answer_that_comes_too_late_answers_nothing_else(tmp_path: Path) -> None:
    """The next order goes to another process, which the first one's words cannot reach."""
    made = Inspector(network=tmp_path, program=scripted(tmp_path, LATE), timeout=0.5)
    missing = Usage((), "the inspector did not answer")
    assert await made.users(LOOP) == missing
    assert await made.users(LOOP) == missing
    await asyncio.sleep(1.2)
    assert await made.users(LOOP) == missing
    assert "/late" not in json.dumps([user.name for user in (await made.users(LOOP)).users])
    await made.close()


@pytest.mark.parametrize(
    "first",
    [
        "send(b'x' * 40000)",
        "channel.send(b'')",
        "send({'modules': ['loop'], 'user': USER}); send(json.dumps({'end': True, 'partial': '', 'crowded': []}).encode()[:-9])",
        "send({'end': True, 'partial': '', 'crowded': ['a' * 5000]})",
        "send({'pid': 1 << 40, 'executable': '/bin/x'})",
    ],
    ids=["oversized", "empty", "cut off", "too long a text", "no process"],
)
async def test_after_odd_words_nothing_more_of_that_process_counts(tmp_path: Path, first: str) -> None:
    more = "\nsend({'modules': ['loop'], 'user': USER})\nsend({'end': True, 'partial': '', 'crowded': []})\n"
    made = Inspector(network=tmp_path, program=scripted(tmp_path, first + more), timeout=2.0)
    usage = await made.users(LOOP)
    assert usage.partial == "the inspector did not answer"
    assert set(usage.users) <= {READ}
    await made.close()
    assert USER["name"] == READ.name


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.EACCES])
async def test_without_a_process_the_answer_is_missing(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    made = Inspector(network=Path("/nonexistent"), program=("/bin/false",))

    def refused(*_: object, **__: object) -> object:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("kmodd.kernel.users.inspector_client._InspectorProcess", refused)
    assert await made.users(LOOP) == Usage((), "the inspector did not answer")
    assert await made.executable(5) == ""
    await made.close()
