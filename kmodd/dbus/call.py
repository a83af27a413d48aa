# SPDX-License-Identifier: LGPL-2.1-or-later
"""The values exchanged between an interface's handlers and the dispatcher."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from kmodd.errors import KmoddError
from kmodd.model import Caller

ON_BEHALF_OF = "on-behalf-of"
"""The option, and the detail polkit's rules see."""
PUBLIC_EVIDENCE, FULL_EVIDENCE = "public", "full"
"""Values of the option `evidence`: what everyone may see, and what this caller may see."""


Map = dict[str, tuple[str, Any]]
"""`a{sv}` as the encoder takes it."""


class Disclosure(Protocol):
    """Makes the arguments of error replies as far as the caller may see them: the sentence, and the evidence (`a{sv}`, by key)."""

    def message(self, error: KmoddError, uid: int | None) -> str:
        """The sentence with the names that the user `uid` could find without kmodd (None: everyone)."""

    def at_once(self, error: KmoddError, uid: int | None) -> Map:
        """What the user `uid` could find without kmodd (None: everyone)."""

    async def whole(self, error: KmoddError, caller: Caller, member: str) -> Map:
        """What polkit authorizes the caller to see, checked without a prompt."""


@dataclass(frozen=True, slots=True)
class Body:
    """An answer that is marshalled already, to be cached and sent to many."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Descriptor:
    """An open file that goes to the caller as the answer; it is closed here when it was sent."""

    file: int


@dataclass(frozen=True, slots=True)
class Target:
    """The object a call is for."""

    path: str
    label: str = ""
    """The last part of the path, for objects that there are many of."""
    asker: str = ""
    """Unique name of the caller whom the answer is for; empty for signals, which everyone hears."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request that passed validation: the details for polkit and the function to run, bound together.

    A member is called with its arguments, raises a typed error or returns this. Nothing in it can change between the
    decision and the deed.
    """

    run: Callable[[Caller], Awaitable[Any] | Any]
    """Does it. Answers the value for one result, a tuple for several, None for none, a `Body` or a `Descriptor`; directly or awaited."""
    details: Mapping[str, str] = field(default_factory=dict)
    """For polkit's rules: `module`, `modules`, `parameters`, `action` …"""
    actions: tuple[str, ...] = ()
    """Actions needed beyond those of the member's row."""
    owner: str = ""
    """Unique name of the caller that needs no authorization; used only if the row says so."""
    cancellable: bool = False
    """It only reads: it is cancelled when its caller leaves the bus."""
    dry_run: bool = False
    """Nothing is changed by it: what is granted for it is recorded once for a connection."""
    prepare: "Callable[[Caller], Awaitable[Call]] | None" = None
    """Finds out, without any right, what `details` need: the call it answers is authorised and run in place of this one. It is
    cancelled when its caller leaves the bus."""
    abandon: Callable[[], None] | None = None
    """Called at the end in every case: drops what `prepare` made and is not used."""

    @property
    def on_behalf_of(self) -> str:
        """Value of on-behalf-of, as passed to polkit; empty for none."""
        return self.details.get(ON_BEHALF_OF, "")


def unprepared(_: Caller) -> None:
    """The `run` of a call with `prepare`."""
    raise AssertionError("the result of `prepare` must be run")


Permits = Callable[[Caller, str, str, Mapping[str, str]], Awaitable[bool]]
"""`Authorizer.permits`: whether the caller may have more of a public member's answer (caller, member, action, details)."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that cannot succeed for any caller: no authorization is checked.

    A member returns it instead of a `Call` if the error depends on the caller. Whatever comes
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
