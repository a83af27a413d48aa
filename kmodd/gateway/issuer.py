# SPDX-License-Identifier: LGPL-2.1-or-later
"""JWTs of an OpenID Connect issuer. Imported only where one is configured: the cryptography costs memory."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jwt

from kmodd.gateway.authentication import Refused
from kmodd.gateway.keys import Keys
from kmodd.gateway.principal import Principal
from kmodd.gateway.settings import Issuer
from kmodd.journal_fields import clean

_KEY_TYPES: Mapping[str, Mapping[str, str | None]] = {
    "RS": {"RSA": None},
    "PS": {"RSA": None},
    "ES256": {"EC": "P-256"},
    "ES384": {"EC": "P-384"},
    "EdDSA": {"OKP": "Ed25519"},
}
"""What kind of key an algorithm takes, by RFC 7518 and 8037: a token must not choose to misuse a key."""
_REQUIRED = ["exp", "iat", "iss", "aud", "sub"]
SUBJECT_MAX = 110
"""Bytes of a subject, and of an issuer's address, in the journal: the daemon takes 256 for both and the words between."""


class JwtVerifier:
    """Checks the tokens of one issuer."""

    def __init__(self, issuer: Issuer, keys: Keys) -> None:
        self._issuer = issuer
        self._keys = keys

    async def verify(self, text: str) -> Principal:
        """The principal of a token that is signed by the issuer, for us, and valid now; Refused otherwise."""
        issuer = self._issuer
        try:
            header = jwt.get_unverified_header(text)
            algorithm, identifier = header.get("alg"), header.get("kid")
            if algorithm not in issuer.algorithms or "crit" in header:
                raise Refused("the JWT's algorithm is not accepted")
            if identifier is not None and not isinstance(identifier, str):
                raise Refused("the JWT's key id is no text")
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
        # RecursionError: JSON nested without end, which the library does not expect.
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise Refused("JWT: damaged") from error
        return self._principal(claims)

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        subject = claims.get("sub")
        if not isinstance(subject, str) or not subject:
            raise Refused("JWT: no subject")
        given = claims.get(self._issuer.claim, [])
        words = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
        scopes = {scope for word in words if isinstance(word, str) for scope in self._issuer.scopes.get(word, ())}
        host = self._issuer.issuer.partition("://")[2]
        name = f"jwt {_short(subject)} of {_short(host)}"
        return Principal(name, frozenset(scopes), frozenset(self._issuer.modules))


def _short(text: str) -> str:
    """Fit for the journal; of one that is too long the start, and a hash that tells it from others with the same start."""
    told = clean(text)
    if len(told.encode()) <= SUBJECT_MAX:
        return told
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
    return told.encode()[: SUBJECT_MAX - 16].decode(errors="ignore") + f"…#{digest}"


def _fits(key: Mapping[str, Any], algorithm: str) -> bool:
    kinds = _KEY_TYPES.get(algorithm) or _KEY_TYPES.get(algorithm[:2]) or {}
    kind = str(key.get("kty"))
    if kind not in kinds or key.get("alg", algorithm) != algorithm:
        return False
    curve = kinds[kind]
    return curve is None or key.get("crv") == curve
