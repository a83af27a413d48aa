# SPDX-License-Identifier: LGPL-2.1-or-later
"""The API's XML and the handlers fit together, and where they do not the daemon does not start."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from kmodd.api.configuration import ConfigurationInterface
from kmodd.api.manager import ManagerInterface
from kmodd.api.module import JobInterface, ModuleInterface
from kmodd.api.standard import IntrospectableInterface, ObjectManagerInterface, PeerInterface, PropertiesInterface
from kmodd.api.store import StoreInterface
from kmodd.api.surface import SurfaceInterface
from kmodd.dbus.call import Call
from kmodd.dbus.interface_xml import Contract, ContractError
from kmodd.dbus.object_tree import bind, snake_case

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "dbus/org.kmodd1.xml").read_text()
CLASSES: tuple[Any, ...] = (
    ManagerInterface,
    ModuleInterface,
    JobInterface,
    ConfigurationInterface,
    StoreInterface,
    SurfaceInterface,
    ObjectManagerInterface,
    PropertiesInterface,
    IntrospectableInterface,
    PeerInterface,
)


def implementations() -> list[Any]:
    """Every class without what it delegates to: binding calls nothing."""
    return [one.__new__(one) for one in CLASSES]


def small(member: str, annotation: str = '<annotation name="org.kmodd1.Action" value="public"/>') -> str:
    return (
        '<node><interface name="org.example.One"><annotation name="org.kmodd1.Objects" value="/one"/>'
        f'<method name="{member}">{annotation}</method></interface></node>'
    )


class One:
    """An implementation with one handler."""

    interface = "org.example.One"

    def do_it(self) -> Call:
        return Call(lambda _: None)


def test_every_member_has_a_handler_and_every_handler_a_member() -> None:
    bound = bind(Contract.parse(TEXT), implementations())
    assert bound["org.kmodd1.Manager"].methods["SetParameter"].row.actions == ("org.kmodd1.set-parameter",)
    assert all(
        method.row.public or method.row.actions or method.row.per_operation
        for interface in bound.values()
        for method in interface.methods.values()
    )


@pytest.mark.parametrize("member", ["Load", "GetHealth"])
def test_a_member_without_handler_stops_the_daemon(member: str) -> None:
    with pytest.raises(ContractError, match=r"Do\w+ has no handler"):
        bind(
            Contract.parse(TEXT.replace(f'<method name="{member}">', '<method name="DoSomething">')), implementations()
        )


def test_a_handler_without_member_stops_the_daemon() -> None:
    text = re.sub(r'<method name="Plan">.*?</method>', "", TEXT, flags=re.DOTALL)
    with pytest.raises(ContractError, match="no member for the handler plan"):
        bind(Contract.parse(text), implementations())


def test_an_interface_without_implementation_stops_the_daemon() -> None:
    with pytest.raises(ContractError, match=r"org\.kmodd1\.Manager"):
        bind(Contract.parse(TEXT), implementations()[1:])


@pytest.mark.parametrize(
    "annotation",
    [
        "",
        '<annotation name="org.kmodd1.Action" value=""/>',
        '<annotation name="org.kmodd1.Action" value="owner"/>',
        '<annotation name="org.kmodd1.Action" value="public org.kmodd1.load"/>',
        '<annotation name="org.kmodd1.Action" value="org.example.anything"/>',
    ],
)
def test_a_member_without_action_stops_the_daemon(annotation: str) -> None:
    with pytest.raises(ContractError):
        bind(Contract.parse(small("DoIt", annotation)), [One()])


def test_a_small_contract_is_bound() -> None:
    bound = bind(Contract.parse(small("DoIt")), [One()])
    assert bound["org.example.One"].methods["DoIt"].row.public


@pytest.mark.parametrize("text", ["", "<node>", "<node/>", TEXT.replace('access="read"', 'access="readwrite"', 1)])
def test_an_unreadable_file_stops_the_daemon(text: str) -> None:
    with pytest.raises(ContractError):
        Contract.parse(text)


def test_everything_is_documented() -> None:
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))  # noqa: S314 - our own file
    root = ET.fromstring(TEXT, parser)  # noqa: S314 - our own file
    seen = 0
    for parent in root.iter():
        if parent is not root and parent.tag != "interface":
            continue
        children = list(parent)
        for before, element in zip([None, *children], children, strict=False):
            if element.tag not in {"interface", "method", "signal", "property"}:
                continue
            assert before is not None, element.get("name")
            assert callable(before.tag), f"{element.get('name')} has no comment right before it"
            lines = (before.text or "").strip().splitlines()
            assert lines[0] == f"{element.get('name')}:"
            named = {line.strip().split(":")[0][1:] for line in lines if line.strip().startswith("@")}
            assert named == {arg.get("name") for arg in element.findall("arg")}, element.get("name")
            assert len(lines) > 2
            seen += 1
    assert seen > 60


@pytest.mark.parametrize(
    ("name", "handler"),
    [
        ("Load", "load"),
        ("SetParameter", "set_parameter"),
        ("LoadDurationUSec", "load_duration_usec"),
        ("GetMachineId", "get_machine_id"),
    ],
)
def test_handlers_are_named_in_snake_case(name: str, handler: str) -> None:
    assert snake_case(name) == handler
