# SPDX-License-Identifier: LGPL-2.1-or-later
"""What callers may say, and what is refused at the door."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd import names
from kmodd.core.surface.vulnerabilities import given_record
from kmodd.errors import InvalidArgs

HOSTILE = [
    "", "-", "--", "-r", ".", "..", "a/b", "./x", "/etc/passwd", "x.ko", "a" * 56, "a" * 4096, "loop\n", "\nloop",
    "lo\0op", "$(id)", "%s%n", "*", "straße", "\u202eloop", "\x1b[31mloop", "loop ", " loop", "_loop",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgs):
        names.parse_module(text)


@pytest.mark.parametrize("text", [text for text in HOSTILE if text not in {"a/b", "x.ko", "loop "}])
def test_paths_and_what_a_terminal_acts_on_are_no_aliases(text: str) -> None:
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
        "dmi:bvnSeaBIOS:bvrrel-1.16.2-0:bd04/01/2014:svnQEMU:pnStandardPC(Q35+ICH9,2009):pvrpc-q35:cvnQEMU:ct1:",
        "crypto-gcm(aes)",
        "devname:net/tun",
        "nfct-helper-Q.931",
        "platform:Fixed MDIO bus",
        "of:NcpusT<NULL>Carm",
        "it's",
        'say "a"',
        "cpu:type:x86,ven0002fam000Fmod006B:feature:" + "".join(f",{bit:04X}" for bit in range(400)),
    ],
)
def test_device_aliases_are_taken_as_they_are(alias: str) -> None:
    assert names.parse_module_or_alias(alias) == alias


@pytest.mark.parametrize("text", ["/etc/x", "../x", "pci:\n", ":x", "-r", "a:" + "a" * 2047, "straße", "\u202ex"])
def test_aliases_are_stricter_than_text(text: str) -> None:
    with pytest.raises(InvalidArgs):
        names.parse_module_or_alias(text)


@pytest.mark.parametrize(
    "value",
    [
        '"',
        'a"b',
        "a\nb",
        "a\0b",
        "x\\",
        "\x1b[0m",
        "\u202e",
        "a" * 1025,
        "\ud800",
        "x\xa0",
        "\xe0",
        "\u2020",
        "\u0420",
        "\u2003",
    ],
)
def test_values_the_kernel_would_misread_are_refused(value: str) -> None:
    with pytest.raises(InvalidArgs) as caught:
        names.parse_parameter_value(value)
    assert value not in caught.value.message or len(value) == 1


def test_one_parameter_given_twice_is_refused() -> None:
    with pytest.raises(InvalidArgs, match="twice"):
        names.parse_parameters({"max-part": "1", "max_part": "2"})


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


@pytest.mark.parametrize("text", ["CVE-2026-31431", "module:algif_aead", "module:esp4,esp6"])
def test_a_response_is_named_by_its_cve_or_its_modules(text: str) -> None:
    assert names.parse_response_id(text) == text
    assert ",".join(names.modules_of_response(text)) == text.partition(":")[2]


def test_the_id_of_a_response_is_canonical() -> None:
    made = given_record("", ["xt-LOG", "nft-nat"]).id
    assert names.parse_response_id("module:xt-LOG,nft-nat") == made == "module:xt_LOG,nft_nat"


@pytest.mark.parametrize("text", [*HOSTILE, "module:", "module:a,", "modules:a", "CVE-2026-1", "CVE-\u0662026-31431"])
def test_what_names_no_response_is_refused(text: str) -> None:
    assert names.modules_of_response(f"module:{text}") == () or names.is_module_name(text)
    with pytest.raises(InvalidArgs):
        names.parse_response_id(text)


@pytest.mark.parametrize("text", ["", "../x.c", "fs/../x.c", "/etc/passwd", "a.c\0", "a\n.c", "-r", "a" * 256])
def test_what_is_no_source_file_is_refused(text: str) -> None:
    assert names.parse_source_file("crypto/algif_aead.c") == "crypto/algif_aead.c"
    with pytest.raises(InvalidArgs):
        names.parse_source_file(text)
