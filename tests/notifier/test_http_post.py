# SPDX-License-Identifier: LGPL-2.1-or-later
"""The client posts to the address it looked at, and to no other."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import ip_network
from pathlib import Path

import pytest

from kmodd.notifier.channels.webhook import PostError, WebhookClient, retry_after
from kmodd.notifier.configuration import Url, parse_url
from tests.notifier.receiver import counting, receiver, server_context

LOOPBACK = (ip_network("127.0.0.0/8"),)
HEADERS = {"Content-Type": "application/json"}


class Resolver:
    """Answers by script, and counts."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        return self.answers.pop(0)


def trusting(certificate: Path | None = None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate)


def url(port: int, host: str = "127.0.0.1", *, secure: bool = False) -> Url:
    return Url(secure, host, port, "/hook?x=1")


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::ffff:127.0.0.1", "127.0.0.2", "localhost", "127.1", "0x7f000001", "2130706433", "0"]
)
async def test_not_a_packet_reaches_a_loopback_address(address: str) -> None:
    with counting() as port, pytest.raises(PostError, match=r"no public address|cannot be resolved"):
        await WebhookClient((), trusting()).post(url(port.port, address), HEADERS, b"{}", 5)
    assert port.connections == 0


async def test_not_a_packet_reaches_the_ipv6_loopback() -> None:
    with counting("::1") as port, pytest.raises(PostError, match="no public address"):
        await WebhookClient((), trusting()).post(url(port.port, "::1"), HEADERS, b"{}", 5)
    assert port.connections == 0


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "169.254.169.254", "fe80::1", "fd00::1", "224.0.0.1", "::ffff:10.0.0.1"]
)
async def test_names_of_inner_addresses_are_refused(address: str) -> None:
    resolver = Resolver([address])
    with pytest.raises(PostError, match="no public address"):
        await WebhookClient((), trusting(), resolver).post(url(80, "inner.example"), HEADERS, b"", 2)


async def test_an_allowed_network_is_reached() -> None:
    with receiver() as server:
        answer = await WebhookClient(LOOPBACK, trusting()).post(url(server.port), HEADERS, b"{}", 5)
    assert answer.status == 204
    (request,) = server.requests
    assert (request.path, request.body) == ("/hook?x=1", b"{}")
    assert request.headers["host"] == f"127.0.0.1:{server.port}"


async def test_the_address_that_was_looked_at_is_the_one_connected_to() -> None:
    """A name server that answers differently the second time (DNS rebinding) is not asked a second time."""
    resolver = Resolver(["127.0.0.1"], ["127.0.0.3"])
    with receiver() as server:
        poster = WebhookClient((ip_network("127.0.0.1/32"),), trusting(), resolver)
        await poster.post(url(server.port, "rebinding.example"), HEADERS, b"", 5)
    assert resolver.asked == 1
    assert server.requests[0].headers["host"] == f"rebinding.example:{server.port}"


async def test_forbidden_ones_among_the_answers_are_left_out() -> None:
    with counting() as closed, receiver() as server:
        resolver = Resolver(["127.0.0.1", "127.0.0.5"])
        poster = WebhookClient((ip_network("127.0.0.5/32"),), trusting(), resolver)
        # The receiver listens on 127.0.0.1 alone: what is allowed refuses the connection, what would answer is forbidden.
        with pytest.raises(PostError, match="Connection refused"):
            await poster.post(url(server.port, "mixed.example"), HEADERS, b"", 5)
    assert server.requests == []
    assert closed.connections == 0


async def test_the_next_address_is_tried() -> None:
    with receiver() as server:
        poster = WebhookClient(LOOPBACK, trusting(), Resolver(["127.0.0.9", "127.0.0.1"]))
        assert (await poster.post(url(server.port, "two.example"), HEADERS, b"", 5)).status == 204


async def test_an_address_that_swallows_everything_leaves_time_for_the_next() -> None:
    with receiver() as server, socket.socket() as silent, ExitStack() as callers:
        silent.bind(("127.0.0.9", server.port))
        silent.listen(0)
        for _ in range(3):  # whoever comes when its queue is full gets no answer at all
            caller = callers.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(("127.0.0.9", server.port))
        poster = WebhookClient(LOOPBACK, trusting(), Resolver(["127.0.0.9", "127.0.0.1"]))
        assert (await poster.post(url(server.port, "two.example"), HEADERS, b"", 2)).status == 204
        with pytest.raises(PostError, match="no response within"):
            await WebhookClient(LOOPBACK, trusting(), Resolver(["127.0.0.9"])).post(
                url(server.port, "one.example"), HEADERS, b"", 0.4
            )


async def test_redirects_are_not_followed() -> None:
    with counting() as inner, receiver() as server:
        server.answers = [(302, {"Location": f"http://127.0.0.1:{inner.port}/"})]
        answer = await WebhookClient(LOOPBACK, trusting()).post(url(server.port), HEADERS, b"", 5)
    assert answer.status == 302
    assert inner.connections == 0


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with counting() as proxy, receiver() as server:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        await WebhookClient(LOOPBACK, trusting()).post(url(server.port), HEADERS, b"", 5)
    assert proxy.connections == 0
    assert len(server.requests) == 1


async def test_tls_is_verified_by_name_and_authority(localhost: tuple[Path, Path], stranger: tuple[Path, Path]) -> None:
    resolver = Resolver(*[["127.0.0.1"]] * 4)
    with receiver(server_context(localhost)) as server:
        good = WebhookClient(LOOPBACK, trusting(localhost[0]), resolver)
        assert (await good.post(url(server.port, "localhost", secure=True), HEADERS, b"", 5)).status == 204
        with pytest.raises(PostError, match="certificate is not accepted"):
            await good.post(url(server.port, "other.example", secure=True), HEADERS, b"", 5)
        with pytest.raises(PostError, match=r"certificate is not accepted: self.signed"):
            await WebhookClient(LOOPBACK, trusting(), resolver).post(
                url(server.port, "localhost", secure=True), HEADERS, b"", 5
            )
    with receiver(server_context(stranger)) as server:
        with pytest.raises(PostError, match="certificate is not accepted"):
            await good.post(url(server.port, "localhost", secure=True), HEADERS, b"", 5)
        assert server.requests == []


async def test_silence_ends_in_time() -> None:
    with counting() as silent, pytest.raises(PostError, match=r"no response within 0.2 seconds"):
        await WebhookClient(LOOPBACK, trusting()).post(url(silent.port), HEADERS, b"", 0.2)
    assert silent.connections == 1


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000, "headers are too long"),
        (b"220 smtp.example ESMTP\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 200", "closed before a response"),
        (b"", "closed before a response"),
        (b"HTTP/1.1 204 No Content\r\nX: y\r\n", "closed before a response"),
        (b"HTTP/1.1 9999 Odd\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 9, "closed before a response"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 900, "headers are too long"),
    ],
)
async def test_answers_that_are_none(said: bytes, sentence: str) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1")
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(PostError, match=sentence):
            await WebhookClient(LOOPBACK, trusting()).post(url(port), HEADERS, b"", 5)


async def test_the_answer_after_an_early_one_counts() -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1")
    async with server:
        port = server.sockets[0].getsockname()[1]
        answer = await WebhookClient(LOOPBACK, trusting()).post(url(port), HEADERS, b"", 5)
    assert (answer.status, answer.retry_after) == (503, "7")


async def test_an_answer_that_never_ends_is_ended_in_time() -> None:
    """A byte at a time: each comes before any limit between two of them."""
    ended = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(b"H")
                await writer.drain()
                await asyncio.sleep(0.02)
        except ConnectionError:
            ended.set()
        finally:
            writer.close()

    server = await asyncio.start_server(drip, "127.0.0.1")
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(PostError, match=r"no response within 0.3 seconds"):
            await WebhookClient(LOOPBACK, trusting()).post(url(port), HEADERS, b"", 0.3)
        await asyncio.wait_for(ended.wait(), 5)


async def test_a_post_that_is_cancelled_ends_its_thread() -> None:
    with counting() as silent:
        before = set(threading.enumerate())
        posting = asyncio.ensure_future(WebhookClient(LOOPBACK, trusting()).post(url(silent.port), HEADERS, b"", 60))
        await asyncio.sleep(0.2)
        posting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await posting
        await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), 5)
        assert set(threading.enumerate()) <= before


async def test_a_body_without_end_is_not_read() -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.read(1000)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while sent < 1 << 30:
                writer.write(b"x" * 65536)
                sent += 65536
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()

    server = await asyncio.start_server(flood, "127.0.0.1")
    async with server:
        port = server.sockets[0].getsockname()[1]
        answer = await WebhookClient(LOOPBACK, trusting()).post(url(port), HEADERS, b"", 5)
        await asyncio.sleep(0.1)
    assert answer.status == 200
    assert sent < 64 << 20


async def test_a_line_break_reaches_no_header() -> None:
    with receiver() as server, pytest.raises(PostError, match="line break"):
        await WebhookClient(LOOPBACK, trusting()).post(url(server.port), {"X": "a\r\nY: b"}, b"", 5)
    assert server.requests == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120),
        ("", 0),
        ("soon", 0),
        ("-5", 0),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 60),
        ("9" * 60, 999_999_999),
        ("Mon, 01 Jan 99999999999 00:00:00 GMT", 0),
    ],
)
def test_retry_after(text: str, seconds: float) -> None:
    assert retry_after(text, 60.0) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "http://example.org/",
        "ftp://example.org/",
        "https://user:secret@example.org/",
        "https://example.org/#part",
        "https:///path",
        "https://example.org:0/",
        "https://example.org:99999/",
        "https://exa mple.org/",
        "https://example.org/a b",
        "https://example.org/\r\nX: y",
        "https://[::1/",
        "example.org",
        "",
        "https://example.org/" + "x" * 3000,
    ],
)
def test_bad_urls_are_refused_without_being_repeated(text: str) -> None:
    from kmodd.errors import InvalidArgs

    with pytest.raises(InvalidArgs) as raised:
        parse_url(text)
    assert "secret" not in raised.value.message
    assert "example" not in raised.value.message.replace("https://", "")


def test_urls_are_taken_apart() -> None:
    assert parse_url("https://Hooks.Example.org/a?b=c") == Url(True, "hooks.example.org", 443, "/a?b=c")
    assert parse_url("https://münchen.example:8443") == Url(True, "xn--mnchen-3ya.example", 8443, "/")
    assert parse_url("https://[2606:4700::1]/").host == "2606:4700::1"
