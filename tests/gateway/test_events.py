# SPDX-License-Identifier: LGPL-2.1-or-later
"""Server-Sent Events: order, resuming, slow followers, many followers."""

import asyncio
import contextlib
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmodd.gateway.routes.events import KEPT, TAKEN, Broadcaster, Closed, EventStream, TooSlowError
from tests.clock import clock
from tests.gateway.processes import Gateway, gateway, wait_for

FOLLOWERS = 1000


class EventSubscription:
    """A connection that follows."""

    def __init__(self, served: Gateway, last: str = "", token: str = "") -> None:
        self.socket = served.socket()
        head = f"GET /v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token or served.token}\r\n"
        if last:
            head += f"Last-Event-ID: {last}\r\n"
        self.socket.sendall(f"{head}\r\n".encode())
        self.data = b""
        self.read_until(b"\r\n\r\n")
        self.head, _, self.data = self.data.partition(b"\r\n\r\n")

    def read_until(self, text: bytes, seconds: float = 10.0) -> None:
        deadline = clock() + seconds
        while text not in self.data:
            self.socket.settimeout(max(deadline - clock(), 0.01))
            chunk = self.socket.recv(65536)
            assert chunk, self.data
            self.data += chunk

    def events(self) -> list[dict[str, Any]]:
        """Everything so far."""
        found = []
        for block in self.data.replace(b"\r\n", b"\n").decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != ":")
            if "event" in fields:
                found.append({"id": fields["id"], "event": fields["event"], **json.loads(fields["data"])})
        return found

    def close(self) -> None:
        self.socket.close()


@contextlib.contextmanager
def following(served: Gateway, last: str = "", token: str = "") -> Iterator[EventSubscription]:
    follower = EventSubscription(served, last, token)
    try:
        yield follower
    finally:
        follower.close()


def test_events_come_in_order_and_can_be_resumed(served: Gateway) -> None:
    with following(served) as first:
        assert b" 200 " in first.head.splitlines()[0]
        assert b"content-type: text/event-stream" in first.head.lower()
        served.ask("POST", "/module/load/vfat")
        first.read_until(b'"action":"load","module":"vfat","result":"done"')
        first.read_until(b'event: module-added\ndata: {"module":"vfat"}')
    told = first.events()
    assert (told[0]["event"], told[0]["complete"]) == ("hello", True)
    kinds = [(row["event"], row.get("module")) for row in told]
    # A job that is done before anyone could look has no object, and only its end is told.
    assert ("job-started", "vfat") not in kinds[kinds.index(("job-finished", "vfat")) :]
    assert kinds.index(("module-added", "fat")) < kinds.index(("module-added", "vfat"))
    served.ask("POST", "/module/unload/vfat")
    with following(served, told[-1]["id"]) as second:
        second.read_until(b'event: module-removed\ndata: {"module":"vfat"}')
        rest = second.events()
    assert "hello" not in {row["event"] for row in rest}
    numbers = [int(row["id"].split("-")[1]) for row in [*told[1:], *rest]]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@pytest.mark.parametrize("last", ["0000-1", "x", "-", "a-b-c"])
def test_a_follower_that_missed_events_is_notified(served: Gateway, last: str) -> None:
    with following(served, last) as follower:
        follower.read_until(b"hello")
        follower.read_until(b"\n\n")
        (hello, *_) = follower.events()
        assert (hello["event"], hello["complete"]) == ("hello", False)


def test_it_needs_a_token_that_may_read(served: Gateway) -> None:
    token = served.make_token("writer", "load")
    assert served.ask("GET", "/v1/events", token=token).status == 403
    assert served.ask("GET", "/v1/events", token=None).status == 401


def test_a_follower_that_leaves_is_forgotten(served: Gateway) -> None:
    def followers() -> int:
        text = served.ask("GET", "/metrics").body.decode()
        (line,) = [row for row in text.splitlines() if row.startswith("kmodd_gateway_event_streams ")]
        return int(float(line.split()[1]))

    before = followers()
    with following(served):
        time.sleep(0.15)  # /metrics is kept for a tenth of a second
        assert followers() == before + 1
    wait_for(lambda: followers() == before)


def test_a_thousand_followers_cost_less_than_100_megabytes(simulation: str, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    try:
        with gateway(tmp_path, simulation, "[limits]\nrate = 0\nstreams = 1000\n") as served:
            followers: list[EventSubscription] = []
            try:
                followers.extend(EventSubscription(served) for _ in range(FOLLOWERS))
                assert served.ask("GET", "/v1/events").status == 503
                # They count by themselves: others are still served.
                started = clock()
                assert served.ask("POST", "/module/load/dummy").status == 200
                for follower in followers:
                    follower.read_until(b'event: module-added\ndata: {"module":"dummy"}')
                assert clock() - started < 10
                assert memory(served) < 100_000
                assert served.ask("POST", "/module/unload/dummy").status == 200
            finally:
                for follower in followers:
                    follower.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def memory(served: Gateway) -> int:
    """Resident KiB."""
    text = Path(f"/proc/{served.process.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


# --- the hub ----------------------------------------------------------------------------------------------------------


async def test_the_hub_gives_everything_since_a_place() -> None:
    hub = Broadcaster("run")
    place = hub.next
    hub.publish("a", {"n": 1})
    hub.publish("b", {"n": "é\n"})
    data, place = hub.take(place)
    assert data == b'id: run-1\nevent: a\ndata: {"n":1}\n\nid: run-2\nevent: b\ndata: {"n":"\\u00e9\\n"}\n\n'
    assert place == 3
    waiting = [asyncio.create_task(hub.wait(place)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    hub.publish("c", {})
    await asyncio.gather(*waiting[1:])
    assert hub.resume("run-2") == 3
    assert hub.resume("run-3") == 4
    assert hub.resume("run-4") is None
    assert hub.resume("other-2") is None
    assert hub.resume("run-" + "9" * 50) is None
    hub.close()
    with pytest.raises(Closed):
        await hub.wait(4)


async def test_the_hub_forgets_what_is_old_and_drops_who_is_slow() -> None:
    hub = Broadcaster("run")
    for number in range(KEPT + 10):
        hub.publish("n", {"n": number})
    assert hub.resume("run-9") is None
    assert hub.resume("run-10") == 11
    with pytest.raises(TooSlowError):
        hub.take(10)
    data, place = hub.take(11)
    assert (data.count(b"event: n"), place) == (TAKEN, 11 + TAKEN)
    assert hub.take(hub.next - 1) == (b'id: run-%d\nevent: n\ndata: {"n":%d}\n\n' % (KEPT + 10, KEPT + 9), hub.next)


class Line:
    """The server's side of a follower's connection."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.stuck = asyncio.Event()
        self.left = asyncio.Event()
        self.ended: list[str] = []
        self.aborted = 0
        self.allowed = True

    async def send(self, message: Any) -> None:
        if self.stuck.is_set():
            await asyncio.Event().wait()
        self.sent.append(message.get("body", b""))

    async def receive(self) -> Any:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def may(self) -> bool:
        return self.allowed

    def abort(self) -> None:
        self.aborted += 1

    def follow(self, hub: Broadcaster, last: str = "") -> "asyncio.Task[None]":
        stream = EventStream(
            hub, last, heartbeat=0.05, allowed=self.may, ended=self.ended.append, abort=self.abort, wait_timeout=0.05
        )
        return asyncio.create_task(stream({"type": "http"}, self.receive, self.send))


async def test_everything_that_is_kept_can_be_caught_up_with() -> None:
    """It comes back after a pause in which much happened, and is not dropped for that: it would come back for ever."""
    hub, line = Broadcaster("run"), Line()
    for number in range(KEPT + 1):
        hub.publish("n", {"n": number})
    task = line.follow(hub, "run-1")
    await asyncio.sleep(0.2)
    line.left.set()
    await asyncio.wait_for(task, 2)
    numbers = [int(row.partition(b"-")[2]) for row in b"".join(line.sent).split(b"\n") if row.startswith(b"id: ")]
    assert numbers == list(range(2, KEPT + 2))
    assert line.ended == ["left"]


async def test_a_follower_that_does_not_read_is_dropped() -> None:
    hub, line = Broadcaster("run"), Line()
    task = line.follow(hub)
    await asyncio.sleep(0.01)
    line.stuck.set()
    hub.publish("a", {})
    await asyncio.wait_for(task, 2)
    assert (line.ended, line.aborted) == (["slow"], 1)


async def test_a_heartbeat_keeps_the_line_open_while_the_token_counts() -> None:
    hub, line = Broadcaster("run"), Line()
    task = line.follow(hub)
    await asyncio.sleep(0.2)
    assert line.sent.count(b": \n\n") >= 2
    line.allowed = False
    await asyncio.wait_for(task, 2)
    assert line.ended == ["revoked"]


async def test_a_revoked_token_ends_it_while_events_go_by_too() -> None:
    hub, line = Broadcaster("run"), Line()
    task = line.follow(hub)
    line.allowed = False
    async with asyncio.timeout(3):
        while not task.done():
            hub.publish("a", {})
            await asyncio.sleep(0.01)
    assert line.ended == ["revoked"]


async def test_a_follower_that_leaves_ends_quietly() -> None:
    hub, line = Broadcaster("run"), Line()
    task = line.follow(hub)
    await asyncio.sleep(0.01)
    line.left.set()
    await asyncio.wait_for(task, 2)
    assert line.ended == ["left"]
    assert not task.cancelled()
