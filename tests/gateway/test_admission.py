# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose connections are kept when there are too many, with the real gateway under those floods, and what they cost it."""

import contextlib
import resource
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.gateway.http.listener import IDLE, Admission, ConnectionSlot, place_of
from kmodd.gateway.http.middleware import RefusalJournal
from tests.clock import clock
from tests.gateway.processes import Gateway, ask, gateway, wait_for


class Peer:
    """Makes places and remembers which were ended."""

    def __init__(self) -> None:
        self.ended: list[ConnectionSlot] = []

    def place(self, peer: str) -> ConnectionSlot:
        """One from this peer."""
        place = ConnectionSlot(peer, lambda: self.ended.append(place))
        return place


def test_when_full_the_longest_idle_stranger_of_the_most_numerous_peer_goes() -> None:
    admission, peer = Admission(6, 1, lambda: 0.0), Peer()
    few, *many = [peer.place("10.0.0.1"), *(peer.place("10.0.0.2") for _ in range(4))]
    assert all(admission.enter(place) for place in (few, *many))
    admission.progress(many[0])
    assert admission.enter(peer.place("10.0.0.3"))
    assert peer.ended == [many[1]]
    assert len(admission) == 5


def test_strangers_never_take_the_reserve_and_never_displace_an_owner() -> None:
    admission, peer = Admission(10, 2, lambda: 0.0), Peer()
    owned = [peer.place("10.0.0.2") for _ in range(2)]
    for number, place in enumerate(owned):
        assert admission.enter(place)
        assert admission.recognise(place, f"token {number}")
    for _ in range(50):
        assert admission.enter(peer.place("10.0.0.2"))
    assert len(admission) == 10
    assert not set(owned) & set(peer.ended)
    known = peer.place("10.0.0.9")
    assert admission.enter(known)
    assert admission.recognise(known, "token 9")


def test_among_owners_who_has_most_gives_up_what_it_keeps_alive_and_nothing_that_is_served() -> None:
    now = [0.0]
    admission, peer = Admission(4, 0, lambda: now[0]), Peer()
    places = [peer.place("uid 1") for _ in range(4)]
    for place, owner in zip(places, "aabc", strict=True):
        assert admission.enter(place)
        assert admission.recognise(place, owner)
        place.is_busy = place is places[0]
    assert not admission.enter(peer.place("uid 2"))
    now[0] = IDLE
    assert admission.enter(peer.place("uid 2"))
    assert peer.ended == [places[1]]
    for place in places:
        place.is_busy = True
    assert admission.enter(peer.place("uid 2"))
    assert len(peer.ended) == 2


def test_with_everything_in_use_a_stranger_is_refused() -> None:
    now = [0.0]
    admission, peer = Admission(2, 0, lambda: now[0]), Peer()
    for owner in "ab":
        place = peer.place("uid 1")
        assert admission.enter(place)
        assert admission.recognise(place, owner)
    now[0] = 100.0
    assert not admission.enter(peer.place("uid 1"))
    assert not peer.ended


def test_requests_of_one_token_leave_the_reserve_to_others() -> None:
    admission, peer = Admission(5, 1, lambda: 0.0), Peer()
    places = [peer.place("uid 1") for _ in range(5)]
    for place in places[:4]:
        assert admission.enter(place)
        assert admission.recognise(place, "a")
    assert admission.enter(places[4])
    assert not admission.recognise(places[4], "a")
    places[0].is_busy = places[4].is_busy = False
    assert admission.recognise(places[4], "a")


def test_a_peer_is_a_user_an_address_or_a_prefix(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        client.connect(str(tmp_path / "socket"))
        made, _ = listening.accept()
        with made:
            place = place_of(made)
        assert (place.peer, place.uid) == ("uid 0", 0)
    for address, peer in (("127.0.0.1", "127.0.0.1"), ("::1", "::/64"), ("::ffff:127.0.0.1", "127.0.0.1")):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        where = "::" if address.startswith("::ffff") else address
        with socket.create_server((where, 0), family=family, dualstack_ipv6=where == "::") as listening:
            near = address.removeprefix("::ffff:")
            with socket.create_connection((near, listening.getsockname()[1])):
                made, _ = listening.accept()
                with made:
                    assert (place_of(made).peer, place_of(made).uid) == (peer, None)


class Lines:
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[object] = []

    def notice(self, event: str, **fields: object) -> None:
        self.lines.append(fields["message"])

    debug = info = warning = error = notice


def test_refusals_are_written_by_source_and_the_rest_is_counted() -> None:
    now = [0.0]
    lines = Lines()
    journal = RefusalJournal(lines, lambda: now[0])
    for _ in range(1000):
        journal.refused("10.0.0.1", "10.0.0.1", "no")
    assert len(lines.lines) == 20
    journal.refused("token a", "10.0.0.2", "no")
    assert lines.lines[-1] == "refused a request from 10.0.0.2: no (980 more since the previous record)"
    for number in range(1000):
        journal.refused(f"10.1.0.{number}", "x", "no")
    assert len(lines.lines) == 100


# --- the real program ------------------------------------------------------------------------------------------------


PATIENT = "[limits]\nrate = 0\nheader-timeout = 60\n"
"""Silence alone ends no connection during a test."""


@pytest.fixture(scope="module")
def patient(simulation: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with its usual places."""
    with gateway(tmp_path_factory.mktemp("patient"), simulation, PATIENT) as made:
        yield made


@pytest.fixture(scope="module")
def encrypted(simulation: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One with TLS, and its usual patience."""
    folder = tmp_path_factory.mktemp("encrypted")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        check=True,
        capture_output=True,
    )  # fmt: skip
    tls = f'[tls]\ncertificate = "{folder / "cert.pem"}"\nkey = "{folder / "key.pem"}"\n'
    with gateway(folder, simulation, "[limits]\nrate = 0\n" + tls, ready=False) as made:
        yield made


@contextlib.contextmanager
def many(gateway: Gateway, count: int, say: bytes = b"", address: str = "127.0.0.2") -> Iterator[list[socket.socket]]:
    """So many connections that say this and are silent then; the tests' own come from 127.0.0.1."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 500)), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        made = []
        for _ in range(count):
            one = stack.enter_context(socket.socket())
            one.settimeout(20)
            one.bind((address, 0))
            one.connect(("127.0.0.1", gateway.port))
            with contextlib.suppress(OSError):
                one.sendall(say)
            made.append(one)
        yield made


def descriptors(gateway: Gateway) -> int:
    """How many the gateway has open."""
    return len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir()))


def kib(gateway: Gateway, name: str) -> int:
    """A line of its status, in KiB."""
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


@pytest.mark.parametrize(
    "say",
    [
        b"",
        b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: lo",
        b"GET /v1/modules HTTP/1.1\r\n",
    ],
    ids=["silent", "public", "slow", "no token"],
)
def test_connections_without_a_token_do_not_shut_out_who_has_one(patient: Gateway, say: bytes) -> None:
    with many(patient, 150, say), contextlib.closing(patient.connect()) as kept:
        for _ in range(20):
            assert ask(kept, "GET", "/v1/modules", token=patient.token).status == 200
            assert patient.ask("GET", "/v1/modules").status == 200
        # And they come on and on.
        with many(patient, 150, say):
            assert ask(kept, "GET", "/v1/modules", token=patient.token).status == 200


def test_nor_do_they_from_the_same_address(patient: Gateway) -> None:
    with many(patient, 150, address="127.0.0.1"):
        assert [patient.ask("GET", "/v1/modules").status for _ in range(28)] == [200] * 28


def test_a_stranger_is_not_kept_alive(patient: Gateway) -> None:
    for path, token in (("/docs", None), ("/health", None), ("/v1/modules", None), ("/v1/modules", "x")):
        assert patient.ask("GET", path, token=token).headers["connection"] == "close"
    assert "connection" not in patient.ask("GET", "/v1/modules").headers
    with contextlib.closing(patient.connect()) as kept:
        assert ask(kept, "GET", "/v1/modules", token=patient.token).status == 200
        assert "connection" not in ask(kept, "GET", "/docs").headers


def test_thousands_of_slow_connections_cost_neither_descriptors_nor_lines(patient: Gateway) -> None:
    before, rss = patient.log.read_text(), kib(patient, "VmRSS")
    with many(patient, 2_000, b"GET /health HTTP/1.1\r\nHo"):
        assert patient.ask("GET", "/v1/modules").status == 200
        assert descriptors(patient) < 150
        assert kib(patient, "VmHWM") < rss + 20_000
    assert patient.log.read_text() == before
    wait_for(lambda: descriptors(patient) < 40)


def test_silent_tls_connections_cost_no_memory(encrypted: Gateway) -> None:
    context = ssl.create_default_context(cafile=str(encrypted.folder / "cert.pem"))
    before = encrypted.log.read_text()
    with many(encrypted, 1_500), context.wrap_socket(encrypted.socket(), server_hostname="localhost") as sock:
        sock.sendall(b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
        assert descriptors(encrypted) < 150
    # 5,000 of them had 480 MB. The unit's MemoryMax= is 256 MB, and a thousand followers have to fit in it as well.

    assert kib(encrypted, "VmHWM") < 120_000
    assert encrypted.log.read_text() == before


def test_half_handshakes_end_in_time(encrypted: Gateway) -> None:
    context = ssl.create_default_context(cafile=str(encrypted.folder / "cert.pem"))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        hello.do_handshake()
    started = clock()
    with many(encrypted, 500, outgoing.read()):
        assert clock() - started < 30
        wait_for(lambda: descriptors(encrypted) < 40, 15)
    assert kib(encrypted, "VmHWM") < 120_000
    assert "Traceback" not in encrypted.log.read_text()


def test_without_descriptors_it_waits_and_says_so_once(simulation: str, tmp_path: Path) -> None:
    with gateway(tmp_path, simulation) as made:
        resource.prlimit(made.process.pid, resource.RLIMIT_NOFILE, (descriptors(made) + 3, 4096))
        with many(made, 60):
            time.sleep(2)
            lines = made.log.read_text().count("cannot accept a connection: Too many open files")
            assert 1 <= lines <= 25
            assert "Traceback" not in made.log.read_text()
        resource.prlimit(made.process.pid, resource.RLIMIT_NOFILE, (1024, 4096))
        wait_for(lambda: made.ask("GET", "/v1/modules").status == 200)
