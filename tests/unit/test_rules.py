# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which rule is in force, what keeps others from it, and what is wrong with them."""

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kmodd.api import replies
from kmodd.core.planning.policy import Policy
from kmodd.core.rules.lines import NAMES_MAX
from kmodd.core.rules.rules import (
    FINDINGS_MAX,
    HINTS_MAX,
    LINES_INSTEAD_MAX,
    LINES_MAX,
    NAME_MAX,
    VALUE_MAX,
    ManagedFileState,
    judge,
)
from kmodd.dbus.marshal import encode
from kmodd.kernel.modprobe.modprobe_d import ignored_lines, parse_rules
from kmodd.kernel.modprobe.modules_load_d import command_line_rules, parse_modules
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.model import Rule
from kmodd.model.rules import RuleFile, RuleFiles, ShownRule
from tests.unit.fakes import facts

A, B = "/etc/modprobe.d/a.conf", "/etc/modprobe.d/b.conf"
LOAD = "/etc/modules-load.d/a.conf"


def modprobe(
    path: str, text: str, *, shadowed_by: str = "", masks: tuple[str, ...] = (), public: bool = True
) -> RuleFile:
    data = text.encode()
    lines = (*parse_rules(data, path, public=public), *ignored_lines(data, path))
    return RuleFile(path, lines, shadowed_by, masks, public)


def shown(
    *files: RuleFile,
    autoload: str = "",
    command_line: Iterable[Rule] = (),
    own: dict[str, ManagedFileState] | None = None,
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
        ("install loop /sbin/modprobe dummy", "shell-command", "as root"),
        ("remove loop /bin/sh -c true", "shell-command", "remove line"),
        ("options loop max_loop=eight", "bad-value", "parameter max_loop of loop takes an integer"),
        ("options loop max_loop = 64", "bad-value", "no spaces are allowed around ="),
        ("options loop max_part=8# partitions", "bad-value", "put comments on a separate line"),
        ("options loop max_part=8 # partitions", "comment", "put comments on a separate line"),
        ("options loop max_part=8 --", "ends-early", "the kernel reads no parameter after it"),
        ("blaklist loop", "ignored-line", "blaklist is not a known keyword: did you mean blacklist?"),
        ("bl\x1b[1m loop", "ignored-line", "bl\\x1b[1m is not a known"),
        ("blacklist", "ignored-line", "blacklist takes "),
        ("include /etc/other", "ignored-line", "include is not a known keyword"),
    ],
)
def test_faults_of_one_line(line: str, kind: str, says: str) -> None:
    (row,) = shown(modprobe(A, line + "\n"))
    assert kinds(row) == [kind]
    assert says in row.findings[0].message


def test_a_parameter_in_what_was_meant_as_a_comment_is_reported() -> None:
    (row,) = shown(modprobe(A, "options loop max_part=8 # was max_part=15\n"))
    assert kinds(row) == ["comment", "comment"]
    assert row.findings[1].message == "parameter max_part after the # is in effect"


def test_a_line_that_the_kernel_does_not_read_is_reported() -> None:
    rows = shown(modprobe(A, "options loop max_part=8 --\noptions loop max_loop=8\n"))
    assert [kinds(row) for row in rows] == [["ends-early"], ["ends-early"]]
    assert rows[1].findings[0].message.startswith(f"{A}:1 has a --, ")
    (row,) = shown(modprobe(A, 'options loop max_part="8\n'))
    assert kinds(row) == ["ends-early", "bad-value"], "the value takes in what follows"


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
    assert [kinds(row) for row in rows] == [["loadable-by-name"], ["shell-command"], ["not-in-effect"]]


def test_a_refusing_install_line_that_modprobe_ignores_says_so_and_what_makes_it_hold() -> None:
    text = "blacklist vfat\ninstall vfat /bin/false\nsoftdep vfat pre: loop\n"
    rows = shown(modprobe(A, text))
    assert [kinds(row) for row in rows] == [["loadable-by-name"], ["not-in-effect"], []]
    message = rows[1].findings[0].message
    assert f"which {A}:3 names" in message
    assert "'softdep vfat pre:' in an earlier file makes it effective" in message
    assert not any(
        row.findings for row in shown(modprobe(A, "softdep vfat pre:\nblacklist vfat\ninstall vfat /bin/false\n"))
    )


def test_an_install_line_that_only_loads_the_module_is_nothing_wrong() -> None:
    (row,) = shown(modprobe(A, "install loop /sbin/modprobe --ignore-install loop\n"))
    assert row.findings == ()


def test_a_name_that_the_kernel_does_not_know_by_that_spelling() -> None:
    (row,) = shown(command_line=command_line_rules("quiet module_blacklist=snd-pcm"))
    assert kinds(row) == ["ignored-name"]
    assert "exactly" in row.findings[0].message
    (row,) = shown(command_line=command_line_rules("quiet module_blacklist=snd_pcm"))
    assert row.findings == ()


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


def test_a_masked_file_is_reported_once() -> None:
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
    (row,) = shown(autoload="a+b\n")
    assert kinds(row) == ["missing-module"]


def test_files_of_ours() -> None:
    ours = "/etc/modprobe.d/kmodd-options.conf"
    file = modprobe(ours, "options loop max_loop=8\noptions dummy numdummies=1\n")
    first, second = shown(file, own={ours: ManagedFileState(present=True, ours=True, edited=True, difference=("+x",))})
    assert first.ours
    assert second.ours
    assert (kinds(first), kinds(second)) == (["edited"], [])
    assert "+x" in first.findings[0].message


def test_of_a_file_for_root_alone_nothing_is_quoted() -> None:
    (row,) = shown(modprobe(A, "secret loop\n", public=False))
    assert [finding.message for finding in row.findings] == ["modprobe ignores this line"]


@pytest.mark.parametrize("value", ["8", "9"])
def test_findings_do_not_tell_what_a_file_for_root_alone_sets(value: str) -> None:
    open_file = modprobe(A, "options loop max_loop=8 max_part=1\nsoftdep vfat pre: loop\n")
    closed = modprobe(
        B, f"options loop max_loop={value} max_part=1\noptions loop secret=1\nsoftdep vfat pre: loop\n", public=False
    )
    said = [
        (row.rule.line, finding.kind, finding.message) for row in shown(open_file, closed) for finding in row.findings
    ]
    assert said == [
        (2, "unknown-parameter", "loop does not have every parameter that this line sets"),
        (3, "softdep-override", f"{A}:2 names soft dependencies of vfat first: other lines about them are ignored"),
    ]
    masked = shown(
        modprobe(A, "options loop max_loop=8\n"),
        modprobe(B, f"options loop max_loop={value}\n", shadowed_by=A, public=False),
    )
    assert kinds(masked[1]) == ["shadowed"]


def test_a_file_that_is_passed_over_for_its_name() -> None:
    (row,) = shown(RuleFile("/etc/modprobe.d/nouveau", (), unread="its name does not end in .conf"))
    assert kinds(row) == ["not-read"]
    assert "does not end in .conf" in row.findings[0].message


def test_a_file_without_rules_has_a_row_when_something_is_wrong_with_it() -> None:
    ours = "/etc/modprobe.d/kmodd-options.conf"
    (row,) = shown(modprobe(ours, "# mine\n"), own={ours: ManagedFileState(present=True)})
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
@example([b"options loop \xe4=1 max_loop=\xe4\n", b"options loop \xe4=2 max_loop=\xff\n"])
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
        assert encode("aa{sv}", ([replies.rule(row)],)), "it can be told"


async def test_a_file_of_any_size_leaves_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of lines of nonsense, where each one costs a comparison with all modules there are."""
    lines = "".join(f"modul{number}\n" for number in range(20_000)) + "x" * 1_000_000
    text = "options loop " + " ".join(f"a{number}=1" for number in range(100_000)) + "\n"
    monkeypatch.setattr("kmodd.core.rules.rules.SLICE", 0.0)
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


@pytest.mark.parametrize(
    "line", ["blacklist loop", "blacklist loop,", "options loop a=1", "loop", "softdep loop", "blacklist=a,"]
)
def test_a_line_of_any_length_takes_no_longer(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each word of a line could be compared with all modules there are."""
    compared: list[str] = []

    def another_name(name: str, modules: object) -> str:
        compared.append(name)
        return ""

    monkeypatch.setattr("kmodd.core.rules.lines.another_name", another_name)
    monkeypatch.setattr("kmodd.core.rules.rules.another_name", another_name)
    words = [f"word{number}" for number in range(50_000)]
    rows = shown(
        modprobe(A, f"{line} {' '.join(words)}\n{line}{','.join(words)}\n"), autoload=f"{line} {' '.join(words)}\n"
    )
    assert len(compared) <= 3 * 2 * NAMES_MAX
    assert all(len(finding.instead) <= LINES_INSTEAD_MAX for row in rows for finding in row.findings)


def test_a_name_of_any_length_is_cut() -> None:
    (long,) = shown(autoload="y" * 5000)
    assert len(long.rule.module) == NAME_MAX
    assert kinds(long) == ["missing-module"]
