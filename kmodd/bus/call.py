# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an interface's members and the dispatcher exchange."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kmodd.model import Caller

ON_BEHALF_OF = "on-behalf-of"
"""The option, and the detail polkit's rules see."""


@dataclass(frozen=True, slots=True)
class Body:
    """An answer that is marshalled already, to be cached and sent to many."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Target:
    """The object a call is for."""

    path: str
    label: str = ""
    """The last part of the path, for objects that there are many of."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request that passed validation: what polkit is told, and what is then done, bound together.

    A member is called with its arguments, raises a typed error or returns this. Nothing in it can change between the
    decision and the deed.
    """

    run: Callable[[Caller], Awaitable[Any] | Any]
    """Does it. Answers the value for one result, a tuple for several, None for none, or a `Body`; directly or awaited."""
    details: Mapping[str, str] = field(default_factory=dict)
    """For polkit's rules: `module`, `modules`, `parameters`, `action` …"""
    actions: tuple[str, ...] = ()
    """Actions needed beyond those of the member's row."""
    owner: str = ""
    """Unique name of whoever needs no authorisation; looked at only where the row says so."""
    cancellable: bool = False
    """It only reads: it is cancelled when its caller leaves the bus."""
    prepare: "Callable[[Caller], Awaitable[Call]] | None" = None
    """Finds out, without any right, what `details` need: the call it answers is authorised and run in place of this one. It is
    cancelled when its caller leaves the bus."""
    abandon: Callable[[], None] = field(default=lambda: None)
    """Called at the end, whatever it was: drops what `prepare` made and nobody wanted."""

    @property
    def on_behalf_of(self) -> str:
        """Whom the caller says to ask for, as polkit is told; empty for itself."""
        return self.details.get(ON_BEHALF_OF, "")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that cannot succeed, whoever asks: nobody is asked to authorise it.

    A member returns it in place of a `Call` where the error has to be told by somebody who knows the caller. Whatever comes
    of it, the caller gets an error.
    """

    error: Callable[[Caller], Awaitable[Exception]]
    on_behalf_of: str = ""
    """Whom the caller says to ask for."""


class StandardError(Exception):
    """An error whose name the D-Bus specification itself defines, such as `UnknownMethod`; constant text."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = "org.freedesktop.DBus.Error." + name
        self.message = message
