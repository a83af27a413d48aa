# SPDX-License-Identifier: LGPL-2.1-or-later
"""E-mail through the configured SMTP server: digests, a limit per hour, and verified TLS."""

import asyncio
import os
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import TYPE_CHECKING

from kmodd.notifier.configuration import Email, Smtp
from kmodd.notifier.delivery_worker import Outcome
from kmodd.notifier.notice import letter, subject
from kmodd.notifier.outbox import Delivery

if TYPE_CHECKING:
    import smtplib

HOUR = 3_600_000_000


def compose(email: Email, smtp: Smtp, deliveries: Sequence[Delivery], host: str, now: int) -> EmailMessage:
    """The mail. Its Message-ID is that of its first notice, so a receiver can tell a repetition."""
    notices = [delivery.notice for delivery in deliveries]
    # The policy refuses line breaks in a header; the wording has none to begin with.
    message = EmailMessage(policy=SMTP)
    message["From"] = smtp.sender
    message["To"] = ", ".join(email.to)
    message["Subject"] = subject(notices, host)
    message["Date"] = format_datetime(datetime.fromtimestamp(now // 1_000_000, UTC))
    message["Message-ID"] = f"<{notices[0].id}.{email.name}@{smtp.sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    message["X-Kmodd-Ids"] = " ".join(notice.id for notice in notices)
    message.set_content(letter(notices, host))
    return message


class MailChannel:
    """Sends what was collected as one mail."""

    most = 100

    def __init__(self, email: Email, smtp: Smtp, host: str, clock: Callable[[], int]) -> None:
        self._email = email
        self._smtp = smtp
        self._host = host
        self._clock = clock

    def wait(self, oldest: int, sent: Sequence[int], now: int) -> float:
        """Until the digest is due, and until the hour has room for one more."""
        due = oldest + self._email.digest * 1_000_000
        if len(sent) >= self._email.per_hour:
            due = max(due, sent[-self._email.per_hour] + HOUR)
        # A clock that was set back must not make anyone wait for longer than an hour and a digest.
        return min(max(0, due - now) / 1_000_000, self._email.digest + 3600.0)

    async def send(self, deliveries: Sequence[Delivery]) -> Outcome:
        """Pass it to the server, in a thread: smtplib blocks."""
        message = compose(self._email, self._smtp, deliveries, self._host, self._clock())
        try:
            # Each step within has the time-out; together they may take a few of them.
            refused = await asyncio.to_thread(deliver, self._smtp, self._email.to, message)
        except MailError as error:
            return Outcome("retry", str(error))
        # The others have it, and would get it twice if this were tried again.
        return Outcome("delivered", f"the mail server rejected {refused} of the recipients" if refused else "")


class MailError(Exception):
    """The server did not take it; the text holds no password and nothing a server could have slipped in."""


def deliver(smtp: Smtp, recipients: Sequence[str], message: EmailMessage) -> int:
    """Send it, and return how many recipients were rejected; MailError if all were."""
    # Imported here: a notifier that sends no mail does without.
    import smtplib

    try:
        server = _connect(smtp)
        try:
            if smtp.username:
                server.login(smtp.username, smtp.password)
            refused = len(server.send_message(message, smtp.sender, list(recipients)))
            # The mail is the server's now: whatever it says to a farewell, it must not get it twice.
            with suppress(smtplib.SMTPException, OSError):
                server.quit()
            return refused
        finally:
            server.close()
    except smtplib.SMTPAuthenticationError as error:
        raise MailError(f"the mail server rejected user name and password ({error.smtp_code})") from None
    except smtplib.SMTPRecipientsRefused:
        raise MailError("the mail server rejected every recipient") from None
    except smtplib.SMTPResponseException as error:
        raise MailError(f"the mail server answered {error.smtp_code}") from None
    except smtplib.SMTPServerDisconnected:
        raise MailError(
            "cannot connect to the mail server: it closed the connection or did not respond in time"
        ) from None
    except ssl.SSLCertVerificationError as error:
        raise MailError(f"the mail server's certificate is not accepted: {error.verify_message}") from None
    except smtplib.SMTPException as error:
        raise MailError(f"the mail server cannot be used: {type(error).__name__}") from None
    except OSError as error:
        # A name that cannot be resolved has a negative number and its own message.
        number = error.errno or 0
        why = os.strerror(number) if number > 0 else error.strerror or "no response in time"
        raise MailError(f"cannot connect to the mail server: {why}") from None


def _connect(smtp: Smtp) -> "smtplib.SMTP":
    import smtplib  # see deliver()

    if smtp.security == "none":
        return smtplib.SMTP(smtp.host, smtp.port, timeout=smtp.timeout)
    context = ssl.create_default_context(cafile=smtp.ca_file or None)
    if smtp.security == "tls":
        return smtplib.SMTP_SSL(smtp.host, smtp.port, timeout=smtp.timeout, context=context)
    server = smtplib.SMTP(smtp.host, smtp.port, timeout=smtp.timeout)
    try:
        server.starttls(context=context)  # SMTPNotSupportedError where it is not offered: nothing goes in the clear
    except BaseException:
        server.close()
        raise
    return server
