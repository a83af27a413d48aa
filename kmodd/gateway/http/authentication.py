# SPDX-License-Identifier: LGPL-2.1-or-later
"""Maps the Authorization header to a principal with its scopes. The reason of a refusal is only in the journal."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from kmodd import tokens
from kmodd.client import CallerOptions
from kmodd.config.section import ConfigurationError
from kmodd.errors import AccessDenied, Failed
from kmodd.fast_dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """The bearer of a valid token."""

    name: str
    """`token backup (1f0c…)`, `jwt alice of issuer`; limits are counted by it."""
    scopes: frozenset[str]
    modules: frozenset[str] = frozenset()
    """The modules it may change; empty for all."""
    uid: int | None = None
    """The user whose process sent the request, where it came over a unix socket."""

    @property
    def label(self) -> str:
        """Name and user, for the journal and `on-behalf-of`."""
        return self.name if self.uid is None else f"{self.name}, uid {self.uid}"

    def caller_options(self, reason: str) -> CallerOptions:
        """Options with the principal and the reason; the reason is already validated."""
        options: CallerOptions = {"on_behalf_of": self.label}
        if reason:
            options["reason"] = reason
        return options

    def may(self, scope: str) -> bool:
        """It has the scope."""
        return scope in self.scopes or "admin" in self.scopes

    def require(self, scope: str) -> None:
        """AccessDenied unless it has the scope."""
        if not self.may(scope):
            raise AccessDenied(f"this token lacks the scope '{scope}'")

    def require_all_modules(self) -> None:
        """AccessDenied when it is limited to some modules: for what can concern any."""
        if self.modules:
            raise AccessDenied("this token is limited to some modules")

    def require_modules(self, names: Iterable[str]) -> None:
        """AccessDenied unless it may change all of these (canonical names)."""
        if self.modules and (outside := sorted(set(names) - self.modules)):
            raise AccessDenied(f"this token is not for {', '.join(outside[:8])}")


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
    """The tokens file as it is now: read again whenever it was changed, so that revocation takes effect immediately."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._tokens: dict[str, tokens.Token] = {}

    def get(self, identifier: str) -> tokens.Token | None:
        """One token. A file that cannot be read holds none: no token is valid."""
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
            status = self._path.stat()
            if (status.st_mtime_ns, status.st_ino, status.st_size) != self._stamp:
                self._load()
        except (OSError, Failed):
            self._tokens, self._stamp = {}, None

    def _load(self) -> None:
        with self._path.open("rb") as file:
            status = os.fstat(file.fileno())
            self._tokens = tokens.parse_bytes(file.read(tokens.FILE_MAX + 1))
            self._stamp = (status.st_mtime_ns, status.st_ino, status.st_size)


class Authentication:
    """Knows tokens of our own and JWTs of configured issuers."""

    def __init__(self, tokens: TokenList, verifiers: Sequence[Verifier], clock: Callable[[], float]) -> None:
        """The clock counts seconds since the epoch."""
        self._known = tokens
        self._verifiers = verifiers
        self._clock = clock

    async def principal(self, headers: Sequence[tuple[bytes, bytes]], uid: int | None) -> Principal:
        """Who asks, by the request's one Authorization header; Refused otherwise.

        `uid` is the user at the other end of a unix socket, None over TCP.
        """
        values = [value for name, value in headers if name == b"authorization"]
        if len(values) != 1:
            raise Refused("no Authorization header" if not values else "several Authorization headers")
        value = values[0]
        if not value[: len(BEARER)].lower() == BEARER or len(value) > TOKEN_MAX:
            raise Refused("not a bearer token")
        try:
            text = value[len(BEARER) :].decode("ascii").strip()
        except UnicodeDecodeError:
            raise Refused("not a bearer token") from None
        if (parts := tokens.split(text)) is not None:
            return self._own(*parts, uid)
        if text.count(".") != 2:
            raise Refused("neither a kmodd token nor a JWT")
        why = "no issuer is configured"
        for verifier in self._verifiers:
            try:
                return replace(await verifier.verify(text), uid=uid)
            except Refused as refused:
                why = str(refused)
        raise Refused(why)

    def _own(self, identifier: str, secret: str, uid: int | None) -> Principal:
        token = self._known.get(identifier)
        if token is None or not token.matches(secret):
            raise Refused("unknown or revoked token")
        if token.expires <= self._clock():
            raise Refused(f"token {token.name} ({token.id}) has expired")
        if token.uid is not None and token.uid != uid:
            # No exception for root, who can make a token: one that was copied is worth nothing elsewhere.
            place = "over TCP" if uid is None else f"by uid {uid}"
            raise Refused(f"token {token.name} ({token.id}) is bound to uid {token.uid} and was used {place}")
        return Principal(f"token {token.name} ({token.id})", frozenset(token.scopes), frozenset(token.modules), uid)
