# SPDX-License-Identifier: LGPL-2.1-or-later
"""The text form of the alias index."""

import os
from pathlib import Path

import pytest

from kmodd.kernel.modules.alias_text import AliasText

TEXT = """\
# Aliases extracted from modules themselves.
alias fs-iso9660 isofs
alias pci:v00008086d00001237sv*sd*bc*sc*i* intel-agp
alias char-major-21-* sg
alias char-major-10-223 uinput
alias devname:uinput uinput
alias rtnl-link-dummy dummy
alias fs-two first
alias fs-two second-one
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "lib/modules/6.1"
    folder.mkdir(parents=True)
    (folder / "modules.alias").write_text(TEXT)
    return folder / "modules.alias"


@pytest.mark.parametrize(
    ("alias", "modules"),
    [
        ("fs-iso9660", ("isofs",)),
        ("char-major-21-3", ("sg",)),
        ("char-major-10-223", ("uinput",)),
        ("devname:uinput", ("uinput",)),
        ("rtnl-link-dummy", ("dummy",)),
        ("fs-two", ("first", "second_one")),
        ("fs-*", ()),
        ("char-major-2", ()),
        ("pci:v00008086d00001237sv1sd1bc1sc1i1", ()),
    ],
)
def test_alias_names_its_modules(tmp_path: Path, file: Path, alias: str, modules: tuple[str, ...]) -> None:
    assert file.exists()
    assert AliasText(tmp_path, "6.1")(alias) == modules


def test_new_index_is_noticed(tmp_path: Path, file: Path) -> None:
    aliases = AliasText(tmp_path, "6.1")
    assert aliases("fs-new") == ()
    file.write_text(TEXT + "alias fs-new newfs\n")
    assert aliases("fs-new") == ("newfs",)


def test_missing_and_broken_index_names_nothing(tmp_path: Path, file: Path) -> None:
    assert AliasText(tmp_path, "5.0")("fs-iso9660") == ()
    file.write_bytes(b"alias fs-a\nalias fs-b b\xff\n")
    os.utime(file, ns=(1, 1))
    assert AliasText(tmp_path, "6.1")("fs-a") == ()
