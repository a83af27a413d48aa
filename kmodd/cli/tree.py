# SPDX-License-Identifier: LGPL-2.1-or-later
"""What holds a module, as a small tree: modules, what holds those, and what in user space is at the ends."""

from collections.abc import Mapping

from kmodd.cli.screen import Screen
from kmodd.cli.text import clean, columns, shorten
from kmodd.client import Client
from kmodd.errors import KmoddError
from kmodd.model import Explanation, User

EXPLAINED_MAX = 24
"""Holders asked about; a module such as `mii` can have dozens."""
SHOWN_MAX = 40


async def holders_of(explanation: Explanation, client: Client) -> dict[str, Explanation]:
    """Explanations of the modules that hold it, directly or through others; what cannot be explained is left out."""
    found: dict[str, Explanation] = {}
    queue = list(explanation.holders)
    while queue and len(found) < EXPLAINED_MAX:
        name = queue.pop(0)
        if name in found or name == explanation.name:
            continue
        try:
            found[name] = await client.explain(name)
        except KmoddError:
            continue  # it went away, or its users could not be searched: the tree just ends here
        queue += found[name].holders
    return found


def lines(explanation: Explanation, holders: Mapping[str, Explanation], screen: Screen) -> list[str]:
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
        name = clean(user.name)
        if user.kind == "kernel":
            name, detail = "the kernel itself", detail or "nothing in user space explains the reference"
        rows.append((indent + branch, clean(user.kind), name, detail))
        if user.kind == "module" and not again and user.name in holders:
            seen.add(user.name)
            below = indent + (" " * len(screen.glyphs.trunk) if last else screen.glyphs.trunk)
            _grow(holders[user.name], holders, screen, below, seen, rows)
