# SPDX-License-Identifier: LGPL-2.1-or-later
"""E-mail through the SMTP server of the configuration: digests, so many an hour, TLS that is verified."""

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
from kmodd.notifier.outbox import Delivery
from kmodd.notifier.outcome import Outcome
from kmodd.notifier.wording import letter, subject

if TYPE_CHECKING:
    import smtplib

HOUR = 3_600_000_000


def compose(email: Email, smtp: Smtp, deliveries: Sequence[Delivery], host: str, now: int) -> EmailMessage:
    """The mail. Its Message-ID is that of its first notice, so a receiver can tell a repetition."""
    notices = [one.notice for one in deliveries]
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
        """Hand it to the server. In a thread of its own: smtplib waits."""
        message = compose(self._email, self._smtp, deliveries, self._host, self._clock())
        try:
            # Each step within has the time-out; together they may take a few of them.
            refused = await asyncio.to_thread(deliver, self._smtp, self._email.to, message)
        except MailError as error:
            return Outcome("retry", str(error))
        # The others have it, and would get it twice if this were tried again.
        return Outcome("delivered", f"the mail server refused {refused} of the recipients" if refused else "")


class MailError(Exception):
    """The server did not take it; the text holds no password and nothing a server could have slipped in."""


def deliver(smtp: Smtp, recipients: Sequence[str], message: EmailMessage) -> int:
    """Send it, and answer how many recipients were refused; MailError when the server took it for nobody."""
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
        raise MailError(f"the mail server does not accept user name and password ({error.smtp_code})") from None
    except smtplib.SMTPRecipientsRefused:
        raise MailError("the mail server refuses every recipient") from None
    except smtplib.SMTPResponseException as error:
        raise MailError(f"the mail server answered {error.smtp_code}") from None
    except smtplib.SMTPServerDisconnected:
        raise MailError("no connection to the mail server: it closed it, or did not answer in time") from None
    except ssl.SSLCertVerificationError as error:
        raise MailError(f"the mail server's certificate is not accepted: {error.verify_message}") from None
    except smtplib.SMTPException as error:
        raise MailError(f"the mail server cannot be used: {type(error).__name__}") from None
    except OSError as error:
        # A name that is not resolved has a negative number and a text of its own.
        number = error.errno or 0
        why = os.strerror(number) if number > 0 else error.strerror or "no answer in time"
        raise MailError(f"no connection to the mail server: {why}") from None


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
