# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make the manual page org.kmodd1(5) from dbus/org.kmodd1.xml, whose comments are the API's only documentation.

usage: python3 docs/org_kmodd1.py dbus/org.kmodd1.xml > org.kmodd1.5

Needs nothing but the standard library, so that it runs wherever kmodd is installed from source. A member without
documentation, or an argument that is not described, is an error. The form of the comments is described in the XML.
"""

import re
import sys
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HEADINGS = ("Options", "Keys", "Errors", "Security")
ACTION = "org.kmodd1.Action"
OBJECTS = "org.kmodd1.Objects"
EMITS = "org.freedesktop.DBus.Property.EmitsChangedSignal"
EMITTED = {"const": "never changes", "false": "changes without a signal", "true": "changes are signalled"}


class DocumentationError(Exception):
    """The XML lacks something, or documents what is not there."""


@dataclass
class Comment:
    """A parsed documentation comment."""

    arguments: dict[str, str] = field(default_factory=dict)
    paragraphs: list[str] = field(default_factory=list)
    sections: dict[str, list[str]] = field(default_factory=dict)


def main(arguments: list[str]) -> int:
    """Write the page to standard output."""
    if len(arguments) != 1:
        print((__doc__ or "").strip(), file=sys.stderr)  # noqa: T201 - a script
        return 2
    lines = page(Path(arguments[0]).read_text(encoding="utf-8"))
    print("\n".join(part for line in tidy(lines) for part in folded(line)))  # noqa: T201 - a script
    return 0


def page(text: str) -> Iterator[str]:
    """The page's lines of roff, man(7)."""
    node = ET.fromstring(text, parser=ET.XMLParser(target=ET.TreeBuilder(insert_comments=True)))  # noqa: S314 - our own
    interfaces = list(documented(node, "interface"))
    yield "'\\\" t"  # tells man(1) to run tbl
    yield '.\\" Made by docs/org_kmodd1.py from dbus/org.kmodd1.xml. Do not edit.'
    yield '.TH ORG.KMODD1 5 2026-11-23 kmodd "D\\-Bus API"'
    yield from (".SH NAME", "org.kmodd1 \\- the D\\-Bus API of kmodd", ".SH SYNOPSIS", ".nf")
    yield "\\fBorg.kmodd1\\fR on the system bus"
    yield "\\fBbusctl introspect org.kmodd1 /org/kmodd1\\fR"
    yield ".fi"
    yield from (".SH DESCRIPTION", ".TS", "tab(|);", "lB lB", "l l.", "Interface|Objects")
    for interface, _ in interfaces:
        yield f"{roff(interface.attrib['name'])}|{roff(objects(interface))}"
    yield ".TE"
    yield ".PP"
    yield "Signatures are written as the D\\-Bus specification has them; arguments come before the arrow, answers after it."
    for interface, comment in interfaces:
        yield f".SH {roff(interface.attrib['name'].upper())}"
        yield from prose(comment)
        for kind in ("method", "signal", "property"):
            for member, about in documented(interface, kind):
                yield from describe(kind, member, about)
    yield from (".SH SEE ALSO", ".BR kmodd (8),", ".BR kmodctl (1),", ".BR busctl (1),", ".BR polkit (8)")


def documented(parent: ET.Element, kind: str) -> Iterator[tuple[ET.Element, Comment]]:
    """Children of a kind, each with the comment right before it."""
    comment = ""
    for child in parent:
        tag: object = child.tag  # of a comment the function ET.Comment, whatever typeshed says
        if tag == kind:
            name = child.attrib["name"]
            if not comment.startswith(f"{name}:"):
                raise DocumentationError(f"{kind} {name} has no comment that starts with '{name}:' right before it")
            yield child, parse(comment, name)
        comment = (child.text or "").strip() if tag is ET.Comment else ""


def parse(text: str, name: str) -> Comment:
    """Parse a documentation comment."""
    comment = Comment()
    lines = [line.strip() if line.strip().startswith("@") else line for line in text.strip().splitlines()[1:]]
    block: list[str] = []
    for line in [*lines, ""]:
        if line.startswith("@"):
            _close(block, comment)
            block = [line]
        elif line.strip():
            block.append(line)
        else:
            _close(block, comment)
            block = []
    if not comment.paragraphs and not comment.arguments:
        raise DocumentationError(f"{name} is not described")
    return comment


def _close(block: list[str], comment: Comment) -> None:
    if not block:
        return
    if block[0].startswith("@"):
        argument, _, said = " ".join(line.strip() for line in block)[1:].partition(":")
        comment.arguments[argument.strip()] = said.strip()
        return
    heading, colon, rest = block[0].strip().partition(":")
    if colon and heading in HEADINGS:
        comment.sections.setdefault(heading, []).extend(_items([rest, *block[1:]]))
    else:
        comment.paragraphs.extend(_items(block))


def _items(lines: list[str]) -> list[str]:
    """Join continued lines; list items keep their `- `."""
    items: list[str] = []
    for line in lines:
        words = line.strip()
        if words.startswith("- ") or not items:
            items.append(words)
        else:
            items[-1] = f"{items[-1]} {words}".strip()
    return [item for item in items if item]


def objects(interface: ET.Element) -> str:
    """The objects that have an interface, as people write them."""
    path = annotations(interface).get(OBJECTS, "")
    return "every object" if path == "**" else path.replace("*", "NAME" if "module" in path else "ID")


def annotations(element: ET.Element) -> dict[str, str]:
    """An element's own annotations."""
    return {found.attrib["name"]: found.attrib["value"] for found in element.findall("annotation")}


def describe(kind: str, member: ET.Element, comment: Comment) -> Iterator[str]:
    """One method, signal or property."""
    name = member.attrib["name"]
    if kind == "property":
        yield f".SS {roff(name)} {roff(member.attrib['type'])}"
        yield from prose(comment)
        yield ".PP"
        yield f"Property, read\\-only, {EMITTED[annotations(member).get(EMITS, 'true')]}."
        return
    arguments = member.findall("arg")
    listed = {argument.attrib["name"] for argument in arguments}
    if listed != comment.arguments.keys():
        raise DocumentationError(f"{name}: described {sorted(comment.arguments)}, has {sorted(listed)}")
    inputs = [signature(found) for found in arguments if found.attrib.get("direction") == "in" or kind == "signal"]
    outputs = [signature(found) for found in arguments if found.attrib.get("direction") == "out"]
    arrow = f" \\(-> {', '.join(outputs)}" if outputs else ""
    yield f".SS {roff(name)}({', '.join(inputs)}){arrow}"
    yield from prose(comment, before=kind.capitalize())
    for argument in arguments:
        yield ".TP"
        yield f"\\fI{roff(argument.attrib['name'])}\\fR"
        yield roff(comment.arguments[argument.attrib["name"]])
    yield from sections(comment)
    if kind == "method":
        yield ".PP"
        yield f"Authorisation: {authorisation(annotations(member).get(ACTION, ''), name)}"


def signature(argument: ET.Element) -> str:
    """`s module`, for a heading."""
    return f"{roff(argument.attrib['type'])} {roff(argument.attrib['name'])}"


def authorisation(action: str, name: str) -> str:
    """Who may call, in words."""
    if not action:
        raise DocumentationError(f"method {name} names no action")
    if action == "public":
        return "none, everyone may call it."
    if "per-operation" in action:
        return "what its operations need." + (" None for the owner." if action.startswith("owner") else "")
    return " and ".join(f"\\fB{roff(word)}\\fR" for word in action.split()) + "."


def prose(comment: Comment, before: str = "") -> Iterator[str]:
    """The paragraphs, and for what has no arguments its sections."""
    for paragraph in comment.paragraphs:
        yield from item(paragraph)
    if not before:
        yield from sections(comment)


def sections(comment: Comment) -> Iterator[str]:
    """Options, Keys, Errors and Security under their headings."""
    for heading in HEADINGS:
        if heading in comment.sections:
            yield ".PP"
            yield f"\\fB{heading}\\fR"
            for paragraph in comment.sections[heading]:
                yield from item(paragraph)


def item(text: str) -> Iterator[str]:
    """A paragraph or an item of a list."""
    if text.startswith("- "):
        yield ".IP \\(bu 2"
        yield roff(text[2:])
    else:
        yield ".PP"
        yield roff(text)


def tidy(lines: Iterable[str]) -> Iterator[str]:
    """Leave out paragraph breaks right after a heading, which roff skips with a warning."""
    previous = ""
    for line in lines:
        if line != ".PP" or not previous.startswith((".SH", ".SS")):
            yield line
        previous = line


def folded(line: str) -> list[str]:
    """A text line in pieces that editors and linters like; requests stay whole."""
    if line.startswith((".", "'")) or len(line) < 80:
        return [line]
    parts = textwrap.wrap(line, 79, break_long_words=False, break_on_hyphens=False)
    return ["\\&" + part if part.startswith((".", "'")) else part for part in parts]


def roff(text: str) -> str:
    """Escape for roff, and set what is between backquotes in bold."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...").replace("'", "\\(aq")
    escaped = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", escaped)
    return "\\&" + escaped if escaped.startswith(".") else escaped


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
