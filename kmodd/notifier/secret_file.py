# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads secrets from files that only the notifier can read; they are never in the configuration, a log or an argument list."""

import base64
import binascii
import os
import stat

PREFIX = "whsec_"
SIZE_MAX = 4096
KEY_MIN, KEY_MAX = 24, 64
"""Bytes of a key (Standard Webhooks 1.0.0: 24 to 64)."""


class SecretError(Exception):
    """A secret cannot be used; the text says why, and not what it is."""


def read_secret(path: str) -> str:
    """The file's text without the line break at its end."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SecretError(f"{path}: {error.strerror}") from error
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise SecretError(f"{path} is not a regular file")
        if found.st_mode & 0o027:
            raise SecretError(f"{path} may be read or written by others: chmod 0640, owner root, group kmodd-notifier")
        if found.st_uid not in (0, os.geteuid()):
            raise SecretError(f"{path} is not owned by root")
        data = os.read(handle, SIZE_MAX + 1)
    finally:
        os.close(handle)
    if len(data) > SIZE_MAX:
        raise SecretError(f"{path} is larger than {SIZE_MAX} bytes")
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        raise SecretError(f"{path} is not valid text") from None
    if not text:
        raise SecretError(f"{path} is empty")
    return text


def read_keys(path: str) -> tuple[bytes, ...]:
    """Signing keys, one `whsec_…` a line: more than one while a key is being exchanged."""
    return tuple(parse_key(word, path) for word in read_secret(path).split())


def parse_key(text: str, where: str) -> bytes:
    """The bytes of `whsec_` and base64."""
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True) if text.startswith(PREFIX) else b""
    except binascii.Error:
        key = b""
    if not KEY_MIN <= len(key) <= KEY_MAX:
        raise SecretError(f"{where}: expected {PREFIX} and {KEY_MIN} to {KEY_MAX} bytes as base64")
    return key


def make_key(random: bytes) -> str:
    """A new signing key of these bytes, in the form the receiver wants it."""
    return PREFIX + base64.b64encode(random).decode()
