# SPDX-License-Identifier: LGPL-2.1-or-later
"""Module parameters as the string that finit_module(2) takes: parsed as in the kernel, and spelled for it.

The kernel splits that string (next_arg() in lib/cmdline.c, parse_args() in kernel/params.c) by bytes. No other code of kmodd
splits or joins parameters, so checks, polkit and the journal see the same values as the kernel.

Bytes that are not UTF-8 are surrogate escapes in a string (PEP 383), and come back unchanged.
"""

import re
from collections.abc import Collection, Iterable, Iterator

from kmodd.fast_dataclass import dataclass

Arguments = tuple[tuple[str, str | None], ...]
"""Names and values in the kernel's order; None is a name without `=`, which is not the same as an empty value."""

# isspace() of lib/ctype.c. 0xA0 is the no-break space of Latin-1 and, in UTF-8, the last byte of thousands of characters.
_SPACE = b"\t\n\v\f\r \xa0"
_QUOTE, _EQUALS = b'"='
_PLAIN = frozenset(map(chr, range(0x21, 0x7F))) - {'"'}
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Word:
    """One parameter as the kernel reads it."""

    name: str
    """As written: `-` and `_` are the same letter to the kernel."""
    value: str | None
    start: int
    """Where it begins in the string, in bytes."""
    open: bool
    """A quote is left open, so that it reaches to the end of the string."""

    @property
    def ends(self) -> bool:
        """It is `--`: the kernel reads nothing after it."""
        return self.value is None and self.name == "--"


def read(text: bytes) -> Iterator[Word]:
    """Read the whole string, what stands behind `--` included; the text of a C string, so without NUL."""
    position, end = 0, len(text)
    while True:
        while position < end and text[position] in _SPACE:
            position += 1
        if position == end:
            return
        start = position
        # A quote before the name surrounds the whole assignment: "name=a b".
        is_quoted = quoted = text[position] == _QUOTE
        position += is_quoted
        first, equals = position, 0
        while position < end and (quoted or text[position] not in _SPACE):
            # An `=` that comes first belongs to the name.
            if text[position] == _EQUALS and position > first and not equals:
                equals = position
            quoted ^= text[position] == _QUOTE
            position += 1
        name, value = text[first : equals or position], text[equals + 1 : position] if equals else None
        if value is not None and value[:1] == b'"':
            # Of quotes around the value one is removed on either side, and the same one may be both.
            value = value[1:].removesuffix(b'"')
            is_quoted = is_quoted and text[position - 1] != _QUOTE
        if is_quoted and value is not None:
            value = value.removesuffix(b'"')
        elif is_quoted:
            name = name.removesuffix(b'"')
        yield Word(_decoded(name), None if value is None else _decoded(value), start, quoted)


def spell(pairs: Iterable[tuple[str, str | None]]) -> str:
    """Spell parameters so that the kernel reads these, in this order; ValueError for what no spelling can say."""
    return " ".join(_spelled(name, value) for name, value in pairs)


def displayed(pairs: Iterable[tuple[str, str | None]], withheld: Collection[str] = ()) -> str:
    """Spell parameters for people, as `shown`; `…` stands for the values that are withheld."""
    return " ".join(
        f"{shown(name)}=…" if name in withheld and value is not None else shown(_spelled(name, value))
        for name, value in pairs
    )


def shown(text: str) -> str:
    r"""Make a spelled string one safe line for people: all that is not printable ASCII as `\xe4`, byte by byte."""
    return "".join(char if " " <= char <= "~" else "".join(f"\\x{byte:02x}" for byte in encoded(char)) for char in text)


def encoded(text: str) -> bytes:
    """The bytes that a text stands for."""
    return text.encode("utf-8", "surrogateescape")


def key(name: str) -> str:
    """The name by which parameters are compared (parameq() in kernel/params.c)."""
    return name.replace("-", "_")


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


def _spelled(name: str, value: str | None) -> str:
    if value is None:
        return next(filter(lambda text: _says(text, name, None), (name, f'"{name}"', f'"{name}')), "") or _unspeakable()
    if value and _PLAIN.issuperset(value) and _NAME.fullmatch(name):
        return f"{name}={value}"
    # What callers say has no quote in it. What an `options` line says may, in places where the kernel keeps it.
    candidates = (
        f'{name}="{value}"',
        f"{name}={value}",
        f'{name}="{value}',
        f'"{name}={value}"',
        f'"{name}="{value}"',
        f'"{name}={value}',
    )
    return next(filter(lambda text: _says(text, name, value), candidates), "") or _unspeakable()


def _says(text: str, name: str, value: str | None) -> bool:
    words = list(read(encoded(text)))
    return len(words) == 1 and (words[0].name, words[0].value, words[0].open) == (name, value, False)


def _unspeakable() -> str:
    raise ValueError("no spelling passes this to the kernel")
