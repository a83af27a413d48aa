# SPDX-License-Identifier: LGPL-2.1-or-later
"""Our marshalling against dbus-next's, byte by byte, and its limits."""

from contextlib import suppress
from typing import Any

import pytest
from dbus_next import Message, MessageType, Variant
from dbus_next._private.marshaller import Marshaller
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodd.dbus import message as frames
from kmodd.dbus.interface_xml import split
from kmodd.dbus.marshal import decode, encode
from kmodd.errors import InvalidArgs

TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "s": TEXT,
    "b": st.booleans(),
    "u": st.integers(0, 2**32 - 1),
    "i": st.integers(-(2**31), 2**31 - 1),
    "t": st.integers(0, 2**64 - 1),
    "y": st.integers(0, 255),
    "d": st.floats(allow_nan=False),
    "as": st.lists(TEXT, max_size=5),
    "a{ss}": st.dictionaries(TEXT, TEXT, max_size=5),
    "a(ssa{ss})": st.lists(st.tuples(TEXT, TEXT, st.dictionaries(TEXT, TEXT, max_size=2)), max_size=5),
    "a{sv}": st.dictionaries(
        TEXT,
        st.one_of(
            st.tuples(st.just("s"), TEXT),
            st.tuples(st.just("b"), st.booleans()),
            st.tuples(st.just("as"), st.lists(TEXT, max_size=3)),
        ),
        max_size=5,
    ),
}  # fmt: skip


def theirs(type_: str, value: Any) -> Any:
    """The value as dbus-next takes it."""
    if type_ == "a{sv}":
        return {key: Variant(*content) for key, content in value.items()}
    if type_ == "a(ssa{ss})":
        return [list(row) for row in value]
    return value


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4).flatmap(
    lambda types: st.tuples(st.just(types), st.tuples(*(VALUES[one] for one in types)))
))  # fmt: skip
def test_bodies_are_marshalled_as_dbus_next_does(drawn: tuple[list[str], tuple[Any, ...]]) -> None:
    types, values = drawn
    signature = "".join(types)
    marshaller: Any = Marshaller(signature, [theirs(one, value) for one, value in zip(types, values, strict=True)])
    data = encode(signature, values)
    assert data == bytes(marshaller.marshall())
    assert decode(signature, data) == list(values)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from(["s", "a{sv}", "sa{ss}a{sv}", "a(ssa{ss})a{sv}", "ssv", "y", "g"]),
    st.booleans(),
)
def test_any_bytes_are_values_or_invalid(data: bytes, signature: str, little: bool) -> None:
    # Anything else that is raised fails the test.
    with suppress(InvalidArgs):
        assert len(decode(signature, data, little=little)) == len(split(signature))


def test_text_that_is_none_is_made_sendable() -> None:
    assert decode("as", encode("as", (["a\0b", "c\udcff"],))) == [["a?b", "c?"]]


@pytest.mark.parametrize(
    ("signature", "values"),
    [
        ("s", ("x" * 4097,)),
        ("as", (["x"] * 65,)),
        ("a{ss}", ({str(number): "" for number in range(65)},)),
        ("a(ssa{ss})", ([("", "", {})] * 257,)),
        ("v", (("(s)", ("x",)),)),
    ],
)
def test_limits_hold_while_reading(signature: str, values: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidArgs):
        decode(signature, encode(signature, values))


def test_a_name_given_twice_is_refused() -> None:
    once = encode("a{ss}", ({"a": "1", "b": "2"},))
    with pytest.raises(InvalidArgs, match="twice"):
        decode("a{ss}", once.replace(b"b\0", b"a\0"))


def test_headers_are_read_as_dbus_next_writes_them() -> None:
    message = Message(
        "org.kmodd1", "/org/kmodd1", "org.kmodd1.Manager", "Load", sender=":1.7", signature="s", body=["loop"], serial=9
    )
    data = bytes(message._marshall())
    header, body = frames.lengths(data[:16])
    frame = frames.parse(data[:header], data[header:])
    assert (frame.path, frame.interface, frame.member, frame.signature) == (
        "/org/kmodd1", "org.kmodd1.Manager", "Load", "s",
    )  # fmt: skip
    assert (frame.kind, frame.serial, frame.wants_reply, frame.interactive, len(frame.body)) == (
        1,
        9,
        True,
        False,
        body,
    )


def test_replies_are_written_as_dbus_next_does() -> None:
    to = frames.ReceivedMessage(1, 0, 77, True, b"", sender=":1.42")
    theirs_ = Message(
        destination=":1.42",
        message_type=MessageType.METHOD_RETURN,
        reply_serial=77,
        signature="s",
        body=["x"],
        serial=5,
    )
    mine = frames.reply(5, to, "s", encode("s", ("x",)))
    header, _ = frames.lengths(mine[:16])
    parsed = frames.parse(mine[:header], mine[header:])
    assert (parsed.reply_serial, parsed.signature, parsed.body) == (77, "s", encode("s", ("x",)))
    assert len(mine) == len(bytes(theirs_._marshall()))


@pytest.mark.parametrize("signature", ["(", "a", "a{s", "(s", "!", "s)"])
def test_what_is_no_signature_is_refused(signature: str) -> None:
    with pytest.raises(ValueError, match="signature"):
        split(signature)
