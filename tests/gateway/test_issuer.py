# SPDX-License-Identifier: LGPL-2.1-or-later
"""JWTs of a local OpenID Connect issuer."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.client import BadStatusLine, IncompleteRead
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from kmodd.gateway.http.authentication import Principal, Refused
from kmodd.gateway.http.issuer import PAUSE, STALE, JwtVerifier, Keys
from kmodd.gateway.settings import Issuer
from kmodd.names import parse_on_behalf_of
from tests.gateway.processes import gateway

ISSUER = "https://login.example.org"


def ec_key() -> ec.EllipticCurvePrivateKey:
    """Both coordinates of 32 bytes: of others PyJWT 2.6 writes a JWK without the leading zeros, and reads no such one."""
    while True:
        key = ec.generate_private_key(ec.SECP256R1())
        point = key.public_key().public_numbers()
        if min(point.x, point.y) >> 248:
            return key


RSA = rsa.generate_private_key(65537, 2048)
EC = ec_key()
ED = ed25519.Ed25519PrivateKey.generate()
OTHER = ec_key()
SETTINGS = Issuer(
    ISSUER, "kmodd", "https://x/", claim="groups", scopes={"ops": ("read", "load")}, modules=("loop",), skew=10
)


def jwk(key: Any, identifier: str, **more: str) -> dict[str, Any]:
    """A public key as RFC 7517 spells it."""
    algorithms = {"RS256": rsa.RSAPrivateKey, "ES256": ec.EllipticCurvePrivateKey, "EdDSA": ed25519.Ed25519PrivateKey}
    name = next(name for name, kind in algorithms.items() if isinstance(key, kind))
    algorithm = jwt.get_algorithm_by_name(name)
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": identifier, **more}


KEYS = [jwk(RSA, "rsa"), jwk(EC, "ec"), jwk(ED, "ed"), jwk(OTHER, "enc", use="enc")]


class Source:
    """Where keys come from, and how often."""

    def __init__(self, keys: list[dict[str, Any]]) -> None:
        self.keys = keys
        self.fetched = 0
        self.now = 1000.0
        self.away = False

    def fetch(self, _: str) -> bytes:
        self.fetched += 1
        if self.away:
            raise OSError("away")
        return json.dumps({"keys": self.keys}).encode()


@pytest.fixture
def source() -> Source:
    return Source(list(KEYS))


@pytest.fixture
def verifier(source: Source) -> JwtVerifier:
    return JwtVerifier(SETTINGS, Keys(SETTINGS, source.fetch, lambda: source.now), time.time)


def sign(
    key: Any = RSA,
    algorithm: str = "RS256",
    kid: str | None = "rsa",
    *,
    header: Mapping[str, Any] | None = None,
    **claims: Any,
) -> str:
    """A token as the issuer makes it, with these claims changed; None leaves one out."""
    now = int(time.time())
    whole = {"iss": ISSUER, "aud": "kmodd", "sub": "alice", "iat": now, "exp": now + 300, "groups": ["ops"], **claims}
    told = {**({"kid": kid} if kid else {}), **(header or {})}
    return jwt.encode({k: v for k, v in whole.items() if v is not None}, key, algorithm=algorithm, headers=told)


@pytest.mark.parametrize(("key", "algorithm", "kid"), [(RSA, "RS256", "rsa"), (EC, "ES256", "ec"), (ED, "EdDSA", "ed")])
async def test_a_good_one_names_its_subject_and_its_scopes(
    verifier: JwtVerifier, key: Any, algorithm: str, kid: str
) -> None:
    found = await verifier.verify(sign(key, algorithm, kid))
    assert found == Principal("jwt alice of login.example.org", frozenset({"read", "load"}), frozenset({"loop"}))


@pytest.mark.parametrize(
    ("groups", "scopes"),
    [
        (["other"], set()),
        ("ops other", {"read", "load"}),
        (None, set()),
        (7, set()),
        ([["ops"]], set()),
        ({"ops": 1}, set()),
    ],
)
async def test_scopes_come_from_the_claim(verifier: JwtVerifier, groups: object, scopes: set[str]) -> None:
    assert (await verifier.verify(sign(groups=groups))).scopes == scopes


@pytest.mark.parametrize("subject", ["x" * 500, "\U0001f600" * 200, "\u202e" * 64, "two\nlines", "\ud800"], ids=ascii)
async def test_whatever_its_subject_the_journal_can_name_it(verifier: JwtVerifier, subject: str) -> None:
    """The daemon refuses a call on behalf of a name that it cannot write down."""
    names = [(await verifier.verify(sign(sub=f"{subject}{end}"))).name for end in ("a", "b")]
    assert [parse_on_behalf_of(name) for name in names] == names
    assert names[0] != names[1]


@pytest.mark.parametrize(
    ("kind", "anything", "access_alone"),
    [("JWT", True, False), (None, True, False), ("at+jwt", True, True), ("application/at+JWT", True, True)],
)
async def test_an_issuer_can_be_held_to_say_what_an_access_token_is(
    source: Source, kind: str | None, *, anything: bool, access_alone: bool
) -> None:
    for only, good in ((False, anything), (True, access_alone)):
        settings = replace(SETTINGS, access_tokens_only=only)
        verifier = JwtVerifier(settings, Keys(settings, source.fetch, lambda: source.now), time.time)
        if good:
            assert (await verifier.verify(sign(header={"typ": kind}))).scopes
        else:
            with pytest.raises(Refused, match="not an access token"):
                await verifier.verify(sign(header={"typ": kind}))


async def test_a_token_counts_no_longer_than_its_maximal_age(source: Source) -> None:
    settings = replace(SETTINGS, max_age=600)
    verifier = JwtVerifier(settings, Keys(settings, source.fetch, lambda: source.now), time.time)
    assert (await verifier.verify(sign(iat=int(time.time()) - 590))).scopes
    with pytest.raises(Refused, match="older than max-age"):
        await verifier.verify(sign(iat=int(time.time()) - 620))


NOW = int(time.time())
# More than the whole run takes: NOW is the time at which the tests were collected.
LONG = 1_000_000
TABLE = [
    {"exp": NOW - 60},
    {"exp": None},
    {"exp": "tomorrow"},
    {"exp": str(NOW + 600)},
    {"exp": True},
    {"exp": float("inf")},
    {"exp": float("nan")},
    {"iat": float("-inf")},
    {"iat": float("nan")},
    {"nbf": float("-inf")},
    {"iat": str(NOW)},
    {"nbf": str(NOW)},
    {"iat": NOW - 90_000},
    {"at_hash": "x"},
    {"c_hash": "x"},
    {"typ": "ID"},
    {"typ": "Refresh"},
    {"header": {"typ": "id+jwt"}},
    {"header": {"typ": "logout+jwt"}},
    {"header": {"typ": 7}},
    {"nbf": NOW + LONG},
    {"iat": NOW + LONG},
    {"iss": "https://other.example"},
    {"iss": None},
    {"aud": "other"},
    {"aud": None},
    {"sub": None},
    {"sub": ""},
    {"kid": "enc", "key": OTHER, "algorithm": "ES256"},
    {"kid": "nosuch"},
    {"kid": None},
    {"kid": "rsa", "key": rsa.generate_private_key(65537, 2048)},
    {"algorithm": "RS512"},
    {"algorithm": "PS256"},
    {"header": {"crit": ["b64"], "b64": True}},
]


@pytest.mark.parametrize("change", TABLE, ids=[f"{number}" for number, _ in enumerate(TABLE)])
async def test_a_bad_one_is_refused(verifier: JwtVerifier, change: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        await verifier.verify(sign(**change))


async def test_clocks_may_differ_a_little(verifier: JwtVerifier) -> None:
    now = int(time.time())
    await verifier.verify(sign(exp=now - 5))
    await verifier.verify(sign(nbf=now + 5, iat=now + 5))


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


async def test_a_public_key_is_no_shared_secret(verifier: JwtVerifier) -> None:
    """CVE-2016-5431 and its many relatives: HS256 with the public key as the secret, or no signature at all."""
    claims = part(jwt.decode(sign(), options={"verify_signature": False}))
    for algorithm, kid in [("HS256", "rsa"), ("none", "rsa"), ("None", "rsa"), ("ES256", "rsa"), ("RS256", "ec")]:
        signed = f"{part({'alg': algorithm, 'kid': kid})}.{claims}"
        secret = json.dumps(KEYS[0]).encode()
        mac = base64.urlsafe_b64encode(hmac.digest(secret, signed.encode(), hashlib.sha256)).decode().rstrip("=")
        for signature in ("", mac):
            with pytest.raises(Refused):
                await verifier.verify(f"{signed}.{signature}")


GARBAGE = [
    "..",
    "a.b.c",
    "e30.e30.e30",
    "\u20ac.x.y",
    f"{part([])}.{part({})}.",
    f"{part({'alg': []})}..x",
    f"{base64.urlsafe_b64encode(b'[' * 6000).decode()}.e30.AAAA",
]


@pytest.mark.parametrize("text", GARBAGE, ids=lambda text: text[:20])
async def test_garbage_is_refused(verifier: JwtVerifier, text: str) -> None:
    with pytest.raises(Refused):
        await verifier.verify(text)


async def test_new_keys_are_fetched_when_a_token_names_one_but_not_all_the_time(
    verifier: JwtVerifier, source: Source
) -> None:
    await verifier.verify(sign())
    source.keys = [jwk(OTHER, "new")]
    with pytest.raises(Refused):  # within the pause
        await verifier.verify(sign(OTHER, "ES256", "new"))
    assert source.fetched == 1
    source.now += PAUSE
    await verifier.verify(sign(OTHER, "ES256", "new"))
    assert source.fetched == 2
    for number in range(50):
        with pytest.raises(Refused):
            await verifier.verify(sign(OTHER, "ES256", f"made-up-{number}"))
    assert source.fetched == 2
    with pytest.raises(Refused):  # the old key is gone with the old set
        await verifier.verify(sign())


@pytest.mark.parametrize(
    "answer",
    [
        OSError("away"),
        IncompleteRead(b"{"),
        BadStatusLine("SMTP ready"),
        b"",
        b"[",
        b"[" * 200_000,
        b"[]",
        b"{}",
        b'{"keys": 1}',
        b'{"keys": [1, {"kid": []}]}',
        b"\xff",
    ],
    ids=lambda one: repr(one)[:20],
)
async def test_an_issuer_that_answers_nonsense_authenticates_no_token(answer: Exception | bytes) -> None:
    def fetch(_: str) -> bytes:
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(Refused):
        await JwtVerifier(SETTINGS, Keys(SETTINGS, fetch, lambda: 0.0), time.time).verify(sign())


async def test_keys_outlive_an_issuer_that_is_away_for_a_while(verifier: JwtVerifier, source: Source) -> None:
    await verifier.verify(sign())
    source.away = True
    source.now += STALE - 1
    await verifier.verify(sign())
    source.now += 2
    with pytest.raises(Refused):
        await verifier.verify(sign())


class _Issuer(BaseHTTPRequestHandler):
    issuer = ""

    def do_GET(self) -> None:
        """Discovery and keys."""
        documents = {
            "/.well-known/openid-configuration": {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys"},
            "/keys": {"keys": KEYS},
        }
        body = json.dumps(documents[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def local_issuer() -> Iterator[str]:
    """An issuer on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Issuer) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        server.RequestHandlerClass.issuer = address  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield address
        finally:
            server.shutdown()
            thread.join()


def test_the_gateway_takes_tokens_of_a_local_issuer(simulation: str, tmp_path: Path) -> None:
    with local_issuer() as address:
        text = (
            f'[[issuer]]\nissuer = "{address}"\naudience = "kmodd"\n[issuer.scopes]\n"kmodd:load" = ["load", "read"]\n'
        )
        with gateway(tmp_path, simulation, text) as served:
            token = sign(iss=address, scope="openid kmodd:load")
            loaded = served.ask("POST", "/module/load/nls_utf8", {"dry_run": True, "reason": "x"}, token=token)
            assert loaded.status in {200, 404}
            assert served.ask("GET", "/v1/modules", token=token).status == 200
            assert served.ask("POST", "/module/unload/loop", token=token).status == 403
            assert served.ask("GET", "/v1/modules", token=sign(iss=address, scope="openid")).status == 403
            assert served.ask("GET", "/v1/modules", token=sign(iss=address, exp=NOW - 999)).status == 401
            log = served.log.read_text()
            assert "on_behalf_of=jwt alice of 127.0.0.1" in log
            assert token.split(".")[2] not in log
