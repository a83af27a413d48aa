# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Debian packages: lintian accepts them, two builds are the same to the byte, and all that `make install` brings is in one."""

import hashlib
import os
import re
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from kmodd import VERSION
from tests.architecture.installation import ROOT, files, make
from tests.architecture.test_imports import FILES, imports, module_of, within

NAMES = {"cockpit-kmodd", "kmodd", "kmodd-gateway", "kmodd-notifier", "python3-kmodd"}
# What a build may not depend on: where and when it runs, who runs it, in which language.
OTHERWISE = {"LC_ALL": "C", "LANGUAGE": "fr", "TZ": "Pacific/Kiritimati", "HOME": "/nonexistent", "USER": "somebody"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages."""
    folder = tmp_path_factory.mktemp("deb")
    make("deb", Path(), DEBS=str(folder / "debs"), DEB_BUILD=str(folder / "build"))
    return folder / "debs"


@pytest.fixture(scope="module")
def unpacked(built: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each package's files."""
    folders = {path.name.split("_")[0]: tmp_path_factory.mktemp("root") for path in built.glob("*.deb")}
    for path in built.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(path), str(folders[path.name.split("_")[0]])], check=True)
    return folders


def test_lintian_finds_neither_error_nor_warning(built: Path) -> None:
    (changes,) = built.glob("*.changes")
    # Of the user running this, root or not; the packages belong to root either way.
    command = ["lintian", "--allow-root", "--fail-on", "error,warning,override", str(changes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_two_builds_are_the_same_to_the_byte(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OTHERWISE.items():
        monkeypatch.setenv(name, value)
    far = tmp_path / "elsewhere" / ("x" * 60)
    before = os.umask(0o077)
    try:
        make("deb", Path(), DEBS=str(far / "debs"), DEB_BUILD=str(far / "build"))
    finally:
        os.umask(before)
    sums = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.deb")}
        for folder in (built, far / "debs")
    ]
    assert sums[0].keys() == {f"{name}_{VERSION}_all.deb" for name in NAMES}
    assert sums[0] == sums[1]


def test_each_installed_file_is_in_one_package(unpacked: dict[str, Path], tmp_path: Path) -> None:
    make("install-gateway", tmp_path, PREFIX="/usr", BYTECODE="no")
    make("install-cockpit", tmp_path, PREFIX="/usr")
    elsewhere = {"/usr/lib/systemd/system/": "/lib/systemd/system/", "/site-functions/": "/vendor-completions/"}
    # The cluster's programs need a library that Debian does not have.
    fleet = tuple(f"/usr/lib/kmodd/kmodd/{name}/" for name in ("agent", "coordinator", "fleet"))
    wanted = {name for name in files(tmp_path) if not name.startswith(fleet)} - {"/usr/lib/kmodd/directories"}
    for there, here in elsewhere.items():
        wanted = {name.replace(there, here) for name in wanted}
    packed = Counter(
        name.replace("/usr/lib/systemd/system/", "/lib/systemd/system/")
        for package, root in unpacked.items()
        if package != "python3-kmodd"
        for name in files(root)
        # What debhelper adds.
        if not re.search(r"/doc/.*/(changelog|copyright|CHANGELOG)|/usr/share/python3/runtime.d/", name)
    )
    assert packed == Counter(wanted)


def test_the_library_has_all_that_the_client_imports(unpacked: dict[str, Path]) -> None:
    root = unpacked["python3-kmodd"] / "usr/lib/python3/dist-packages"
    packed = {path.relative_to(root) for path in root.rglob("*.py")}
    assert packed >= {path for path in FILES if within(module_of(path), ("kmodd.client", "kmodd.model"))}
    modules = {module_of(path) for path in packed}
    missing = {
        f"{path} imports {name}"
        for path in packed
        for name, _ in imports(path)
        if within(name, ("kmodd",)) and name not in modules
    }
    assert not missing
    assert {path.name for path in root.rglob("*.xml")} == {"org.kmodd1.xml", "org.kmodd1.Notifier.xml"}
    assert (root / "kmodd/py.typed").is_file()


def test_programs_of_a_package_import_what_it_depends_on(unpacked: dict[str, Path]) -> None:
    """kmodd is whole without the gateway and the notifier."""
    root = unpacked["kmodd"] / "usr/lib/kmodd"
    modules = {module_of(path.relative_to(root)) for path in root.rglob("*.py")}
    missing = {
        f"{path} imports {name}"
        for path in (file.relative_to(root) for file in root.rglob("*.py"))
        for name, _ in imports(path)
        if within(name, ("kmodd",)) and name not in modules
    }
    assert not missing


def test_versions_agree() -> None:
    (debian,) = re.findall(r"^kmodd \((.*?)\) ", (ROOT / "debian/changelog").read_text().splitlines()[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert debian == project == VERSION


def test_every_action_of_a_purge_is_in_the_uninstallation_too() -> None:
    """`apt purge` and `make uninstall` unload the same AppArmor profiles."""
    loops = [
        re.findall(r"for profile in (.*); do", (ROOT / name).read_text())
        for name in ("debian/kmodd.postrm", "install/after-uninstall")
    ]
    assert loops[0] == loops[1] != []
