# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reading the small files of /proc and /sys, and making text from the machine safe to show."""

import os
from pathlib import Path

VALUE_MAX = 4096
"""Bytes of one value that are read; sysfs attributes are at most a page."""


def read_bytes(path: Path | str, limit: int = 1 << 20, *, dir_fd: int | None = None) -> bytes | None:
    """The file's content up to `limit` bytes; None when it cannot be read. The last link is not followed."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    except OSError:
        return None
    try:
        return read_all(file, limit)
    except OSError:
        return None
    finally:
        os.close(file)


def read_all(file: int, limit: int) -> bytes:
    """Read until the end or `limit` bytes. A seq_file gives a page at a time, so one read is never the whole."""
    parts: list[bytes] = []
    left = limit
    while left > 0 and (part := os.read(file, min(left, 1 << 16))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def read_text(path: Path | str, limit: int = VALUE_MAX, *, dir_fd: int | None = None) -> str | None:
    """One value: UTF-8 with what is invalid replaced, one trailing newline cut off; None when it cannot be read."""
    content = _read_value(path, dir_fd) if limit <= VALUE_MAX else read_bytes(path, limit, dir_fd=dir_fd)
    return None if content is None else content.decode(errors="replace").removesuffix("\n")


def _read_value(path: Path | str, dir_fd: int | None) -> bytes | None:
    """What sysfs, sysctl and the single records of /proc give: all they have, in one read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    except OSError:
        return None
    try:
        return os.read(file, VALUE_MAX)
    except OSError:
        return None
    finally:
        os.close(file)


def readlink(path: Path | str) -> str:
    """Where a link points; empty when it is none or may not be read."""
    try:
        return os.readlink(path)  # noqa: PTH115 - the plain text, thousands of times
    except OSError:
        return ""


def listdir(path: Path | str) -> list[str]:
    """Names in a folder, sorted; empty when it is none or may not be read."""
    try:
        return sorted(os.listdir(path))  # noqa: PTH208 - names, not paths
    except OSError:
        return []


def shown(text: str, limit: int = 256) -> str:
    r"""Make text of foreign origin one safe line: control, bidi, surrogate and other unseen characters as `\x1b` or `\u202e`.

    At most `limit` characters; `…` stands for the rest.
    """
    safe = text if text.isprintable() else "".join(map(_escaped, text))
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
