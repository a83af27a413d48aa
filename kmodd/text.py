# SPDX-License-Identifier: LGPL-2.1-or-later
"""Text of foreign origin, made safe to print."""


def escape(text: str) -> str:
    r"""The text with control, bidi, surrogate and other unseen characters as `\x1b` or `\u202e`.

    `str.isprintable` is false for exactly these: the categories Cc, Cf, Cs, Co, Cn, Zl, Zp, and Zs but for the space.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def shown(text: str, limit: int = 256) -> str:
    """The text escaped, on one line of at most `limit` characters; `…` stands for the rest."""
    safe = escape(text[: limit + 1])
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
