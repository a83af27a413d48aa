# SPDX-License-Identifier: LGPL-2.1-or-later
"""From the Authorization header to a principal. Refusals do not say what was wrong: only the journal knows."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from kmodd import tokens
from kmodd.errors import Failed
from kmodd.gateway.principal import Principal
from kmodd.gateway.settings import ConfigurationError

BEARER = b"bearer "
TOKEN_MAX = 8192
"""Bytes of a token; JWTs are long."""


class Refused(Exception):
    """Not let in; the text is for the journal and holds no secret."""


class Verifier(Protocol):
    """Checks JWTs."""

    async def verify(self, text: str) -> Principal:
        """Who it is about, or Refused."""


class TokenList:
    """The tokens file as it is now: read again whenever it was changed, so that revoking works at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._tokens: dict[str, tokens.Token] = {}

    def get(self, identifier: str) -> tokens.Token | None:
        """One token. A file that cannot be read holds none: nobody gets in by it."""
        self._refresh()
        return self._tokens.get(identifier)

    def __len__(self) -> int:
        """How many there are, expired ones included; ConfigurationError when the file is unreadable."""
        try:
            self._load()
        except FileNotFoundError:
            return 0
        except (OSError, Failed) as error:
            raise ConfigurationError(f"cannot read {self._path}: {error}") from error
        return len(self._tokens)

    def _refresh(self) -> None:
        try:
            found = self._path.stat()
            if (found.st_mtime_ns, found.st_ino, found.st_size) != self._stamp:
                self._load()
        except (OSError, Failed):
            self._tokens, self._stamp = {}, None

    def _load(self) -> None:
        with self._path.open(encoding="utf-8") as file:
            found = os.fstat(file.fileno())
            self._tokens = tokens.parse(file.read())
            self._stamp = (found.st_mtime_ns, found.st_ino, found.st_size)


class Authentication:
    """Knows tokens of our own and JWTs of configured issuers."""

    def __init__(self, known: TokenList, verifiers: Sequence[Verifier], clock: Callable[[], float]) -> None:
        """The clock counts seconds since the epoch."""
        self._known = known
        self._verifiers = verifiers
        self._clock = clock

    async def principal(self, headers: Sequence[tuple[bytes, bytes]]) -> Principal:
        """Who asks, by the request's one Authorization header; Refused otherwise."""
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1:
            raise Refused("no Authorization header" if not given else "several Authorization headers")
        value = given[0]
        if not value[: len(BEARER)].lower() == BEARER or len(value) > TOKEN_MAX:
            raise Refused("not a bearer token")
        try:
            text = value[len(BEARER) :].decode("ascii").strip()
        except UnicodeDecodeError:
            raise Refused("not a bearer token") from None
        if (parts := tokens.split(text)) is not None:
            return self._own(*parts)
        if text.count(".") != 2:
            raise Refused("neither a token of kmodd's nor a JWT")
        why = "no issuer is configured"
        for verifier in self._verifiers:
            try:
                return await verifier.verify(text)
            except Refused as refused:
                why = str(refused)
        raise Refused(why)

    def _own(self, identifier: str, secret: str) -> Principal:
        token = self._known.get(identifier)
        if token is None or not token.matches(secret):
            raise Refused("unknown or revoked token")
        if token.expires <= self._clock():
            raise Refused(f"token {token.name} ({token.id}) has expired")
        return Principal(f"token {token.name} ({token.id})", frozenset(token.scopes), frozenset(token.modules))
