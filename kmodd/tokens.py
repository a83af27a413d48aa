# SPDX-License-Identifier: LGPL-2.1-or-later
"""The gateway's bearer tokens: how they look, and the file that root writes and the gateway reads.

A token is `kmodd_ID_SECRET`. The secret has 256 random bits, so a plain SHA-256 of it is as good as unguessable; the
file holds only that hash. The file belongs to root and is readable by the gateway's group: a hole in the gateway can
neither make a token nor learn one.
"""

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmodd.errors import Conflict, Failed, InvalidArgs
from kmodd.names import parse_module

TOKENS = Path("/etc/kmodd/tokens")
GROUP = "kmodd-gateway"
SCOPES = ("read", "load", "unload", "set-parameter", "configure", "import", "admin")
"""What a token may be good for; `admin` includes all others."""
DAY = 86_400
EXPIRY = 90 * DAY
"""Seconds a token is good for when nobody says otherwise."""
EXPIRY_MAX = 3660 * DAY
TOKENS_MAX = 1024
SECRET_BYTES = 32
VERSION = 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_TOKEN = re.compile(r"kmodd_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class Token:
    """What is known about a token; never the token itself. Times are seconds since the epoch."""

    id: str
    name: str
    digest: str
    """SHA-256 of the secret, hexadecimal."""
    scopes: tuple[str, ...]
    modules: tuple[str, ...]
    """Canonical names of the modules it may change; empty for all."""
    created: int
    expires: int

    def matches(self, secret: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(self.digest, digest_of(secret))


def digest_of(secret: str) -> str:
    """The hash that is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def split(text: str) -> tuple[str, str] | None:
    """The id and the secret of a token's text; None for what is no token."""
    found = _TOKEN.fullmatch(text)
    return (found[1], found[2]) if found else None


def make(name: str, scopes: Sequence[str], modules: Sequence[str], now: int, lifetime: int) -> tuple[Token, str]:
    """A new token and its text, which is told once and kept nowhere. InvalidArgs names the rule that is broken."""
    if _NAME.fullmatch(name) is None:
        raise InvalidArgs("a token's name is 1 to 64 letters, digits, '_', '-', '.' and '@'", argument="name")
    if not scopes or set(scopes) - set(SCOPES):
        raise InvalidArgs(f"scopes are {', '.join(SCOPES)}; a token has at least one", argument="scope")
    if not DAY // 24 // 60 <= lifetime <= EXPIRY_MAX:
        raise InvalidArgs("a token expires after a minute at the earliest and ten years at the latest")
    secret = secrets.token_urlsafe(SECRET_BYTES)
    token = Token(
        id=secrets.token_hex(6),
        name=name,
        digest=digest_of(secret),
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        modules=tuple(sorted({parse_module(module) for module in modules})),
        created=now,
        expires=now + lifetime,
    )
    return token, f"kmodd_{token.id}_{secret}"


def parse(text: str) -> dict[str, Token]:
    """The file's tokens by id; `Failed` in a sentence when it is not as we write it."""
    try:
        document = json.loads(text or '{"version": 1, "tokens": []}')
        if document["version"] != VERSION:
            raise Failed("the tokens file is of a version this kmodd does not know")
        tokens = [_token(row) for row in document["tokens"]]
    except (ValueError, KeyError, TypeError) as error:
        raise Failed("the tokens file is damaged; kmodctl token writes it") from error
    return {token.id: token for token in tokens}


def spell(tokens: Mapping[str, Token]) -> str:
    """The file's text."""
    rows = [{name: getattr(token, name) for name in Token.__slots__} for token in tokens.values()]
    return json.dumps({"version": VERSION, "tokens": rows}, indent=1) + "\n"


def _token(row: Mapping[str, Any]) -> Token:
    texts = [row["id"], row["name"], row["digest"], *row["scopes"], *row["modules"]]
    if not all(isinstance(text, str) for text in texts) or set(row["scopes"]) - set(SCOPES):
        raise ValueError("a field of another type")
    return Token(
        id=row["id"],
        name=row["name"],
        digest=row["digest"],
        scopes=tuple(row["scopes"]),
        modules=tuple(row["modules"]),
        created=int(row["created"]),
        expires=int(row["expires"]),
    )


class TokenFile:
    """The file, for who may write it."""

    def __init__(self, path: Path, group: Callable[[], int | None]) -> None:
        """`group` answers the group that may read it, None where there is no such group."""
        self._path = path
        self._group = group

    def read(self) -> dict[str, Token]:
        """The tokens by id; none where there is no file. OSError when it cannot be read."""
        try:
            return parse(self._path.read_text())
        except FileNotFoundError:
            return {}

    @contextmanager
    def changing(self) -> Iterator[dict[str, Token]]:
        """The tokens, to be changed in place; written when the block ends well. One at a time. OSError as it comes."""
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            tokens = self.read()
            yield tokens
            if len(tokens) > TOKENS_MAX:
                raise Conflict(f"there are {TOKENS_MAX} tokens already; revoke some")
            self._write(spell(tokens), folder)
        finally:
            os.close(folder)

    def _write(self, text: str, folder: int) -> None:
        # Whole or not at all: a reader sees the old file or the new one.
        name = f".{self._path.name}.{secrets.token_hex(4)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=folder)
        try:
            with os.fdopen(descriptor, "w") as file:
                group = self._group()
                if group is not None:
                    os.fchown(descriptor, -1, group)
                    os.fchmod(descriptor, 0o640)
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            os.rename(name, self._path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.unlink(name, dir_fd=folder)
            raise
        os.fsync(folder)
