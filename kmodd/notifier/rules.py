# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who is told of what."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from kmodd.notifier.notice import SEVERITIES, Notice


@dataclass(frozen=True, slots=True)
class Rule:
    """A filter, and the endpoints that get what passes it. An empty filter lets everything pass."""

    notify: tuple[str, ...]
    events: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    """Short error names; with them, only notices with one of these errors pass."""
    modules: tuple[str, ...] = ()
    """Patterns; with them, only notices about a module that one of them fits."""
    uids: tuple[int, ...] = ()
    """With them, only what these users asked for."""
    severity: str = "info"
    """At least this."""

    def fits(self, notice: Notice) -> bool:
        """Tell whether the notice passes."""
        return (
            (not self.events or notice.kind in self.events)
            and SEVERITIES.index(notice.severity) >= SEVERITIES.index(self.severity)
            and (not self.errors or notice.error in self.errors)
            and (not self.uids or notice.uid in self.uids)
            and (
                not self.modules
                or any(fnmatchcase(name, pattern) for name in notice.modules for pattern in self.modules)
            )
        )


def route(rules: Iterable[Rule], notice: Notice) -> tuple[str, ...]:
    """The endpoints to tell, each once."""
    found: dict[str, None] = {}
    for rule in rules:
        if rule.fits(notice):
            found.update(dict.fromkeys(rule.notify))
    return tuple(found)
