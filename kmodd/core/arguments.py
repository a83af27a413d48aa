# SPDX-License-Identifier: LGPL-2.1-or-later
"""Module parameters as text: read from `options` lines, spelled for `finit_module`."""

from collections.abc import Iterable

from kmodd.names import kernel_arguments

Pairs = tuple[tuple[str, str], ...]

UNSET = "(null)"
"""What the kernel shows of a text that was never set (param_get_charp in kernel/params.c); given back it would be set to it."""


def split_options(text: str) -> Pairs:
    """Split the value of an `options` line as next_arg and parse_args of the kernel do (lib/cmdline.c, kernel/params.c).

    A word without `=` becomes `1`: only parameters that take a flag accept that form, and those read it as true.
    What follows a lone `--` is not the module's, and the kernel ignores it.
    """
    pairs = []
    for word in words(text):
        if word == "--":
            break
        name, equals, value = word.partition("=")
        if not equals:
            value = "1"
        elif value.startswith('"'):
            value = value[1:].removesuffix('"')
        if name:
            pairs.append((name.replace("-", "_"), value))
    return tuple(pairs)


def effective(pairs: Iterable[tuple[str, str]]) -> Pairs:
    """Keep the last value of each parameter, which is the one the kernel keeps, in the order of the last mention."""
    kept: dict[str, str] = {}
    for name, value in pairs:
        kept.pop(name, None)
        kept[name] = value
    return tuple(kept.items())


def spell(pairs: Iterable[tuple[str, str]]) -> str:
    """Spell parameters as the one string the kernel takes."""
    # A value with a quote inside comes from an `options` line only (callers' are refused) and is passed on as written.
    return " ".join(f"{name}={value}" if '"' in value else kernel_arguments({name: value}) for name, value in pairs)


def words(text: str) -> list[str]:
    """Split at white space outside quotes; quotes around a whole word are left out."""
    found = []
    word = ""
    quoted = False
    for char in text:
        if char == '"':
            quoted = not quoted
        if char.isspace() and not quoted:
            if word:
                found.append(word)
            word = ""
        else:
            word += char
    if word:
        found.append(word)
    # A quote before the name surrounds the whole assignment: "name=a b".
    return [w[1:].removesuffix('"') if w.startswith('"') else w for w in found]
