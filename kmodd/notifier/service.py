# SPDX-License-Identifier: LGPL-2.1-or-later
"""The interface org.kmodd1.Notifier, with the same steps as the daemon's: validation, quota, polkit, then the operation.

Each handler checks everything that can be checked and returns a frozen `Call`; its details have the endpoint and its target,
for polkit's rules and for the prompt.
"""

import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kmodd.api.options import Values, on_behalf_of
from kmodd.api.standard import IntrospectableInterface, PeerInterface
from kmodd.core.events import Audit
from kmodd.dbus.admission import Quota
from kmodd.dbus.authorizer import Authority, Authorizer
from kmodd.dbus.call import ON_BEHALF_OF, Call
from kmodd.dbus.dispatcher import Dispatcher
from kmodd.dbus.interface_xml import Contract
from kmodd.dbus.object_tree import Introspection, ObjectTree, bind
from kmodd.dbus.peers import Credentials, Executable, Peers
from kmodd.dbus.transport import Transport
from kmodd.dbus.transport import credentials as ask_credentials
from kmodd.errors import Conflict, InvalidArgs, KmoddError, NotPermitted
from kmodd.model import Caller, Record
from kmodd.notifier.configuration import SecretError, parse_key, parse_name, parse_recipient, parse_url
from kmodd.notifier.endpoints import Endpoints, target

NAME = "org.kmodd1.Notifier"
PATH = "/org/kmodd1/Notifier"

_RULE_OPTIONS = frozenset({"events", "errors", "modules", "uids", "severity"})
_ASKING = frozenset({"reason", ON_BEHALF_OF})
"""Options about the call, not about the endpoint."""


class NotifierInterface:
    """Members of org.kmodd1.Notifier; see dbus/org.kmodd1.Notifier.xml for what each means."""

    interface = NAME

    def __init__(self, operator: Endpoints, audit: Audit) -> None:
        self._operator = operator
        self._audit = audit

    def get_status(self) -> Call:
        def run(_: Caller) -> dict[str, tuple[str, Any]]:
            status = self._operator.status()
            return {**status.facts, "endpoints": ("aa{sv}", list(status.endpoints))}

        return Call(run)

    def get_metrics(self) -> Call:
        return Call(lambda _: self._operator.metrics())

    def test(self, name: str, options: Values) -> Call:
        self._operator.check_test(parse_name(name))
        return self._about("test", name, options, lambda: self._operator.test(name))

    def add_webhook(self, name: str, url: str, options: Values) -> Call:
        values, rule = _split(options)
        where = parse_url(url).host
        key = values.pop("key", "")
        try:
            key and parse_key(key, "key")
        except SecretError as error:
            raise InvalidArgs(str(error), argument="key") from None
        return self._add("webhook", name, where, {"url": url, **values}, rule, options, key)

    def add_email(self, name: str, to: Sequence[str], options: Values) -> Call:
        values, rule = _split(options)
        recipients = [parse_recipient(address) for address in to]
        call = self._add("email", name, " ".join(recipients), {"to": recipients, **values}, rule, options)
        return replace(call, run=_without_answer(call.run))

    def remove(self, name: str, options: Values) -> Call:
        self._operator.check_remove(parse_name(name))
        return self._about("remove", name, options, lambda: self._operator.remove(name))

    def set_enabled(self, name: str, enabled: bool, options: Values) -> Call:
        self._operator.check_known(parse_name(name))
        action = "enable" if enabled else "disable"
        return self._about(action, name, options, lambda: self._operator.enable(name, enabled=enabled))

    def reload(self, options: Values) -> Call:
        return self._call("reload", "", "", options, self._operator.reload)

    def _add(
        self,
        kind: str,
        name: str,
        where: str,
        values: Mapping[str, Any],
        rule: Mapping[str, Any],
        options: Values,
        key: str = "",
    ) -> Call:
        self._operator.check_add(kind, parse_name(name), values, rule)
        return self._call(
            f"add-{kind}", name, where, options, lambda: self._operator.add(kind, name, values, rule, key)
        )

    def _about(self, action: str, name: str, options: Values, deed: Callable[[], Any]) -> Call:
        """A call about an endpoint that is there: nothing is done when it is configured otherwise after a prompt."""
        endpoint = self._operator.endpoint(name)

        def checked() -> Any:
            if self._operator.endpoint(name) != endpoint:
                raise Conflict(f"the endpoint {name} changed while authorization was in progress")
            return deed()

        return self._call(action, name, target(endpoint) if endpoint is not None else "", options, checked)

    def _call(self, action: str, name: str, where: str, options: Values, deed: Callable[[], Any]) -> Call:
        details = {"action": action, "endpoint": name, "target": where, ON_BEHALF_OF: on_behalf_of(options)}

        def run(caller: Caller) -> Any:
            try:
                answer = _kept(deed)
            except KmoddError as error:
                self._audit.record(_record("notifier.refused", f"{action} {name}: {error.message}", caller, error))
                raise
            self._audit.record(_record("notifier.managed", f"{action} {name}".rstrip(), caller, None))
            return answer

        return Call(run, {key: value for key, value in details.items() if value})


class AuthorizerAudit:
    """The records of the gate as the notifier's own; what was granted is followed by what came of it."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    def record(self, record: Record) -> None:
        """Pass on what was denied."""
        if record.event == "authorization.denied":
            self._audit.record(replace(record, event="notifier.refused"))


class Service:
    """Answers calls on a connected transport."""

    def __init__(
        self,
        transport: Transport,
        contract: Contract,
        operator: Endpoints,
        *,
        authority: Authority,
        audit: Audit,
        report: Callable[[str, BaseException], None],
        executable: Executable,
        login_uid: Callable[[int, int | None], int | None],
        machine_id: Callable[[], str],
        credentials: Credentials | None = None,
    ) -> None:
        """`executable` and `login_uid` are for the journal alone; `credentials` asks the bus by default. See `kmodd.dbus.peers`."""
        self._transport = transport
        tree = ObjectTree(contract, {}, PATH)
        interfaces = bind(
            contract,
            [
                NotifierInterface(operator, audit),
                IntrospectableInterface(Introspection(tree)),
                PeerInterface(machine_id),
            ],
        )
        self.quota = quota = Quota()
        self._callers = Peers(transport, credentials or ask_credentials(transport), executable, login_uid)
        self._dispatcher = Dispatcher(
            transport,
            tree,
            interfaces,
            callers=self._callers,
            quota=quota,
            gate=Authorizer(authority, quota, AuthorizerAudit(audit).record, _uncounted),
            report=report,
            count=_uncounted,
            departed=lambda _: None,
        )

    async def start(self) -> None:
        """Start serving and acquire the name; BusLostError if it has an owner."""
        self._transport.on_call = self._dispatcher.on_call
        self._transport.on_signal = self._callers.on_signal
        self._transport.on_drained = self._dispatcher.on_drained
        await self._transport.own(NAME)

    async def close(self) -> None:
        """Answer no more; calls under way end without a reply."""
        await self._dispatcher.close()


def _uncounted(what: str, member: str) -> None:
    """The notifier has no metrics of its calls."""


def _without_answer(run: Callable[[Caller], Awaitable[Any] | Any]) -> Callable[[Caller], None]:
    def quiet(caller: Caller) -> None:
        run(caller)

    return quiet


def _kept(deed: Callable[[], Any]) -> Any:
    """The answer; a disk that is full or broken is no bug of ours."""
    try:
        return deed()
    except (sqlite3.Error, OSError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise NotPermitted(f"the notifier cannot use its files: {why}") from error


def _split(options: Values) -> tuple[dict[str, Any], dict[str, Any]]:
    """The endpoint's options and its rule's; InvalidArgs for text that is not ASCII."""
    values = {name: value for name, value in options.items() if name not in _ASKING}
    for name, value in values.items():
        texts = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
        if any(isinstance(text, str) and not text.isascii() for text in texts):
            raise InvalidArgs(f"the option {name} is in ASCII", argument="options")
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {name: plain[name] for name in plain if name not in _RULE_OPTIONS}, {
        name: plain[name] for name in plain if name in _RULE_OPTIONS
    }


def _record(event: str, message: str, caller: Caller, error: KmoddError | None) -> Record:
    return Record(
        event,
        message,
        reason=caller.reason,
        error=error.name() if error is not None else "",
        priority=4 if error is not None else 5,
    ).by(caller)
