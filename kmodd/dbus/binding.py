# SPDX-License-Identifier: LGPL-2.1-or-later
"""Binds every member of the contract to the handler of the same name; a missing or surplus handler stops the daemon.

An interface's members are the public methods of one class: `SetParameter` is `set_parameter`, the property `LoadedCount`
is `loaded_count`; a Python keyword gets a `_` (`Import` is `import_`). Where there are many objects of a kind, the first
argument is the `Target`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any, Protocol

from kmodd.dbus.call import Call, Refusal
from kmodd.dbus.interface_xml import Contract, ContractError, Interface, Method, Property

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Members(Protocol):
    """An object whose public methods are the members of one interface."""

    @property
    def interface(self) -> str:
        """The interface's name."""


@dataclass(frozen=True, slots=True)
class BoundMethod:
    """A method with its handler."""

    row: Method
    handler: Callable[..., Call | Refusal]
    targeted: bool
    """The handler wants the `Target` first."""


@dataclass(frozen=True, slots=True)
class BoundProperty:
    """A property with what reads it."""

    row: Property
    read: Callable[..., Any]
    targeted: bool


@dataclass(frozen=True, slots=True)
class BoundInterface:
    """An interface with all its handlers."""

    contract: Interface
    methods: Mapping[str, BoundMethod]
    properties: Mapping[str, BoundProperty]


def snake_case(name: str) -> str:
    """`GetMachineId` → `get_machine_id`, `LoadDurationUSec` → `load_duration_usec`."""
    word = _WORD.sub("_", name.replace("USec", "Usec")).lower()
    return f"{word}_" if iskeyword(word) else word


def bind(contract: Contract, implementations: Iterable[Members]) -> Mapping[str, BoundInterface]:
    """Tie them together; ContractError names the member without handler, or the handler without member."""
    by_name = {one.interface: one for one in implementations}
    missing = set(contract.interfaces) ^ set(by_name)
    if missing:
        raise ContractError(f"interfaces only in the XML or only in the code: {', '.join(sorted(missing))}")
    return {name: _bind(contract.interfaces[name], members) for name, members in by_name.items()}


def _bind(interface: Interface, members: Members) -> BoundInterface:
    wanted = {snake_case(name): name for name in (*interface.methods, *interface.properties)}
    present = {name for name in dir(type(members)) if not name.startswith("_")} - {"interface"}
    if len(wanted) != len(interface.methods) + len(interface.properties):
        raise ContractError(f"{interface.name}: a method and a property have the same handler")
    for name in sorted(set(wanted) - present):
        raise ContractError(f"{interface.name}.{wanted[name]} has no handler {name}")
    for name in sorted(present - set(wanted)):
        raise ContractError(f"{interface.name} has no member for the handler {name}")
    targeted = interface.objects.endswith("*")
    return BoundInterface(
        interface,
        {
            name: BoundMethod(row, getattr(members, snake_case(name)), targeted)
            for name, row in interface.methods.items()
        },
        {
            name: BoundProperty(row, getattr(members, snake_case(name)), targeted)
            for name, row in interface.properties.items()
        },
    )


def read(one: BoundProperty, target: object) -> tuple[str, Any]:
    """A property's value as a variant."""
    return one.row.signature, one.read(target) if one.targeted else one.read()
