# SPDX-License-Identifier: LGPL-2.1-or-later
"""modprobe.d as kmodd reads it, against what modprobe itself says it read."""

import os
import random
import subprocess
from pathlib import Path

import pytest

from kmodd.core.planning.parameters import read_options
from kmodd.kernel.files import is_public
from kmodd.kernel.modprobe.modprobe_d import (
    ModprobeFolders,
    ModprobeRules,
    ignored_lines,
    logical_lines,
    normalise,
    parse_rules,
    read_text,
    softdep_names,
)
from kmodd.kernel.modprobe.modules_load_d import command_line_rules
from kmodd.model import Rule
from kmodd.model.arguments import encoded
from kmodd.names import ModuleName
from tests.kernel.fakeroot import RELEASE, FakeModule, root_of, scenario
from tests.kernel.kernel_arguments import KernelArguments


def parsed(text: str) -> list[tuple[str, str, str, int]]:
    return [(rule.kind, rule.module, rule.value, rule.line) for rule in parse_rules(text.encode(), "x.conf")]


def modprobe_configuration(root: Path, *directories: Path) -> list[str]:
    """Run `modprobe -c` and leave the indexes' aliases and this machine's own command line out."""
    options = [word for directory in directories for word in ("-C", str(directory))]
    done = subprocess.run(
        ["modprobe", "-d", root, "-S", RELEASE, *options, "-c"],
        check=True,
        capture_output=True,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
    )
    text = done.stdout.decode("utf-8", "replace").partition("\n# End of configuration files.")[0]
    return [" ".join(line.split()) for line in text.split("\n") if line.strip() and not line.startswith("#")]


def as_modprobe_prints(rules: list[Rule]) -> list[str]:
    """Spell rules as `modprobe -c` does: grouped by kind."""
    lines = []
    for kind in ("blacklist", "install", "remove", "alias", "options", "softdep"):
        for rule in rules:
            if rule.kind != kind:
                continue
            value = encoded(rule.value).decode("utf-8", "replace")
            if kind == "softdep":
                pre, post = softdep_names(rule.value)
                # kmod 30 forgets the space between the two halves
                value = ("pre: " + " ".join(pre) if pre else "") + ("post: " + " ".join(post) if post else "")
            lines.append(" ".join(f"{kind} {rule.module} {value}".split()))
    return lines


def test_every_kind_of_line_with_its_number() -> None:
    text = """# comment
blacklist snd-pcsp
options loop max_loop=8 max_part=4

alias my-net-* e1000
install usb-storage /bin/false
remove foo /sbin/rmmod foo
softdep nfsd pre: md5 post: log
"""
    assert parsed(text) == [
        ("blacklist", "snd_pcsp", "", 2),
        ("options", "loop", "max_loop=8 max_part=4", 3),
        ("alias", "my_net_*", "e1000", 5),
        ("install", "usb_storage", "/bin/false", 6),
        ("remove", "foo", "/sbin/rmmod foo", 7),
        ("softdep", "nfsd", "pre: md5 post: log", 8),
    ]


def test_a_joined_line_is_known_by_its_first_line_and_moves_the_numbers_of_the_next() -> None:
    assert parsed("options a \\\n x=1 \\\n y=2\nblacklist b\n") == [
        ("options", "a", " x=1  y=2", 1),
        ("blacklist", "b", "", 4),
    ]


def test_a_comment_swallows_the_line_joined_to_it() -> None:
    assert parsed("# off \\\nblacklist a\nblacklist b\n") == [("blacklist", "b", "", 3)]


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n\na", [(1, b""), (2, b""), (3, b"a")]),
        (b"a\\", [(1, b"a\xff")]),
        (b"a\\bc\\\\d\n", [(1, b"abc\\d")]),
        (b"a\\\n\\\nb\nc", [(1, b"ab"), (4, b"c")]),
        (b"a\\\n", [(1, b"a")]),
        (b"\\\n", []),
        (b"a\0b\nc\n", [(1, b"a"), (2, b"c")]),
    ],
)
def test_logical_lines(data: bytes, lines: list[tuple[int, bytes]]) -> None:
    assert list(logical_lines(data)) == lines


@pytest.mark.parametrize(
    "line",
    [
        "blacklist",
        "options loop",
        "install x",
        "alias a",
        "softdep a",
        "include other",
        "Blacklist a",
        " # note",
        "alias a] b",
    ],
)
def test_lines_libkmod_calls_bad_give_no_rule(line: str) -> None:
    assert parsed(line + "\n") == []


def test_what_libkmod_reads_over() -> None:
    text = b"# a note\n  # another\n\n \r\nblaklist a\\\n b\nblacklist\nblacklist c\noptions loop\n\tweakdep\ta b"
    assert [(one.line, one.text) for one in ignored_lines(text, "x.conf")] == [
        (5, "blaklist a b"),
        (7, "blacklist"),
        (9, "options loop"),
    ]


def test_a_comment_takes_in_the_line_behind_its_backslash() -> None:
    text = b"# was needed once \\\nblacklist loop\n#options loop \\\n  max_loop=8\n# a\\\n# b\n"
    assert parsed(text.decode()) == []
    assert [(one.line, one.text) for one in ignored_lines(text, "x.conf")] == [
        (1, "# was needed once \\\nblacklist loop")
    ]


def test_a_carriage_return_belongs_to_the_target_of_an_alias() -> None:
    assert parsed("alias a loop\r\n") == [("alias", "a", "loop\r", 1)]


def test_names_in_files_are_not_cut_at_a_dot() -> None:
    assert parsed("blacklist dummy.ko\n") == [("blacklist", "dummy.ko", "", 1)]


@pytest.mark.parametrize(
    ("name", "spelt"),
    [("a-b", "a_b"), ("a-[0-9]-b", "a_[0-9]_b"), ("a[0-9", None), ("a]", None), ("[a-c][d-f]", "[a-c][d-f]")],
)
def test_dashes_outside_brackets_become_underscores(name: str, spelt: str | None) -> None:
    assert normalise(name) == spelt


def test_words_before_pre_and_post_count_for_nothing() -> None:
    assert softdep_names("gcm pre: a b post: c pre: d") == (("a", "b", "d"), ("c",))
    assert softdep_names("ccm") == ((), ())


def test_masking_follows_the_rank_of_the_folders(tmp_path: Path) -> None:
    root = scenario("masking", tmp_path)
    values = [rule.value for rule in root.index().rules(ModuleName("wanted")) if rule.kind == "options"]
    assert values == [
        "from=etc",
        "fifth=lib",
        "fourth=usr.lib",
        "sixth=alias-suffix",
        "second=run",
        "third=usr.local.lib",
    ]


def test_a_link_to_dev_null_masks_and_a_folder_does_not(tmp_path: Path) -> None:
    root = scenario("masking", tmp_path)
    found = [(rule.kind, rule.file, rule.line) for rule in root.index().rules(ModuleName("wanted"))]
    assert ("install", str(tmp_path / "lib/modprobe.d/folder.conf"), 1) in found
    assert not [kind for kind, _, _ in found if kind == "blacklist"]


def test_a_dangling_link_masks(tmp_path: Path) -> None:
    root = scenario("masking", tmp_path)
    (tmp_path / "etc/modprobe.d/fifth.conf").symlink_to("nowhere")
    assert "fifth=lib" not in [rule.value for rule in root.index().rules(ModuleName("wanted"))]


def test_a_fifo_in_a_folder_does_not_stop_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.conf")
    assert ModprobeFolders(tmp_path, [tmp_path]).files() == [
        str(tmp_path / "a.conf"),
        str(tmp_path / "modules.softdep"),
    ]
    assert read_rules(tmp_path / "a.conf") == []


def test_a_rule_says_whether_everyone_may_read_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.conf"
    path.write_text("options a key=1\n")
    for mode, public in ((0o640, False), (0o644, True)):
        path.chmod(mode)
        assert [rule.public for rule in read_rules(path, root=tmp_path)] == [public]


def test_modprobe_reads_the_same_from_the_masking_scenario(tmp_path: Path) -> None:
    root = scenario("masking", tmp_path)
    directories = [tmp_path / name for name in ("etc", "run", "usr/local/lib", "usr/lib", "lib")]
    index = root.index(Path("/proc/cmdline").read_text())
    said = modprobe_configuration(tmp_path, *(directory / "modprobe.d" for directory in directories))
    assert as_modprobe_prints([rule for rule in index.all_rules() if rule.kind != "module_blacklist"]) == said


def test_modprobe_reads_the_same_from_random_files(tmp_path: Path) -> None:
    """Eight files of four hundred lines made of pieces that matter to the parser."""
    root = scenario("dependencies", tmp_path)
    folder = tmp_path / "random"
    folder.mkdir()
    pieces = [b"blacklist", b"options", b"alias", b"install", b"remove", b"softdep", b"pre:", b"post:", b"a", b"b-c"]
    pieces += [
        b"x=1",
        b" ",
        b" ",
        b" ",
        b"  ",
        b"\t",
        b"\n",
        b"\n",
        b"\n",
        b"\\\n",
        b"\\",
        b"\\\\",
        b"#",
        b"[a-b]",
        b"]",
        b"d.ko",
    ]
    own = command_line_rules(Path("/proc/cmdline").read_text())
    depmods = read_rules(root.tree / "modules.softdep")
    chance = random.Random(30)  # noqa: S311 - no secret
    for _ in range(8):
        lines = [b"".join(chance.choices(pieces, k=chance.randrange(1, 12))) for _ in range(200)]
        words = [b" ".join(chance.choices(pieces, k=chance.randrange(2, 6))) for _ in range(200)]
        data = b"\n".join([*lines, *words])
        (folder / "a.conf").write_bytes(data)
        rules = [*parse_rules(data, "a.conf"), *depmods, *own]
        assert as_modprobe_prints([r for r in rules if r.kind != "module_blacklist"]) == modprobe_configuration(
            tmp_path, folder
        )


REAL = b"""\
# This file is part of the kmod package.
options bonding max_bonds=0
blacklist pcspkr
install usb-storage /bin/false
install floppy /sbin/modprobe --ignore-install floppy && /bin/true \\
    || /bin/false
alias char-major-10-200 tun
alias net-pf-10 off
options snd-hda-intel model=auto \\
  power_save=1
softdep nfsd pre: auth_rpcgss post: nfs-ssc\tlockd
remove nfsd /bin/true
options thinkpad_acpi fan_control=1 hotkey="a b"
alias symbol:[a-z]-x y
"""
DAMAGE = (
    b"",
    b"\\",
    b"\\\n",
    b"\n",
    b"\0",
    b"\r",
    b"\v",
    b"\xff",
    b"\xc3\xa4",
    b"[",
    b"]",
    b"#",
    b"-",
    b"*",
    b'"',
    b" ",
    b"\t",
)


def test_modprobe_reads_the_same_from_mutated_files(tmp_path: Path) -> None:
    root = scenario("dependencies", tmp_path)
    folder = tmp_path / "mutated"
    folder.mkdir()
    rest = [*read_rules(root.tree / "modules.softdep"), *command_line_rules(Path("/proc/cmdline").read_text())]
    chance = random.Random(252)  # noqa: S311 - no secret
    for _ in range(24):
        data = bytearray(REAL * 8)
        for _ in range(60):
            at = chance.randrange(len(data))
            data[at : at + chance.choice((0, 0, 1, 8))] = chance.choice(DAMAGE)
        (folder / "a.conf").write_bytes(data)
        rules = [*parse_rules(bytes(data), "a.conf"), *rest]
        assert as_modprobe_prints([r for r in rules if r.kind != "module_blacklist"]) == modprobe_configuration(
            tmp_path, folder
        )


# --- the kernel's command line --------------------------------------------------------------------------------------


def said(command_line: str) -> list[tuple[str, str, str]]:
    return [(rule.kind, rule.module, rule.value) for rule in command_line_rules(command_line)]


def test_the_kernels_blacklist_counts_by_its_last_mention_before_the_double_dash() -> None:
    line = "quiet module_blacklist=a,b module-blacklist=c,snd-pcm -- module_blacklist=d"
    assert said(line) == [("module_blacklist", "c", ""), ("module_blacklist", "snd-pcm", "")]


def test_modprobes_blacklist_and_options() -> None:
    assert said("modprobe.blacklist=snd-pcm,x loop.max_loop=8 usb-core.quiet BOOT_IMAGE=/vmlinuz-6.1.0 root=a.b=c") == [
        ("blacklist", "snd-pcm", ""),
        ("blacklist", "x", ""),
        ("options", "loop", "max_loop=8"),
        ("options", "usb_core", "quiet"),
    ]


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ('parport.dyndbg="file a.c +p"', 'dyndbg="file a.c +p"'),
        ('"parport.dyndbg=file a.c +p"', 'dyndbg="file a.c +p"'),
        ("parport.x=", "x="),
        ("parport.x=a=b.c", "x=a=b.c"),
    ],
)
def test_quotes_on_the_command_line(word: str, value: str) -> None:
    assert said(f"quiet {word} splash") == [("options", "parport", value)]


@pytest.mark.parametrize("word", ["a.b.c=1", ".x=1", "a.=1", 'a"b.c=1', '"a.b c=1"', "a[.b=1"])
def test_ill_formed_words_give_nothing(word: str) -> None:
    assert said(word) == []


def test_the_byte_0xa0_is_a_space_to_the_kernel_and_none_to_libkmod() -> None:
    """isspace() of lib/ctype.c knows it, that of the C locale does not: the end of a no-break space, and of many letters."""
    assert said("ro\u00a0module_blacklist=softdog") == [("module_blacklist", "softdog", "")]
    assert said("module_blacklist=loop,softdog\u00a0quiet") == [
        ("module_blacklist", "loop", ""),
        ("module_blacklist", "softdog\ufffd", ""),
    ]
    assert said("ro\u00a0loop.max_loop=8") == [("options", "ro\u00a0loop", "max_loop=8")]
    assert said("loop.max_loop=8\u00a0x=1") == [("options", "loop", "max_loop=8\u00a0x=1")]
    assert said("ro\u00e0module_blacklist=softdog\u00e0 quiet") == [("module_blacklist", "softdog\ufffd", "")]


def test_what_the_kernel_reads_ends_at_two_hyphens_that_it_sees() -> None:
    assert said("ro -- module_blacklist=softdog") == []
    assert said("ro\u00a0-- module_blacklist=softdog") == []


def test_a_rule_of_the_command_line_says_where_it_stands() -> None:
    (rule,) = command_line_rules("ro module_blacklist=softdog")
    assert (rule.file, rule.line, rule.text) == ("/proc/cmdline", 1, "module_blacklist=softdog")


# --- looking rules up -----------------------------------------------------------------------------------------------


def test_patterns_count_for_install_and_softdep_but_not_for_blacklist_and_options() -> None:
    text = "blacklist usb*\noptions usb* a=1\ninstall usb* /bin/false\nsoftdep u?bcore pre: x\nalias usbcore y\noptions usbcore b=2\n"
    rules = ModprobeRules(parse_rules(text.encode(), "x.conf"))
    assert [(rule.kind, rule.line) for rule in rules.about(ModuleName("usbcore"))] == [
        ("install", 3),
        ("softdep", 4),
        ("options", 6),
    ]
    assert rules.about(ModuleName("other")) == ()
    assert len(rules.all) == 6


# --- options as they reach the kernel -----------------------------------------------------------------------------------


def test_the_kernel_gets_the_same_options_from_modprobe(tmp_path: Path) -> None:
    """`modprobe -n -v` prints the very string it would hand over; a compiled account of the kernel's rules reads it."""
    root = root_of(tmp_path, FakeModule("m"))
    folder = tmp_path / "options"
    folder.mkdir()
    command = ["modprobe", "-d", str(tmp_path), "-S", root.release, "-C", str(folder), "-n", "-v", "m"]
    chance = random.Random(9)  # noqa: S311 - no secret
    kernel = KernelArguments()
    pieces = [
        b"count",
        b"mode",
        b"=",
        b"=",
        b'"',
        b" ",
        b"\t",
        b"\v",
        b"\xa0",
        b"\xc3\xa0",
        b"\xe2\x80\x83",
        b"--",
        b"1",
        b"#",
    ]
    pieces += [b"\\\\", b"\\\n", b"\x1c", b"\xe4", b"-"]
    told = 0
    for _ in range(150):
        lines = [b"".join(chance.choices(pieces, k=chance.randrange(1, 10))) for _ in range(chance.randrange(1, 4))]
        (folder / "a.conf").write_bytes(b"".join(b"options m " + line + b"\n" for line in lines))
        out = subprocess.run(command, check=True, capture_output=True, env={"PATH": os.environ["PATH"]}).stdout
        handed_over = out.removesuffix(b"\n").partition(b"/m.ko ")[2]
        rules = read_rules(folder / "a.conf")
        read = [(encoded(name), None if value is None else encoded(value)) for name, value in read_options(rules).pairs]
        assert read == [(name.replace(b"-", b"_"), value) for name, value in kernel.read(handed_over)], lines
        told += len(read)
    assert told > 150


@pytest.mark.parametrize(("closed", "public"), [("etc/modprobe.d", False), ("etc", False), ("", True)])
def test_a_file_in_a_folder_that_not_everyone_may_search_is_not_public(
    tmp_path: Path, closed: str, *, public: bool
) -> None:
    folder = tmp_path / "etc/modprobe.d"
    folder.mkdir(parents=True)
    file = folder / "wlan.conf"
    file.write_text("options wlan9 psk=hunter2\n")
    for path, mode in ((file, 0o644), (folder, 0o755), (folder.parent, 0o755)):
        path.chmod(mode)
    if closed:
        (tmp_path / closed).chmod(0o700)
    assert [rule.public for rule in read_rules(file, root=tmp_path)] == [public]
    assert is_public(file, tmp_path) is public


def test_a_link_is_as_public_as_what_it_leads_to(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "wlan.conf").write_text("options wlan9 psk=hunter2\n")
    (secret / "wlan.conf").chmod(0o644)
    link = tmp_path / "link.conf"
    link.symlink_to(secret / "wlan.conf")
    secret.chmod(0o755)
    assert read_rules(link, root=tmp_path)[0].public
    secret.chmod(0o700)
    assert not read_rules(link, root=tmp_path)[0].public


def read_rules(path: Path, root: Path = Path("/")) -> list[Rule]:
    text = read_text(path, root)
    return parse_rules(text.data, str(path), public=text.public)
