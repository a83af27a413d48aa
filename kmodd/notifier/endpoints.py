# SPDX-License-Identifier: LGPL-2.1-or-later
"""Endpoints: runs a delivery worker for each, adds and removes those of kmodctl, and reports the state of all."""

import asyncio
import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from kmodd.config.section import ConfigurationError, Section, fault
from kmodd.config.toml_file import read_document
from kmodd.errors import Conflict, InvalidArgs, LimitsExceeded, NoSuchEndpoint
from kmodd.fast_dataclass import dataclass
from kmodd.journal.writer import Logger
from kmodd.kernel.atomic_file import read_file, remove_durably, write_whole
from kmodd.model.settings import Document
from kmodd.notifier.channels.mail import MailChannel
from kmodd.notifier.channels.webhook import WebhookChannel, WebhookClient
from kmodd.notifier.configuration import (
    ENDPOINTS_MAX,
    Configuration,
    Endpoint,
    Webhook,
    files,
    make_key,
    parse_email,
    parse_key,
    parse_rule,
    parse_webhook,
    read_configuration,
)
from kmodd.notifier.delivery_worker import Channel, DeliveryWorker
from kmodd.notifier.ingest import Ingest
from kmodd.notifier.outbox import Outbox

Validate = Callable[[Document], None]
"""Reads the whole configuration with this document in place of the managed one; ConfigurationError when it is wrong."""
Values = dict[str, tuple[str, Any]]
"""Names to (D-Bus signature, value)."""
Sample = tuple[str, str, dict[str, str], float]


class Managed:
    """The file `managed.json` and the folder `secrets` beside it."""

    def __init__(self, folder: Path, random: Callable[[int], bytes]) -> None:
        self._path = folder / "managed.json"
        self._former = folder / "managed.toml"
        """Where earlier versions kept the same; read once, until something changes."""
        self._secrets = folder / "secrets"
        self._random = random

    def read(self) -> Document:
        """What was added, as if notify.toml had it. ConfigurationError when the file is damaged or cannot be read."""
        try:
            data = read_file(self._path)
            former = read_document(self._former) if data is None and self._former.exists() else None
            values = json.loads(data or b"{}")
        except OSError as error:
            raise fault(str(self._path), 1, f"the file cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise fault(str(self._path), 1, "this is no JSON") from error
        if not isinstance(values, dict):
            raise fault(str(self._path), 1, "this is no JSON object")
        return former or self._document(values)

    def _document(self, values: Mapping[str, Any]) -> Document:
        return Document(str(self._path), values, reload="")

    def names(self) -> set[str]:
        """Endpoints that were added, and may be removed again."""
        values = self.read().values
        return {name for kind in ("webhook", "email") for name in values.get(kind, {})}

    def add(
        self,
        kind: str,
        name: str,
        values: Mapping[str, Any],
        rule: Mapping[str, Any],
        validate: Validate,
        key: str = "",
    ) -> str:
        """Add an endpoint with one rule; the signing key of a webhook, once and never again.

        InvalidArgs when the configuration would make no sense with it.
        """
        tables: dict[str, Any] = deepcopy(dict(self.read().values))
        if name in self.names():
            raise Conflict(f"endpoint {name} already exists")
        values = dict(values)
        if kind == "webhook":
            key = key or make_key(self._random(32))
            parse_key(key, "the key")
            values["secret-file"] = str(self._secrets / name)
            self._secrets.mkdir(mode=0o700, exist_ok=True)
            # Before the file that names it: after a loss of power there must be no endpoint without its key.
            write_whole(self._secrets / name, f"{key}\n".encode(), 0o600)
        tables.setdefault(kind, {})[name] = values
        tables.setdefault("rule", []).append({"notify": [name], **rule})
        try:
            self._replace(tables, validate)
        except BaseException:
            (self._secrets / name).unlink(missing_ok=True)
            raise
        return key

    def check_remove(self, name: str) -> None:
        """Raise NoSuchEndpoint for an endpoint that was not added here."""
        if name not in self.names():
            raise NoSuchEndpoint(
                f"endpoint {name} was not added with kmodctl; endpoints in notify.toml are removed there"
            )

    def remove(self, name: str, validate: Validate) -> None:
        """Remove an endpoint that was added, and its rules."""
        tables: dict[str, Any] = deepcopy(dict(self.read().values))
        self.check_remove(name)
        for kind in ("webhook", "email"):
            tables.get(kind, {}).pop(name, None)
        tables["rule"] = [rule for rule in tables.get("rule", []) if rule["notify"] != [name]]
        self._replace(tables, validate)
        (self._secrets / name).unlink(missing_ok=True)

    def _replace(self, values: Mapping[str, Any], validate: Validate) -> None:
        try:
            validate(self._document(values))
        except ConfigurationError as error:
            raise InvalidArgs(error.sentence if error.evidence.file == str(self._path) else error.message) from None
        write_whole(self._path, json.dumps(values, indent=1).encode(), 0o600)
        remove_durably(self._former)


@dataclass(frozen=True, slots=True)
class Machine:
    """What is taken from the machine: its name, time, chance."""

    host: str
    clock: Callable[[], int]
    random: Callable[[], float]
    random_bytes: Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Status:
    """How all is."""

    facts: Values
    endpoints: tuple[Values, ...]


class Endpoints:
    """Everything between queue and network."""

    def __init__(
        self,
        main_file: Path,
        folder: Path,
        outbox: Outbox,
        logger: Logger,
        machine: Machine,
        trouble: Callable[[], str],
    ) -> None:
        self._main_file = main_file
        self._outbox = outbox
        self._logger = logger
        self._machine = machine
        self._trouble = trouble
        self._managed = Managed(folder, machine.random_bytes)
        self._configuration = Configuration()
        self._configuration_error = ""
        self._couriers: dict[str, tuple[object, DeliveryWorker, asyncio.Task[None]]] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}
        self.intake = Ingest(outbox, logger, clock=machine.clock, queued=self._wake)

    # --- configuration ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Read the configuration and start; ConfigurationError when it is bad."""
        self._apply(self._read(self._managed.read()))

    def reload(self) -> None:
        """Reload the configuration; an invalid one keeps the previous one in effect (InvalidArgs has the reason)."""
        try:
            self._apply(self._read(self._managed.read()))
        except ConfigurationError as error:
            self._configuration_error = str(error)
            self._logger.error(  # noqa: TRY400 - the sentence is all there is to know
                "notifier.trouble", message=f"invalid configuration, the previous one stays in effect: {error}"
            )
            raise InvalidArgs(str(error), evidence=error.evidence) from None

    async def close(self) -> None:
        """Stop. What was under way is tried again by the next process."""
        tasks = [task for _, _, task in self._couriers.values()]
        self._couriers.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _read(self, managed: Document) -> Configuration:
        return read_configuration(files(self._main_file), managed)

    def _apply(self, configuration: Configuration) -> None:
        plans = {
            name: (endpoint, configuration.smtp, configuration.allow_networks)
            for name, endpoint in configuration.endpoints.items()
        }
        # All channels first: a bad certificate file is found before anything has changed.
        fresh = {
            name: self._channel(configuration.endpoints[name], configuration)
            for name, plan in plans.items()
            if name not in self._couriers or self._couriers[name][0] != plan
        }
        for name in [name for name in self._couriers if name in fresh or name not in plans]:
            self._couriers.pop(name)[2].cancel()
        for name, count in self._outbox.forget_others(plans).items():
            self._logger.warning(
                "notifier.dropped", message=f"{name} was removed: {count} waiting messages were dropped"
            )
        for name, channel in fresh.items():
            courier = DeliveryWorker(
                name, channel, self._outbox, self._logger, clock=self._machine.clock, random=self._machine.random
            )
            self._couriers[name] = (plans[name], courier, asyncio.get_running_loop().create_task(courier.run()))
        self._configuration, self._configuration_error = configuration, ""
        self.intake.rules = configuration.rules
        self.intake.rows, self.intake.bytes = configuration.rows, configuration.bytes

    def _channel(self, endpoint: Endpoint, configuration: Configuration) -> Channel:
        if isinstance(endpoint, Webhook):
            poster = WebhookClient(configuration.allow_networks, self._tls(endpoint))
            return WebhookChannel(endpoint, poster, self._machine.host, self._machine.clock)
        if configuration.smtp is None:
            raise ConfigurationError(f"email.{endpoint.name}: no mail server is configured")
        if ca_file := configuration.smtp.ca_file:
            _trust(ca_file, "smtp")  # each mail reads it again; here it is checked that it can be read
        return MailChannel(endpoint, configuration.smtp, self._machine.host, self._machine.clock)

    def _tls(self, webhook: Webhook) -> ssl.SSLContext:
        # The system's certificates are megabytes once parsed: one context for all.
        if webhook.ca_file not in self._contexts:
            self._contexts[webhook.ca_file] = _trust(webhook.ca_file, f"webhook.{webhook.name}")
        return self._contexts[webhook.ca_file]

    # --- requests over the bus ----------------------------------------------------------------------------------------

    def check_add(self, kind: str, name: str, values: Mapping[str, Any], rule: Mapping[str, Any]) -> None:
        """Raise what `add` would, as far as it can be known without writing anything."""
        if name in self._configuration.endpoints:
            raise Conflict(f"endpoint {name} already exists")
        if len(self._configuration.endpoints) >= ENDPOINTS_MAX:
            raise LimitsExceeded(f"at most {ENDPOINTS_MAX} endpoints can be configured")
        try:
            document = Document(
                "the new endpoint", {kind: {name: values}, "rule": {"notify": [name], **rule}}, reload=""
            )
            table = Section(document, (kind, name))
            if kind == "webhook":
                parse_webhook(name, table, keyless=True)
            else:
                parse_email(name, table)
                if self._configuration.smtp is None:
                    raise table.error("no mail server is configured: the table [smtp] is missing")
            parse_rule(Section(document, ("rule",)))
        except ConfigurationError as error:
            raise InvalidArgs(error.sentence) from None

    def check_remove(self, name: str) -> None:
        """Raise NoSuchEndpoint for one that `remove` would not remove."""
        self._managed.check_remove(name)

    def check_known(self, name: str) -> None:
        """Raise NoSuchEndpoint for one that nothing configures."""
        if name not in self._configuration.endpoints:
            raise NoSuchEndpoint(f"no such endpoint: {name}")

    def check_test(self, name: str) -> None:
        """Raise what `test` would: NoSuchEndpoint, Conflict for one that is disabled."""
        self.check_known(name)
        if not self._outbox.state(name).enabled:
            raise Conflict(f"{name} is disabled; enable it first")

    def endpoint(self, name: str) -> Endpoint | None:
        """An endpoint as it is configured now."""
        return self._configuration.endpoints.get(name)

    def add(self, kind: str, name: str, values: Mapping[str, Any], rule: Mapping[str, Any], key: str = "") -> str:
        """Add an endpoint; a webhook's signing key."""
        if name in self._configuration.endpoints:
            raise Conflict(f"endpoint {name} already exists")
        key = self._managed.add(kind, name, values, rule, self._validate, key)
        self.reload()
        return key

    def remove(self, name: str) -> None:
        """Remove an endpoint that was added."""
        self._managed.remove(name, self._validate)
        self.reload()

    def enable(self, name: str, *, enabled: bool) -> None:
        """Send to an endpoint again, or no more."""
        self.check_known(name)
        self._outbox.enable(name, enabled=enabled, why="" if enabled else "disabled by the administrator")
        self._wake([name])

    def test(self, name: str) -> str:
        """Queue a test; its id."""
        self.check_test(name)
        return self.intake.test(name, self._machine.host)

    def _validate(self, candidate: Document) -> None:
        self._read(candidate)

    def _wake(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self._couriers:
                self._couriers[name][1].wake()

    # --- how all is ---------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """For everyone's eyes: no URL but its host, no addresses, no secret."""
        managed = self._managed.names()
        facts: Values = {
            "configuration": ("s", str(self._main_file)),
            "configuration-error": ("s", self._configuration_error),
            "trouble": ("s", self._trouble()),
            "seen": ("t", max(self._outbox.cursor or 0, 0)),
            "rules": ("u", len(self._configuration.rules)),
        }
        rows = (
            self._row(name, endpoint, managed=name in managed)
            for name, endpoint in sorted(self._configuration.endpoints.items())
        )
        return Status(facts, tuple(rows))

    def _row(self, name: str, endpoint: Endpoint, *, managed: bool) -> Values:
        state = self._outbox.state(name)
        waiting = self._outbox.waiting(name)
        return {
            "name": ("s", name),
            "channel": ("s", "webhook" if isinstance(endpoint, Webhook) else "email"),
            "target": ("s", target(endpoint)),
            "managed": ("b", managed),
            "enabled": ("b", state.enabled),
            "why": ("s", state.why),
            "waiting": ("u", waiting.count),
            "refused": ("u", waiting.refused),
            "oldest": ("t", waiting.oldest),
            "failures": ("u", state.failures),
            "next-attempt": ("t", max(state.due, waiting.due) if waiting.count and state.enabled else 0),
            "last-success": ("t", state.last_success),
            "last-error": ("s", state.last_error),
            "attempts": ("t", state.attempts),
            "delivered": ("t", state.delivered),
            "dropped": ("t", state.dropped),
        }

    def _age(self, oldest: int) -> float:
        return max(0, self._machine.clock() - oldest) / 1_000_000 if oldest else 0.0

    def metrics(self) -> list[Sample]:
        """The same as numbers, in Prometheus naming."""
        totals = {"watching": float(not self._trouble()), "left-out": float(self.intake.left_out)}
        samples: list[Sample] = [
            (f"kmodd_notifier_{name}", kind, {}, totals[key])
            for name, kind, key in (
                ("watching", "gauge", "watching"),
                ("refusals_left_out_total", "counter", "left-out"),
            )
        ]
        for row in self.status().endpoints:
            labels = {"endpoint": row["name"][1]}
            values = {**{key: value for key, (_, value) in row.items()}, "age": self._age(row["oldest"][1])}
            for name, kind, key in (
                ("attempts_total", "counter", "attempts"),
                ("delivered_total", "counter", "delivered"),
                ("dropped_total", "counter", "dropped"),
                ("waiting", "gauge", "waiting"),
                ("refused", "gauge", "refused"),
                ("oldest_seconds", "gauge", "age"),
                ("failures", "gauge", "failures"),
                ("enabled", "gauge", "enabled"),
            ):
                samples.append((f"kmodd_notifier_{name}", kind, labels, float(values[key])))
        return samples


def target(endpoint: Endpoint) -> str:
    """Where an endpoint sends, for everyone's eyes: a host, or how many recipients."""
    if isinstance(endpoint, Webhook):
        return endpoint.url.host
    return f"{len(endpoint.to)} recipient{'s' * (len(endpoint.to) > 1)}"


def _trust(ca_file: str, about: str) -> ssl.SSLContext:
    """What verifies servers by the certificates in the file, or by the system's when it is empty."""
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        why = error.strerror if error.errno and not isinstance(error, ssl.SSLError) else "no certificates in it"
        raise ConfigurationError(f"{about}: ca-file cannot be used: {why}") from None
