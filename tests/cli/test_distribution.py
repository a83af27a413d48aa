# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `pip install` gives: the client and kmodctl, from a wheel or an sdist, where there is no compiler and no Debian package."""

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.test_files import tracked
from tests.cli.private_bus import private_bus

ROOT = Path(__file__).parents[2]
BUILD = "from setuptools import build_meta as b; import sys; print(b.build_sdist(sys.argv[1]))"
USE = """
import asyncio, sys
from kmodd.client import Client
from kmodd.client.notifier import NotifierClient
from kmodd.client.store import Store
from kmodd.errors import InUse, Unavailable

async def main():
    async with await Client.connect(sys.argv[1]) as kmodd:
        while True:
            try:
                await kmodd.properties()
                break
            except Unavailable:
                await asyncio.sleep(0.05)
        print(*await kmodd.load("vfat", reason="a test"))
        try:
            await kmodd.unload("fat")
        except InUse as error:
            print(*error.evidence.holders)
        print(*await Store(kmodd).list())
    async with await NotifierClient.connect(sys.argv[1]) as notifier:
        try:
            await notifier.status()
        except Unavailable:
            print("no notifier")

asyncio.run(main())
"""


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Standard output; AssertionError with all that it wrote when the command fails."""
    # No program but those named by their path: no compiler, no pkg-config, and no library of this environment.
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "HOME"))}
    done = subprocess.run(
        command, cwd=cwd, env={**kept, "PATH": "", **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as git has them: setuptools writes into the tree it builds from."""
    tree = tmp_path_factory.mktemp("tree")
    for path in tracked("kmodd", "dbus", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        target = tree / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tree


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python and pip alone, with what setuptools builds in."""
    venv = tmp_path_factory.mktemp("venv") / "venv"
    run(Path(sys.base_prefix) / "bin/python3", "-m", "venv", venv)
    return venv


@pytest.fixture(scope="module")
def sdist(tree: Path, venv: Path) -> Path:
    """The sdist, built as pip would."""
    run(venv / "bin/pip", "install", "--quiet", "setuptools>=66", "wheel")
    name = run(venv / "bin/python", "-c", BUILD, tree, cwd=tree).split()[-1]
    return tree / name


@pytest.fixture(scope="module")
def wheel(sdist: Path, venv: Path) -> Path:
    """The wheel, built from the sdist: so the sdist is whole."""
    run(venv / "bin/pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", sdist.parent, sdist)
    (wheel,) = sdist.parent.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and what it depends on."""
    bare = tmp_path_factory.mktemp("bare") / "venv"
    run(Path(sys.base_prefix) / "bin/python3", "-m", "venv", bare)
    run(bare / "bin/pip", "install", "--quiet", wheel)
    return bare


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a bus with `kmodd --simulate` of this tree on it."""
    with private_bus(tmp_path_factory.mktemp("bus")) as address:
        command = [sys.executable, "-m", "kmodd.daemon.daemon", "--simulate", "--address", address]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as daemon:
            yield address
            daemon.terminate()


def test_the_wheel_is_pure_and_whole(wheel: Path, sdist: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert archive.read("kmodd/dbus/org.kmodd1.xml") == (ROOT / "dbus/org.kmodd1.xml").read_bytes()
    sources = {str(path.relative_to(ROOT)) for path in tracked("kmodd", "dbus/*.xml")}
    assert names == {f"kmodd/{name}" if name.startswith("dbus/") else name for name in sources}
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert sources | {"pyproject.toml", "setup.py", "README.md", "LICENSE"} <= packed


def test_the_client_depends_on_dbus_next_alone(bare: Path) -> None:
    lines = run(bare / "bin/pip", "list", "--format=freeze").splitlines()
    assert {line.split("==")[0] for line in lines} - {"pip", "setuptools", "wheel"} == {"kmodd", "dbus-next"}


def test_client_and_kmodctl_work_in_a_bare_environment(bare: Path, simulation: str, tmp_path: Path) -> None:
    script = tmp_path / "use.py"
    script.write_text(USE)
    assert run(bare / "bin/python", script, simulation, cwd=tmp_path).splitlines() == [
        "fat vfat",
        "vfat",
        "",
        "no notifier",
    ]
    listed = run(bare / "bin/kmodctl", "--bus", simulation, "list", cwd=tmp_path)
    assert "vfat" in listed
    assert run(bare / "bin/kmodctl", "--version").strip().endswith("0.1.0")


def test_every_module_of_client_and_command_line_can_be_imported(bare: Path, tmp_path: Path) -> None:
    names = [
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for path in tracked("kmodd/client/*.py", "kmodd/cli/*.py", "kmodd/model/*.py")
        if path.stem != "__main__"
    ]
    script = f"import importlib; [importlib.import_module(name) for name in {names!r}]"
    run(bare / "bin/python", "-W", "error", "-c", script, cwd=tmp_path)


def test_extras_are_those_of_the_documentation(bare: Path, tmp_path: Path) -> None:
    script = "from importlib.metadata import metadata; print(*metadata('kmodd').get_all('Provides-Extra'))"
    assert set(run(bare / "bin/python", "-c", script, cwd=tmp_path).split()) == {
        "daemon",
        "fleet",
        "gateway",
        "gateway-jwt",
        "test",
    }
