# SPDX-License-Identifier: LGPL-2.1-or-later
"""An issuer's public keys: fetched, kept, fetched again when a token names one that is not there."""

import asyncio
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any, NoReturn

from kmodd.gateway.authentication import Refused
from kmodd.gateway.settings import Issuer, is_safe

FETCH_TIMEOUT = 5.0
DOCUMENT_MAX = 256 * 1024
FRESH = 3600.0
"""Seconds after which keys are fetched again even though the one that is asked for is there: revoked keys go."""
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
        found = self._find(identifier) if age is not None and age < STALE else None
        if found is not None and age is not None and age < FRESH:
            return found
        await self._refresh()
        age = None if self._fetched is None else self._clock() - self._fetched
        found = self._find(identifier) if age is not None and age < STALE else None
        if found is None:
            raise Refused("the issuer has no such key, or cannot be reached")
        return found

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
        # Whoever waits may leave; the fetch serves the others.
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
            found = json.loads(self._fetch(base + "/.well-known/openid-configuration"))
            if found["issuer"] != self._issuer.issuer:
                raise ValueError("the discovery document is another issuer's")
            url = found["jwks_uri"]
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
