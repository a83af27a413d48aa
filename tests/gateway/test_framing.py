# SPDX-License-Identifier: LGPL-2.1-or-later
"""One reading of each byte: what a proxy and the gateway could divide differently is refused, and the connection closed."""

import contextlib
import json
import socket
import time

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodd.gateway.http.server import HEAD_MAX, Framing
from tests.gateway.processes import Gateway

SMUGGLED = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
_POST = b"POST /v1/plan HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer %s\r\n"
BODY = b'{"operations": [{"action": "load", "module": "dummy"}]}'
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
_CHUNK = b"%x\r\n%s\r\n" % (len(BODY), BODY)


def exchange(gateway: Gateway, data: bytes, *, wait: float = 3.0) -> bytes:
    """What comes back until the gateway closes; b"open" at the end when it does not."""
    with gateway.socket() as sock:
        sock.settimeout(wait)
        received = b""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            sock.sendall(data)
            try:
                while chunk := sock.recv(65536):
                    received += chunk
            except TimeoutError:
                return received + b"open"
    return received


def statuses(answer: bytes) -> list[int]:
    """The status of each response."""
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


LENGTHS = [
    b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5",
    b"Content-Length: 5\r\ntransfer-encoding: identity",
    b"Content-Length: " + b"9" * 5000,
    b"Content-Length: " + b"0" * 4999 + b"5",
    b"Content-Length: 5\r\nContent-Length: 5",
    b"Content-Length: 5\r\nContent-Length: 6",
    b"Content-Length: 5, 5",
    b"Content-Length: +5",
    b"Content-Length: -5",
    b"Content-Length: 0x5",
    b"Content-Length: 5 5",
    b"Content-Length: ",
    b"Content-Length: 1_0",
    b"Content-Length : 5",
    b" Content-Length: 5",
    b"X: y\r\n Content-Length: 5",
    b"X: y\r\n\tfolded",
    b"Content-Length: 5\rX: y",
    b"X: a\nContent-Length: 5",
    b"X: a\0b",
    b"X: a\x0bb",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding:",
    b"Host: localhost",
    b"no colon",
    b": no name",
    b"na me: x",
    b"n\xe4me: x",
    b"\r\n".join(b"X-%d: y" % number for number in range(80)),
    b"X: " + b"y" * HEAD_MAX,
]


@pytest.mark.parametrize("line", LENGTHS, ids=lambda line: ascii(line[:40]))
def test_a_request_that_two_parsers_could_end_differently_is_refused_and_the_connection_closed(
    served: Gateway, line: bytes
) -> None:
    head = _POST % served.token.encode() + line + b"\r\n\r\n"
    answer = exchange(served, head + b"0\r\n\r\n" + SMUGGLED)
    assert statuses(answer) == [400], answer
    assert not answer.endswith(b"open")
    assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    "start",
    [
        b"\r\nGET /health HTTP/1.1",
        b"GET  /health HTTP/1.1",
        b"GET /health  HTTP/1.1",
        b"GET /health HTTP/1.1 ",
        b"GET /health HTTP/1.2",
        b"GET /health HTTP/2.0",
        b"GET /health http/1.1",
        b"GET /health",
        b"get /health HTTP/1.1",
        b"GET\t/health HTTP/1.1",
        b"GET /he\xc3\xa4lth HTTP/1.1",
        b"GET http://localhost/health HTTP/1.1",
        b"GET localhost/health HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT /health HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
    ids=ascii,
)
def test_a_request_line_has_one_form(served: Gateway, start: bytes) -> None:
    answer = exchange(served, start + b"\r\nHost: localhost\r\n\r\n" + SMUGGLED)
    assert statuses(answer) == [400]
    assert not answer.endswith(b"open")


@pytest.mark.parametrize(
    "chunks",
    [
        b"%x;name=value\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
        b"%x \r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
        b" %x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
        b"0x%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
        b"+%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
        b"-1\r\n",
        b"%x\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
        b"%x\r\n%sXX0\r\n\r\n" % (len(BODY), BODY),
        b"%x\r\n%s\n0\r\n\r\n" % (len(BODY), BODY),
        _CHUNK + b"0\r\nTrailer: x\r\n\r\n",
        _CHUNK + b"0\r\nContent-Length: 3\r\n\r\n",
        _CHUNK + b"0\n\n",
        _CHUNK + b"fffffffff\r\n",
        _CHUNK + b"\r\n",
        b"g\r\n",
    ],
    ids=lambda chunks: ascii(chunks[-20:]),
)
def test_chunks_have_one_form(served: Gateway, chunks: bytes) -> None:
    answer = exchange(served, _POST % served.token.encode() + CHUNKED + chunks + SMUGGLED)
    assert statuses(answer) in ([400], [200, 400]), answer
    assert b"ok" not in answer.rpartition(b"HTTP/1.1 ")[2]
    assert not answer.endswith(b"open")


def test_what_is_well_formed_is_served_byte_by_byte_and_in_one_go(served: Gateway) -> None:
    head = _POST % served.token.encode()
    whole = head + CHUNKED + _CHUNK + b"0\r\n\r\n"
    whole += head + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    whole += b"GET /v1/modules HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    whole += b"Authorization: Bearer %s\r\n\r\n" % served.token.encode()
    assert statuses(exchange(served, whole)) == [200, 200, 200]
    with served.socket() as sock:
        for byte in whole:
            sock.sendall(bytes([byte]))
        received = b""
        while chunk := sock.recv(65536):
            received += chunk
    assert statuses(received) == [200, 200, 200]


def test_what_follows_a_good_request_is_refused_after_its_answer(served: Gateway) -> None:
    good = b"GET /v1/modules HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n" % served.token.encode()
    assert statuses(exchange(served, good + b"nonsense\r\n\r\n" + SMUGGLED)) == [200, 400]
    assert statuses(exchange(served, good * 2 + good.replace(b"\r\nHost", b"\nHost") + SMUGGLED)) == [200, 200, 400]


_WORDS = [
    b"GET", b"POST", b" ", b"/health", b"/v1/plan", b"HTTP/1.1", b"HTTP/1.0", b"\r\n", b"\n", b"\r", b"\0", b"\t", b":", b",",
    b"Host: localhost", b"Content-Length: ", b"Transfer-Encoding: chunked", b"Connection: upgrade", b"Upgrade: websocket",
    b"Connection: close", b"Expect: 100-continue", b"5", b"0", b"99999999999999", b"{}", b"0\r\n\r\n", b"2\r\n{}\r\n", b"\xff",
    b"Content-Type: application/json", b"%00", b"..", b"?", b"*", b"CONNECT", b"HEAD", b"OPTIONS",
]  # fmt: skip
_VALID = st.sampled_from([
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"HEAD /docs HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v1/modules HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"POST /v1/plan HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"POST /v1/plan HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n{}",
    b"GET /%00%ff HTTP/1.0\r\n\r\n",
])  # fmt: skip
MESSAGES = st.lists(st.one_of(_VALID, st.sampled_from(_WORDS), st.binary(max_size=8)), max_size=12).map(b"".join)


@given(MESSAGES, st.integers(1, 64))
@settings(max_examples=600, deadline=None)
def test_any_division_of_the_bytes_is_read_alike(data: bytes, step: int) -> None:
    whole, parts = Framing(), Framing()
    passed = whole.feed(data)
    pieces = b"".join(parts.feed(data[start : start + step]) for start in range(0, len(data), step))
    # Once broken, how much of an unfinished body was passed on before may differ; what is a request may not.
    assert parts.broken == whole.broken
    assert passed == pieces


@given(MESSAGES)
@settings(max_examples=600, deadline=None)
def test_h11_finds_no_fault_with_what_is_passed_on_and_ends_messages_where_we_do(data: bytes) -> None:
    framing = Framing()
    passed = framing.feed(data)
    if not passed:
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(passed)
    with contextlib.suppress(h11.RemoteProtocolError):
        event = connection.next_event()
        while event not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.EndOfMessage):
                rest = connection.trailing_data[0]
                assert not rest or rest[:1].isalpha(), "h11 ends the message elsewhere"
            event = connection.next_event()


@given(st.lists(MESSAGES, min_size=1, max_size=40))
@settings(max_examples=25, deadline=None)
def test_no_bytes_are_a_bug_of_the_gateway(served: Gateway, messages: list[bytes]) -> None:
    """Many connections a time: each says something, is answered or closed, and none of it is a 500 or a line in the journal."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(served.socket()) for _ in messages]
        for sock, message in zip(socks, messages, strict=True):
            with contextlib.suppress(OSError):
                sock.sendall(message)
                sock.shutdown(socket.SHUT_WR)
        for sock in socks:
            sock.settimeout(0.3)
            received = b""
            with contextlib.suppress(OSError):
                while chunk := sock.recv(65536):
                    received += chunk
            assert 500 not in statuses(received)
    log = served.log.read_text()
    assert "Traceback" not in log
    assert "a bug" not in log


def test_after_all_of_it_the_gateway_answers(served: Gateway) -> None:
    started = time.monotonic()
    assert json.loads(served.ask("GET", "/health").body) == {"status": "ok"}
    assert time.monotonic() - started < 2
