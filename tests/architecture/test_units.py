# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd finds nothing wrong with the units, and little to attack."""

import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest

from kmodd.wanted import watched_folders
from tests.architecture.installation import make

SERVICES = ["kmodd.service", "kmodd-worker@.service", "kmodd-parser@.service"]
HIGHEST_EXPOSURE = 20  # tenths
UNPRIVILEGED = ["kmodd-notifier.service", "kmodd-gateway.service"]
HIGHEST_UNPRIVILEGED = 15


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the installed units; what they start lies where they say."""
    prefix = tmp_path_factory.mktemp("units") / "prefix"
    make("install-gateway", Path("/"), DESTDIR="", PREFIX=str(prefix), SHAREDIR=str(prefix / "share"), LIVE="false")
    return prefix / "lib/systemd/system"


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, check=False)


def test_units_are_valid(units: Path) -> None:
    done = analyze("verify", "--man=no", *(str(path) for path in sorted(units.iterdir())))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("service", SERVICES)
def test_exposure_is_at_most_two(units: Path, service: str) -> None:
    done = analyze("security", "--offline=true", f"--threshold={HIGHEST_EXPOSURE}", str(units / service))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("service", UNPRIVILEGED)
def test_exposure_of_the_unprivileged_is_lower(units: Path, service: str) -> None:
    done = analyze("security", "--offline=true", f"--threshold={HIGHEST_UNPRIVILEGED}", str(units / service))
    assert done.returncode == 0, done.stdout
    settings = read(units, service)
    assert settings["ExecStart"].split()[:2] == ["/usr/bin/python3", "-I"]
    assert settings["User"] not in ("", "root")
    assert settings["CapabilityBoundingSet"] == ""


def read(units: Path, service: str) -> dict[str, str]:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names of systemd's settings have capitals
    parser.read(units / service)
    return dict(parser["Service"])


def test_nothing_is_written_where_changed_settings_are_looked_for(units: Path) -> None:
    """Each wish that failed would be tried again for what was written about its failure, without an end."""
    written = Path("/run", read(units, "kmodd.service")["RuntimeDirectory"])
    assert written.parts[:3] == ("/", "run", "kmodd")
    assert written not in set(watched_folders(Path("/"), "6.1.0"))


def test_only_workers_may_load_modules(units: Path) -> None:
    assert "CAP_SYS_MODULE" not in read(units, "kmodd.service")["CapabilityBoundingSet"]
    assert read(units, "kmodd-worker@.service")["CapabilityBoundingSet"] == "CAP_SYS_MODULE"


def test_what_would_break_the_daemon_is_left_out(units: Path) -> None:
    # No module events reach a private network namespace, and no index lies in a hidden /usr/lib/modules.
    assert not {"PrivateNetwork", "ProtectKernelModules", "PrivateUsers"} & read(units, "kmodd.service").keys()


@pytest.mark.parametrize("service", SERVICES)
def test_python_is_isolated_and_the_environment_scrubbed(units: Path, service: str) -> None:
    settings = read(units, service)
    assert settings["ExecStart"].split()[:2] == ["/usr/bin/python3", "-I"]
    assert {"MODPROBE_OPTIONS", "LD_PRELOAD"} <= set(settings["UnsetEnvironment"].split())
