# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mail, handed to a real SMTP server over TLS."""

import asyncio
import email.policy
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

from kmodd.journal.writer import Logger
from kmodd.notifier.channels.mail import HOUR, MailChannel, compose
from kmodd.notifier.configuration import Email, Smtp
from kmodd.notifier.delivery_worker import DeliveryWorker, Outcome
from kmodd.notifier.outbox import Outbox
from tests.notifier.conftest import delivery, notice
from tests.notifier.receiver import counting, server_context

# The server reports as a warning what one test does on purpose: to ask for a login without TLS.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:aiosmtpd")
NOW = 1_700_000_000_000_000
ADMINS = Email("admins", ("root@example.org", "ops@example.org"), digest=60, per_hour=2)


class Mailbox:
    """What the server took."""

    def __init__(self) -> None:
        self.envelopes: list[Any] = []
        self.refuse: set[str] = set()
        self.answer = "250 OK"

    async def handle_RCPT(self, server: object, session: object, envelope: Any, address: str, options: object) -> str:  # noqa: N802 - aiosmtpd's name
        if address in self.refuse:
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        self.envelopes.append(envelope)
        return self.answer

    @property
    def messages(self) -> list[EmailMessage]:
        parser = BytesParser(policy=email.policy.default)
        return [parser.parsebytes(one.content) for one in self.envelopes]


@asynccontextmanager
async def mail_server(
    pair: tuple[Path, Path] | None,
    *,
    login: bool = False,
    at_once: ssl.SSLContext | None = None,
    server_class: type[SMTP] = SMTP,
) -> AsyncIterator[tuple[int, Mailbox]]:
    """An SMTP server; with a certificate it insists on STARTTLS, or speaks TLS `at_once`."""
    box = Mailbox()

    def authenticate(_server: object, _session: object, _envelope: object, _mechanism: str, data: object) -> AuthResult:
        good = isinstance(data, LoginPassword) and (data.login, data.password) == (b"kmodd", b"pass word")
        return AuthResult(success=good, handled=False)

    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {"auth_required": login, "authenticator": authenticate if login else None}
    if pair is not None:
        options |= {"tls_context": server_context(pair), "require_starttls": True}
    server = await loop.create_server(lambda: server_class(box, loop=loop, **options), "127.0.0.1", 0, ssl=at_once)
    try:
        yield server.sockets[0].getsockname()[1], box
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.05)  # connections that are being closed end on the loop's next turns


def smtp(port: int, ca: Path | None = None, **changes: Any) -> Smtp:
    values: dict[str, Any] = {
        "host": "localhost",
        "sender": "kmodd@example.org",
        "ca_file": str(ca or ""),
        "timeout": 5,
    }
    return Smtp(port=port, **{**values, **changes})


async def send(server: Smtp, *numbers: int, **changes: object) -> Outcome:
    channel = MailChannel(ADMINS, server, "web1", lambda: NOW)
    return await channel.send([delivery(n, **changes) for n in numbers])


async def test_a_digest_arrives_over_tls(localhost: tuple[Path, Path]) -> None:
    async with mail_server(localhost) as (port, box):
        assert await send(smtp(port, localhost[0]), 1, 2, 3, reason="größer") == Outcome("delivered")
    (envelope,) = box.envelopes
    assert envelope.rcpt_tos == list(ADMINS.to)
    assert envelope.mail_from == "kmodd@example.org"
    (message,) = box.messages
    assert message["subject"] == "[kmodd] web1: failure 1 (and 2 more)"
    assert message["to"] == "root@example.org, ops@example.org"
    assert message["message-id"].startswith(f"<{delivery(1).notice.id}.admins@example.org")
    text = message.get_content()
    assert [text.count(f"failure {n}") for n in (1, 2, 3)] == [1, 1, 1]
    assert text.count("reason: “größer”") == 3


async def test_password_and_tls_from_the_first_byte_on(localhost: tuple[Path, Path]) -> None:
    async with mail_server(localhost, login=True) as (port, box):
        good = smtp(port, localhost[0], username="kmodd", password="pass word")
        assert (await send(good, 1)).kind == "delivered"
        bad = await send(smtp(port, localhost[0], username="kmodd", password="hidden"), 1)
    assert bad.sentence == "the mail server rejected user name and password (535)"
    assert len(box.envelopes) == 1
    async with mail_server(None, at_once=server_context(localhost)) as (port, box):
        assert (await send(smtp(port, localhost[0], security="tls"), 1)).kind == "delivered"
    assert len(box.envelopes) == 1


async def test_nothing_is_sent_without_verified_tls(localhost: tuple[Path, Path], stranger: tuple[Path, Path]) -> None:
    async with mail_server(localhost) as (port, box):
        outcome = await send(smtp(port), 1)  # the system's authorities
        assert "certificate is not accepted" in outcome.sentence
    async with mail_server(stranger) as (port, other):
        outcome = await send(smtp(port, stranger[0]), 1)  # another host's name
        assert "certificate is not accepted" in outcome.sentence
    async with mail_server(None) as (port, plain):
        outcome = await send(smtp(port, localhost[0]), 1)  # none at all
        assert outcome == Outcome("retry", "the mail server cannot be used: SMTPNotSupportedError")
    assert box.envelopes == other.envelopes == plain.envelopes == []


async def test_a_server_on_this_machine_may_do_without() -> None:
    async with mail_server(None) as (port, box):
        assert (await send(smtp(port, security="none"), 1)).kind == "delivered"
    assert len(box.envelopes) == 1


HOSTILE = "x\r\nBcc: evil@example.org\r\n\r\n.\r\nQUIT\n\u2028\u202e\x00\x1b[31m"


async def test_no_line_break_from_data_reaches_a_header(localhost: tuple[Path, Path]) -> None:
    async with mail_server(localhost) as (port, box):
        outcome = await send(
            smtp(port, localhost[0]), 1, message=HOSTILE, module=HOSTILE, reason=HOSTILE, error=HOSTILE, hint=HOSTILE
        )
        assert outcome.kind == "delivered"
    (envelope,) = box.envelopes
    (message,) = box.messages
    assert envelope.rcpt_tos == list(ADMINS.to)
    assert "bcc" not in {name.lower() for name in message}
    assert "\n" not in message["subject"]
    assert len(message["subject"]) <= 160
    assert "\x1b" not in message.get_content()
    assert message.get_content().rstrip().endswith("kmodd on web1")


def test_a_long_subject_is_cut() -> None:
    message = compose(ADMINS, smtp(25), [delivery(1, message="y" * 5000), delivery(2)], "web1", NOW)
    assert len(message["subject"]) <= 160
    assert message["subject"].endswith("… (and 1 more)")


async def test_who_is_refused_costs_the_others_nothing(localhost: tuple[Path, Path]) -> None:
    async with mail_server(localhost) as (port, box):
        box.refuse = {"ops@example.org"}
        outcome = await send(smtp(port, localhost[0]), 1)
        assert outcome == Outcome("delivered", "the mail server rejected 1 of the recipients")
        box.refuse = set(ADMINS.to)
        assert (await send(smtp(port, localhost[0]), 1)).sentence == "the mail server rejected every recipient"
        box.refuse, box.answer = set(), "451 \r\n251 secret words"
        outcome = await send(smtp(port, localhost[0]), 1)
    assert outcome.kind == "retry"
    assert "secret" not in outcome.sentence


async def test_a_silent_or_dead_server_is_tried_again() -> None:
    with counting() as silent:
        outcome = await send(smtp(silent.port, host="127.0.0.1", timeout=1), 1)
        assert outcome.kind == "retry"
        assert "cannot connect" in outcome.sentence
    outcome = await send(smtp(silent.port, host="127.0.0.1"), 1)
    assert outcome == Outcome("retry", "cannot connect to the mail server: Connection refused")


def test_what_comes_is_collected_and_capped() -> None:
    channel = MailChannel(ADMINS, smtp(25), "web1", lambda: NOW)
    assert channel.wait(NOW, [], NOW) == 60
    assert channel.wait(NOW - 61_000_000, [], NOW) == 0
    sent = [NOW - 50 * 60_000_000, NOW - 10 * 60_000_000]
    assert channel.wait(NOW - 61_000_000, sent, NOW) == 600, "the first of two was 50 minutes ago"
    assert channel.wait(NOW - 61_000_000, sent[:1], NOW) == 0
    assert channel.wait(NOW + HOUR * 48, [], NOW) == 3660, "a clock that was set back"


async def test_no_more_mails_an_hour_than_allowed_over_restarts(
    localhost: tuple[Path, Path], tmp_path: Path, logger: Logger
) -> None:
    now = [NOW]

    def courier(outbox: Outbox, port: int) -> DeliveryWorker:
        channel = MailChannel(ADMINS, smtp(port, localhost[0]), "web1", lambda: now[0])
        return DeliveryWorker("admins", channel, outbox, logger, clock=lambda: now[0], random=lambda: 0.5)

    async with mail_server(localhost) as (port, box):
        for n in range(1, 8):
            outbox = Outbox(tmp_path / "queue")  # a new process each time
            outbox.take([], None, [(notice(n), ["admins"])], now[0])
            now[0] += 61_000_000
            if (sending := courier(outbox, port)).pause() == 0:
                await sending.attempt()
            outbox.close()
        assert len(box.envelopes) == ADMINS.per_hour
        outbox = Outbox(tmp_path / "queue")
        assert outbox.waiting("admins").count == 5
        now[0] = NOW + 61_000_000 + HOUR - 1
        assert courier(outbox, port).pause() != 0
        now[0] += 1
        sending = courier(outbox, port)
        assert sending.pause() == 0
        await sending.attempt()
        assert outbox.waiting("admins").count == 0
        outbox.close()
    assert len(box.envelopes) == ADMINS.per_hour + 1
    assert "and 4 more" in box.messages[-1]["subject"]


async def test_a_server_that_answers_a_farewell_oddly_gets_the_mail_once(localhost: tuple[Path, Path]) -> None:
    class Odd(SMTP):
        async def smtp_QUIT(self, arg: str) -> None:  # noqa: N802 - aiosmtpd's name
            await self.push("421 go away")

    async with mail_server(localhost, server_class=Odd) as (port, box):
        assert await send(smtp(port, localhost[0]), 1) == Outcome("delivered")
    assert len(box.envelopes) == 1
