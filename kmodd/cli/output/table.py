# SPDX-License-Identifier: LGPL-2.1-or-later
"""Aligned columns that fit the terminal, and the tree of what uses a module."""

from collections.abc import Callable, Mapping, Sequence

from kmodd.cli.output.screen import Screen
from kmodd.cli.output.text import clean, columns, shorten
from kmodd.client import Client
from kmodd.errors import KmoddError
from kmodd.fast_dataclass import dataclass
from kmodd.model import Explanation, User

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


EXPLAINED_MAX = 24
"""Maximum number of holders queried; a module such as `mii` can have dozens."""
SHOWN_MAX = 40


async def holders_of(explanation: Explanation, client: Client) -> dict[str, Explanation]:
    """Explanations of the modules that hold it, directly or through others; what cannot be explained is left out."""
    explanations: dict[str, Explanation] = {}
    queue = list(explanation.holders)
    while queue and len(explanations) < EXPLAINED_MAX:
        name = queue.pop(0)
        if name in explanations or name == explanation.name:
            continue
        try:
            explanations[name] = await client.explain(name)
        except KmoddError:
            continue  # it went away, or its users could not be searched: the tree just ends here
        queue += explanations[name].holders
    return explanations


def holder_lines(explanation: Explanation, holders: Mapping[str, Explanation], screen: Screen) -> list[str]:
    """The tree below a module; each module's own holders are shown once."""
    rows: list[tuple[str, str, str, str]] = []
    _grow(explanation, holders, screen, "", {explanation.name}, rows)
    hidden = len(rows) - SHOWN_MAX
    rows = rows[:SHOWN_MAX]
    kinds = max((columns(prefix) + columns(kind) for prefix, kind, _, _ in rows), default=0)
    names = max((columns(name) for _, _, name, _ in rows), default=0)
    paint = screen.paint
    text = []
    for prefix, kind, name, detail in rows:
        gap = " " * (kinds - columns(prefix) - columns(kind) + 2)
        room = screen.fits(kinds + names + 8)
        shown = shorten(detail, room, screen.glyphs.ellipsis) if room is not None else detail
        padded = paint.name(name) + " " * (names - columns(name))
        text.append(f"{paint.dim(prefix)}{kind}{gap}{padded}  {paint.dim(shown)}".rstrip())
    if hidden > 0:
        text.append(paint.dim(f"{screen.glyphs.ellipsis} and {hidden} more"))
    return text


def _grow(
    explanation: Explanation,
    holders: Mapping[str, Explanation],
    screen: Screen,
    indent: str,
    seen: set[str],
    rows: list[tuple[str, str, str, str]],
) -> None:
    named = {user.name for user in explanation.users if user.kind == "module"}
    modules = [User("module", name, "") for name in explanation.holders if name not in named]
    users = [*modules, *explanation.users]
    for position, user in enumerate(users):
        last = position == len(users) - 1
        branch = screen.glyphs.last if last else screen.glyphs.branch
        again = user.kind == "module" and user.name in seen
        detail = "see above" if again else clean(user.detail)
        if user.file:
            detail += f", {clean(user.file)}:{user.line}"
        name = clean(user.name)
        if user.kind == "kernel":
            name, detail = "the kernel itself", detail or "nothing in user space explains the reference"
        rows.append((indent + branch, clean(user.kind), name, detail))
        if user.kind == "module" and not again and user.name in holders:
            seen.add(user.name)
            below = indent + (" " * len(screen.glyphs.trunk) if last else screen.glyphs.trunk)
            _grow(holders[user.name], holders, screen, below, seen, rows)
