# SPDX-License-Identifier: LGPL-2.1-or-later
"""The API as defined by the XML files, for introspection, the dispatcher and clients, and its type signatures.

Only signatures of these files are parsed here, never a peer's.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path

from kmodd.fast_dataclass import dataclass

BASIC = frozenset("ybnqiuxtdsog")
ALIGNMENT = {
    "y": 1, "b": 4, "n": 2, "q": 2, "i": 4, "u": 4, "x": 8, "t": 8, "d": 8,
    "s": 4, "o": 4, "g": 1, "v": 1, "h": 4, "a": 4, "(": 8, "{": 8,
}  # fmt: skip
"""Bytes each type is aligned to (D-Bus specification, "Marshaling")."""


@lru_cache(maxsize=256)
def split(signature: str) -> tuple[str, ...]:
    """Split a signature into its complete types; ValueError when it is not one."""
    return tuple(_types(signature))


def _types(signature: str) -> Iterator[str]:
    position = 0
    while position < len(signature):
        end = _end(signature, position)
        yield signature[position:end]
        position = end


def _end(signature: str, start: int) -> int:
    while start < len(signature) and signature[start] == "a":
        start += 1
    if start >= len(signature):
        raise ValueError("a signature ends too early")
    if signature[start] not in "({":
        if signature[start] not in ALIGNMENT:
            raise ValueError("a signature has an unknown type")
        return start + 1
    depth = 0
    for position in range(start, len(signature)):
        if signature[position] in "({":
            depth += 1
        elif signature[position] in ")}":
            depth -= 1
            if depth == 0:
                return position + 1
    raise ValueError("a signature has an open bracket")


ACTION = "org.kmodd1.Action"
OPTIONS = "org.kmodd1.Options"
ERRORS = "org.kmodd1.Errors"
OBJECTS = "org.kmodd1.Objects"
EMITS = "org.freedesktop.DBus.Property.EmitsChangedSignal"
PUBLIC = "public"
PER_OPERATION = "per-operation"
OWNER = "owner"
OURS = "org.kmodd1."
MAP = "a{sv}"
# Python's packages have the files beside this one, a checkout and `make install` in dbus/, beside the package.
FOLDERS = (Path(__file__).parent, Path(__file__).parents[2] / "dbus")
"""Where the XML files are: beside this one, also in a wheel."""


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
    """The owner of the object needs no authorization."""
    arguments: tuple[str, ...]
    """Names of the arguments, for messages."""
    options: Mapping[str, str] | None
    """Name to type of every key of its last argument, `a{sv} options`; None where it has no such argument."""
    errors: tuple[str, ...]
    """Short names of the errors it may answer beyond those of every member."""
    short: str
    """Signature of a call without the options, which may be left out: the same as `takes` where there are none."""
    descriptors: int
    """How many file descriptors it takes."""


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

    def method(self, interface: str, member: str) -> Method:
        """The row of a method; KeyError when there is none."""
        return self.interfaces[interface].methods[member]

    def at(self, objects: str) -> tuple[Interface, ...]:
        """The interfaces of one kind of object (see `Interface.objects`), those of every object included."""
        return tuple(interface for interface in self.interfaces.values() if interface.objects in {objects, "**"})

    @classmethod
    def parse(cls, text: str) -> "Contract":
        """Read the XML; ContractError when a member lacks its action, an interface its objects, or a signature is none."""
        try:
            root = ET.fromstring(text)  # noqa: S314 - our own file, installed by root beside the code
        except ET.ParseError as error:
            raise ContractError(f"cannot read the API's XML: {error}") from error
        interfaces = {interface.name: interface for interface in map(_interface, root.findall("interface"))}
        if not interfaces:
            raise ContractError("the API's XML has no interfaces")
        return cls(interfaces)


def _interface(element: ET.Element) -> Interface:
    name = _attribute(element, "name")
    objects = _annotation(element, OBJECTS)
    if objects is None:
        raise ContractError(f"{name} lacks the annotation of its objects")
    return Interface(
        name=name,
        objects=objects,
        methods={method.name: method for method in (_method(name, child) for child in element.findall("method"))},
        properties={each.name: each for each in (_property(name, child) for child in element.findall("property"))},
        signals={_attribute(child, "name"): _signature(child, None) for child in element.findall("signal")},
        text=_text(element),
    )


def _method(interface: str, element: ET.Element) -> Method:
    name = _attribute(element, "name")
    words = (_annotation(element, ACTION) or "").split()
    named = tuple(word for word in words if word not in {PUBLIC, PER_OPERATION, OWNER})
    public, per_operation, owner = PUBLIC in words, PER_OPERATION in words, OWNER in words
    if not words or (public and len(words) > 1) or (owner and not per_operation and not named):
        raise ContractError(f"{interface}.{name} must name its polkit actions or public")
    if any(not word.startswith("org.kmodd1.") for word in named):
        raise ContractError(f"{interface}.{name} names an unknown action")
    arguments = tuple(arg.get("name", "") for arg in element.findall("arg") if arg.get("direction") == "in")
    takes, answers = _signature(element, "in"), _signature(element, "out")
    if public and "h" in takes:
        raise ContractError(f"{interface}.{name} takes a descriptor, so it cannot be public")
    options = _options(
        interface, name, element, has=bool(arguments) and arguments[-1] == "options" and takes.endswith(MAP)
    )
    errors = tuple((_annotation(element, ERRORS) or "").split())
    return Method(
        interface,
        name,
        takes,
        answers,
        named,
        public,
        per_operation,
        owner,
        arguments,
        options,
        errors,
        short=takes if options is None else takes.removesuffix(MAP),
        descriptors=takes.count("h"),
    )


def _options(interface: str, name: str, element: ET.Element, *, has: bool) -> Mapping[str, str] | None:
    listed = [entry.split() for entry in (_annotation(element, OPTIONS) or "").split(",") if entry.strip()]
    if not has:
        if listed or interface.startswith(OURS):
            raise ContractError(f"{interface}.{name} must end in the argument options of type {MAP}")
        return None
    if any(len(entry) != 2 for entry in listed) or len({entry[0] for entry in listed}) != len(listed):
        raise ContractError(f"{interface}.{name}: each option is a name and a type, and is listed once")
    return {key: _complete(type_) for key, type_ in listed}


def _property(interface: str, element: ET.Element) -> Property:
    name = _attribute(element, "name")
    if element.get("access") != "read":
        raise ContractError(f"{interface}.{name} must be read-only: every change is a method")
    emits = _annotation(element, EMITS)
    if emits not in {"true", "invalidates", "const", "false"}:
        raise ContractError(f"{interface}.{name} lacks the annotation EmitsChangedSignal")
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
    return next(
        (annotation.get("value") for annotation in element.findall("annotation") if annotation.get("name") == name),
        None,
    )


def _text(element: ET.Element) -> str:
    """The interface as text without comments (the parser leaves them out), blank lines closed up."""
    lines: Iterator[str] = (line.rstrip() for line in ET.tostring(element, encoding="unicode").splitlines())
    return "\n".join(line for line in lines if line)


@cache
def installed(name: str = "org.kmodd1") -> Contract:
    """The API of the service of this bus name, as it is installed with this code; read once. FileNotFoundError."""
    paths = [folder / f"{name}.xml" for folder in FOLDERS]
    return Contract.parse(next(filter(Path.exists, paths), paths[-1]).read_text(encoding="utf-8"))
