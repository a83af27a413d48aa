# SPDX-License-Identifier: LGPL-2.1-or-later
"""Parameters as text: whatever is checked and shown is what the kernel reads, which a compiled account of its rules says."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kmodd.api.polkit_details import details
from kmodd.core.planning.parameters import effective, read_options
from kmodd.core.planning.planner import Planner
from kmodd.errors import InvalidArgs
from kmodd.kernel.modprobe.modprobe_d import parse_rules
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import SimulatedModule, parameter
from kmodd.model.arguments import Arguments, displayed, encoded, read, shown, spell
from kmodd.names import parse_parameters
from tests.kernel.kernel_arguments import KernelArguments
from tests.unit.fakes import SeenValues, load, request

names = st.from_regex(r"[a-zA-Z0-9_][a-z0-9_.-]{0,7}", fullmatch=True)
# Letters that mean something to one reader or another, and characters whose UTF-8 ends in the byte 0xA0.
hostile = st.text(
    st.one_of(st.sampled_from(' "=-\\#\t\n\v\f\r\0\xa0\x85àР†\u2003\u202f'), st.characters()), max_size=20
)
hostile_bytes = st.lists(
    st.one_of(st.sampled_from([bytes([byte]) for byte in b'a=" -\t\v\xa0\xc3#\\']), st.binary(min_size=1, max_size=2)),
    max_size=16,
).map(b"".join)


@pytest.fixture(scope="module")
def kernel() -> KernelArguments:
    return KernelArguments()


def as_bytes(pairs: Arguments) -> list[tuple[bytes, bytes | None]]:
    return [(encoded(name), None if value is None else encoded(value)) for name, value in pairs]


# --- what callers give ------------------------------------------------------------------------------------------------


@given(st.dictionaries(names, hostile, max_size=4))
@example({"fw_path": "x†enable_unsafe=1"})
@example({"dyndbg": "+pànumdummies=5"})
@example({"a": "1 -- b=2", "c": "--"})
def test_the_kernel_reads_what_polkit_has_checked(kernel: KernelArguments, parameters: dict[str, str]) -> None:
    try:
        parsed = parse_parameters(parameters)
    except InvalidArgs:
        return
    machine = SimulatedKernel([SimulatedModule("m", parameters=tuple(parameter(name, "charp", "") for name in parsed))])
    planned = Planner(machine.index, machine.loaded, machine.facts, SeenValues(machine)).plan(
        request(load("m", **parsed))
    )
    (step,) = planned.steps
    meant = as_bytes(tuple(parsed.items()))
    assert kernel.read(encoded(spell(step.parameters))) == meant
    assert kernel.read(encoded(details(planned, "load").get("parameters", ""))) == meant


@given(st.dictionaries(names, st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=12), max_size=4))
def test_plain_text_is_taken(parameters: dict[str, str]) -> None:
    sound = {name: value.replace('"', "").rstrip("\\") for name, value in parameters.items()}
    if len({name.replace("-", "_") for name in sound}) == len(sound):
        assert list(parse_parameters(sound).values()) == list(sound.values())


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({}, ""),
        ({"a": "1", "b": "x y"}, 'a=1 b="x y"'),
        ({"a": "1 other=2"}, 'a="1 other=2"'),
        ({"a": "1 -- b=2", "b": "--"}, 'a="1 -- b=2" b=--'),
        ({"a": ""}, 'a=""'),
    ],
)
def test_values_that_the_kernel_would_split_are_quoted(parameters: dict[str, str], text: str) -> None:
    assert spell(parameters.items()) == text


# --- any string at all ------------------------------------------------------------------------------------------------


def what_is_read(text: bytes) -> list[tuple[bytes, bytes | None]]:
    found = []
    for word in read(text):
        if word.ends:
            break
        found.append((word.name, word.value))
    return as_bytes(tuple(found))


@given(hostile_bytes)
@example(b'"a="x""')
@example(b'a="')
@example(b"=x=y")
def test_any_bytes_are_read_as_the_kernel_reads_them(kernel: KernelArguments, text: bytes) -> None:
    text = text.replace(b"\0", b"")
    assert what_is_read(text) == kernel.read(text)


@given(hostile_bytes)
def test_what_was_read_is_spelled_so_that_the_kernel_reads_it(kernel: KernelArguments, text: bytes) -> None:
    words = [word for word in read(text.replace(b"\0", b"")) if not word.ends]
    pairs = tuple((word.name, word.value) for word in words)
    try:
        spelled = spell(pairs)
    except ValueError:
        assert any(word.open or (word.value is None and '"' in word.name) for word in words)
        return
    assert kernel.read(encoded(spelled)) == as_bytes(pairs)


@given(hostile_bytes)
def test_what_people_see_is_one_printable_line(text: bytes) -> None:
    assert all(" " <= char <= "~" for char in shown(text.decode("utf-8", "surrogateescape")))


def test_withheld_values_are_not_reported() -> None:
    assert displayed([("psk", "hunter2"), ("a", "\udce4"), ("flag", None)], {"psk"}) == 'psk=… a="\\xe4" flag'


# --- options lines ----------------------------------------------------------------------------------------------------


@given(st.lists(hostile_bytes, min_size=1, max_size=3))
@example([b'mode="x', b"count=3"])
@example([b"count=1 --", b"count=3"])
@example([b"count = 5"])
@example([b"mode=\xe4", b"a=\xc3\xa0b=1"])
def test_options_lines_are_read_together_as_the_kernel_reads_them(kernel: KernelArguments, lines: list[bytes]) -> None:
    # One physical line each, without what modprobe.d itself makes of a backslash.
    lines = [line.replace(b"\\", b"").replace(b"\n", b"").replace(b"\0", b"") for line in lines]
    data = b"".join(b"options m " + line + b"\n" for line in lines)
    rules = parse_rules(data, "a.conf")
    joined = b"".join(line.replace(b"\t", b" ") + b" " for line in lines if line)
    options = read_options(rules)
    expected = [(name.replace(b"-", b"_"), value) for name, value in kernel.read(joined)]
    assert as_bytes(options.pairs) == expected
    assert (options.end is None) == (not any(word.ends or word.open for word in read(joined)))


@pytest.mark.parametrize(
    ("line", "pairs"),
    [
        ("", ()),
        ("a=1", (("a", "1"),)),
        ("  a=1   b=2 ", (("a", "1"), ("b", "2"))),
        ('a="x y" b=2', (("a", "x y"), ("b", "2"))),
        ('"a=x y" b=2', (("a", "x y"), ("b", "2"))),
        ("max-part=1", (("max_part", "1"),)),
        ("flag", (("flag", None),)),
        ("max_loop = 64", (("max_loop", None), ("=", None), ("64", None))),
        ("empty=", (("empty", ""),)),
        ("a=1 -- b=2", (("a", "1"),)),
        ("a=b=c", (("a", "b=c"),)),
        ("=x", (("=x", None),)),
        ("a=1\u2003x", (("a", "1\u2003x"),)),
        ("a=1\xa0b=2", (("a", "1\udcc2"), ("b", "2"))),
    ],
)
def test_an_options_line_in_examples(line: str, pairs: Arguments) -> None:
    rules = parse_rules(f"options m {line}".encode(), "a.conf")
    assert read_options(rules).pairs == pairs


def test_a_parameter_belongs_to_the_line_it_begins_on() -> None:
    rules = parse_rules(b'options m a=1\noptions m mode="x\noptions m b=2\n', "a.conf")
    options = read_options(rules)
    assert [(each.name, each.value, each.rule.line) for each in options.assignments] == [
        ("a", "1", 1),
        ("mode", "x b=2 ", 2),
    ]
    assert options.end is rules[1]
    assert options.open


def test_last_value_of_a_parameter_counts() -> None:
    assert effective((("a", "1"), ("b", "2"), ("a", "3"))) == (("b", "2"), ("a", "3"))
