# SPDX-License-Identifier: LGPL-2.1-or-later
"""The notifier's configuration: notify.toml, its drop-ins and endpoints added with kmodctl, parsed once; matching of rules.

The networks are those of IANA's special-purpose registries (RFC 6890 and its updates) that are not globally reachable.
Python's `is_global` is not used: its results differ between releases.
"""

import base64
import binascii
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

from kmodd.config.section import ConfigurationError, Section
from kmodd.config.toml_file import DropIns
from kmodd.errors import ERRORS, InvalidArgs
from kmodd.fast_dataclass import dataclass
from kmodd.model.settings import Document
from kmodd.names import parse_glob
from kmodd.notifier.notice import KINDS, SEVERITIES, Notice
from kmodd.suggestions import did_you_mean

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_CLOSED: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "100::/64",
        "2001::/23",
        "2001:db8::/32",
        "3fff::/20",
        "5f00::/16",
    )
)
_GLOBAL6 = IPv6Network("2000::/3")
"""All that is handed out so far; `::1`, ULA, link-local, site-local and multicast lie outside."""
_NAT64 = IPv6Network("64:ff9b::/96")
_V4_COMPATIBLE = IPv6Network("::/96")
_6TO4 = IPv6Network("2002::/16")
PREFIX = "whsec_"
SIZE_MAX = 4096
KEY_MIN, KEY_MAX = 24, 64
"""Bytes of a key (Standard Webhooks 1.0.0: 24 to 64)."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A filter, and the endpoints that get what passes it. An empty filter lets everything pass."""

    notify: tuple[str, ...]
    events: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    """Short error names; with them, only notices with one of these errors pass."""
    modules: tuple[str, ...] = ()
    """Patterns; with them, only notices about a module that one of them fits."""
    uids: tuple[int, ...] = ()
    """If set, only operations of these users."""
    severity: str = "info"
    """At least this."""

    def fits(self, notice: Notice) -> bool:
        """Tell whether the notice passes."""
        return (
            (not self.events or notice.kind in self.events)
            and SEVERITIES.index(notice.severity) >= SEVERITIES.index(self.severity)
            and (not self.errors or notice.error in self.errors)
            and (not self.uids or notice.uid in self.uids)
            and (
                not self.modules
                or any(fnmatchcase(name, pattern) for name in notice.modules for pattern in self.modules)
            )
        )


def route(rules: Iterable[Rule], notice: Notice) -> tuple[str, ...]:
    """The endpoints to tell, each once."""
    matching: dict[str, None] = {}
    for rule in rules:
        if rule.fits(notice):
            matching.update(dict.fromkeys(rule.notify))
    return tuple(matching)


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
    """Seconds to collect events before a mail is sent."""
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
    """The whole configuration; the default has no endpoints."""

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
        raise InvalidArgs("not a URL", argument="url") from None
    if parts.scheme != "https" and not (allow_http and parts.scheme == "http"):
        raise InvalidArgs("expected a URL that starts with https://", argument="url")
    if "@" in parts.netloc or parts.fragment:
        raise InvalidArgs("the URL must not contain user, password or fragment", argument="url")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not _HOST.fullmatch(host) or not _TARGET.fullmatch(target) or port == 0 or len(text) > 2048:
        raise InvalidArgs("not a URL", argument="url")
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


def parse_webhook(name: str, section: Section, *, keyless: bool = False) -> Webhook:
    """A table `[webhook.NAME]`; `keyless` where the key that it needs is made later."""
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
    if form == "json" and not keys and not keyless:
        raise section.error("secret-file is missing; receivers need it to verify the sender")
    timeout = section.integer("timeout", 15, 1, 60)
    ca_file = section.text("ca-file", "")
    section.finish()
    return Webhook(name, url, keys, form, timeout, ca_file)


def parse_email(name: str, section: Section) -> Email:
    """A table `[email.NAME]`."""
    to = section.texts("to")
    if not to:
        raise section.error("no recipients", "to")
    try:
        recipients = tuple(parse_recipient(address) for address in to)
    except InvalidArgs as error:
        raise section.error(error.message, "to") from None
    email = Email(name, recipients, section.integer("digest", 60, 0, 86_400), section.integer("per-hour", 12, 1, 1000))
    section.finish()
    return email


def parse_rule(section: Section) -> tuple[Rule, Section]:
    """A table `[[rule]]`, with its place: whether its endpoints exist is known only at the end."""
    notify = section.texts("notify")
    if not notify:
        raise section.error("no endpoints to notify", "notify")
    events = section.texts("events", ())
    for kind in events:
        _one_of(section, "events", kind, KINDS[:-1])
    errors = section.texts("errors", ())
    names = tuple(error.name() for error in ERRORS.values())
    for name in errors:
        _one_of(section, "errors", name, names)
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
        raise section.error("not a host name", "host")
    security = section.text("security", "starttls", one_of=("starttls", "tls", "none"))
    username = section.text("username", "")
    if security == "none" and (username or host not in ("localhost", "127.0.0.1", "::1")):
        raise section.error("without TLS only a local server without password is allowed", "security")
    try:
        password = read_secret(section.text("password-file")) if username else ""
        sender = parse_recipient(section.text("from"))
    except SecretError as error:
        raise section.error(str(error), "password-file") from None
    except InvalidArgs as error:
        raise section.error(error.message, "from") from None
    smtp = Smtp(
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
    return smtp


def parse_networks(section: Section) -> tuple[Network, ...]:
    """The setting `allow-networks`."""
    try:
        return tuple(ip_network(text) for text in section.texts("allow-networks", ()))
    except ValueError:
        raise section.error("expected networks such as 10.1.0.0/16", "allow-networks") from None


def _one_of(section: Section, key: str, value: str, words: tuple[str, ...]) -> None:
    if value not in words:
        close = did_you_mean(value, words)
        raise section.error(f"unknown value {value!r}{'; ' if close else ''}{close}", key)


RULES_MAX = 256
RELOAD = "kmodctl notify reload"


def files(main: Path) -> tuple[Document, ...]:
    """The files in effect, in reading order: the main one, then its drop-ins by name. ConfigurationError for a bad one."""
    return DropIns(main.parent, f"{main.name}.d", main=main.name, places=("",), reload=RELOAD).read()


def read_configuration(documents: Sequence[Document], *more: Document) -> Configuration:
    """All documents as one; ConfigurationError names the first thing that is wrong, its file and line."""
    endpoints: dict[str, Endpoint] = {}
    places: dict[str, str] = {}
    rules: list[tuple[Rule, Section]] = []
    configuration = Configuration()
    smtp, networks, rows, size = (
        configuration.smtp,
        configuration.allow_networks,
        configuration.rows,
        configuration.bytes,
    )
    mailing: Section | None = None
    for document in (*documents, *more):
        section = Section(document)
        networks += parse_networks(section)
        if (table := section.table("smtp")) is not None:
            smtp = parse_smtp(table)
        if (table := section.table("queue")) is not None:
            rows = table.integer("rows", rows, 10, 1_000_000)
            size = table.integer("bytes", size, 1 << 16, 1 << 30)
            table.finish()
        for kind in ("webhook", "email"):
            named = section.table(kind)
            for name, table in named.tables() if named is not None else ():
                endpoint = _endpoint(kind, name, table)
                if name in endpoints:
                    raise table.error(f"another endpoint has this name in {places[name]}")
                endpoints[name], places[name] = endpoint, document.file
                mailing = table if kind == "email" else mailing
        rules += (parse_rule(table) for table in section.array("rule"))
        section.finish()
    if mailing is not None and smtp is None:
        raise mailing.error("no mail server is configured: the table [smtp] is missing")
    if len(endpoints) > ENDPOINTS_MAX or len(rules) > RULES_MAX:
        raise ConfigurationError(f"more than {ENDPOINTS_MAX} endpoints or {RULES_MAX} rules")
    for rule, place in rules:
        for name in rule.notify:
            if name not in endpoints:
                raise place.error(f"no such endpoint: {name!r}", "notify")
    return Configuration(endpoints, tuple(rule for rule, _ in rules), smtp, networks, rows, size)


def _endpoint(kind: str, name: str, section: Section) -> Webhook | Email:
    try:
        parse_name(name)
    except InvalidArgs as error:
        raise section.error(error.message) from None
    return parse_webhook(name, section) if kind == "webhook" else parse_email(name, section)


def permitted(address: Address, allowed: Iterable[Network] = ()) -> bool:
    """Tell whether a connection to the address may be made. An IPv4 address inside an IPv6 one counts as itself."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return False
        inner = _inner(address)
        if inner is not None:
            return permitted(inner, allowed)
    if any(address.version == network.version and address in network for network in allowed):
        return True
    if isinstance(address, IPv6Address) and address not in _GLOBAL6:
        return False
    return not any(address.version == network.version and address in network for network in _CLOSED)


def parse_address(text: str) -> Address | None:
    """An address as the resolver spells it; None for what is none."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def _inner(address: IPv6Address) -> IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    number = int(address)
    if address in _NAT64 or (address in _V4_COMPATIBLE and number > 1):
        return IPv4Address(number & 0xFFFFFFFF)
    if address in _6TO4:
        return IPv4Address(number >> 80 & 0xFFFFFFFF)
    return None


class SecretError(Exception):
    """A secret cannot be used; the text says why, and not what it is."""


def read_secret(path: str) -> str:
    """The file's text without the line break at its end."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SecretError(f"{path}: {error.strerror}") from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise SecretError(f"{path} is not a regular file")
        if status.st_mode & 0o027:
            raise SecretError(f"{path} may be read or written by others: chmod 0640, owner root, group kmodd-notifier")
        if status.st_uid not in (0, os.geteuid()):
            raise SecretError(f"{path} is not owned by root")
        data = os.read(handle, SIZE_MAX + 1)
    finally:
        os.close(handle)
    if len(data) > SIZE_MAX:
        raise SecretError(f"{path} is larger than {SIZE_MAX} bytes")
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        raise SecretError(f"{path} is not valid text") from None
    if not text:
        raise SecretError(f"{path} is empty")
    return text


def read_keys(path: str) -> tuple[bytes, ...]:
    """Signing keys, one `whsec_…` a line: more than one while a key is being exchanged."""
    return tuple(parse_key(word, path) for word in read_secret(path).split())


def parse_key(text: str, where: str) -> bytes:
    """The bytes of `whsec_` and base64."""
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True) if text.startswith(PREFIX) else b""
    except binascii.Error:
        key = b""
    if not KEY_MIN <= len(key) <= KEY_MAX:
        raise SecretError(f"{where}: expected {PREFIX} and {KEY_MIN} to {KEY_MAX} bytes as base64")
    return key


def make_key(random: bytes) -> str:
    """A new signing key of these bytes, in the form the receiver wants it."""
    return PREFIX + base64.b64encode(random).decode()
