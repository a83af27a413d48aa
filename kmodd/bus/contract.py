# SPDX-License-Identifier: LGPL-2.1-or-later
"""The API as the XML file has it: what introspection answers and what the dispatcher is built from."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kmodd.bus.signature import split

ACTION = "org.kmodd1.Action"
OBJECTS = "org.kmodd1.Objects"
EMITS = "org.freedesktop.DBus.Property.EmitsChangedSignal"
PUBLIC = "public"
PER_OPERATION = "per-operation"
OWNER = "owner"


class ContractError(Exception):
    """The XML file and the code disagree, or the file is incomplete: the daemon must not start."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method's row."""

    interface: str
    name: str
    takes: str
    """Signature of its arguments."""
    answers: str
    """Signature of its reply."""
    actions: tuple[str, ...]
    """polkit actions that are always needed."""
    public: bool
    """Everyone may call it."""
    per_operation: bool
    """The handler names the actions, at least one."""
    owner: bool
    """Whoever owns the object needs no authorisation."""
    arguments: tuple[str, ...]
    """Names of the arguments, for messages."""

    @property
    def descriptors(self) -> int:
        """How many file descriptors it takes."""
        return self.takes.count("h")


@dataclass(frozen=True, slots=True)
class Property:
    """A property's row."""

    name: str
    signature: str
    emits: str
    """`true`, `invalidates`, `const` or `false`."""


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface with its rows and its text for introspection, comments left out."""

    name: str
    objects: str
    """Path of the object that has it; ends with `*` for one object per name; `**` for every object."""
    methods: Mapping[str, Method]
    properties: Mapping[str, Property]
    signals: Mapping[str, str]
    """Name to signature."""
    text: str


@dataclass(frozen=True, slots=True)
class Contract:
    """All interfaces, in the file's order."""

    interfaces: Mapping[str, Interface]

    def at(self, objects: str) -> tuple[Interface, ...]:
        """The interfaces of one kind of object (see `Interface.objects`), those of every object included."""
        return tuple(one for one in self.interfaces.values() if one.objects in {objects, "**"})

    @classmethod
    def parse(cls, text: str) -> "Contract":
        """Read the XML; ContractError when a member lacks its action, an interface its objects, or a signature is none."""
        try:
            root = ET.fromstring(text)  # noqa: S314 - our own file, installed by root beside the code
        except ET.ParseError as error:
            raise ContractError(f"the API's XML cannot be read: {error}") from error
        interfaces = {one.name: one for one in map(_interface, root.findall("interface"))}
        if not interfaces:
            raise ContractError("the API's XML has no interfaces")
        return cls(interfaces)


def _interface(element: ET.Element) -> Interface:
    name = _attribute(element, "name")
    objects = _annotation(element, OBJECTS)
    if objects is None:
        raise ContractError(f"{name} does not say which objects have it")
    return Interface(
        name=name,
        objects=objects,
        methods={one.name: one for one in (_method(name, child) for child in element.findall("method"))},
        properties={one.name: one for one in (_property(name, child) for child in element.findall("property"))},
        signals={_attribute(child, "name"): _signature(child, None) for child in element.findall("signal")},
        text=_text(element),
    )


def _method(interface: str, element: ET.Element) -> Method:
    name = _attribute(element, "name")
    words = (_annotation(element, ACTION) or "").split()
    named = tuple(word for word in words if word not in {PUBLIC, PER_OPERATION, OWNER})
    public, per_operation, owner = PUBLIC in words, PER_OPERATION in words, OWNER in words
    if not words or (public and len(words) > 1) or (owner and not per_operation and not named):
        raise ContractError(f"{interface}.{name} must name its polkit actions or say that it is public")
    if any(not word.startswith("org.kmodd1.") for word in named):
        raise ContractError(f"{interface}.{name} names an action that is not ours")
    arguments = tuple(arg.get("name", "") for arg in element.findall("arg") if arg.get("direction") == "in")
    takes, answers = _signature(element, "in"), _signature(element, "out")
    if public and "h" in takes:
        raise ContractError(f"{interface}.{name} takes a descriptor, and so it cannot be public")
    return Method(interface, name, takes, answers, named, public, per_operation, owner, arguments)


def _property(interface: str, element: ET.Element) -> Property:
    name = _attribute(element, "name")
    if element.get("access") != "read":
        raise ContractError(f"{interface}.{name} must be read-only: every change is a method")
    emits = _annotation(element, EMITS)
    if emits not in {"true", "invalidates", "const", "false"}:
        raise ContractError(f"{interface}.{name} does not say whether it emits a signal when it changes")
    return Property(name, _complete(_attribute(element, "type")), emits)


def _signature(element: ET.Element, direction: str | None) -> str:
    return "".join(
        _complete(_attribute(arg, "type")) for arg in element.findall("arg") if arg.get("direction") == direction
    )


def _complete(type_: str) -> str:
    try:
        if len(split(type_)) != 1:
            raise ContractError(f"{type_} is not one complete type")
    except ValueError as error:
        raise ContractError(f"{type_} is not a type: {error}") from error
    return type_


def _attribute(element: ET.Element, name: str) -> str:
    value = element.get(name)
    if not value:
        raise ContractError(f"a <{element.tag}> has no {name}")
    return value


def _annotation(element: ET.Element, name: str) -> str | None:
    return next((one.get("value") for one in element.findall("annotation") if one.get("name") == name), None)


def _text(element: ET.Element) -> str:
    """The interface as text without comments (the parser leaves them out), blank lines closed up."""
    lines: Iterator[str] = (line.rstrip() for line in ET.tostring(element, encoding="unicode").splitlines())
    return "\n".join(line for line in lines if line)
