# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the kernel reads a module's parameters, on bytes: next_arg() in lib/cmdline.c and parse_args() in kernel/params.c.

Written from those two functions alone and independent of kmodd's own reader, which the tests compare with it.
"""

_SPACE = frozenset(b" \t\n\v\f\r\xa0")
"""isspace() of the kernel (lib/ctype.c): 0xa0 is white space."""


def kernel_arguments(text: bytes) -> list[tuple[bytes, bytes | None]]:
    """(name, value) of each parameter in order; the value is None without `=`. A word `--` ends the list."""
    found: list[tuple[bytes, bytes | None]] = []
    rest = _skip(text.partition(b"\0")[0])
    while rest:
        name, value, rest = _next(rest)
        if value is None and name == b"--":
            break
        found.append((name.replace(b"-", b"_"), value))
    return found


def last_values(text: bytes) -> list[tuple[bytes, bytes | None]]:
    """The value of each parameter that the kernel keeps, in the order of their last mention."""
    kept: dict[bytes, bytes | None] = {}
    for name, value in kernel_arguments(text):
        kept.pop(name, None)
        kept[name] = value
    return list(kept.items())


def _skip(text: bytes) -> bytes:
    position = 0
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return text[position:]


def _next(text: bytes) -> tuple[bytes, bytes | None, bytes]:
    quoted = text.startswith(b'"')
    if quoted:
        text = text[1:]
    in_quote = quoted
    equals = position = 0
    while position < len(text):
        byte = text[position]
        if byte in _SPACE and not in_quote:
            break
        if equals == 0 and byte == ord("="):
            equals = position
        if byte == ord('"'):
            in_quote = not in_quote
        position += 1
    word, rest = text[:position], _skip(text[position + 1 :])
    if not equals:
        return (word.removesuffix(b'"') if quoted else word), None, rest
    name, value = word[:equals], word[equals + 1 :]
    if value.startswith(b'"'):
        return name, value[1:].removesuffix(b'"'), rest
    return name, (value.removesuffix(b'"') if quoted else value), rest
