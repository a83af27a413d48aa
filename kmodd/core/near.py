# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names close to one that does not exist, for "did you mean"."""

from collections.abc import Iterable

MATCHES = 3
LENGTH_MAX = 64
"""Characters; longer texts are no mistyped names, and comparing them takes the square of their length."""


def near(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """Find at most three names like this one, best first.

    Only names of about the same length that share the first letter or the last three are compared: a thousand modules
    then cost about a millisecond instead of thirty.
    """
    if len(name) > LENGTH_MAX:
        return ()
    # Imported here because only a mistyped name needs it.
    from difflib import get_close_matches

    tail = name[-3:]
    candidates = [
        other for other in names if abs(len(other) - len(name)) <= 3 and (other[:1] == name[:1] or other[-3:] == tail)
    ]
    return tuple(get_close_matches(name, candidates, n=MATCHES, cutoff=0.7))


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Spell the question, or an empty text when nothing is close."""
    found = near(name, names)
    return f"did you mean {' or '.join(found)}?" if found else ""
