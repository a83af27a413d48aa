# SPDX-License-Identifier: LGPL-2.1-or-later
"""Webhooks by Standard Webhooks 1.0.0 (https://www.standardwebhooks.com), and formats of chat services."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from kmodd import VERSION
from kmodd.notifier.channels.http_post import Poster, PostError, retry_after
from kmodd.notifier.configuration import Webhook
from kmodd.notifier.delivery_worker import Outcome
from kmodd.notifier.notice import Notice, chat
from kmodd.notifier.outbox import Delivery

GONE = 410
REFUSED = frozenset({400, 406, 411, 413, 414, 415, 422, 431})
"""Answers that are about the message, not about the receiver (RFC 9110, RFC 6585): the next message may do better."""


def sign(keys: Sequence[bytes], message: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: one signature for each key, separated by spaces."""
    content = f"{message}.{timestamp}.".encode() + body
    return " ".join("v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode() for key in keys)


def payload(notice: Notice, host: str) -> dict[str, Any]:
    """The JSON document: `type`, `timestamp`, `data`."""
    data: dict[str, Any] = {"host": host, "kind": notice.kind, "severity": notice.severity, "message": notice.message}
    data |= {
        name: value
        for name, value in (
            ("modules", list(notice.modules)),
            ("action", notice.action),
            ("result", notice.result),
            ("error", notice.error),
            ("uid", notice.uid),
            ("on_behalf_of", notice.on_behalf_of),
            ("reason", notice.reason),
            ("errno", notice.errno),
            ("kernel_log", list(notice.kernel_log)),
            ("hint", notice.hint),
        )
        if value not in ("", None, [])
    }
    moment = datetime.fromtimestamp(notice.time / 1_000_000, UTC)
    return {"type": notice.event, "timestamp": moment.isoformat().replace("+00:00", "Z"), "data": data}


class WebhookChannel:
    """Sends one notice at a time to one URL."""

    most = 1

    def __init__(self, webhook: Webhook, poster: Poster, host: str, clock: Callable[[], int]) -> None:
        self._webhook = webhook
        self._poster = poster
        self._host = host
        self._clock = clock

    def wait(self, oldest: int, sent: Sequence[int], now: int) -> float:
        """Immediately."""
        return 0.0

    async def send(self, deliveries: Sequence[Delivery]) -> Outcome:
        """Post it. Any response but 2xx is retried, except 410: the receiver accepts no further messages."""
        (delivery,) = deliveries
        notice = delivery.notice
        document = {"text": chat(notice, self._host)} if self._webhook.format == "chat" else payload(notice, self._host)
        body = json.dumps(document, separators=(",", ":")).encode()
        seconds = self._clock() // 1_000_000
        headers = {"Content-Type": "application/json", "User-Agent": f"kmodd-notifier/{VERSION}"}
        headers |= {"webhook-id": notice.id, "webhook-timestamp": str(seconds)}
        if self._webhook.keys:
            headers["webhook-signature"] = sign(self._webhook.keys, notice.id, seconds, body)
        try:
            answer = await self._poster.post(self._webhook.url, headers, body, self._webhook.timeout)
        except PostError as error:
            return Outcome("retry", str(error))
        if 200 <= answer.status < 300:
            return Outcome("delivered")
        if answer.status == GONE:
            return Outcome("gone", "the receiver answered 410: it accepts no further messages")
        if answer.status in REFUSED:
            return Outcome("refused", f"the receiver answered {answer.status}: it does not accept this message")
        what = ", and redirects are not followed" if 300 <= answer.status < 400 else ""
        return Outcome(
            "retry", f"the receiver answered {answer.status}{what}", retry_after(answer.retry_after, seconds)
        )
