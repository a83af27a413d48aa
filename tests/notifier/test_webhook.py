# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is sent is what the library of Standard Webhooks accepts."""

import json
import ssl
import time
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest
from standardwebhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from kmodd.notifier.channels.webhook import WebhookChannel, WebhookClient, payload
from kmodd.notifier.configuration import Url, Webhook, make_key, parse_key
from kmodd.notifier.notice import chat
from tests.notifier.conftest import delivery, notice
from tests.notifier.receiver import counting, receiver, server_context

OLD, NEW = make_key(bytes(range(32))), make_key(bytes(range(32, 64)))


def now() -> int:
    return time.time_ns() // 1000


def channel(
    port: int, *keys: str, secure: Path | None = None, clock: Callable[[], int] = now, **changes: object
) -> WebhookChannel:
    values: dict[str, object] = {"keys": tuple(parse_key(key, "key") for key in keys), **changes}
    webhook = Webhook("ops", Url(secure is not None, "localhost" if secure else "127.0.0.1", port, "/x"), **values)  # type: ignore[arg-type]
    poster = WebhookClient(
        (ip_network("127.0.0.0/8"), ip_network("::1/128")), ssl.create_default_context(cafile=secure)
    )
    return WebhookChannel(webhook, poster, "web1", clock)


async def test_the_receiver_can_verify_it(localhost: tuple[Path, Path]) -> None:
    with receiver(server_context(localhost)) as server:
        outcome = await channel(server.port, OLD, secure=localhost[0]).send([delivery(7, message="ünïcode\n“x”")])
    assert outcome.kind == "delivered"
    (request,) = server.requests
    document = Verifier(OLD).verify(request.body, request.headers)
    assert document["type"] == "operation.failed"
    assert document["data"]["message"] == "ünïcode\n“x”"
    assert document["data"]["modules"] == ["dummy"]
    assert request.id == delivery(7).notice.id
    with pytest.raises(WebhookVerificationError):
        Verifier(OLD).verify(request.body.replace(b"dummy", b"loop1"), request.headers)
    with pytest.raises(WebhookVerificationError):
        Verifier(NEW).verify(request.body, request.headers)


async def test_both_keys_sign_while_they_are_exchanged() -> None:
    with receiver() as server:
        await channel(server.port, NEW, OLD).send([delivery()])
    (request,) = server.requests
    assert len(request.headers["webhook-signature"].split()) == 2
    for key in (OLD, NEW):
        Verifier(key).verify(request.body, request.headers)


async def test_id_and_body_stay_and_the_timestamp_moves_over_attempts() -> None:
    with receiver() as server:
        server.answers = [(500, {}), (429, {"Retry-After": "77"})]
        clock = [1_800_000_000]
        sending = channel(server.port, OLD, clock=lambda: clock[0] * 1_000_000)
        outcomes = []
        for _ in range(3):
            outcomes.append(await sending.send([delivery()]))
            clock[0] += 300
    assert [outcome.kind for outcome in outcomes] == ["retry", "retry", "delivered"]
    assert outcomes[1].retry_after == 77
    assert len({(request.id, request.body) for request in server.requests}) == 1
    times = [int(request.headers["webhook-timestamp"]) for request in server.requests]
    assert times == [1_800_000_000, 1_800_000_300, 1_800_000_600]
    assert len({request.headers["webhook-signature"] for request in server.requests}) == 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, "delivered"),
        (204, "delivered"),
        (299, "delivered"),
        (301, "retry"),
        (400, "refused"),
        (401, "retry"),
        (413, "refused"),
        (429, "retry"),
        (404, "retry"),
        (410, "gone"),
    ],
)
async def test_what_an_answer_means(status: int, kind: str) -> None:
    with receiver() as server, counting() as other:
        server.answers = [(status, {"Location": f"http://127.0.0.1:{other.port}/"})]
        outcome = await channel(server.port, OLD).send([delivery()])
    assert outcome.kind == kind
    assert other.connections == 0
    assert str(server.port) not in outcome.sentence


async def test_chat_services_get_a_text(localhost: tuple[Path, Path]) -> None:
    with receiver() as server:
        await channel(server.port, format="chat").send(
            [delivery(reason="<!channel> & @here <http://evil|x>\n\u202eabc")]
        )
    (request,) = server.requests
    text = json.loads(request.body)["text"]
    assert "webhook-signature" not in request.headers
    assert "<" not in text
    assert "@here" not in text
    assert "\u202e" not in text
    assert text.count("\n") == 1
    assert "web1: failure 1" in text


def test_nothing_empty_is_in_the_document() -> None:
    data = payload(notice(uid=None, error=""), "web1")["data"]
    assert data == {
        "host": "web1",
        "kind": "failure",
        "severity": "warning",
        "message": "failure 1",
        "modules": ["dummy"],
    }


def test_a_chat_shows_evidence() -> None:
    text = chat(notice(kernel_log=("a: b",) * 9, hint="do this", reason="why"), "web1")
    assert text.splitlines()[1:] == ["reason: “why”", *["kernel: a: b"] * 5, "hint: do this"]


async def test_a_dead_receiver_is_tried_again_and_named_nowhere(localhost: tuple[Path, Path]) -> None:
    with receiver() as gone:
        pass
    outcome = await channel(gone.port, OLD).send([delivery()])
    assert (outcome.kind, outcome.sentence) == ("retry", "cannot connect: Connection refused")
