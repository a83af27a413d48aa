# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clauses made into sentences."""


def ended(text: str) -> str:
    """With a full stop, unless it ends in a mark of its own: many a clause ends in "did you mean …?"."""
    return text if text.endswith((".", "?", "!")) else f"{text}."
