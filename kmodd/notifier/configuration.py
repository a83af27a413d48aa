# SPDX-License-Identifier: LGPL-2.1-or-later
"""What notify.toml says, parsed once: endpoints, rules, the mail server, limits."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from urllib.parse import urlsplit

from kmodd.errors import ERRORS, InvalidArgs
from kmodd.names import parse_glob
from kmodd.notifier.addresses import Network
from kmodd.notifier.notice import KINDS, SEVERITIES
from kmodd.notifier.rules import Rule
from kmodd.notifier.secret_file import SecretError, read_keys, read_secret
from kmodd.notifier.section import ConfigurationError, Section

FORMATS = ("json", "chat")
ENDPOINTS_MAX = 64
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_MAIL = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?\.?|[0-9A-Fa-f:.]{2,45}")
_TARGET = re.compile(r"[!-~]*")


@dataclass(frozen=True, slots=True)
class Url:
    """Where to send, taken apart once."""

    secure: bool
    host: str
    port: int
    target: str
    """Path and query."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """An HTTP endpoint."""

    name: str
    url: Url
    keys: tuple[bytes, ...] = field(default=(), repr=False)
    format: str = "json"
    timeout: int = 15
    ca_file: str = ""
    """Certificates to accept instead of the system's; empty for the system's."""


@dataclass(frozen=True, slots=True)
class Email:
    """Recipients of one mail."""

    name: str
    to: tuple[str, ...]
    digest: int = 60
    """Seconds to collect before a mail is sent."""
    per_hour: int = 12


Endpoint = Webhook | Email


@dataclass(frozen=True, slots=True)
class Smtp:
    """The server that takes e-mail."""

    host: str
    sender: str
    port: int = 25
    security: str = "starttls"
    username: str = ""
    password: str = field(default="", repr=False)
    ca_file: str = ""
    timeout: int = 30


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything; the default tells nobody anything."""

    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    smtp: Smtp | None = None
    allow_networks: tuple[Network, ...] = ()
    rows: int = 10_000
    bytes: int = 16 << 20


def parse_url(text: str, *, allow_http: bool = False) -> Url:
    """Take an URL apart; InvalidArgs says what is wrong without repeating it: it may hold a secret."""
    try:
        parts = urlsplit(text)
        port = parts.port
        # IDNA as the resolver will see it; also what certificates carry.
        host = (parts.hostname or "").encode("idna").decode()
    except ValueError:
        raise InvalidArgs("this is no URL", argument="url") from None
    if parts.scheme != "https" and not (allow_http and parts.scheme == "http"):
        raise InvalidArgs("expected a URL that starts with https://", argument="url")
    if "@" in parts.netloc or parts.fragment:
        raise InvalidArgs("a URL here has no user, password or fragment", argument="url")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not _HOST.fullmatch(host) or not _TARGET.fullmatch(target) or port == 0 or len(text) > 2048:
        raise InvalidArgs("this is no URL", argument="url")
    return Url(parts.scheme == "https", host, port or (443 if parts.scheme == "https" else 80), target)


def parse_name(text: str) -> str:
    """The name of an endpoint."""
    if not _NAME.fullmatch(text):
        raise InvalidArgs("a name is 1 to 32 small letters, digits and '-'", argument="name")
    return text


def parse_recipient(text: str) -> str:
    """A plain e-mail address."""
    if not _MAIL.fullmatch(text):
        raise InvalidArgs("expected a plain e-mail address, such as ops@example.org", argument="to")
    return text


def parse_webhook(name: str, section: Section) -> Webhook:
    """A table `[webhook.NAME]`."""
    allow_http = section.flag("allow-http", default=False)
    try:
        if "url-file" in section:
            if "url" in section:
                raise section.error("either url or url-file", "url-file")
            url = parse_url(read_secret(section.text("url-file")), allow_http=allow_http)
        else:
            url = parse_url(section.text("url"), allow_http=allow_http)
        keys = read_keys(section.text("secret-file")) if "secret-file" in section else ()
    except InvalidArgs as error:
        raise section.error(error.message, "url-file" if "url-file" in section else "url") from None
    except SecretError as error:
        raise section.error(str(error)) from None
    form = section.text("format", "json", one_of=FORMATS)
    if form == "json" and not keys:
        raise section.error("secret-file is missing; without a key the receiver cannot tell who is sending")
    timeout = section.integer("timeout", 15, 1, 60)
    ca_file = section.text("ca-file", "")
    section.finish()
    return Webhook(name, url, keys, form, timeout, ca_file)


def parse_email(name: str, section: Section) -> Email:
    """A table `[email.NAME]`."""
    to = section.texts("to")
    if not to:
        raise section.error("nobody to send to", "to")
    try:
        recipients = tuple(parse_recipient(address) for address in to)
    except InvalidArgs as error:
        raise section.error(error.message, "to") from None
    found = Email(name, recipients, section.integer("digest", 60, 0, 86_400), section.integer("per-hour", 12, 1, 1000))
    section.finish()
    return found


def parse_rule(section: Section) -> tuple[Rule, Section]:
    """A table `[[rule]]`, with its place: whether its endpoints exist is known only at the end."""
    notify = section.texts("notify")
    if not notify:
        raise section.error("nobody to notify", "notify")
    events = section.texts("events", ())
    for kind in events:
        _one_of(section, "events", kind, KINDS[:-1])
    errors = section.texts("errors", ())
    known = tuple(error.name() for error in ERRORS.values())
    for name in errors:
        _one_of(section, "errors", name, known)
    patterns = []
    for pattern in section.texts("modules", ()):
        try:
            patterns.append(parse_glob(pattern))
        except InvalidArgs as error:
            raise section.error(error.message, "modules") from None
    rule = Rule(
        notify=notify,
        events=events,
        errors=errors,
        modules=tuple(patterns),
        uids=section.integers("uids", (1 << 32) - 2),
        severity=section.text("severity", "info", one_of=SEVERITIES),
    )
    section.finish()
    return rule, section


def parse_smtp(section: Section) -> Smtp:
    """The table `[smtp]`."""
    host = section.text("host")
    if not _HOST.fullmatch(host):
        raise section.error("this is no host name", "host")
    security = section.text("security", "starttls", one_of=("starttls", "tls", "none"))
    username = section.text("username", "")
    if security == "none" and (username or host not in ("localhost", "127.0.0.1", "::1")):
        raise section.error("without TLS only a server on this machine is used, and without a password", "security")
    try:
        password = read_secret(section.text("password-file")) if username else ""
        sender = parse_recipient(section.text("from"))
    except SecretError as error:
        raise section.error(str(error), "password-file") from None
    except InvalidArgs as error:
        raise section.error(error.message, "from") from None
    found = Smtp(
        host=host,
        sender=sender,
        port=section.integer("port", 465 if security == "tls" else 25, 1, 65_535),
        security=security,
        username=username,
        password=password,
        ca_file=section.text("ca-file", ""),
        timeout=section.integer("timeout", 30, 1, 120),
    )
    section.finish()
    return found


def parse_networks(section: Section) -> tuple[Network, ...]:
    """The setting `allow-networks`."""
    try:
        return tuple(ip_network(text) for text in section.texts("allow-networks", ()))
    except ValueError:
        raise section.error("expected networks such as 10.1.0.0/16", "allow-networks") from None


def _one_of(section: Section, key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        from difflib import get_close_matches  # only for what was mistyped

        close = get_close_matches(value, known, 1, 0.5)
        raise section.error(f"unknown word {value!r}" + (f"; did you mean {close[0]}?" if close else ""), key)


__all__ = ["Configuration", "ConfigurationError", "Email", "Endpoint", "Smtp", "Url", "Webhook"]
