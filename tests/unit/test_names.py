# SPDX-License-Identifier: LGPL-2.1-or-later
"""What callers may say, and what is refused at the door."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd import names
from kmodd.errors import InvalidArgs

HOSTILE = [
    "", "-", "--", "-r", ".", "..", "a/b", "./x", "/etc/passwd", "x.ko", "a" * 56, "a" * 4096, "loop\n", "\nloop",
    "lo\0op", "$(id)", "%s%n", "*", "straße", "\u202eloop", "\x1b[31mloop", "loop ", " loop", "_loop",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgs):
        names.parse_module(text)
    with pytest.raises(InvalidArgs):
        names.parse_module_or_alias(text)


@pytest.mark.parametrize(
    ("text", "name"), [("snd-hda-intel", "snd_hda_intel"), ("8021q", "8021q"), ("a" * 55, "a" * 55)]
)
def test_names_are_canonical(text: str, name: str) -> None:
    assert names.parse_module(text) == name


@pytest.mark.parametrize(
    "alias",
    [
        "pci:v00008086d00001237sv00001AF4sd00001100bc06sc00i00",
        "usb:v1D6Bp0002d0601dc09dsc00dp00ic09isc00ip00in00",
        "acpi:PNP0C0A:",
        "of:NcpusTcpuCarm,cortex-a53",
        "cpu:type:x86,ven0000fam0006mod003A:feature:,0000,0001",
    ],
)
def test_device_aliases_are_taken_as_they_are(alias: str) -> None:
    assert names.parse_module_or_alias(alias) == alias


@pytest.mark.parametrize("text", ["pci:../../x", "pci:a b", "pci:\n", ":x", "pci:", "pci:" + "a" * 600, "file:/etc/x"])
def test_aliases_are_stricter_than_text(text: str) -> None:
    with pytest.raises(InvalidArgs):
        names.parse_module_or_alias(text)


@pytest.mark.parametrize("value", ['"', 'a"b', "a\nb", "a\0b", "x\\", "\x1b[0m", "\u202e", "a" * 1025, "\ud800"])
def test_values_the_kernel_would_misread_are_refused(value: str) -> None:
    with pytest.raises(InvalidArgs) as caught:
        names.parse_parameter_value(value)
    assert value not in caught.value.message or len(value) == 1


def test_one_parameter_given_twice_is_refused() -> None:
    with pytest.raises(InvalidArgs, match="twice"):
        names.parse_parameters({"max-part": "1", "max_part": "2"})


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({}, ""),
        ({"a": "1", "b": "x y"}, 'a=1 b="x y"'),
        ({"a": "1 other=2"}, 'a="1 other=2"'),
        ({"a": "1 -- b=2"}, 'a="1 -- b=2"'),
        ({"a": ""}, 'a=""'),
    ],
)
def test_kernel_arguments_quote_what_would_split(parameters: dict[str, str], text: str) -> None:
    assert names.kernel_arguments(parameters) == text


def _next_args(text: str) -> dict[str, str]:
    """Split as next_arg in lib/cmdline.c does: spaces outside quotes separate, quotes are dropped around a value."""
    found: dict[str, str] = {}
    word, quoted = "", False
    for char in text + " ":
        if char == '"':
            quoted = not quoted
        elif char.isspace() and not quoted:
            if word:
                key, _, value = word.partition("=")
                found[key] = value
            word = ""
        else:
            word += char
    return found


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text(max_size=40), max_size=5))
def test_what_the_kernel_parses_is_what_was_said(parameters: dict[str, str]) -> None:
    try:
        parsed = names.parse_parameters(parameters)
    except InvalidArgs:
        return
    assert _next_args(names.kernel_arguments(parsed)) == parsed


@given(st.text(max_size=20))
def test_labels_come_back(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    label = names.escape_label(name)
    assert label.replace("_", "").isalnum() or label == "_"
    assert names.unescape_label(label).encode("latin-1").decode() == name


@pytest.mark.parametrize("label", ["_5", "_zz", "a__"])
def test_impossible_labels_are_refused(label: str) -> None:
    with pytest.raises(ValueError, match="not an escaped label"):
        names.unescape_label(label)
