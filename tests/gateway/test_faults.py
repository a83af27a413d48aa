# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodd away, slow, back again; the bus gone; the gateway told to stop."""

import http.client
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.private_bus import private_bus
from tests.clock import clock
from tests.gateway.processes import daemon, gateway, wait_for
from tests.gateway.test_events import EventSubscription, following


@pytest.fixture
def bus_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bus"
    folder.mkdir()
    return folder


def test_the_daemon_goes_and_comes_back(bus_folder: Path, tmp_path: Path) -> None:
    with private_bus(bus_folder) as address, gateway(tmp_path, address, ready=False) as served:
        answer = served.ask("GET", "/health", token=None)
        assert (answer.status, answer.document) == (503, {"status": "unavailable"})
        refused = served.ask("POST", "/module/load/loop")
        assert (refused.status, refused.document["type"]) == (503, "urn:kmodd:error:Unavailable")
        assert int(refused.headers["retry-after"]) > 0
        assert "kmodd_gateway_daemon_up 0" in served.ask("GET", "/metrics").body.decode()
        with following(served) as follower:
            with daemon(address):
                wait_for(lambda: served.ask("GET", "/health").status == 200)
                assert served.ask("POST", "/module/load/loop").status == 200
            follower.read_until(b'event: daemon\ndata: {"state":"gone"}')
            assert b'event: daemon\ndata: {"state":"running"}' in follower.data
            wait_for(lambda: served.ask("GET", "/v1/modules").status == 503)
            with daemon(address):
                wait_for(lambda: served.ask("GET", "/v1/modules").status == 200)
        assert served.process.poll() is None


def test_the_bus_goes_and_comes_back(bus_folder: Path, tmp_path: Path) -> None:
    with private_bus(bus_folder) as address:
        pass
    with gateway(tmp_path, address, ready=False) as served:
        assert served.ask("GET", "/v1/modules").document["type"] == "urn:kmodd:error:Unavailable"
        socket = Path(address.removeprefix("unix:path="))
        with private_bus(bus_folder) as again, daemon(again):
            # unix:dir makes a name of its own each time.
            socket.unlink(missing_ok=True)
            socket.symlink_to(again.removeprefix("unix:path="))
            wait_for(lambda: served.ask("GET", "/v1/modules").status == 200)
        wait_for(lambda: served.ask("GET", "/health").status == 503)
        assert served.process.poll() is None


def test_a_daemon_that_hangs_blocks_no_health_check(bus_folder: Path, tmp_path: Path) -> None:
    with private_bus(bus_folder) as address, daemon(address) as process, gateway(tmp_path, address) as served:
        process.send_signal(signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(4) as pool:
                hanging = [pool.submit(served.ask, "GET", "/v1/modules/loop/explain") for _ in range(3)]
                time.sleep(1.1)  # what was known of its health is old now
                started = clock()
                assert served.ask("GET", "/health", token=None).status == 503
                assert clock() - started < 3
                assert served.ask("GET", "/docs", token=None).status == 200
                process.send_signal(signal.SIGCONT)
                assert {one.result().status for one in hanging} == {200}
        finally:
            process.send_signal(signal.SIGCONT)
        wait_for(lambda: served.ask("GET", "/health").status == 200)


def test_many_operations_wait_for_their_turn(bus_folder: Path, tmp_path: Path) -> None:
    """The daemon takes four of one user at once."""
    with private_bus(bus_folder) as address, daemon(address), gateway(tmp_path, address) as served:
        with ThreadPoolExecutor(20) as pool:
            statuses = list(pool.map(lambda _: served.ask("POST", "/module/load/dummy").status, range(40)))
        assert set(statuses) == {200}


def test_sigterm_ends_followers_and_itself(bus_folder: Path, tmp_path: Path) -> None:
    with private_bus(bus_folder) as address, daemon(address), gateway(tmp_path, address) as served:
        follower = EventSubscription(served)
        idle = served.connect()
        try:
            idle.request("GET", "/health")
            assert idle.getresponse().read()
            started = clock()
            served.process.terminate()
            assert served.process.wait(15) == 0
            assert clock() - started < 5
            while follower.socket.recv(4096):
                pass
        finally:
            follower.close()
            idle.close()
        assert "Traceback" not in served.log.read_text()
        with pytest.raises((ConnectionRefusedError, http.client.HTTPException)):
            served.ask("GET", "/health")
