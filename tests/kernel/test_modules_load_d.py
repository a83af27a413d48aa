# SPDX-License-Identifier: LGPL-2.1-or-later
"""modules-load.d as systemd-modules-load reads it, and the files that mask each other."""

import random
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kmodd.kernel.files import layered
from kmodd.kernel.modprobe import modprobe_files
from kmodd.kernel.modprobe.modprobe_files import ConfigurationFolders
from kmodd.kernel.modprobe.modules_load_d import command_line_modules, is_modules_load, parse_modules


def place(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        ("loop\n", [("loop", 1)]),
        ("loop", [("loop", 1)]),
        ("# loop\n; dummy\n\n  snd-pcm \t\r\n", [("snd_pcm", 4)]),
        ("  # indented\nfs-ext4\n", [("fs_ext4", 2)]),
        ("loop # no comment here\n", [("loop # no comment here", 1)]),
        ("loop\rdummy\0fat\n\r#a\0vfat\n", [("loop", 1), ("dummy", 1), ("fat", 1), ("vfat", 2)]),
        ("", []),
    ],
)
def test_lines(text: str, modules: list[tuple[str, int]]) -> None:
    rules = parse_modules(text.encode(), "/etc/modules-load.d/a.conf")
    assert [(rule.module, rule.line) for rule in rules] == modules
    assert {rule.kind for rule in rules} <= {"autoload"}


SYSTEMD = "/lib/systemd/systemd-modules-load"


def test_systemd_reads_the_same_from_mutated_files(tmp_path: Path) -> None:
    """Names that no machine has, so that nothing is loaded: systemd tells each before it looks for it."""
    pieces = (
        b"kmodd_none_1",
        b"kmodd-none-2",
        b"\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b"\v",
        b"#",
        b";",
        b"\xff",
        b"\\\n",
    )
    chance = random.Random(7)  # noqa: S311 - no secret
    path = tmp_path / "a.conf"
    for _ in range(4):
        data = bytearray(b"# kmodd_none\nkmodd_none_1\n\n  ; kmodd-none-2\n\tkmodd-none-3 \r\n" * 40)
        for _ in range(150):
            at = chance.randrange(len(data))
            # Whole lines go and pieces come: no name is cut into that of a module there is.
            end = data.find(b"\n", at) + 1 or len(data)
            data[data.rfind(b"\n", 0, at) + 1 : end] = b"".join(chance.choices(pieces, k=4))
        path.write_bytes(data)
        done = subprocess.run(
            [SYSTEMD, str(path)],
            env={"SYSTEMD_LOG_LEVEL": "debug", "SYSTEMD_LOG_TARGET": "console", "SYSTEMD_LOG_COLOR": "0"},
            stderr=subprocess.PIPE,
            check=False,
        )
        told = re.findall(rb"^Loading module: (.*)$", done.stderr, re.MULTILINE)
        assert len(told) > 50
        assert [rule.text for rule in parse_modules(bytes(data), str(path))] == [
            name.decode("utf-8", "replace") for name in told
        ]


@pytest.mark.parametrize(
    ("line", "modules"),
    [
        ("quiet modules-load=loop,snd-pcm ro", [("loop", ""), ("snd_pcm", "")]),
        ("modules_load=loop", [("loop", "")]),
        ("rd.modules-load=dm-mod rd.modules_load=loop", [("dm_mod", "initramfs"), ("loop", "initramfs")]),
        ("modules-load= modules-load", []),
        ('modules-load="loop,dummy" "modules-load=fat"', [("loop", ""), ("dummy", ""), ("fat", "")]),
        ('dyndbg="file a.c +p modules-load=loop"', []),
        ("xmodules-load=loop", []),
    ],
)
def test_kernel_command_line(line: str, modules: list[tuple[str, str]]) -> None:
    assert [(rule.module, rule.value) for rule in command_line_modules(line)] == modules


def test_the_first_folder_masks_the_others(tmp_path: Path) -> None:
    for folder in ("etc", "run", "usr/lib"):
        place(tmp_path, f"{folder}/modules-load.d/a.conf", f"from-{folder}\n")
    place(tmp_path, "usr/lib/modules-load.d/b.conf", "b\n")
    place(tmp_path, "run/modules-load.d/.hidden.conf", "hidden\n")
    place(tmp_path, "run/modules-load.d/notes.txt", "notes\n")
    (tmp_path / "etc/modules-load.d/dir.conf").mkdir()
    files = [file for file in ConfigurationFolders(tmp_path, "6.1.0").files().autoload if not file.unread]
    assert [(file.path, file.shadowed_by) for file in files] == [
        ("/etc/modules-load.d/a.conf", ""),
        ("/run/modules-load.d/a.conf", "/etc/modules-load.d/a.conf"),
        ("/usr/lib/modules-load.d/a.conf", "/etc/modules-load.d/a.conf"),
        ("/usr/lib/modules-load.d/b.conf", ""),
    ]
    assert files[0].masks == ("/run/modules-load.d/a.conf", "/usr/lib/modules-load.d/a.conf")
    assert files[0].rules[0].file == "/etc/modules-load.d/a.conf"


@pytest.mark.parametrize("folder", ["modules-load.d", "modprobe.d"])
def test_files_that_are_passed_over_for_their_name_are_reported(tmp_path: Path, folder: str) -> None:
    for name in ("a.conf", "b", "c.txt", "d.conf.dpkg-old", "e.conf~", ".f", "README"):
        place(tmp_path, f"etc/{folder}/{name}", "blacklist loop\n")
    files = ConfigurationFolders(tmp_path, "6.1.0").files()
    told = files.autoload if folder == "modules-load.d" else files.modprobe
    assert [file.path for file in told if file.unread] == [f"/etc/{folder}/b", f"/etc/{folder}/c.txt"]
    assert all(not file.rules for file in told if file.unread)


def test_files_outside_the_folders_are_reported_when_they_hold_a_rule(tmp_path: Path) -> None:
    for name in ("modprobe.conf", "modprobe.d/site/a.conf", "modules", "modules-load.d/site/b.conf"):
        place(tmp_path, f"etc/{name}", "blacklist loop\n")
    place(tmp_path, "etc/modules.conf", "# nothing\n")
    place(tmp_path, "usr/lib/modprobe.d/vendor/c.conf", "blacklist loop\n")
    files = ConfigurationFolders(tmp_path, "6.1.0").files()
    assert {file.path: file.unread for file in files.modprobe if file.unread} == {
        "/etc/modprobe.conf": "modprobe reads /etc/modprobe.d only",
        "/etc/modprobe.d/site/a.conf": "subdirectories of /etc/modprobe.d are not read",
    }
    assert {file.path for file in files.autoload if file.unread} == {"/etc/modules", "/etc/modules-load.d/site/b.conf"}


def test_debians_own_file_is_read_by_its_link(tmp_path: Path) -> None:
    place(tmp_path, "etc/modules", "loop\n")
    (tmp_path / "etc/modules-load.d").mkdir()
    (tmp_path / "etc/modules-load.d/modules.conf").symlink_to("../modules")
    (file,) = ConfigurationFolders(tmp_path, "6.1.0").files().autoload
    assert (file.unread, [rule.module for rule in file.rules]) == ("", ["loop"])


def test_a_link_to_nothing_masks(tmp_path: Path) -> None:
    place(tmp_path, "usr/lib/modules-load.d/a.conf", "loop\n")
    (tmp_path / "etc/modules-load.d").mkdir(parents=True)
    (tmp_path / "etc/modules-load.d/a.conf").symlink_to("/dev/null")
    first, second = ConfigurationFolders(tmp_path, "6.1.0").files().autoload
    assert first.rules == ()
    assert second.shadowed_by == "/etc/modules-load.d/a.conf"


def test_one_folder_by_two_names_masks_nothing(tmp_path: Path) -> None:
    place(tmp_path, "usr/lib/modules-load.d/a.conf", "loop\n")
    (tmp_path / "lib").symlink_to("usr/lib")
    (file,) = ConfigurationFolders(tmp_path, "6.1.0").files().autoload
    assert (file.path, file.masks) == ("/usr/lib/modules-load.d/a.conf", ())


def test_a_file_that_not_everyone_may_read_says_so(tmp_path: Path) -> None:
    place(tmp_path, "a.conf", "loop\n").chmod(0o600)
    place(tmp_path, "b.conf", "loop\n").chmod(0o644)
    assert [file.public for file in layered([tmp_path], is_modules_load, root=tmp_path)] == [False, True]


def test_a_dangling_link_is_passed_over(tmp_path: Path) -> None:
    for folder in ("etc/modules-load.d", "etc/modprobe.d"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.conf").symlink_to("x" * 300)  # ENAMETOOLONG, as a link into a closed folder is EACCES
    folders = ConfigurationFolders(tmp_path, "6.1.0")
    assert folders.autoload() == []
    assert [file.rules for file in folders.files().modprobe] == [(), ()]


def test_a_rule_file_is_public_as_it_was_when_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody closes it after the folder was listed, and only then writes what nobody else may see."""
    path = place(tmp_path / "etc/modprobe.d", "a.conf", "options a key=1\n")
    path.chmod(0o644)

    def closed_afterwards(*asked: Any, **named: Any) -> Any:
        found = layered(*asked, **named)
        path.chmod(0o600)
        return found

    monkeypatch.setattr(modprobe_files, "layered", closed_afterwards)
    file = next(one for one in ConfigurationFolders(tmp_path, "6.1.0").files().modprobe if one.rules)
    assert (file.public, [rule.public for rule in file.rules]) == (False, [False])


def test_modprobe_files_stand_in_reading_order_with_depmods_among_them(tmp_path: Path) -> None:
    place(tmp_path, "etc/modprobe.d/z.conf", "blacklist z\n")
    place(tmp_path, "usr/lib/modprobe.d/a.conf", "options a b=1\n")
    place(tmp_path, "lib/modules/6.1.0/modules.softdep", "softdep a pre: b\n")
    folders = ConfigurationFolders(tmp_path, "6.1.0", command_line="loop.max_loop=9 module_blacklist=dummy")
    files = folders.files()
    assert [file.path for file in files.modprobe] == [
        "/usr/lib/modprobe.d/a.conf",
        "/lib/modules/6.1.0/modules.softdep",
        "/etc/modprobe.d/z.conf",
    ]
    assert [(rule.kind, rule.module) for rule in files.command_line] == [
        ("module_blacklist", "dummy"),
        ("options", "loop"),
    ]


def test_a_fifo_is_not_read(tmp_path: Path) -> None:
    import os

    (tmp_path / "etc/modules-load.d").mkdir(parents=True)
    os.mkfifo(tmp_path / "etc/modules-load.d/a.conf")
    (file,) = ConfigurationFolders(tmp_path, "6.1.0").files().autoload
    assert file.rules == ()


def test_what_is_loaded_at_boot_is_what_is_in_force(tmp_path: Path) -> None:
    for folder, text in (
        ("etc/modules-load.d", "a\n# b\n"),
        ("usr/lib/modules-load.d", "hidden\n"),
        ("lib/modules-load.d", ""),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.conf").write_text(text)
    (tmp_path / "usr/lib/modules-load.d/y.conf").write_text("snd-pcm\n")
    folders = ConfigurationFolders(tmp_path, "6.1.0", command_line="modules-load=c rd.modules-load=d quiet")
    assert [(rule.module, rule.file) for rule in folders.autoload()] == [
        ("a", "/etc/modules-load.d/x.conf"),
        ("snd_pcm", "/usr/lib/modules-load.d/y.conf"),
        ("c", "/proc/cmdline"),
    ]
