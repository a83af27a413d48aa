# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads /etc/kmodd/gateway.toml once at start; see kmodd-gateway.toml(5). An unknown key prevents the start."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import field
from pathlib import Path

from kmodd.config.section import ConfigurationError, Section
from kmodd.config.toml_file import read_document
from kmodd.fast_dataclass import dataclass
from kmodd.model.settings import Document
from kmodd.names import SCOPES
from kmodd.suggestions import did_you_mean
from kmodd.text import shown
from kmodd.tokens import TOKENS

SETTINGS = Path("/etc/kmodd/gateway.toml")
LISTEN = ("/run/kmodd-gateway/http",)
HOSTS = ("localhost", "127.0.0.1", "[::1]")
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
"""Signatures of JWTs that are ever accepted: asymmetric ones. The gateway could forge what it can check with HS256."""

RELOAD = "systemctl restart kmodd-gateway.service"
COUNT_MAX = 1_000_000
UPLOAD_MAX = 1 << 40
"""Bytes."""
SECONDS_MAX = 1_000_000
AGE_MAX = 100 * 366 * 86_400
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may cost. Times are seconds, sizes bytes."""

    connections: int = 100
    """Concurrent connections, without those that follow the events."""
    streams: int = 1000
    """Connections that follow the events."""
    rate: float = 50.0
    """Requests a second of one token, lasting; 0 for no limit."""
    burst: int = 200
    """Concurrent requests of one token."""
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
    access_tokens_only: bool = False
    """Refuse what does not say in its header that it is an access token (RFC 9068: `at+jwt`)."""
    max_age: int = 86_400
    """Seconds after which a token is refused although it has not expired: the only revocation that a JWT has."""


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
    """The settings in the file, the defaults where there is none. ConfigurationError names file and line."""
    try:
        path.lstat()
    except FileNotFoundError:
        return GatewaySettings()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    document = read_document(path, reload=RELOAD)
    return parse(document) if document is not None else GatewaySettings()


def parse(document: Document) -> GatewaySettings:
    """The settings in a file that was read."""
    top, empty = Section(document), Section(Document(document.file, {}))
    tls, limits = (top.table(name) or empty for name in ("tls", "limits"))
    default, known = GatewaySettings(), Limits()
    settings = GatewaySettings(
        listen=top.texts("listen", default.listen),
        hosts=tuple(host.lower() for host in top.texts("hosts", default.hosts)),
        certificate=tls.text("certificate", ""),
        key=tls.text("key", ""),
        tokens=top.text("tokens", "") or default.tokens,
        limits=Limits(
            connections=limits.integer("connections", known.connections, 1, COUNT_MAX),
            streams=limits.integer("streams", known.streams, 1, COUNT_MAX),
            rate=limits.number("rate", known.rate, 0, SECONDS_MAX),
            burst=limits.integer("burst", known.burst, 1, COUNT_MAX),
            upload=limits.integer("upload", known.upload, 1, UPLOAD_MAX),
            header_timeout=limits.number("header-timeout", known.header_timeout, 0, SECONDS_MAX),
            body_timeout=limits.number("body-timeout", known.body_timeout, 0, SECONDS_MAX),
            upload_timeout=limits.number("upload-timeout", known.upload_timeout, 0, SECONDS_MAX),
            send_timeout=limits.number("send-timeout", known.send_timeout, 0, SECONDS_MAX),
            keep_alive=limits.number("keep-alive", known.keep_alive, 0, SECONDS_MAX),
        ),
        issuers=tuple(_issuer(section) for section in top.array("issuer")),
    )
    for section in (top, tls, limits):
        section.finish()
    if bool(settings.certificate) != bool(settings.key):
        raise tls.error("both a certificate and a key are needed")
    if not settings.hosts:
        raise top.error("the list must name what clients call this machine", "hosts")
    return settings


def _issuer(section: Section) -> Issuer:
    default = Issuer("", "")
    scopes = section.table("scopes") or Section(Document(section.file, {}))
    issuer = Issuer(
        issuer=section.text("issuer", ""),
        audience=section.text("audience", ""),
        jwks=section.text("jwks", ""),
        ca=section.text("ca", ""),
        algorithms=section.texts("algorithms", default.algorithms),
        claim=section.text("claim", "") or default.claim,
        scopes={name: scopes.texts(name) for name in scopes.names},
        modules=tuple(name.replace("-", "_") for name in section.texts("modules", ())),
        skew=section.integer("skew", default.skew, 1, SECONDS_MAX),
        access_tokens_only=section.flag("access-tokens-only", default=default.access_tokens_only),
        max_age=section.integer("max-age", default.max_age, 1, AGE_MAX),
    )
    section.finish()
    if not issuer.issuer or not issuer.audience:
        raise section.error(
            "an issuer needs issuer and audience: without audience, tokens for other services would be accepted"
        )
    _refuse_others(section, "algorithms", "algorithm", issuer.algorithms, ALGORITHMS)
    for name, values in issuer.scopes.items():
        _refuse_others(scopes, name, "scope", values, SCOPES)
    for key, url in (("issuer", issuer.issuer), ("jwks", issuer.jwks)):
        if url and not is_safe(url):
            raise section.error(f"{shown(url)} is not https, so keys could be replaced in transit", key)
    return issuer


def _refuse_others(section: Section, key: str, kind: str, values: Iterable[str], names: Collection[str]) -> None:
    for value in values:
        if value not in names:
            there = did_you_mean(value, names) or f"there are {', '.join(names)}"
            raise section.error(f"no such {kind}: {shown(value, 64)}; {there}", key)


def is_safe(url: str) -> bool:
    """What comes from there cannot be changed on the way: https, or this machine itself."""
    return url.startswith(("https://", "http://127.0.0.1:", "http://127.0.0.1/", "http://[::1]:", "http://[::1]/"))
