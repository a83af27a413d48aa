# SPDX-License-Identifier: LGPL-2.1-or-later
"""JWTs of an OpenID Connect issuer, and its public keys. Imported only if one is configured: cryptography costs memory."""

import asyncio
import hashlib
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any, NoReturn

import jwt

from kmodd.gateway.http.authentication import Principal, Refused
from kmodd.gateway.settings import Issuer, is_safe
from kmodd.journal.fields import clean

FETCH_TIMEOUT = 5.0
DOCUMENT_MAX = 256 * 1024
FRESH = 3600.0
"""Seconds after which keys are fetched again even if the requested one is present: revoked keys disappear."""
PAUSE = 30.0
"""Seconds between two fetches: tokens with made-up key ids must not become load on the issuer."""
STALE = 24 * 3600.0
"""Seconds for which keys are believed when the issuer cannot be reached any more."""

Fetch = Callable[[str], bytes]
"""Gets a document by its URL, in a thread; OSError or ValueError when it cannot."""


class Keys:
    """The key set of one issuer."""

    def __init__(self, issuer: Issuer, fetch: Fetch, clock: Callable[[], float]) -> None:
        """The clock counts seconds and never jumps."""
        self._issuer = issuer
        self._fetch = fetch
        self._clock = clock
        self._keys: list[Mapping[str, Any]] = []
        self._fetched: float | None = None
        self._tried: float | None = None
        self._fetching: asyncio.Task[None] | None = None

    async def get(self, identifier: str | None) -> Mapping[str, Any]:
        """The key (RFC 7517) with this id; without an id, the only one. Refused when there is none."""
        age = None if self._fetched is None else self._clock() - self._fetched
        key = self._find(identifier) if age is not None and age < STALE else None
        if key is not None and age is not None and age < FRESH:
            return key
        await self._refresh()
        age = None if self._fetched is None else self._clock() - self._fetched
        key = self._find(identifier) if age is not None and age < STALE else None
        if key is None:
            raise Refused("the issuer has no such key, or cannot be reached")
        return key

    def _find(self, identifier: str | None) -> Mapping[str, Any] | None:
        if identifier is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.get("kid") == identifier), None)

    async def _refresh(self) -> None:
        if self._fetching is None:
            if self._tried is not None and self._clock() - self._tried < PAUSE:
                return
            self._tried = self._clock()
            self._fetching = asyncio.create_task(self._load())
        # A waiting request may be cancelled; the fetch serves the others.
        await asyncio.shield(self._fetching)

    async def _load(self) -> None:
        try:
            self._keys = await asyncio.to_thread(self._download)
            self._fetched = self._clock()
        # HTTPException: it does not speak HTTP, or hung up in the middle. RecursionError: JSON nested without end.
        except (OSError, HTTPException, ValueError, KeyError, TypeError, RecursionError):
            # What is known stays good for a while; who needs a key that is not known hears of it.
            return
        finally:
            self._fetching = None

    def _download(self) -> list[Mapping[str, Any]]:
        url = self._issuer.jwks
        if not url:
            base = self._issuer.issuer.rstrip("/")
            document = json.loads(self._fetch(base + "/.well-known/openid-configuration"))
            if document["issuer"] != self._issuer.issuer:
                raise ValueError("the discovery document is for another issuer")
            url = document["jwks_uri"]
            if not isinstance(url, str) or not is_safe(url):
                raise ValueError("its keys are not served by https")
        keys = json.loads(self._fetch(url))["keys"]
        if not isinstance(keys, list):
            raise TypeError("no list of keys")
        return [key for key in keys if isinstance(key, dict) and key.get("use", "sig") == "sig"]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> NoReturn:
        raise OSError("the issuer answered with a redirection")


def fetcher(ca: str) -> Fetch:
    """Fetches over HTTPS with the certificate verified; no redirections, no proxies, a bounded answer."""
    context = ssl.create_default_context(cafile=ca or None)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context), _NoRedirect
    )

    def fetch(url: str) -> bytes:
        if not is_safe(url):
            raise ValueError("neither https nor this machine")
        request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - checked above
        with opener.open(request, timeout=FETCH_TIMEOUT) as answer:
            data: bytes = answer.read(DOCUMENT_MAX + 1)
        if len(data) > DOCUMENT_MAX:
            raise ValueError("the answer is too long")
        return data

    return fetch


_KEY_TYPES: Mapping[str, Mapping[str, str | None]] = {
    "RS": {"RSA": None},
    "PS": {"RSA": None},
    "ES256": {"EC": "P-256"},
    "ES384": {"EC": "P-384"},
    "EdDSA": {"OKP": "Ed25519"},
}
"""What kind of key an algorithm takes, by RFC 7518 and 8037: a token must not choose to misuse a key."""
_ACCESS = frozenset({"at+jwt", "application/at+jwt"})
_ANY = frozenset({"jwt", "application/jwt"})
_REQUIRED = ["exp", "iat", "iss", "aud", "sub"]
SUBJECT_MAX = 110
"""Bytes of a subject, and of an issuer's address, in the journal: the daemon takes 256 for both and the words between."""


class JwtVerifier:
    """Checks the tokens of one issuer."""

    def __init__(self, issuer: Issuer, keys: Keys, clock: Callable[[], float]) -> None:
        """The clock counts seconds since the epoch."""
        self._issuer = issuer
        self._clock = clock
        self._keys = keys

    async def verify(self, text: str) -> Principal:
        """The principal of a token that is signed by the issuer, for us, and valid now; Refused otherwise."""
        issuer = self._issuer
        try:
            header = jwt.get_unverified_header(text)
            algorithm, identifier = header.get("alg"), header.get("kid")
            if algorithm not in issuer.algorithms or "crit" in header:
                raise Refused("the JWT's algorithm is not accepted")
            self._check_type(header.get("typ"))
            if identifier is not None and not isinstance(identifier, str):
                raise Refused("the JWT's key id is not a string")
            key = await self._keys.get(identifier)
            if not _fits(key, algorithm):
                raise Refused("the JWT's algorithm does not fit its key")
            claims = jwt.decode(
                text,
                jwt.PyJWK(dict(key), algorithm=algorithm).key,
                algorithms=[algorithm],
                audience=issuer.audience,
                issuer=issuer.issuer,
                leeway=issuer.skew,
                options={"require": _REQUIRED},
            )
        except jwt.PyJWTError as error:
            # The library's sentences name the claim and never its value; only the journal gets them.
            raise Refused(f"JWT: {type(error).__name__}") from None
        # What the library does not expect: JSON nested without end (RecursionError); PyJWT 2.6, an infinite time (OverflowError).
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise Refused("JWT: damaged") from error
        self._check_claims(claims)
        return self._principal(claims)

    def _check_type(self, kind: object) -> None:
        # RFC 9068, section 4. Many issuers still write "JWT" or nothing.
        accepted = _ACCESS if self._issuer.access_tokens_only else _ACCESS | _ANY
        if kind is None and not self._issuer.access_tokens_only:
            return
        if not isinstance(kind, str) or kind.lower() not in accepted:
            raise Refused("the JWT is not an access token")

    def _check_claims(self, claims: Mapping[str, Any]) -> None:
        for name in ("exp", "iat", "nbf"):
            # PyJWT takes what int() takes, a string included; RFC 7519 knows numbers alone.
            if name in claims and (isinstance(claims[name], bool) or not isinstance(claims[name], int | float)):
                raise Refused(f"JWT: {name} is not a number")
        if claims["iat"] + self._issuer.max_age + self._issuer.skew < self._clock():
            raise Refused("JWT: older than max-age")
        # An ID token of the same audience tells a program who signed in, and is handed around as such. Only ID tokens have
        # these hashes (OpenID Connect Core, 3.3.2.11); Keycloak says it in a claim.
        if "at_hash" in claims or "c_hash" in claims or claims.get("typ", "Bearer") != "Bearer":
            raise Refused("the JWT is not an access token")

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        subject = claims.get("sub")
        if not isinstance(subject, str) or not subject:
            raise Refused("JWT: no subject")
        claimed = claims.get(self._issuer.claim, [])
        words = claimed.split() if isinstance(claimed, str) else claimed if isinstance(claimed, list) else []
        scopes = {scope for word in words if isinstance(word, str) for scope in self._issuer.scopes.get(word, ())}
        host = self._issuer.issuer.partition("://")[2]
        name = f"jwt {_short(subject)} of {_short(host)}"
        return Principal(name, frozenset(scopes), frozenset(self._issuer.modules))


def _short(text: str) -> str:
    """Fit for the journal; of one that is too long the start, and a hash that tells it from others with the same start."""
    cleaned = clean(text)
    if len(cleaned.encode()) <= SUBJECT_MAX:
        return cleaned
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
    return cleaned.encode()[: SUBJECT_MAX - 16].decode(errors="ignore") + f"…#{digest}"


def _fits(key: Mapping[str, Any], algorithm: str) -> bool:
    kinds = _KEY_TYPES.get(algorithm) or _KEY_TYPES.get(algorithm[:2]) or {}
    kind = str(key.get("kty"))
    if kind not in kinds or key.get("alg", algorithm) != algorithm:
        return False
    curve = kinds[kind]
    return curve is None or key.get("crv") == curve
