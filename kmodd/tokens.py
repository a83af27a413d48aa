# SPDX-License-Identifier: LGPL-2.1-or-later
"""The gateway's bearer tokens and the file that root writes and the gateway reads.

A token is `kmodd_ID_SECRET`. The secret has 256 random bits, so its plain SHA-256 cannot be reversed; the file holds only that
hash. The file is owned by root and readable by the gateway's group: a compromised gateway can neither create nor learn a token.
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
from pathlib import Path
from typing import Any

from kmodd.errors import Conflict, Failed, InvalidArgs
from kmodd.fast_dataclass import dataclass
from kmodd.names import ARRAY_MAX, SCOPES, parse_module

TOKENS = Path("/etc/kmodd/tokens")
GROUP = "kmodd-gateway"
DAY = 86_400
EXPIRY = 30 * DAY
"""Default lifetime of a token in seconds."""
EXPIRY_MAX = 3660 * DAY
TOKENS_MAX = 1024
FILE_MAX = 16 << 20
"""Bytes of the file: so many tokens for any modules fit."""
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
    uid: int | None = None
    """The user whose processes alone may use it, over the unix socket; None for everybody who has it."""

    def matches(self, secret: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(self.digest, digest_of(secret))


def digest_of(secret: str) -> str:
    """The hash that is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def parse_bytes(data: bytes) -> dict[str, Token]:
    """As `parse`, of a file's content up to a byte more than `FILE_MAX`."""
    if len(data) > FILE_MAX:
        raise Failed("the token file is damaged; it must be written by kmodctl token only")
    try:
        return parse(data.decode())
    except UnicodeDecodeError as error:
        raise Failed("the token file is damaged; it must be written by kmodctl token only") from error


def split(text: str) -> tuple[str, str] | None:
    """The id and the secret of a token's text; None for what is no token."""
    match = _TOKEN.fullmatch(text)
    return (match[1], match[2]) if match else None


def make(
    name: str, scopes: Sequence[str], modules: Sequence[str], now: int, lifetime: int, uid: int | None = None
) -> tuple[Token, str]:
    """A new token and its text, which is returned once and stored nowhere. InvalidArgs names the violated rule."""
    if _NAME.fullmatch(name) is None:
        raise InvalidArgs("a token's name is 1 to 64 letters, digits, '_', '-', '.' and '@'", argument="name")
    if not scopes or set(scopes) - set(SCOPES):
        raise InvalidArgs(f"scopes are {', '.join(SCOPES)}; a token has at least one", argument="scope")
    if len(set(modules)) > ARRAY_MAX:
        raise InvalidArgs(f"a token names at most {ARRAY_MAX} modules", argument="module")
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
        uid=uid,
    )
    return token, f"kmodd_{token.id}_{secret}"


def parse(text: str) -> dict[str, Token]:
    """The file's tokens by id; `Failed` in a sentence when it is not as we write it."""
    try:
        document = json.loads(text or '{"version": 1, "tokens": []}')
        if document["version"] != VERSION:
            raise Failed("the token file has an unsupported version")
        tokens = [_token(row) for row in document["tokens"]]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise Failed("the token file is damaged; it must be written by kmodctl token only") from error
    return {token.id: token for token in tokens}


def spell(tokens: Mapping[str, Token]) -> str:
    """The file's text."""
    rows = [{name: getattr(token, name) for name in Token.__slots__} for token in tokens.values()]
    return json.dumps({"version": VERSION, "tokens": rows}, indent=1) + "\n"


def _token(row: Mapping[str, Any]) -> Token:
    texts = [row["id"], row["name"], row["digest"], *row["scopes"], *row["modules"]]
    if not all(isinstance(text, str) for text in texts) or set(row["scopes"]) - set(SCOPES):
        raise ValueError("a field of another type")
    uid = row.get("uid")
    if uid is not None and (not isinstance(uid, int) or isinstance(uid, bool) or uid < 0):
        raise ValueError("a field of another type")
    return Token(
        id=row["id"],
        name=row["name"],
        digest=row["digest"],
        scopes=tuple(row["scopes"]),
        modules=tuple(row["modules"]),
        created=int(row["created"]),
        expires=int(row["expires"]),
        uid=uid,
    )


class TokenFile:
    """The file, for who may write it."""

    def __init__(self, path: Path, group: Callable[[], int | None]) -> None:
        """`group` answers the group that may read it, None where there is no such group."""
        self._path = path
        self._group = group

    def read(self) -> dict[str, Token]:
        """The tokens by id; none where there is no file. OSError when it cannot be read, Failed when it is damaged."""
        try:
            with self._path.open("rb") as file:
                return parse_bytes(file.read(FILE_MAX + 1))
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
                raise Conflict(f"there can be at most {TOKENS_MAX} tokens; revoke some")
            # Imported here: readers of the file, such as the gateway, do without it.
            from kmodd.kernel.atomic_file import write_whole

            group = self._group()
            write_whole(self._path, spell(tokens).encode(), 0o600 if group is None else 0o640, group=group)
        finally:
            os.close(folder)
