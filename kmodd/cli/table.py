# SPDX-License-Identifier: LGPL-2.1-or-later
"""Aligned columns that fit the terminal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kmodd.cli.screen import Screen
from kmodd.cli.text import columns, shorten

GAP = 2


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    title: str
    right: bool = False
    """Align right, for numbers."""
    stretch: bool = False
    """Gives way when the terminal is narrow; at most one column, best the last."""
    paint: Callable[[str], str] | None = None
    """Colours a cell, after padding was computed."""


def render(screen: Screen, header: Sequence[Column], rows: Sequence[Sequence[str]], *, indent: int = 0) -> list[str]:
    """Lines of a table; cells are clean text. Without rows only the header."""
    widths = [max([columns(column.title), *(columns(row[n]) for row in rows)]) for n, column in enumerate(header)]
    total = indent + sum(widths) + GAP * (len(widths) - 1)
    excess = total - screen.width if screen.width else 0
    if excess > 0:
        for n, column in enumerate(header):
            if column.stretch:
                widths[n] = max(widths[n] - excess, columns(column.title), 8)
    lines = []
    if any(column.title for column in header):
        titles = [column.title for column in header]
        lines.append(_line(screen, header, widths, titles, indent, heading=True))
    lines.extend(_line(screen, header, widths, row, indent) for row in rows)
    return lines


def _line(
    screen: Screen,
    header: Sequence[Column],
    widths: Sequence[int],
    row: Sequence[str],
    indent: int,
    *,
    heading: bool = False,
) -> str:
    cells = []
    for n, (column, width, text) in enumerate(zip(header, widths, row, strict=True)):
        cell = shorten(text, width, screen.glyphs.ellipsis) if column.stretch else text
        padding = " " * (width - columns(cell))
        painted = screen.paint.bold(cell) if heading else column.paint(cell) if column.paint else cell
        last = n == len(header) - 1
        cells.append(padding + painted if column.right else painted if last else painted + padding)
    return (" " * indent + (" " * GAP).join(cells)).rstrip()
