# SPDX-License-Identifier: LGPL-2.1-or-later
"""modules-load.d as systemd-modules-load reads it, and the files that mask each other."""

from pathlib import Path

import pytest

from kmodd.kernel.layers import layered
from kmodd.kernel.modprobe_files import ConfigurationFolders
from kmodd.kernel.modules_load_d import command_line_modules, is_modules_load, parse_modules


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
        ("", []),
    ],
)
def test_lines(text: str, modules: list[tuple[str, int]]) -> None:
    rules = parse_modules(text.encode(), "/etc/modules-load.d/a.conf")
    assert [(rule.module, rule.line) for rule in rules] == modules
    assert {rule.kind for rule in rules} <= {"autoload"}


@pytest.mark.parametrize(
    ("line", "modules"),
    [
        ("quiet modules-load=loop,snd-pcm ro", [("loop", ""), ("snd_pcm", "")]),
        ("modules_load=loop", [("loop", "")]),
        ("rd.modules-load=dm-mod rd.modules_load=loop", [("dm_mod", "initramfs"), ("loop", "initramfs")]),
        ("modules-load= modules-load", []),
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
    files = ConfigurationFolders(tmp_path, "6.1.0").files().autoload
    assert [(file.path, file.shadowed_by) for file in files] == [
        ("/etc/modules-load.d/a.conf", ""),
        ("/run/modules-load.d/a.conf", "/etc/modules-load.d/a.conf"),
        ("/usr/lib/modules-load.d/a.conf", "/etc/modules-load.d/a.conf"),
        ("/usr/lib/modules-load.d/b.conf", ""),
    ]
    assert files[0].masks == ("/run/modules-load.d/a.conf", "/usr/lib/modules-load.d/a.conf")
    assert files[0].rules[0].file == "/etc/modules-load.d/a.conf"


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
    assert [file.public for file in layered([tmp_path], is_modules_load)] == [False, True]


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
