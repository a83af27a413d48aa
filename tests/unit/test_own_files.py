# SPDX-License-Identifier: LGPL-2.1-or-later
"""The text of kmodd's own files means what it was made from, and tells when somebody edited it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.core.rules.managed_files import (
    DIFFERENCE_MAX,
    MARK,
    Entry,
    amend,
    difference,
    files_of,
    is_harmless,
    is_intact,
    is_ours,
    parse,
    render,
)
from kmodd.kernel.modprobe.modprobe_d import parse_rules
from kmodd.kernel.modprobe.modules_load_d import parse_modules
from kmodd.model import Rule
from kmodd.model.arguments import encoded
from kmodd.model.rules import ManagedFile, RuleAction, RuleChange
from kmodd.names import ModuleName, parse_parameter_value, parse_reason
from tests.kernel.kernel_arguments import KernelArguments
from tests.unit.fakes import rule

LOOP, DUMMY = ModuleName("loop"), ModuleName("dummy")

printable = st.characters().filter(lambda char: char.isprintable() and char not in ' "')
words = st.text(st.one_of(printable, st.sampled_from(" \\#;=-,")), max_size=20)
ascii_words = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x7E).filter(lambda char: char != '"'), max_size=20
)
values = ascii_words.filter(lambda text: not text.endswith("\\")).map(parse_parameter_value)
reasons = words.map(lambda text: parse_reason(text.strip()))
modules = st.from_regex(r"[a-z0-9][a-z0-9_]{0,20}", fullmatch=True).map(ModuleName)
parameters = st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_.]{0,9}", fullmatch=True), values, min_size=1, max_size=4)


def rules(file: ManagedFile, text: bytes) -> tuple[Rule, ...]:
    return tuple((parse_modules if file is ManagedFile.AUTOLOAD else parse_rules)(text, file))


def entries(file: ManagedFile) -> st.SearchStrategy[dict[ModuleName, Entry]]:
    if file is ManagedFile.OPTIONS:
        one = st.builds(lambda given, reason: Entry(tuple(given.items()), reason=reason), parameters, reasons)
    elif file is ManagedFile.BLACKLIST:
        one = st.builds(lambda hard, reason: Entry(hard=hard, reason=reason), st.booleans(), reasons)
    else:
        one = st.builds(lambda reason: Entry(reason=reason), reasons)
    return st.dictionaries(modules, one, min_size=1, max_size=4)


@pytest.mark.parametrize("file", ManagedFile)
@given(st.data())
def test_what_is_written_reads_back_as_it_was_meant(file: ManagedFile, data: st.DataObject) -> None:
    meant = data.draw(entries(file))
    text = render(file, meant)
    assert text is not None
    assert is_ours(text)
    assert is_intact(text)
    assert is_harmless(rules(file, text))
    assert parse(file, text, rules(file, text)) == meant


@given(entries(ManagedFile.OPTIONS))
def test_the_kernel_reads_the_options_that_were_meant(meant: dict[ModuleName, Entry]) -> None:
    kernel = KernelArguments()
    text = render(ManagedFile.OPTIONS, meant) or b""
    read = {
        rule.module: [(name.decode(), value) for name, value in kernel.read(encoded(rule.value))]
        for rule in rules(ManagedFile.OPTIONS, text)
    }
    assert read == {
        module: [(name, (value or "").encode()) for name, value in entry.parameters] for module, entry in meant.items()
    }


@pytest.mark.parametrize("file", ManagedFile)
def test_nothing_to_say_is_no_file(file: ManagedFile) -> None:
    assert render(file, {}) is None


@given(st.data())
def test_any_edit_is_noticed(data: st.DataObject) -> None:
    text = render(ManagedFile.OPTIONS, {LOOP: Entry((("max_loop", "8"),), reason="more disks")})
    assert text is not None
    at = data.draw(st.integers(0, len(text) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != text[at]))
    assert not is_intact(text[:at] + bytes([byte]) + text[at + 1 :])
    assert not is_intact(text[:at] + text[at + 1 :])
    assert not is_intact(text + b"\n")


@pytest.mark.parametrize("text", [b"", b"\n", b"options loop max_loop=8\n", MARK.encode()[1:], b"\xff\xfe"])
def test_files_of_others_are_known(text: bytes) -> None:
    assert not is_ours(text)
    assert not is_intact(text)


@pytest.mark.parametrize(
    "line",
    [
        "install loop /bin/sh -c true", "install loop /bin/false; id", "remove loop /bin/false", "blacklist l*p",
        "options * a=1", "softdep loop pre: dummy", "alias loop dummy",
    ],
)  # fmt: skip
def test_lines_kmodd_never_writes(line: str) -> None:
    assert not is_harmless(parse_rules(line.encode(), "a.conf"))


def test_hard_is_the_one_install_line_and_no_soft_dependencies_that_would_make_it_void() -> None:
    text = render(ManagedFile.BLACKLIST, {LOOP: Entry(hard=True)}) or b""
    assert text.endswith(b"\nblacklist loop\nsoftdep loop pre:\ninstall loop /bin/false\n")


def test_hard_of_a_file_without_the_softdep_line_is_soft_so_that_it_is_written_again() -> None:
    rules = [rule("blacklist", "loop"), rule("install", "loop", "/bin/false")]
    assert parse(ManagedFile.BLACKLIST, b"", rules) == {LOOP: Entry(hard=False)}
    assert parse(ManagedFile.BLACKLIST, b"", [*rules, rule("softdep", "loop", "pre:")]) == {LOOP: Entry(hard=True)}


def test_the_files_sort_before_depmods_soft_dependencies() -> None:
    assert ManagedFile.BLACKLIST.rpartition("/")[2] < "modules.softdep"


def test_a_reason_that_ends_with_a_backslash_hides_no_line() -> None:
    text = render(ManagedFile.BLACKLIST, {LOOP: Entry(reason="C:\\")}) or b""
    assert [rule.kind for rule in rules(ManagedFile.BLACKLIST, text)] == ["blacklist"]


def test_the_difference_of_an_edit_is_bounded() -> None:
    assert difference(b"a\nb\n", b"a\nc\n") == ("@@ -2 +2 @@", "-b", "+c")
    long = difference(b"", b"x\n" * 1000)
    assert len(long) == DIFFERENCE_MAX + 1
    assert long[-1].startswith("… and ")


def test_ansible_does_not_take_our_lines_for_its_own() -> None:
    # The patterns by which community.general.modprobe comments out lines in anybody's files.
    module = re.compile(r"^ *loop *(?:[#;].*)?\n?\Z")
    parameter = re.compile(r"^options loop \w+=\S+ *(?:[#;].*)?\n?\Z")
    autoload = render(ManagedFile.AUTOLOAD, {LOOP: Entry(reason="loop")}) or b""
    options = render(ManagedFile.OPTIONS, {LOOP: Entry((("max_loop", "8"),))}) or b""
    for line in (autoload + options).decode().splitlines(keepends=True):
        assert not module.match(line)
        assert not parameter.match(line)
    assert module.match("loop\n")
    assert parameter.match("options loop max_loop=8\n")


# --- what a change makes of it ----------------------------------------------------------------------------------------


def change(action: RuleAction, reason: str = "", **given: str) -> RuleChange:
    return RuleChange(action, LOOP, tuple(given.items()), reason)


def test_options_are_replaced_and_those_of_others_stay() -> None:
    known = {LOOP: Entry((("max_loop", "8"),), reason="a"), DUMMY: Entry((("numdummies", "2"),))}
    wanted = amend(ManagedFile.OPTIONS, known, change(RuleAction.SET_OPTIONS, max_part="4"))
    assert wanted == {LOOP: Entry((("max_part", "4"),)), DUMMY: known[DUMMY]}
    assert list(wanted) == [LOOP, DUMMY]
    assert amend(ManagedFile.OPTIONS, known, change(RuleAction.SET_OPTIONS)) == {DUMMY: known[DUMMY]}


def test_autoload_adds_its_parameters_to_those_there_are() -> None:
    known = {LOOP: Entry((("max_loop", "8"), ("max_part", "1")))}
    asked = change(RuleAction.ENABLE_AUTOLOAD, max_part="4")
    assert files_of(asked) == (ManagedFile.OPTIONS, ManagedFile.AUTOLOAD)
    assert amend(ManagedFile.OPTIONS, known, asked)[LOOP].parameters == (("max_loop", "8"), ("max_part", "4"))
    assert amend(ManagedFile.AUTOLOAD, {}, asked) == {LOOP: Entry()}
    assert files_of(change(RuleAction.ENABLE_AUTOLOAD)) == (ManagedFile.AUTOLOAD,)


def test_what_is_so_already_keeps_its_reason() -> None:
    known = {LOOP: Entry(hard=True, reason="never again")}
    assert amend(ManagedFile.BLACKLIST, known, change(RuleAction.BLACKLIST_HARD)) == known
    assert amend(ManagedFile.BLACKLIST, known, change(RuleAction.BLACKLIST_HARD, "b"))[LOOP].reason == "b"
    assert amend(ManagedFile.BLACKLIST, known, change(RuleAction.BLACKLIST))[LOOP] == Entry()
    assert amend(ManagedFile.BLACKLIST, known, change(RuleAction.UNBLACKLIST)) == {}
