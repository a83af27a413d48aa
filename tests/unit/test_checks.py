# SPDX-License-Identifier: LGPL-2.1-or-later
"""Types of parameters, as kernel/params.c and lib/kstrtox.c see them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.core.planning.parameters import expectation, is_standard, parse_number, same_value


@pytest.mark.parametrize(
    "value", ["1", "0", "y", "n", "Y", "N", "on", "off", "ON", "oF", "t", "F", "yes", "no", "true"]
)
@pytest.mark.parametrize("kind", ["bool", "invbool", "bint"])
def test_truths_the_kernel_reads(kind: str, value: str) -> None:
    assert expectation(kind, value) == ""


@pytest.mark.parametrize("value", ["", "2", "o", "ox", "-1", " 1", "maybe"])
def test_truths_the_kernel_refuses(value: str) -> None:
    assert expectation("bool", value) == "1, 0, y, n, on or off"


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("byte", 0, 255),
        ("short", -32768, 32767),
        ("ushort", 0, 65535),
        ("int", -(2**31), 2**31 - 1),
        ("uint", 0, 2**32 - 1),
        ("hexint", 0, 2**32 - 1),
        ("long", -(2**63), 2**63 - 1),
        ("ulong", 0, 2**64 - 1),
        ("ullong", 0, 2**64 - 1),
    ],
)
def test_range_of_each_whole_number(kind: str, low: int, high: int) -> None:
    assert expectation(kind, str(low)) == expectation(kind, str(high)) == ""
    wanted = f"an integer from {low} to {high}"
    assert expectation(kind, str(low - 1)) == expectation(kind, str(high + 1)) == wanted


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("00", 0),
        ("10", 10),
        ("+5", 5),
        ("-5", -5),
        ("0x10", 16),
        ("0X1f", 31),
        ("-0x1F", -31),
        ("010", 8),
        ("08", None),
        ("0x", None),
        ("0xg", None),
        ("", None),
        ("-", None),
        ("+-5", None),
        ("1_000", None),
        ("1 ", None),
        ("1\n", None),
        ("1.0", None),
        ("\u0661", None),
    ],
)
def test_number_as_kstrtoll_reads_it(text: str, number: int | None) -> None:
    assert parse_number(text) == number


def test_minus_zero_is_refused_by_unsigned_types() -> None:
    assert expectation("uint", "-0") != ""
    assert expectation("int", "-0") == ""


@pytest.mark.parametrize("value", ["1", "1,2", "1,-2,0x3"])
def test_array_of_numbers(value: str) -> None:
    assert expectation("array of int", value) == ""


@pytest.mark.parametrize("value", ["", "1,", ",1", "1,x", "1 2", "1, 2"])
def test_array_with_an_element_the_kernel_refuses(value: str) -> None:
    assert expectation("array of int", value).startswith("a comma-separated list, each an integer from -2147483648")


def test_charp_ends_at_1024_bytes() -> None:
    assert expectation("charp", "x" * 1024) == ""
    assert expectation("charp", "x" * 1025) == expectation("charp", "\u00e4" * 513) == "a string of at most 1024 bytes"


@pytest.mark.parametrize("kind", ["string", "array of charp", "", "mode_t", "array of mode_t"])
def test_texts_and_types_of_the_modules_own_are_left_to_the_kernel(kind: str) -> None:
    assert expectation(kind, "anything, really") == ""


@pytest.mark.parametrize(
    ("kind", "given_value", "live"),
    [
        ("bool", "1", "Y"),
        ("bool", "off", "N"),
        ("int", "0x10", "16"),
        ("hexint", "31", "0x1f"),
        ("charp", "x", "x"),
        ("array of int", "1,0x2", "1,2"),
        ("array of bool", "1,0", "Y,N"),
        ("", "same", "same"),
    ],
)
def test_other_spelling_of_the_same_value(kind: str, given_value: str, live: str) -> None:
    assert same_value(kind, given_value, live)


@pytest.mark.parametrize(
    ("kind", "given_value", "live"),
    [
        ("bool", "1", "N"),
        ("int", "1", "2"),
        ("charp", "1", "01"),
        ("array of int", "1", "1,2"),
        ("own", "1", "0x1"),
        ("int", "x", "y"),
    ],
)
def test_other_values(kind: str, given_value: str, live: str) -> None:
    assert not same_value(kind, given_value, live)


def test_types_the_kernel_itself_reads() -> None:
    assert is_standard("int")
    assert is_standard("array of charp")
    assert not is_standard("")
    assert not is_standard("mode_t")


@given(st.integers(-(2**31), 2**31 - 1))
def test_every_int_is_an_int_in_any_spelling(number: int) -> None:
    sign = "-" if number < 0 else ""
    for text in (str(number), f"{sign}0x{abs(number):x}", f"{sign}0{abs(number):o}"):
        assert expectation("int", text) == ""
        assert same_value("int", text, str(number))


@given(st.text(max_size=40), st.sampled_from(["bool", "int", "array of int", "charp", "own"]))
def test_no_text_breaks_the_check(text: str, kind: str) -> None:
    assert isinstance(expectation(kind, text), str)
    assert same_value(kind, text, text)
