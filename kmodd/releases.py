# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compares kernel releases by the version format specification of the UAPI group.

https://uapi-group.org/specifications/specs/version_format_specification/ is how systemd sorts boot entries
(strverscmp_improved in src/fundamental/string-util-fundamental.c). Linux writes its release candidates as `6.1-rc1`, which is
`6.1~rc1` there: before 6.1.
"""

import re
from functools import cmp_to_key

_CANDIDATE = re.compile(r"-(?=rc\d)")
_INVALID = re.compile(r"[^0-9A-Za-z~^.-]+")
"""Characters that count for nothing, but that they end a segment."""
_NUMBER = re.compile(r"[0-9]*")
_WORD = re.compile(r"[A-Za-z]*")


def compare(left: str, right: str) -> int:
    """Answer -1 when `left` is the older one, 1 when it is the newer one, 0 when neither is."""
    return _compare(_CANDIDATE.sub("~", left), _CANDIDATE.sub("~", right))


by_age = cmp_to_key(compare)
"""For `sorted` and comparisons: the oldest first."""


def _compare(left: str, right: str) -> int:
    while True:
        left, right = (text[_valid(text) :] for text in (left, right))
        if left.startswith("~") or right.startswith("~"):
            # Before everything, the end included.
            if left[:1] != right[:1]:
                return -1 if left.startswith("~") else 1
            left, right = left[1:], right[1:]
        if not left or not right:
            return _order(len(left) > 0, len(right) > 0)
        for separator in "-^.":
            if left.startswith(separator) or right.startswith(separator):
                if left[:1] != right[:1]:
                    return -1 if left.startswith(separator) else 1
                left, right = left[1:], right[1:]
        pattern = _NUMBER if left[:1].isdecimal() or right[:1].isdecimal() else _WORD
        first, second = _start(pattern, left), _start(pattern, right)
        order = _order_numbers(first, second) if pattern is _NUMBER else _order(first, second)
        if order:
            return order
        left, right = left[len(first) :], right[len(second) :]


def _valid(text: str) -> int:
    match = _INVALID.match(text)
    return match.end() if match else 0


def _start(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.match(text)
    return match[0] if match else ""


def _order_numbers(left: str, right: str) -> int:
    """A number is newer than none, and zeros before it do not count."""
    if not left or not right:
        return _order(left, right)
    return _order(int(left), int(right))


def _order(left: int | str, right: int | str) -> int:
    return (left > right) - (left < right)  # type: ignore[operator] # two of one kind
