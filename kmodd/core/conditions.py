# SPDX-License-Identifier: LGPL-2.1-or-later
"""When a wish counts: on which kernel, and with which hardware."""

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from kmodd.model.desired import Wish

Aliases = Callable[[], Iterable[str]]
"""The modaliases of every device that is there now; read when a condition asks for one, never otherwise."""

_COMPARISON = re.compile(r"\s*(>=|<=|==|!=|>|<)\s*([0-9]{1,5}(?:\.[0-9]{1,5}){0,3})\s*")
_PATTERN = re.compile(r"[A-Za-z0-9_.+~*?\[\]!-]{1,64}")
_LEADING = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_COMPARED: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


def is_kernel_condition(text: str) -> bool:
    """Comparisons separated by commas (`>=6.1, <7`), or one pattern over the release (`6.1.*-cloud-amd64`)."""
    if text.lstrip()[:1] in {"<", ">", "=", "!"}:
        return all(_COMPARISON.fullmatch(part) for part in text.split(","))
    return _PATTERN.fullmatch(text) is not None


def kernel_fits(condition: str, release: str) -> bool:
    """Tell whether a release fits; of it only the numbers at its start are compared, as far as the condition gives them.

    So `<=6.1` and `==6.1` hold for 6.1.0-18-amd64 too: who writes two numbers means the series.
    """
    if condition.lstrip()[:1] not in {"<", ">", "=", "!"}:
        return fnmatchcase(release, condition)
    return all(_compare(part, release) for part in condition.split(","))


def _compare(part: str, release: str) -> bool:
    found = _COMPARISON.fullmatch(part)
    leading = _LEADING.match(release)
    if found is None or leading is None:
        return False
    wanted = tuple(map(int, found[2].split(".")))
    numbers = tuple(map(int, leading[0].split(".")))
    padded = (numbers + (0,) * len(wanted))[: len(wanted)]
    return _COMPARED[found[1]](padded, wanted)


def unmet(wish: Wish, release: str, aliases: Aliases) -> str:
    """Say which condition does not hold, as a clause; empty when all do."""
    if wish.kernel and not kernel_fits(wish.kernel, release):
        return f"the kernel {release} is not {wish.kernel}"
    if wish.alias and not any(fnmatchcase(alias, wish.alias) for alias in aliases()):
        return f"no device has an alias like {wish.alias}"
    return ""
