# SPDX-License-Identifier: LGPL-2.1-or-later
"""The interface org.kmodd1.Notifier: what `kmodctl notify` and the gateway ask."""

import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from kmodd.errors import InvalidArgs, KmoddError, NotPermitted
from kmodd.log import Logger
from kmodd.notifier.authority import Authority
from kmodd.notifier.bus_name import Answer, Incoming, variants
from kmodd.notifier.configuration import parse_name, parse_recipient, parse_url
from kmodd.notifier.operator import Operator
from kmodd.notifier.secret_file import SecretError, parse_key

NAME = "org.kmodd1.Notifier"
PATH = "/org/kmodd1/Notifier"

_RULE_OPTIONS = {"events": "as", "errors": "as", "modules": "as", "uids": "au", "severity": "s"}
_WEBHOOK_OPTIONS = {"format": "s", "timeout": "u"}
_EMAIL_OPTIONS = {"digest": "u", "per-hour": "u"}
_PYTHON: Mapping[str, Callable[[Any], bool]] = {
    "s": lambda value: isinstance(value, str) and value.isascii(),
    "u": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "as": lambda value: isinstance(value, list) and all(isinstance(one, str) and one.isascii() for one in value),
    "au": lambda value: isinstance(value, list) and all(isinstance(one, int) for one in value),
}
_PUBLIC = frozenset({"GetStatus", "GetMetrics"})

Member = tuple[str, Callable[..., Awaitable[Answer]]]


class Service:
    """Checks who asks and what, and hands it on."""

    def __init__(self, operator: Operator, authority: Authority, logger: Logger) -> None:
        self._operator = operator
        self._authority = authority
        self._logger = logger
        self._members: dict[str, Member] = {
            "GetStatus": ("", self._get_status),
            "GetMetrics": ("", self._get_metrics),
            "Test": ("s", self._test),
            "AddWebhook": ("ssa{sv}", self._add_webhook),
            "AddEmail": ("sasa{sv}", self._add_email),
            "Remove": ("s", self._remove),
            "SetEnabled": ("sb", self._set_enabled),
            "Reload": ("", self._reload),
        }

    async def answer(self, call: Incoming) -> Answer:
        """Answer one call: first its form, then who may, then it is done and recorded."""
        member, body = call.member, call.body
        if member not in self._members:
            raise InvalidArgs(f"{NAME} has no such member")
        wanted, handler = self._members[member]
        if call.signature != wanted:
            raise InvalidArgs(f"{member} takes ({wanted})")
        if member in _PUBLIC:
            return await _kept(handler(*body))
        if member != "Reload":
            parse_name(body[0])
        uid = None
        try:
            uid = await self._authority.check(call.sender, interactive=call.interactive)
            reply = await _kept(handler(*body))
        except KmoddError as error:
            self._logger.warning("notifier.refused", message=f"{member}: {error.message}", uid=uid, sender=call.sender)
            raise
        about = f" {body[0]}" if body else ""
        self._logger.notice("notifier.managed", message=f"{member}{about}", uid=uid, sender=call.sender)
        return reply

    async def _get_status(self) -> Answer:
        status = self._operator.status()
        rows = [variants(row) for row in status.endpoints]
        return "a{sv}", [variants({**status.facts, "endpoints": ("aa{sv}", rows)})]

    async def _get_metrics(self) -> Answer:
        return "a(ssa{ss}d)", [[list(row) for row in self._operator.metrics()]]

    async def _test(self, name: str) -> Answer:
        return "s", [self._operator.test(name)]

    async def _add_webhook(self, name: str, url: str, options: dict[str, Any]) -> Answer:
        values, rule = _split(options, {**_WEBHOOK_OPTIONS, "key": "s"})
        parse_url(url)
        key = values.pop("key", "")
        try:
            key and parse_key(key, "key")
        except SecretError as error:
            raise InvalidArgs(str(error), argument="key") from None
        return "s", [self._operator.add("webhook", name, {"url": url, **values}, rule, key)]

    async def _add_email(self, name: str, to: list[str], options: dict[str, Any]) -> Answer:
        values, rule = _split(options, _EMAIL_OPTIONS)
        recipients = [parse_recipient(address) for address in to]
        self._operator.add("email", name, {"to": recipients, **values}, rule)
        return "", []

    async def _remove(self, name: str) -> Answer:
        self._operator.remove(name)
        return "", []

    async def _set_enabled(self, name: str, enabled: bool) -> Answer:
        self._operator.enable(name, enabled=enabled)
        return "", []

    async def _reload(self) -> Answer:
        self._operator.reload()
        return "", []


async def _kept(answer: Awaitable[Answer]) -> Answer:
    """The answer; a disk that is full or broken is no bug of ours."""
    try:
        return await answer
    except (sqlite3.Error, OSError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise NotPermitted(f"the notifier cannot use its files: {why}") from error


def _split(options: Mapping[str, Any], own: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The endpoint's options and its rule's; InvalidArgs for an unknown one or another type."""
    known = {**own, **_RULE_OPTIONS}
    for name, value in options.items():
        if name not in known:
            raise InvalidArgs(f"there is no option of this name; there are {', '.join(sorted(known))}")
        if not _PYTHON[known[name]](value):
            raise InvalidArgs(f"the option {name} has the type {known[name]}, in ASCII", argument=name)
    values = {name: value for name, value in options.items() if name in own}
    return values, {name: value for name, value in options.items() if name in _RULE_OPTIONS}
