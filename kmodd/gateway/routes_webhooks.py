# SPDX-License-Identifier: LGPL-2.1-or-later
"""Routes about webhooks: the notifier keeps and calls them, in a process of its own."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import APIRouter, Path

from kmodd.client_notifier import NotifierClient
from kmodd.errors import InvalidArgs, KmoddError
from kmodd.gateway import models_rules
from kmodd.gateway.asking import Answer, needs, told
from kmodd.gateway.principal import Principal
from kmodd.gateway.wording import snake
from kmodd.model import Record

NAME = Path(description="Name of the webhook.")
TEXT_MAX = 2048
T = TypeVar("T")
_ENDPOINT = {
    "name": "ops", "channel": "webhook", "target": "hooks.example.org", "managed": True, "enabled": True, "why": "",
    "waiting": 0, "failures": 0, "last_error": "", "delivered": 12, "dropped": 0,
}  # fmt: skip
_BODY = {"name": "ops", "url": "https://hooks.example.org/kmodd", "events": ["failure", "crash"]}


def router(connect: Callable[[], Awaitable[NotifierClient]], record: Callable[[Record], None]) -> APIRouter:
    """The routes; `record` writes to the journal."""
    made = APIRouter(tags=["webhooks"])

    async def change(who: Principal, action: str, name: str, do: Callable[[NotifierClient], Awaitable[T]]) -> T:
        error: KmoddError | None = None
        try:
            async with await connect() as notifier:
                return await do(notifier)
        except KmoddError as found:
            error = found
            raise
        finally:
            # The name alone: a webhook's address and key are secrets.
            said = error.title if error else "done"
            record(
                Record(
                    "gateway.operation",
                    f"{who.name}: {action} {name}: {said}",
                    action=action,
                    result="failed" if error else "done",
                    error=error.name() if error else "",
                    on_behalf_of=who.name,
                )
            )

    @made.get("/v1/webhooks", response_model=models_rules.Webhooks, operation_id="webhooks",
              **told("read", example={"webhooks": [_ENDPOINT]}))  # fmt: skip
    async def listing(who: Principal = needs("read")) -> Answer:
        """Every webhook and how its deliveries go; never its address or key."""
        del who
        async with await connect() as notifier:
            status = snake(await notifier.status())
        return Answer({"webhooks": [row for row in status.get("endpoints", ()) if row.get("channel") == "webhook"]})

    @made.post("/v1/webhooks", response_model=models_rules.WebhookKey, operation_id="add_webhook",
               **told("admin", "Conflict", example={"name": "ops", "key": "whsec_…"}, body=_BODY))  # fmt: skip
    async def add(body: models_rules.WebhookRequest, who: Principal = needs("admin")) -> Answer:
        """Add a webhook; the key that signs its messages (Standard Webhooks) is told this once."""
        name, url = _line(body.name, "name"), _line(body.url, "url")
        options: dict[str, object] = {"severity": body.severity, "format": body.format}
        for key, values in (("events", body.events), ("modules", body.modules)):
            if values:
                options[key] = [_line(value, key) for value in values]
        key = await change(who, "add-webhook", name, lambda notifier: notifier.add_webhook(name, url, options))
        return Answer({"name": name, "key": key})

    @made.post("/v1/webhooks/{name}/test", response_model=models_rules.WebhookTest, operation_id="test_webhook",
               **told("admin", example={"name": "ops", "id": "msg_2b1c"}))  # fmt: skip
    async def test(name: str = NAME, who: Principal = needs("admin")) -> Answer:
        """Send a test message."""
        line = _line(name, "name")
        return Answer(
            {"name": line, "id": await change(who, "test-webhook", line, lambda notifier: notifier.test(line))}
        )

    @made.delete("/v1/webhooks/{name}", response_model=models_rules.Message, operation_id="remove_webhook",
                 **told("admin", "Conflict", example={"message": "Webhook ops is removed"}))  # fmt: skip
    async def remove(name: str = NAME, who: Principal = needs("admin")) -> Answer:
        """Remove a webhook, with what waits for it."""
        line = _line(name, "name")
        await change(who, "remove-webhook", line, lambda notifier: notifier.remove(line))
        return Answer({"message": f"Webhook {line} is removed"})

    return made


def _line(text: str, name: str) -> str:
    # What the bus cannot carry would end the connection.
    if not 0 < len(text) <= TEXT_MAX or not text.isprintable():
        raise InvalidArgs(f"{name} is one line of 1 to {TEXT_MAX} printable characters", argument=name)
    return text
