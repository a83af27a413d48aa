# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files are small, say their licence, and speak of the software alone."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 700
JUNK_DRAWERS = re.compile(r"(^|_)(utils?|helpers?|misc|common)(_|$)")
CLASS = re.compile(r"^\s*class (\w*(?:Manager|Helper|Utils|Base))\b", re.MULTILINE)
# Left open, or of somebody's machine.
FORBIDDEN = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b|/work/|/root/\.")


def tracked(*patterns: str) -> list[Path]:
    """Files in git's index or about to be added, so that a forgotten file fails before its commit."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [ROOT / name for name in sorted(set(names)) if (ROOT / name).is_file()]


def text(path: Path) -> str:
    """The file's text; empty for what is not UTF-8."""
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return ""


def test_no_file_is_longer_than_700_lines() -> None:
    long = {str(p.relative_to(ROOT)): n for p in tracked("*.py") if (n := len(text(p).splitlines())) > LONGEST}
    assert not long


def test_no_folder_holds_more_than_25_files() -> None:
    folders = Counter(path.parent for path in tracked("kmodd/*.py") if path.name != "__init__.py")
    assert not {str(folder.relative_to(ROOT)): count for folder, count in folders.items() if count > 25}


def test_no_junk_drawers() -> None:
    assert not [str(path) for path in tracked("*.py") if JUNK_DRAWERS.search(path.stem)]


def test_classes_are_nouns() -> None:
    # The interface's own name on the bus is not ours to choose.
    names = {(p.name, name) for p in tracked("kmodd/*.py") for name in CLASS.findall(text(p)) if name != "Manager"}
    assert not names


@pytest.mark.parametrize(
    "pattern",
    ["kmodd", "ansible", "cockpit", "tests", "dbus", "polkit", "systemd", "install", "docs", "Makefile", "*.md"],
)
def test_nothing_is_left_open(pattern: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked(pattern)
        if path != Path(__file__)
        for number, line in enumerate(text(path).splitlines(), 1)
        if FORBIDDEN.search(line)
    ]
    assert not found


def test_every_source_file_says_its_licence() -> None:
    folders = ("kmodd/*.py", "dbus/*", "polkit/*", "systemd/*", "install/*", "bin/*")
    files = tracked(*folders, "ansible/*.py", "ansible/*.yml", "cockpit/*.*[!n]")
    assert not [str(path.relative_to(ROOT)) for path in files if "SPDX-License-Identifier" not in text(path)[:600]]


def test_a_broad_except_has_its_reason() -> None:
    bare = re.compile(r"^\s*except (Base)?Exception\b[^#]*$", re.MULTILINE)
    found = []
    for path in tracked("kmodd/*.py"):
        lines = text(path).splitlines()
        found += [
            f"{path.relative_to(ROOT)}:{number}"
            for number, line in enumerate(lines, 1)
            # A reason stands on the line, above it, or first in the block.
            if bare.match(line)
            and "#" not in "".join(lines[number - 2 : number + 1])
            # Cleaning up and raising again hides nothing.
            and not any(following.strip() == "raise" for following in lines[number : number + 6])
        ]
    assert not found
