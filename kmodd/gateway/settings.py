# SPDX-License-Identifier: LGPL-2.1-or-later
"""/etc/kmodd/gateway.toml, read once at start; see kmodd-gateway.toml(5). A key nobody knows stops the start."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kmodd.tokens import SCOPES, TOKENS

SETTINGS = Path("/etc/kmodd/gateway.toml")
LISTEN = ("127.0.0.1:8765",)
HOSTS = ("localhost", "127.0.0.1", "[::1]")
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
"""Signatures of JWTs that are ever accepted: asymmetric ones. The gateway could forge what it can check with HS256."""

SECONDS_MAX = 1_000_000
"""More is a mistake, and neither infinite nor no number at all."""

T = TypeVar("T")


class ConfigurationError(Exception):
    """The gateway cannot start like this; one sentence."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may cost. Times are seconds, sizes bytes."""

    connections: int = 100
    """Connections at once, without those that follow the events."""
    streams: int = 1000
    """Connections that follow the events."""
    rate: float = 50.0
    """Requests a second of one token, lasting; 0 for no limit."""
    burst: int = 200
    """Requests of one token at once."""
    body: int = 64 * 1024
    upload: int = 64 * 1024 * 1024
    header_timeout: float = 10.0
    body_timeout: float = 10.0
    upload_timeout: float = 300.0
    send_timeout: float = 30.0
    """Within which a client has to take an answer."""
    keep_alive: float = 60.0


@dataclass(frozen=True, slots=True)
class Issuer:
    """An OpenID Connect issuer whose tokens are accepted."""

    issuer: str
    audience: str
    jwks: str = ""
    """Where its keys are; empty to ask `ISSUER/.well-known/openid-configuration`."""
    ca: str = ""
    """File with the certificate authority of its server; empty for the system's."""
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    claim: str = "scope"
    """The claim that scopes are taken from: a list, or words separated by spaces."""
    scopes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """A value of the claim to our scopes. What is not listed is worth nothing."""
    modules: tuple[str, ...] = ()
    """Modules its tokens may change; empty for all."""
    skew: int = 60
    """Seconds its clock and ours may differ."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Everything that can be set."""

    listen: tuple[str, ...] = LISTEN
    """Addresses, when systemd hands over no socket: `ADDRESS:PORT`, or the path of a unix socket."""
    hosts: tuple[str, ...] = HOSTS
    """What the Host header may say, without port."""
    certificate: str = ""
    key: str = ""
    tokens: str = str(TOKENS)
    limits: Limits = field(default_factory=Limits)
    issuers: tuple[Issuer, ...] = ()


def read(path: Path) -> GatewaySettings:
    """The settings in the file, the defaults where there is none. ConfigurationError in a sentence."""
    try:
        return parse(tomllib.loads(path.read_text()))
    except FileNotFoundError:
        return GatewaySettings()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def parse(document: Mapping[str, Any]) -> GatewaySettings:
    """The settings in a parsed file."""
    table = _Table(document, "")
    tls = table.table("tls")
    limits = table.table("limits")
    default, known = GatewaySettings(), Limits()
    found = GatewaySettings(
        listen=table.texts("listen", default.listen),
        hosts=tuple(host.lower() for host in table.texts("hosts", default.hosts)),
        certificate=tls.text("certificate"),
        key=tls.text("key"),
        tokens=table.text("tokens") or default.tokens,
        limits=Limits(
            connections=limits.number("connections", known.connections),
            streams=limits.number("streams", known.streams),
            rate=limits.seconds("rate", known.rate),
            burst=limits.number("burst", known.burst),
            upload=limits.number("upload", known.upload),
            header_timeout=limits.seconds("header-timeout", known.header_timeout),
            body_timeout=limits.seconds("body-timeout", known.body_timeout),
            upload_timeout=limits.seconds("upload-timeout", known.upload_timeout),
            send_timeout=limits.seconds("send-timeout", known.send_timeout),
            keep_alive=limits.seconds("keep-alive", known.keep_alive),
        ),
        issuers=tuple(_issuer(row) for row in table.tables("issuer")),
    )
    for each in (table, tls, limits):
        each.done()
    if bool(found.certificate) != bool(found.key):
        raise ConfigurationError("tls needs both a certificate and a key")
    if not found.hosts:
        raise ConfigurationError("hosts must name what clients call this machine")
    return found


def _issuer(row: "_Table") -> Issuer:
    default = Issuer("", "")
    scopes = row.table("scopes")
    found = Issuer(
        issuer=row.text("issuer"),
        audience=row.text("audience"),
        jwks=row.text("jwks"),
        ca=row.text("ca"),
        algorithms=row.texts("algorithms", default.algorithms),
        claim=row.text("claim") or default.claim,
        scopes={name: scopes.texts(name, ()) for name in scopes.names},
        modules=tuple(name.replace("-", "_") for name in row.texts("modules", ())),
        skew=row.number("skew", default.skew),
    )
    row.done()
    if not found.issuer or not found.audience:
        raise ConfigurationError("an issuer has an issuer and an audience: without one, tokens made for others count")
    if wrong := set(found.algorithms) - set(ALGORITHMS):
        raise ConfigurationError(f"no such algorithm: {', '.join(sorted(wrong))}; there are {', '.join(ALGORITHMS)}")
    if wrong := {scope for scopes in found.scopes.values() for scope in scopes} - set(SCOPES):
        raise ConfigurationError(f"no such scope: {', '.join(sorted(wrong))}; there are {', '.join(SCOPES)}")
    for url in (found.issuer, found.jwks):
        if url and not is_safe(url):
            raise ConfigurationError(f"{url} is not https, so anyone on the way could put in keys")
    return found


def is_safe(url: str) -> bool:
    """What comes from there cannot be changed on the way: https, or this machine itself."""
    return url.startswith(("https://", "http://127.0.0.1:", "http://127.0.0.1/", "http://[::1]:", "http://[::1]/"))


class _Table:
    """A table of the file, read by name and type."""

    def __init__(self, data: Mapping[str, Any], path: str) -> None:
        self._data = data
        self._path = path
        self._left = set(data)
        self.names = tuple(data)

    def done(self) -> None:
        """Everything in it was asked for."""
        if self._left:
            raise ConfigurationError(f"there is no setting {self._path}{min(self._left)}")

    def _get(self, name: str, kind: type[T], default: T) -> T:
        self._left.discard(name)
        value = self._data.get(name, default)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigurationError(f"{self._path}{name} has another type ({kind.__name__})")
        return value

    def text(self, name: str) -> str:
        return self._get(name, str, "")

    def texts(self, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
        values = self._get(name, list, list(default))
        if not all(isinstance(value, str) for value in values):
            raise ConfigurationError(f"{self._path}{name} is a list of texts")
        return tuple(values)

    def number(self, name: str, default: int) -> int:
        value = self._get(name, int, default)
        if value < 1:
            raise ConfigurationError(f"{self._path}{name} is at least 1")
        return value

    def seconds(self, name: str, default: float) -> float:
        self._left.discard(name)
        value = self._data.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= SECONDS_MAX:
            raise ConfigurationError(f"{self._path}{name} is a number from 0 to {SECONDS_MAX}")
        return float(value)

    def table(self, name: str) -> "_Table":
        return _Table(self._get(name, dict, {}), f"{self._path}{name}.")

    def tables(self, name: str) -> list["_Table"]:
        rows = self._get(name, list, [])
        if not all(isinstance(row, dict) for row in rows):
            raise ConfigurationError(f"{self._path}{name} is a list of tables, each written [[{name}]]")
        return [_Table(row, f"{self._path}{name}.") for row in rows]
