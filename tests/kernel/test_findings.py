# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lines that do not do what they were written for: what is found, and what modprobe makes of them and of the lines to write instead."""

import asyncio
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from kmodd.core.planning.policy import Policy
from kmodd.core.rules.rules import judge
from kmodd.kernel.modprobe.modprobe_d import DIRECTORIES
from kmodd.kernel.modprobe.modprobe_files import ConfigurationFolders
from kmodd.model.rules import Finding, Severity, way_out
from tests.kernel.fakeroot import RELEASE, FakeModule, FakeRoot, root_of
from tests.unit.fakes import facts

A = "/etc/modprobe.d/a.conf"
LOAD = "/etc/modules-load.d/a.conf"
MODULES = (
    FakeModule("loop", parameters=(("max_loop", "int", ""), ("max_part", "int", ""))),
    FakeModule("nbd", parameters=(("nbds_max", "int", ""), ("max_part", "int", ""))),
    FakeModule("brd", parameters=(("rd_nr", "int", ""), ("rd_size", "ulong", ""))),
    FakeModule("zram", parameters=(("num_devices", "uint", ""),)),
    FakeModule("zsram", parameters=(("num_devices", "uint", ""),)),
    FakeModule("dummy", parameters=(("numdummies", "int", ""),), aliases=("rtnl-link-dummy",)),
    FakeModule("bonding", parameters=(("max_bonds", "int", ""), ("mode", "charp", ""))),
    FakeModule("crypto-md5"),
    FakeModule("nfsd", softdep="pre: crypto-md5"),
    FakeModule("tcp_bbr"),
    FakeModule("nf_conntrack", parameters=(("hashsize", "uint", ""),)),
    FakeModule("nouveau", parameters=(("modeset", "int", ""),)),
    FakeModule("snd_intel8x0"),
    FakeModule("unix", builtin=True, parameters=(("depth", "int", ""),)),
)
"""What the examples are about, with the parameters of the real ones."""


@pytest.fixture
def root(tmp_path: Path) -> FakeRoot:
    return root_of(tmp_path, *MODULES)


def findings(root: FakeRoot, command_line: str = "quiet") -> list[Finding]:
    """All of them but what stands in depmod's own files."""
    index = root.index(command_line)
    try:
        files = ConfigurationFolders(root.root, RELEASE, command_line=command_line).files()
        rules = asyncio.run(judge(files, {}, index, Policy(index), facts(command_line=command_line)))
        return [finding for one in rules for finding in one.findings if "modules.softdep" not in finding.file]
    finally:
        index.close()


def modprobe(root: FakeRoot, *arguments: str) -> list[str]:
    """What modprobe would do: `insmod NAME PARAMETERS` or `install COMMAND`; nothing when it refuses or passes over."""
    folders = [argument for name in DIRECTORIES for argument in ("-C", str(root.root / name))]
    command = ["modprobe", "-d", str(root.root), "-S", RELEASE, *folders, "-n", "-v", *arguments]
    ended = subprocess.run(command, capture_output=True, check=False)
    lines = ended.stdout.decode("utf-8", "replace").splitlines()
    return [
        line.replace(f"{root.tree}/kernel/drivers/", "").replace(".ko", "").replace("  ", " ").strip(" ")
        for line in lines
    ]


def write(root: FakeRoot, path: str, text: str) -> None:
    file = root.root / path.removeprefix("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode())


def put_right(root: FakeRoot, path: str, finding: Finding) -> None:
    """Write the lines instead, as the administrator would."""
    (root.root / path.removeprefix("/")).unlink()
    texts: dict[str, str] = {}
    for line in finding.instead:
        texts[line.file] = texts.get(line.file, "") + line.text + "\n"
    for file, text in texts.items():
        write(root, file, text)


Case = tuple[str, str, str, Sequence[str], Sequence[str], Sequence[str], Sequence[str]]
CASES: tuple[Case, ...] = (
    # line, kind, words of the sentence, lines instead, what modprobe is asked, what it does now, what it does then
    ("blacklist z*ram", "pattern", "a name, not a pattern", ["blacklist zram", "blacklist zsram"],
     ["-b", "zram"], ["insmod zram"], []),
    ("blacklist brd zram", "several-names", "acts on brd alone", ["blacklist brd", "blacklist zram"],
     ["-b", "zram"], ["insmod zram"], []),
    ("blacklist brd,zram", "several-names", "acts on no module", ["blacklist brd", "blacklist zram"],
     ["-b", "brd"], ["insmod brd"], []),
    ("options zr*m num_devices=4", "pattern", "a name, not a pattern", ["options zram num_devices=4"],
     ["zram"], ["insmod zram"], ["insmod zram num_devices=4"]),
    ("blacklist loop\r", "odd-character", "a carriage return is part of the name", ["blacklist loop"],
     ["-b", "loop"], ["insmod loop"], []),
    ("alias eth0 dummy\r", "odd-character", "a carriage return", ["alias eth0 dummy"],
     ["eth0"], [], ["insmod dummy"]),
    ("\ufeffblacklist loop", "odd-character", "it contains a byte order mark", ["blacklist loop"],
     ["-b", "loop"], ["insmod loop"], []),
    ("blacklist\u00a0loop", "odd-character", "it contains a no-break space", ["blacklist loop"],
     ["-b", "loop"], ["insmod loop"], []),
    ("options loop max_loop=8\u00a0max_part=3", "odd-character", "a no-break space is part", ["options loop max_loop=8 max_part=3"],
     ["loop"], ["insmod loop max_loop=8\u00a0max_part=3"], ["insmod loop max_loop=8 max_part=3"]),
    ("options bonding mode=\u201cactive-backup\u201d", "odd-character", "the character U+201C", ['options bonding mode="active-backup"'],
     ["bonding"], ["insmod bonding mode=\u201cactive-backup\u201d"], ['insmod bonding mode="active-backup"']),
    ("softdep loop pre:dummy", "bad-softdep", "separate words", ["softdep loop pre: dummy"],
     ["loop"], ["insmod loop"], ["insmod dummy", "insmod loop"]),
    ("softdep loop pre :dummy", "bad-softdep", "separate words", ["softdep loop pre: dummy"],
     ["loop"], ["insmod loop"], ["insmod dummy", "insmod loop"]),
    ("softdep loop dummy", "bad-softdep", "pre: or post: is missing", ["softdep loop pre: dummy"],
     ["loop"], ["insmod loop"], ["insmod dummy", "insmod loop"]),
    ("softdep loop: pre: dummy", "bad-softdep", "the colon is part of the name", ["softdep loop pre: dummy"],
     ["loop"], ["insmod loop"], ["insmod dummy", "insmod loop"]),
    ("softdep loop pre: DUMMY", "mistyped", "did you mean dummy?", ["softdep loop pre: dummy"],
     ["loop"], ["insmod loop"], ["insmod dummy", "insmod loop"]),
    ("options nbd max_part=8# partitions", "bad-value", "put comments on a separate line", ["# partitions", "options nbd max_part=8"],
     ["nbd"], ["insmod nbd max_part=8# partitions"], ["insmod nbd max_part=8"]),
    ("options brd rd_nr=2 # was rd_nr=16", "comment", "# does not start a comment here", ["# was rd_nr=16", "options brd rd_nr=2"],
     ["brd"], ["insmod brd rd_nr=2 # was rd_nr=16"], ["insmod brd rd_nr=2"]),
    ("options loop max_loop = 64", "bad-value", "no spaces are allowed around =", ["options loop max_loop=64"],
     ["loop"], ["insmod loop max_loop = 64"], ["insmod loop max_loop=64"]),
    ("options loop max_lop=64", "unknown-parameter", "did you mean max_loop?", ["options loop max_loop=64"],
     ["loop"], ["insmod loop max_lop=64"], ["insmod loop max_loop=64"]),
    ("# not used here \\\nblacklist loop", "ignored-line", "part of this comment", ["# not used here", "blacklist loop"],
     ["-b", "loop"], ["insmod loop"], []),
    ("blaklist loop", "ignored-line", "blaklist is not a known keyword", ["blacklist loop"], ["-b", "loop"], ["insmod loop"], []),
    ("Blacklist loop", "ignored-line", "did you mean blacklist?", ["blacklist loop"], ["-b", "loop"], ["insmod loop"], []),
    ("loop max_loop=8", "ignored-line", "it lacks the word options", ["options loop max_loop=8"],
     ["loop"], ["insmod loop"], ["insmod loop max_loop=8"]),
    ("loop.max_loop=8", "ignored-line", "syntax of the kernel command line", ["options loop max_loop=8"],
     ["loop"], ["insmod loop"], ["insmod loop max_loop=8"]),
    ("modprobe.blacklist=loop,brd", "ignored-line", "syntax of the kernel command line", ["blacklist loop", "blacklist brd"],
     ["-b", "brd"], ["insmod brd"], []),
    ("// options of the loop device", "ignored-line", "a comment begins with #", ["# options of the loop device"],
     ["loop"], ["insmod loop"], ["insmod loop"]),
    ("blacklist loop.ko", "mistyped", "did you mean loop?", ["blacklist loop"], ["-b", "loop"], ["insmod loop"], []),
    ("blacklist LOOP", "mistyped", "did you mean loop?", ["blacklist loop"], ["-b", "loop"], ["insmod loop"], []),
    ("blacklist nouvaeu", "mistyped", "did you mean nouveau?", ["blacklist nouveau"], ["-b", "nouveau"], ["insmod nouveau"], []),
    ("options bbr dyndbg", "mistyped", "did you mean tcp_bbr?", ["options tcp_bbr dyndbg"],
     ["tcp_bbr"], ["insmod tcp_bbr"], ["insmod tcp_bbr dyndbg"]),
    ("options ip_conntrack hashsize=65536", "mistyped", "did you mean nf_conntrack?", ["options nf_conntrack hashsize=65536"],
     ["nf_conntrack"], ["insmod nf_conntrack"], ["insmod nf_conntrack hashsize=65536"]),
    ("options brd zram rd_nr=2 num_devices=3", "several-names", "options takes one module: zram is read as a parameter of brd",
     ["options brd rd_nr=2", "options zram num_devices=3"],
     ["zram"], ["insmod zram"], ["insmod zram num_devices=3"]),
    ("options brd,zram rd_nr=2", "several-names", "options takes one module: this line acts on none", ["options brd rd_nr=2"],
     ["brd"], ["insmod brd"], ["insmod brd rd_nr=2"]),
    ("options brd: rd_nr=2", "mistyped", "no module 'brd:'", ["options brd rd_nr=2"],
     ["brd"], ["insmod brd"], ["insmod brd rd_nr=2"]),
    ("options loop max_loop= 64", "bad-value", "no spaces are allowed around =", ["options loop max_loop=64"],
     ["loop"], ["insmod loop max_loop= 64"], ["insmod loop max_loop=64"]),
    ("options loop max_loop 64", "bad-value", "is given no value: its value follows =", ["options loop max_loop=64"],
     ["loop"], ["insmod loop max_loop 64"], ["insmod loop max_loop=64"]),
    ("options loop max_loop: 64", "unknown-parameter", "loop has no parameter 'max_loop:': its value", ["options loop max_loop=64"],
     ["loop"], ["insmod loop max_loop: 64"], ["insmod loop max_loop=64"]),
    ("options loop max_loop=8, max_part=3", "bad-value", "separated by spaces", ["options loop max_loop=8 max_part=3"],
     ["loop"], ["insmod loop max_loop=8, max_part=3"], ["insmod loop max_loop=8 max_part=3"]),
    ("options loop max_loop=8,max_part=3", "bad-value", "separated by spaces", ["options loop max_loop=8 max_part=3"],
     ["loop"], ["insmod loop max_loop=8,max_part=3"], ["insmod loop max_loop=8 max_part=3"]),
    ("options loop max_loop='8'", "bad-value", "only double quotes are recognized", ["options loop max_loop=8"],
     ["loop"], ["insmod loop max_loop='8'"], ["insmod loop max_loop=8"]),
    ("options loop loop.max_loop=8", "unknown-parameter", "are named without loop here", ["options loop max_loop=8"],
     ["loop"], ["insmod loop loop.max_loop=8"], ["insmod loop max_loop=8"]),
    ("options loop MAX_LOOP=8", "unknown-parameter", "are compared exactly", ["options loop max_loop=8"],
     ["loop"], ["insmod loop MAX_LOOP=8"], ["insmod loop max_loop=8"]),
    ("options loop max_loop=8 // images", "comment", "// does not start a comment here", ["# images", "options loop max_loop=8"],
     ["loop"], ["insmod loop max_loop=8 // images"], ["insmod loop max_loop=8"]),
    ("blacklist brd, zram", "several-names", "acts on no module", ["blacklist brd", "blacklist zram"],
     ["-b", "brd"], ["insmod brd"], []),
    ("blacklist brd;zram", "several-names", "acts on no module", ["blacklist brd", "blacklist zram"],
     ["-b", "brd"], ["insmod brd"], []),
    ("blacklist brd zram # disks", "several-names", "acts on brd alone", ["# disks", "blacklist brd", "blacklist zram"],
     ["-b", "zram"], ["insmod zram"], []),
    ("blacklist brd \\\nblacklist zram", "several-names", "acts on brd alone", ["blacklist brd", "blacklist zram"],
     ["-b", "zram"], ["insmod zram"], []),
    ('blacklist "loop"', "mistyped", "did you mean loop?", ["blacklist loop"], ["-b", "loop"], ["insmod loop"], []),
    ("softdep loop pre dummy", "bad-softdep", "pre: or post: is missing", ["softdep loop pre: dummy"],
     ["loop"], ["insmod loop"], ["insmod dummy", "insmod loop"]),
    ("softdep loop pre: dummy,brd", "bad-softdep", "commas are part of a name", ["softdep loop pre: dummy brd"],
     ["loop"], ["insmod loop"], ["insmod dummy", "insmod brd", "insmod loop"]),
    ("alias eth0 bbr", "mistyped", "did you mean tcp_bbr?", ["alias eth0 tcp_bbr"], ["eth0"], [], ["insmod tcp_bbr"]),
    ("install nouvau /bin/false", "mistyped", "did you mean nouveau?", ["install nouveau /bin/false"],
     ["nouveau"], ["insmod nouveau"], ["install /bin/false"]),
    ("blacklist rtnl-link-dummy", "mistyped", "is an alias of dummy", ["blacklist dummy"],
     ["-b", "rtnl-link-dummy"], ["insmod dummy"], []),
    ("install loop brd /bin/false", "several-names", "install takes one name", ["install loop /bin/false", "install brd /bin/false"],
     ["brd"], ["insmod brd"], ["install /bin/false"]),
    ("options loop.max_loop=8", "ignored-line", "syntax of the kernel command line", ["options loop max_loop=8"],
     ["loop"], ["insmod loop"], ["insmod loop max_loop=8"]),
    ("softdep loop : pre dummy", "bad-softdep", "pre: or post: is missing", ["softdep loop pre: dummy"],
     ["loop"], ["insmod loop"], ["insmod dummy", "insmod loop"]),
    ("install (nosuch) /bin/false", "mistyped", "no module is called '(nosuch)'", ["install nosuch /bin/false"],
     ["nosuch"], [], ["install /bin/false"]),
    ("options /lib/modules/6.1/nosuch.ko a=1", "mistyped", "options takes a name", ["options nosuch a=1"], ["nosuch"], [], []),
)  # fmt: skip


@pytest.mark.parametrize(
    ("line", "kind", "says", "instead", "ask", "now", "then"), CASES, ids=[case[0] for case in CASES]
)
def test_a_line_its_finding_and_what_modprobe_makes_of_both(
    root: FakeRoot,
    line: str,
    kind: str,
    says: str,
    instead: Sequence[str],
    ask: Sequence[str],
    now: Sequence[str],
    then: Sequence[str],
) -> None:
    write(root, A, line + "\n")
    told = findings(root)
    assert [finding.kind for finding in told][:1] == [kind]
    first = told[0]
    assert says in first.message
    assert (first.severity, first.file, first.line) == (Severity.WARNING, A, 1)
    assert [text.text for text in first.instead] == list(instead)
    assert modprobe(root, *ask) == list(now)
    put_right(root, A, first)
    assert modprobe(root, *ask) == list(then)
    assert [finding for finding in findings(root) if finding.kind != "loadable-by-name"] == []


AT_BOOT: tuple[tuple[str, str, str, Sequence[tuple[str, str]]], ...] = (
    ("nbd nbds_max=1024", "misplaced", "parameters belong in modprobe.d",
     [(LOAD, "nbd"), ("/etc/modprobe.d/nbd.conf", "options nbd nbds_max=1024")]),
    ("brd zram", "several-names", "is one name", [(LOAD, "brd"), (LOAD, "zram")]),
    ("brd,zram", "several-names", "is one name", [(LOAD, "brd"), (LOAD, "zram")]),
    ("blacklist dummy", "misplaced", "blacklist belongs in modprobe.d", [("/etc/modprobe.d/dummy.conf", "blacklist dummy")]),
    ("options nbd nbds_max=16", "misplaced", "options belongs", [("/etc/modprobe.d/nbd.conf", "options nbd nbds_max=16")]),
    ("loop.ko", "missing-module", "did you mean loop?", [(LOAD, "loop")]),
    ("LOOP", "missing-module", "did you mean loop?", [(LOAD, "loop")]),
    ("ip_conntrack", "missing-module", "did you mean nf_conntrack?", [(LOAD, "nf_conntrack")]),
    ("modprobe loop", "several-names", "is one name", [(LOAD, "loop")]),
    ("brd, zram", "several-names", "is one name", [(LOAD, "brd"), (LOAD, "zram")]),
    ("loop ; for images", "comment", "; does not start a comment here", [(LOAD, "# for images"), (LOAD, "loop")]),
    ("loop;", "missing-module", "no module 'loop;' to load", [(LOAD, "loop")]),
    ('"loop"', "missing-module", "did you mean loop?", [(LOAD, "loop")]),
    ("loop.max_loop=8", "misplaced", "parameters belong", [(LOAD, "loop"), ("/etc/modprobe.d/loop.conf", "options loop max_loop=8")]),
    ("z*ram", "pattern", "a name, not a pattern", [(LOAD, "zram"), (LOAD, "zsram")]),
    ("loop # for images", "comment", "on a separate line", [(LOAD, "# for images"), (LOAD, "loop")]),
    ("\ufeffloop", "odd-character", "a byte order mark", [(LOAD, "loop")]),
    ("loop\u00a0", "odd-character", "a no-break space", [(LOAD, "loop")]),
)  # fmt: skip


@pytest.mark.parametrize(("line", "kind", "says", "instead"), AT_BOOT, ids=[case[0] for case in AT_BOOT])
def test_a_line_of_modules_load(
    root: FakeRoot, line: str, kind: str, says: str, instead: Sequence[tuple[str, str]]
) -> None:
    write(root, LOAD, line + "\n")
    assert modprobe(root, "-a", line.strip(" \r\n")) == [], "systemd looks for a module of this very name"
    (told,) = findings(root)
    assert (told.kind, told.severity, told.file, told.line) == (kind, Severity.WARNING, LOAD, 1)
    assert says in told.message
    assert [(text.file, text.text) for text in told.instead] == list(instead)
    put_right(root, LOAD, told)
    assert [finding for finding in findings(root) if finding.kind != "loadable-by-name"] == []
    for place, name in instead:
        if place == LOAD and not name.startswith("#"):
            assert modprobe(root, name)


def test_the_value_of_a_file_that_the_distribution_has_read_last(root: FakeRoot) -> None:
    """systemd ships `options bonding max_bonds=0`, which is read after bonding.conf."""
    write(root, "/usr/lib/modprobe.d/systemd.conf", "options bonding max_bonds=0\n")
    write(root, "/etc/modprobe.d/bonding.conf", "options bonding max_bonds=2\n")
    assert modprobe(root, "bonding") == ["insmod bonding max_bonds=2 max_bonds=0"]
    (told,) = findings(root)
    assert (told.kind, told.severity) == ("overridden", Severity.WARNING)
    assert told.message.startswith("/usr/lib/modprobe.d/systemd.conf:1 gives max_bonds another value")
    (line,) = told.instead
    assert (line.file, line.text) == ("/etc/modprobe.d/zz-bonding.conf", "options bonding max_bonds=2")
    put_right(root, "/etc/modprobe.d/bonding.conf", told)
    assert modprobe(root, "bonding") == ["insmod bonding max_bonds=0 max_bonds=2"]
    assert [finding.severity for finding in findings(root)] == [Severity.NOTE], (
        "now it is the distribution's that is overridden"
    )


def test_a_way_out_that_is_read_after_any_name(root: FakeRoot) -> None:
    write(root, "/usr/lib/modprobe.d/zz-vendor.conf", "options bonding max_bonds=0\n")
    write(root, A, "options bonding max_bonds=2\n")
    (told,) = findings(root)
    put_right(root, A, told)
    assert modprobe(root, "bonding") == ["insmod bonding max_bonds=0 max_bonds=2"]


def test_a_refusal_that_an_earlier_install_line_undoes(root: FakeRoot) -> None:
    write(root, "/usr/lib/modprobe.d/a.conf", "install loop /sbin/modprobe --ignore-install loop\n")
    write(root, "/etc/modprobe.d/b.conf", "install loop /bin/false\n")
    assert modprobe(root, "loop") == ["install /sbin/modprobe --ignore-install loop"]
    (told,) = findings(root)
    assert (told.kind, told.severity, told.file) == ("not-in-effect", Severity.WARNING, "/etc/modprobe.d/b.conf")
    assert told.message.startswith("/usr/lib/modprobe.d/a.conf:1 is the first install line about loop")
    put_right(root, "/etc/modprobe.d/b.conf", told)
    assert modprobe(root, "loop") == ["install /bin/false"]
    assert findings(root) == []


def test_a_refusal_that_a_soft_dependency_undoes(root: FakeRoot) -> None:
    write(root, A, "install nfsd /bin/false\n")
    assert modprobe(root, "nfsd") == ["insmod crypto-md5", "insmod nfsd"]
    (told,) = findings(root)
    assert (told.kind, told.severity) == ("not-in-effect", Severity.WARNING)
    (line,) = told.instead
    write(root, line.file, line.text + "\n")
    assert modprobe(root, "nfsd") == ["install /bin/false"]
    assert findings(root) == []


def test_rules_about_what_is_built_in(root: FakeRoot) -> None:
    write(root, A, "options unix depth=4\nblacklist unix\ninstall unix /bin/false\n")
    told = findings(root)
    assert [(finding.kind, finding.severity, finding.line) for finding in told] == [
        ("builtin", Severity.WARNING, line) for line in (1, 2, 3)
    ]
    assert [(line.file, line.text) for line in told[0].instead] == [("/proc/cmdline", "unix.depth=4")]
    (root.root / "etc/modprobe.d/a.conf").rename(root.write("usr/lib/modprobe.d/a.conf", ""))
    assert findings(root) == []


def test_rules_about_a_part_of_the_kernel_that_is_no_module(root: FakeRoot) -> None:
    """printk has parameters, and no line in modules.builtin."""
    table = root.tree / "modules.builtin.modinfo"
    table.write_bytes(table.read_bytes() + b"printk.parmtype=time:bool\0printk.parm=time:Show timing\0")
    write(root, A, "options printk time=1\nblacklist printk\n")
    told = findings(root)
    assert [(finding.kind, finding.severity, finding.line) for finding in told] == [
        ("builtin", Severity.WARNING, line) for line in (1, 2)
    ]
    assert [(line.file, line.text) for line in told[0].instead] == [("/proc/cmdline", "printk.time=1")]
    assert "not a module" in told[1].message


def test_files_that_modprobe_does_not_read(root: FakeRoot) -> None:
    for name in ("modprobe.conf", "modprobe.d/site/a.conf", "modprobe.d/nouveau"):
        write(root, f"/etc/{name}", "install loop /bin/false\n")
    assert modprobe(root, "loop") == ["insmod loop"]
    told = findings(root)
    assert {(finding.kind, finding.severity, finding.file) for finding in told} == {
        ("not-read", Severity.WARNING, f"/etc/{name}")
        for name in ("modprobe.conf", "modprobe.d/site/a.conf", "modprobe.d/nouveau")
    }


@pytest.mark.parametrize(
    "text",
    [
        "blacklist snd_intel8x0m",  # one letter more than a module there is, and a module of other kernels
        "blacklist nosuch",
        "blacklist brd because it is slow",
        "blacklist brd # not here",
        "options loop max_loop=8\r",
        "#options loop \\\n#  max_loop=8",
        "#options loop \\\n  max_loop=8",
        "softdep loop pre: dummy post: brd",
        "softdep loop pre:",
        "options bonding mode=active-backup,x",
        "alias dummy loop",
        "alias z*ram off",
        "install z*ram /bin/false",
        "\ufeff# a comment",
        "options nbd dyndbg=+p",
    ],
)
def test_lines_that_do_what_they_were_written_for(root: FakeRoot, text: str) -> None:
    write(root, A, text + "\n")
    assert [finding for finding in findings(root) if finding.severity is Severity.WARNING] == []


def test_of_a_file_for_root_alone_no_line_is_written_instead(root: FakeRoot) -> None:
    write(root, A, "options nbd max_part=8# secret\nblaklist loop\nloop secret=1\n")
    (root.root / "etc/modprobe.d/a.conf").chmod(0o600)
    told = findings(root)
    assert told
    assert not any(finding.instead or "secret" in finding.message for finding in told)


def test_the_way_out_that_a_refused_change_names(root: FakeRoot) -> None:
    """A file of the administrator's masks the distribution's of the same name."""
    vendor = "/usr/lib/modprobe.d/systemd.conf"
    write(root, vendor, "options bonding max_bonds=0\noptions dummy numdummies=0\n")
    assert (
        way_out(vendor) == f"copy {vendor} to /etc/modprobe.d/systemd.conf, which then replaces it, and change it there"
    )
    write(root, "/etc/modprobe.d/systemd.conf", "options dummy numdummies=0\n")
    write(root, "/etc/modprobe.d/kmodd-options.conf", "options bonding max_bonds=2\n")
    assert modprobe(root, "bonding") == ["insmod bonding max_bonds=2"]
    assert modprobe(root, "dummy") == ["insmod dummy numdummies=0"]


@pytest.mark.parametrize(
    ("command_line", "kind", "says", "instead"),
    [
        ("module_blacklist=snd-intel8x0", "ignored-name", "calls it snd_intel8x0", "module_blacklist=snd_intel8x0"),
        ("module_blacklist=LOOP", "ignored-name", "calls it loop", "module_blacklist=loop"),
        ("module_blacklist=loop.ko", "ignored-name", "calls it loop", "module_blacklist=loop"),
        ("module_blacklist=z*ram", "pattern", "names, not patterns", ""),
        ("module_blacklist=unix", "builtin", "blacklisting has no effect", ""),
        ("module_blacklist=brd module_blacklist=zram", "not-in-effect", "only the last", "module_blacklist=brd,zram"),
        ("modprobe.blacklist=snd-intel8x0", "ignored-name", "calls it snd_intel8x0", "modprobe.blacklist=snd_intel8x0"),
        ("modprobe.blacklist=LOOP", "ignored-name", "calls it loop", "modprobe.blacklist=loop"),
        ("modprobe.blacklist=brd;zram", "several-names", "acts on no module", "modprobe.blacklist=brd,zram"),
        ("loop.max_lop=8", "unknown-parameter", "did you mean max_loop?", "loop.max_loop=8"),
        ("loop.max_loop=eight", "bad-value", "an integer", ""),
    ],
)
def test_words_of_the_kernels_command_line(
    root: FakeRoot, command_line: str, kind: str, says: str, instead: str
) -> None:
    told = [finding for finding in findings(root, command_line) if finding.kind != "loadable-by-name"]
    assert [(finding.kind, finding.severity, finding.file) for finding in told] == [
        (kind, Severity.WARNING, "/proc/cmdline")
    ]
    assert says in told[0].message
    assert [(line.file, line.text) for line in told[0].instead] == ([("/proc/cmdline", instead)] if instead else [])


@pytest.mark.parametrize(
    "command_line", ["unix.depth=4", "module_blacklist=loop,brd", "quiet -- module_blacklist=LOOP"]
)
def test_words_of_the_kernels_command_line_with_nothing_wrong(root: FakeRoot, command_line: str) -> None:
    """What is built in takes its parameters from there, as the finding about its `options` line says."""
    assert findings(root, command_line) == []


def test_an_alias_goes_before_the_module_of_its_name(root: FakeRoot) -> None:
    write(root, A, "alias dummy brd\n")
    assert modprobe(root, "dummy") == ["insmod brd"]
    (told,) = findings(root)
    assert (told.kind, told.severity) == ("hides-module", Severity.NOTE)
    assert "modprobe loads brd for the module dummy" in told.message


def test_one_line_with_two_values(root: FakeRoot) -> None:
    write(root, A, "options loop max_loop=8 max_loop=9\n")
    (told,) = findings(root)
    assert (told.kind, told.severity) == ("overridden", Severity.NOTE)
    assert told.message == "this line gives max_loop two values, and the last one wins"


def test_a_pattern_that_nearly_everything_matches_names_no_lines(root: FakeRoot) -> None:
    many = [FakeModule(f"many{number}") for number in range(20)]
    root = root_of(root.root.parent / "many", *many)
    write(root, A, "blacklist many*\n")
    (told,) = findings(root)
    assert (told.kind, told.instead) == ("pattern", ())


def test_utf_16_text_is_named(root: FakeRoot) -> None:
    file = root.root / A.removeprefix("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes("blacklist loop\n".encode("utf-16"))
    assert modprobe(root, "-b", "loop") == ["insmod loop"]
    (finding,) = findings(root)
    assert finding.kind == "odd-character"
    assert "UTF-16" in finding.message


def test_a_soft_dependency_on_a_name_that_is_no_module_is_a_note(root: FakeRoot) -> None:
    write(root, A, "softdep loop pre: nosuch dummy\n")
    assert modprobe(root, "loop") == ["insmod dummy", "insmod loop"]
    (finding,) = findings(root)
    assert (finding.kind, finding.severity) == ("missing-module", Severity.NOTE)
    assert "nosuch" in finding.message
