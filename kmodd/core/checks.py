# SPDX-License-Identifier: LGPL-2.1-or-later
"""Types of module parameters: would the kernel take this value, and are two spellings the same value?

The rules are those of kernel/params.c and lib/kstrtox.c. A type that is not in the table is the module's own, and its
values are left to the kernel to judge.
"""

import re
import sys

CHARP_MAX = 1024
"""Bytes; param_set_charp refuses more."""

ALWAYS_KNOWN = frozenset({"async_probe", "dyndbg"})
"""Parameters every module accepts without declaring them (unknown_module_param_cb in kernel/module/main.c)."""

_ARRAY = "array of "
# base 0 of _parse_integer_fixup_radix: 0x and a hex digit, a leading zero for octal, else decimal.
_NUMBER = re.compile(r"(?P<sign>[+-]?)(?:0[xX](?P<hex>[0-9a-fA-F]+)|0(?P<oct>[0-7]*)|(?P<dec>[1-9][0-9]*))")
_LONG_BITS = sys.maxsize.bit_length() + 1

_RANGES: dict[str, tuple[int, int]] = {
    "byte": (0, 2**8 - 1),
    "short": (-(2**15), 2**15 - 1),
    "ushort": (0, 2**16 - 1),
    "int": (-(2**31), 2**31 - 1),
    "uint": (0, 2**32 - 1),
    "hexint": (0, 2**32 - 1),
    "long": (-(2 ** (_LONG_BITS - 1)), 2 ** (_LONG_BITS - 1) - 1),
    "ulong": (0, 2**_LONG_BITS - 1),
    "ullong": (0, 2**64 - 1),
}
_BOOLS = frozenset({"bool", "invbool", "bint", "bool_enable_only"})
KNOWN_TYPES = frozenset(_RANGES) | _BOOLS | {"charp", "string"}
"""Types whose setter is the kernel's own."""


def is_standard(kind: str) -> bool:
    """Tell whether values of this type are read and written by the kernel's own functions."""
    return kind.removeprefix(_ARRAY) in KNOWN_TYPES


def expectation(kind: str, value: str) -> str:
    """Say what the type takes instead of this value (`a whole number from 0 to 255`); empty when the value is fine."""
    if kind.startswith(_ARRAY):
        element = kind.removeprefix(_ARRAY)
        wanted = next((said for part in value.split(",") if (said := expectation(element, part))), "")
        return f"a comma-separated list, each {wanted}" if wanted else ""
    if kind in _BOOLS:
        return "" if _reads_as_bool(value) is not None else "1, 0, y, n, on or off"
    if kind in _RANGES:
        low, high = _RANGES[kind]
        number = parse_number(value)
        if number is not None and low <= number <= high and not (low == 0 and value.startswith("-")):
            return ""
        return f"a whole number from {low} to {high}"
    if kind == "charp" and len(value.encode("utf-8", "surrogatepass")) > CHARP_MAX:
        return f"a text of at most {CHARP_MAX} bytes"
    return ""


def parse_number(text: str) -> int | None:
    """Read a number as kstrtoll with base 0 does; None when it is none."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    if found["hex"]:
        number = int(found["hex"], 16)
    elif found["dec"]:
        number = int(found["dec"])
    else:
        number = int(found["oct"] or "0", 8)
    return -number if found["sign"] == "-" else number


def same_value(kind: str, given: str, live: str) -> bool:
    """Tell whether what a caller gives means what the kernel shows now."""
    if kind.startswith(_ARRAY):
        parts, shown = given.split(","), live.split(",")
        element = kind.removeprefix(_ARRAY)
        return len(parts) == len(shown) and all(map(same_value, [element] * len(parts), parts, shown))
    if given == live:
        return True
    if kind in _BOOLS:
        truth = _reads_as_bool(given)
        return truth is not None and truth == _reads_as_bool(live)
    if kind in _RANGES:
        number = parse_number(given)
        return number is not None and number == parse_number(live)
    return False


def _reads_as_bool(text: str) -> bool | None:
    # kstrtobool looks at the first letter, and at the second after an `o`.
    head = text[:1].lower()
    # `enable` and `disable` are understood by newer kernels only: left to the kernel, so not refused here.
    if head and head in "y1te":
        return True
    if head and head in "n0fd":
        return False
    if head == "o":
        return {"n": True, "f": False}.get(text[1:2].lower())
    return None
