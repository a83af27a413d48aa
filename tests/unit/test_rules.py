# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which rule is in force, what keeps others from it, and what is wrong with them."""

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kmodd.bus.encoder import encode
from kmodd.core.policy import Policy
from kmodd.core.rules import FINDINGS_MAX, HINTS_MAX, LINES_MAX, NAME_MAX, VALUE_MAX, OwnState, judge
from kmodd.kernel.modprobe_d import ignored_lines, parse_rules
from kmodd.kernel.modules_load_d import parse_modules
from kmodd.kernel.simulated import SimulatedKernel
from kmodd.model import Rule
from kmodd.model.configuration import RuleFile, RuleFiles, ShownRule
from tests.unit.fakes import facts

A, B = "/etc/modprobe.d/a.conf", "/etc/modprobe.d/b.conf"
LOAD = "/etc/modules-load.d/a.conf"


def modprobe(
    path: str, text: str, *, shadowed_by: str = "", masks: tuple[str, ...] = (), public: bool = True
) -> RuleFile:
    data = text.encode()
    lines = (*parse_rules(data, path), *ignored_lines(data, path))
    return RuleFile(path, lines, shadowed_by, masks, public)


def shown(
    *files: RuleFile, autoload: str = "", command_line: Iterable[Rule] = (), own: dict[str, OwnState] | None = None
) -> list[ShownRule]:
    rules = [rule for file in files if not file.shadowed_by for rule in file.rules]
    kernel = SimulatedKernel(rules_in_force=rules, loaded=())
    at_boot = (RuleFile(LOAD, tuple(parse_modules(autoload.encode(), LOAD))),) if autoload else ()
    everything = RuleFiles(files, at_boot, tuple(command_line))
    return asyncio.run(judge(everything, own or {}, kernel.index, Policy(kernel.index), facts()))


def kinds(one: ShownRule) -> list[str]:
    return [finding.kind for finding in one.findings]


def test_a_plain_machine_has_no_findings() -> None:
    rows = shown(
        modprobe(A, "options loop max_loop=8\nsoftdep vfat pre: loop\nalias net-pf-5 off\n"), autoload="loop\n"
    )
    assert [(row.rule.kind, row.rule.module, row.rule.file, row.rule.line) for row in rows] == [
        ("autoload", "loop", LOAD, 1),
        ("options", "loop", A, 1),
        ("softdep", "vfat", A, 2),
        ("alias", "net_pf_5", A, 3),
    ]
    assert not any(row.findings or row.shadowed_by for row in rows)


@pytest.mark.parametrize(
    ("line", "kind", "says"),
    [
        ("options loop max_lop=8", "unknown-parameter", "did you mean max_loop?"),
        ("blacklist loop", "loadable-by-name", "/bin/false"),
        ("install loop /sbin/modprobe --ignore-install loop", "shell-command", "as root"),
        ("remove loop /bin/sh -c true", "shell-command", "remove line"),
        ("blaklist loop", "ignored-line", "blaklist is no word it knows: did you mean blacklist?"),
        ("bl\x1b[1m loop", "ignored-line", "bl\\x1b[1m is no word"),
        ("blacklist", "ignored-line", "what belongs behind blacklist is missing"),
        ("include /etc/other", "ignored-line", "include is no word it knows"),
    ],
)
def test_faults_of_one_line(line: str, kind: str, says: str) -> None:
    (row,) = shown(modprobe(A, line + "\n"))
    assert kinds(row) == [kind]
    assert says in row.findings[0].message


@pytest.mark.parametrize(
    "line",
    [
        "install loop /bin/false",
        "install loop /bin/true",
        "options loop dyndbg=+p",
        "options nosuch a=1",
        "blacklist nosuch",
    ],
)
def test_lines_with_nothing_wrong(line: str) -> None:
    (row,) = shown(modprobe(A, line + "\n"))
    assert row.findings == ()


def test_a_blacklist_with_a_refusing_install_line_protects() -> None:
    rows = shown(modprobe(A, "blacklist loop\ninstall loop /bin/false\n"))
    assert not any(row.findings for row in rows)


def test_a_refusing_install_line_about_a_pattern_protects_too() -> None:
    rows = shown(modprobe(A, "blacklist loop\ninstall lo* /bin/false\n"))
    assert not any(row.findings for row in rows)


def test_a_refusing_install_line_that_comes_second_protects_nothing() -> None:
    text = "blacklist loop\ninstall loop /sbin/insmod loop.ko\ninstall loop /bin/false\n"
    rows = shown(modprobe(A, text))
    assert [kinds(row) for row in rows] == [["loadable-by-name"], ["shell-command"], []]


def test_the_first_softdep_line_counts() -> None:
    first, second = shown(modprobe(A, "softdep vfat pre: loop\n"), modprobe(B, "softdep vfat pre: dummy\n"))
    assert (first.shadowed_by, kinds(first)) == ("", [])
    assert (second.shadowed_by, kinds(second)) == (f"{A}:1", ["softdep-override"])


def test_a_pattern_that_comes_first_counts_too() -> None:
    _, second = shown(modprobe(A, "install vfa* /bin/false\ninstall vfat /bin/true\n"))
    assert second.shadowed_by == f"{A}:1"


def test_of_options_the_last_value_counts() -> None:
    first, second = shown(modprobe(A, "options loop max_loop=8\n"), modprobe(B, "options loop max_loop=9\n"))
    assert kinds(first) == ["overridden"]
    assert f"{B}:1" in first.findings[0].message
    assert kinds(second) == []


def test_the_same_line_twice() -> None:
    first, second = shown(modprobe(A, "options loop max_loop=8\n"), modprobe(B, "options loop max_loop=8\n"))
    assert (kinds(first), kinds(second)) == ([], ["duplicate"])


def test_a_masked_file_is_told_once() -> None:
    low = "/usr/lib/modprobe.d/a.conf"
    rows = shown(
        modprobe(A, "options loop max_loop=8\n", masks=(low,)),
        modprobe(low, "options loop max_loop=9\nblacklist loop\n", shadowed_by=A),
    )
    assert rows[0].masks == (low,)
    assert rows[0].findings == ()
    assert [row.shadowed_by for row in rows[1:]] == [A, A]
    assert [kinds(row) for row in rows[1:]] == [["shadowed"], []]


def test_a_masked_file_that_says_the_same_is_a_duplicate() -> None:
    low = "/usr/lib/modprobe.d/a.conf"
    _, row = shown(
        modprobe(A, "options loop max_loop=8\n", masks=(low,)),
        modprobe(low, "options loop max_loop=8\n", shadowed_by=A),
    )
    assert kinds(row) == ["duplicate"]


def test_autoload_of_what_does_not_exist() -> None:
    (row,) = shown(autoload="lop\n")
    assert kinds(row) == ["missing-module"]
    assert "did you mean loop?" in row.findings[0].message


def test_autoload_of_what_is_blacklisted() -> None:
    row, _ = shown(modprobe(A, "blacklist loop\n"), autoload="loop\n")
    assert kinds(row) == ["blacklisted"]
    assert f"{A}, line 1" in row.findings[0].message


def test_a_line_that_is_no_name_is_a_missing_module() -> None:
    (row,) = shown(autoload="loop # comment\n")
    assert kinds(row) == ["missing-module"]


def test_files_of_ours() -> None:
    ours = "/etc/modprobe.d/kmodd-options.conf"
    file = modprobe(ours, "options loop max_loop=8\noptions dummy numdummies=1\n")
    first, second = shown(file, own={ours: OwnState(present=True, ours=True, edited=True, difference=("+x",))})
    assert first.ours
    assert second.ours
    assert (kinds(first), kinds(second)) == (["edited"], [])
    assert "+x" in first.findings[0].message


def test_of_a_file_for_root_alone_nothing_is_quoted() -> None:
    (row,) = shown(modprobe(A, "secret loop\n", public=False))
    assert [finding.message for finding in row.findings] == [
        "modprobe ignores this line: it begins with no word it knows"
    ]


def test_a_file_that_nobody_reads_for_its_name() -> None:
    (row,) = shown(RuleFile("/etc/modprobe.d/nouveau", (), read=False))
    assert kinds(row) == ["not-read"]
    assert "does not end in .conf" in row.findings[0].message


def test_a_file_without_rules_has_a_row_when_something_is_wrong_with_it() -> None:
    ours = "/etc/modprobe.d/kmodd-options.conf"
    (row,) = shown(modprobe(ours, "# mine\n"), own={ours: OwnState(present=True)})
    assert (row.rule.kind, row.rule.module, row.ours, kinds(row)) == ("finding", "", False, ["foreign"])
    assert shown(modprobe(ours, "# mine\n"), own={}) == []


def test_what_the_command_line_says_stands_last() -> None:
    rows = shown(
        modprobe(A, "blacklist loop\n"),
        command_line=[Rule("module_blacklist", "loop", "", "/proc/cmdline", 1, "module_blacklist=loop")],
    )
    assert rows[1].rule.file == "/proc/cmdline"
    assert rows[0].findings == ()


def test_blacklisting_what_is_built_in() -> None:
    (row,) = shown(modprobe(A, "blacklist unix\n"))
    assert kinds(row) == ["builtin"]


LINES = (
    "options loop max_loop=8 max_part=\"1 2\"\n", "blacklist vfat\n", "install loop /bin/false\n", "softdep vfat pre: loop post: fat\n",
    "alias pci:v0000* loop\n", "remove loop \\\n/bin/sh\n", "# Reason: x\\\\\n", "options\tloop =\n", "softdep\n", "blacklist a[b-]c_\n",
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.sampled_from([line.encode() for line in LINES]), st.binary(max_size=30)), max_size=12))
@example([b"options loop \0x=1\n", b"\xff\xfe\n", b"\\"])
def test_no_file_whatever_is_in_it_does_harm(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    rules = tuple(parse_rules(data, A))
    at_boot = RuleFile(LOAD, tuple(parse_modules(data, LOAD)))
    kernel = SimulatedKernel(rules_in_force=rules, loaded=())
    files = RuleFiles((RuleFile(A, rules),), (at_boot,), ())
    rows = asyncio.run(judge(files, {}, kernel.index, Policy(kernel.index), facts()))
    lines = data.count(b"\n") + 1
    for row in rows:
        assert 1 <= row.rule.line <= lines
        for text in (row.rule.module, row.rule.value, *(finding.message for finding in row.findings)):
            assert encode("s", (text,)).endswith(b"\0"), "it can be told"


async def test_a_file_of_any_size_leaves_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of lines of nonsense, where each one costs a comparison with all modules there are."""
    lines = "".join(f"modul{number}\n" for number in range(20_000)) + "x" * 1_000_000
    text = "options loop " + " ".join(f"a{number}=1" for number in range(100_000)) + "\n"
    monkeypatch.setattr("kmodd.core.rules.SLICE", 0.0)
    kernel = SimulatedKernel(loaded=())
    files = RuleFiles((modprobe(A, text),), (RuleFile(LOAD, tuple(parse_modules(lines.encode(), LOAD))),), ())
    looking = asyncio.create_task(judge(files, {}, kernel.index, Policy(kernel.index), facts()))
    turns = 0
    while not looking.done():
        await asyncio.sleep(0)
        turns += 1
    rows = looking.result()
    assert turns > LINES_MAX
    assert len(rows) == LINES_MAX + 2
    assert kinds(rows[LINES_MAX]) == ["too-long"]
    assert sum("did you mean" in finding.message for row in rows[:LINES_MAX] for finding in row.findings) <= HINTS_MAX
    assert len(rows[-1].findings) == FINDINGS_MAX
    assert len(rows[-1].rule.value) == VALUE_MAX


def test_a_name_of_any_length_is_cut() -> None:
    (long,) = shown(autoload="y" * 5000)
    assert len(long.rule.module) == NAME_MAX
    assert kinds(long) == ["missing-module"]
