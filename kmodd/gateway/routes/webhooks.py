# SPDX-License-Identifier: LGPL-2.1-or-later
"""Routes for webhooks, which the notifier stores and calls."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import APIRouter, Path

from kmodd.client.notifier import NotifierClient
from kmodd.errors import InvalidArgs, KmoddError
from kmodd.gateway import models
from kmodd.gateway.dependencies import Answer, documented, needs, snake
from kmodd.gateway.http.authentication import Principal
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

    async def change(principal: Principal, action: str, name: str, do: Callable[[NotifierClient], Awaitable[T]]) -> T:
        principal.require_all_modules()  # one tells of all
        error: KmoddError | None = None
        try:
            async with await connect() as notifier:
                return await do(notifier)
        except KmoddError as found:
            error = found
            raise
        finally:
            # The name alone: a webhook's address and key are secrets.
            outcome = error.title if error else "done"
            record(
                Record(
                    "gateway.operation",
                    f"{principal.label}: {action} {name}: {outcome}",
                    action=action,
                    result="failed" if error else "done",
                    error=error.name() if error else "",
                    on_behalf_of=principal.label,
                )
            )

    @made.get("/v1/webhooks", response_model=models.Webhooks, operation_id="webhooks",
              **documented("read", example={"webhooks": [_ENDPOINT]}))  # fmt: skip
    async def listing(principal: Principal = needs("read")) -> Answer:
        """Every webhook and how its deliveries go; never its address or key."""
        del principal
        async with await connect() as notifier:
            status = snake(await notifier.status())
        return Answer({"webhooks": [row for row in status.get("endpoints", ()) if row.get("channel") == "webhook"]})

    @made.post("/v1/webhooks", response_model=models.WebhookKey, operation_id="add_webhook",
               **documented("admin", "Conflict", example={"name": "ops", "key": "whsec_…"}, body=_BODY))  # fmt: skip
    async def add(body: models.WebhookRequest, principal: Principal = needs("admin")) -> Answer:
        """Add a webhook; the key that signs its messages (Standard Webhooks) is returned only once."""
        name, url = _line(body.name, "name"), _line(body.url, "url")
        options: dict[str, object] = {"severity": body.severity, "format": body.format}
        for key, values in (("events", body.events), ("modules", body.modules)):
            if values:
                options[key] = [_line(value, key) for value in values]
        key = await change(
            principal,
            "add-webhook",
            name,
            lambda notifier: notifier.add_webhook(name, url, {**options, **principal.caller_options("")}),
        )
        return Answer({"name": name, "key": key})

    @made.post("/v1/webhooks/{name}/test", response_model=models.WebhookTest, operation_id="test_webhook",
               **documented("admin", example={"name": "ops", "id": "msg_2b1c"}))  # fmt: skip
    async def test(name: str = NAME, principal: Principal = needs("admin")) -> Answer:
        """Send a test message."""
        line = _line(name, "name")
        return Answer(
            {
                "name": line,
                "id": await change(
                    principal, "test-webhook", line, lambda notifier: notifier.test(line, principal.caller_options(""))
                ),
            }
        )

    @made.delete("/v1/webhooks/{name}", response_model=models.Message, operation_id="remove_webhook",
                 **documented("admin", "Conflict", example={"message": "Webhook ops was removed"}))  # fmt: skip
    async def remove(name: str = NAME, principal: Principal = needs("admin")) -> Answer:
        """Remove a webhook, with what waits for it."""
        line = _line(name, "name")
        await change(
            principal, "remove-webhook", line, lambda notifier: notifier.remove(line, principal.caller_options(""))
        )
        return Answer({"message": f"Webhook {line} was removed"})

    return made


def _line(text: str, name: str) -> str:
    # What the bus cannot carry would end the connection.
    if not 0 < len(text) <= TEXT_MAX or not text.isprintable():
        raise InvalidArgs(f"{name} is one line of 1 to {TEXT_MAX} printable characters", argument=name)
    return text
