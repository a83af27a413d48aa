# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd finds nothing wrong with the units, and little to attack."""

import re
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest

from kmodd.daemon.desired import watched_folders
from tests.architecture.installation import ROOT, make

SERVICES = [
    "kmodd.service",
    "kmodd-worker@.service",
    "kmodd-parser@.service",
    "kmodd-inspector@.service",
    "kmodd-inspector-tables@.service",
    "kmodd-inspector-namespaces@.service",
    "kmodd-watcher@.service",
]
HIGHEST_EXPOSURE = 20  # tenths
OTHER_SOCKETS = re.compile(r"socket\.(?:if_\w+|get\w*host\w*|getaddrinfo|getservby\w+|create_connection|AF_UNIX)\b")
UNPRIVILEGED = ["kmodd-notifier.service", "kmodd-gateway.service", "kmodd-agent.service"]
HIGHEST_UNPRIVILEGED = 15


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the installed units; what they start lies where they say."""
    prefix = tmp_path_factory.mktemp("units") / "prefix"
    places = {"DESTDIR": "", "PREFIX": str(prefix), "SHAREDIR": str(prefix / "share"), "LIVE": "false"}
    make("install-gateway", Path("/"), **places)
    make("install-agent", Path("/"), **places)
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


def read(units: Path, service: str, section: str = "Service") -> dict[str, str]:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names of systemd's settings have capitals
    parser.read(units / service)
    return dict(parser[section])


def test_nothing_is_written_where_changed_settings_are_looked_for(units: Path) -> None:
    """Each wish that failed would be tried again for what was written about its failure, without an end."""
    written = Path("/run", read(units, "kmodd.service")["RuntimeDirectory"])
    assert written.parts[:3] == ("/", "run", "kmodd")
    assert written not in set(watched_folders(Path("/"), "6.1.0"))


def test_the_journal_drops_no_unit_for_the_flood_of_another(units: Path) -> None:
    """journald limits a service as a whole; kmodd limits the records of each user (core/audit/limit.py, gateway/http/middleware.py)."""
    for service in ("kmodd.service", "kmodd-notifier.service", "kmodd-gateway.service"):
        assert read(units, service)["LogRateLimitIntervalSec"] == "0"


@pytest.mark.parametrize(
    ("service", "capabilities"),
    [
        ("kmodd.service", ""),
        ("kmodd-worker@.service", "CAP_SYS_MODULE"),
        ("kmodd-parser@.service", ""),
        ("kmodd-inspector@.service", "CAP_SYS_PTRACE CAP_DAC_READ_SEARCH CAP_NET_ADMIN"),
        ("kmodd-inspector-tables@.service", "CAP_NET_ADMIN"),
        ("kmodd-inspector-namespaces@.service", "CAP_SYS_ADMIN CAP_NET_ADMIN"),
        ("kmodd-watcher@.service", "CAP_SYS_PTRACE CAP_DAC_READ_SEARCH"),
    ],
)
def test_each_process_has_the_capabilities_of_its_task_alone(units: Path, service: str, capabilities: str) -> None:
    assert read(units, service)["CapabilityBoundingSet"] == capabilities


@pytest.mark.parametrize(
    ("service", "families"),
    [
        ("kmodd-inspector@.service", "AF_NETLINK"),
        ("kmodd-inspector-tables@.service", "AF_INET AF_INET6"),
        ("kmodd-inspector-namespaces@.service", "AF_NETLINK AF_INET AF_INET6"),
    ],
)
def test_the_inspector_reaches_nothing_but_its_socket(units: Path, service: str, families: str) -> None:
    settings = read(units, service)
    assert settings["DynamicUser"] == settings["NoNewPrivileges"] == "yes"
    assert settings["ProtectSystem"] == "strict"
    assert settings["IPAddressDeny"] == settings["SocketBindDeny"] == "any"
    assert settings["RestrictAddressFamilies"] == families
    assert settings["AmbientCapabilities"] == settings["CapabilityBoundingSet"]
    assert not {"ReadWritePaths", "StateDirectory", "RuntimeDirectory", "BusName"} & settings.keys()
    assert {"MemoryMax", "TasksMax", "RuntimeMaxSec", "CPUWeight", "IOWeight"} <= settings.keys()


def test_the_inspector_calls_no_function_that_makes_a_socket_of_another_family() -> None:
    """if_indextoname(3) asks on a socket of AF_UNIX or AF_INET, and then knows no interface: nothing would be found on it."""
    sources = sorted((ROOT / "kmodd/kernel/users").glob("*.py"))
    assert sources
    calls = {path.name: OTHER_SOCKETS.findall(path.read_text()) for path in sources}
    assert {name: found for name, found in calls.items() if found} == {}


def test_who_may_enter_network_namespaces_makes_none_and_sees_no_process(units: Path) -> None:
    text = (units / "kmodd-inspector-namespaces@.service").read_text()
    settings = read(units, "kmodd-inspector-namespaces@.service")
    assert settings["RestrictNamespaces"] == "net", "setns(2) of other kinds is refused"
    assert settings["ProtectProc"] == "invisible"
    assert "SystemCallFilter=~clone clone3 fork vfork unshare\n" in text
    assert "PrivateNetwork" not in settings, "a namespace of its own would hold modules"


def test_what_the_daemon_can_do_without_starts_with_it_all_the_same(units: Path) -> None:
    settings = read(units, "kmodd.service", "Unit")
    assert settings["Wants"] == "kmodd-watcher.socket kmodd-inspector-namespaces.socket"
    assert "watcher" not in settings["Requires"]
    assert "namespaces" not in settings["Requires"], "who does not want a process with CAP_SYS_ADMIN masks its socket"


def test_the_watcher_reaches_nothing_but_its_socket(units: Path) -> None:
    settings = read(units, "kmodd-watcher@.service")
    assert settings["DynamicUser"] == settings["NoNewPrivileges"] == "yes"
    assert settings["ProtectSystem"] == "strict"
    assert settings["AmbientCapabilities"] == settings["CapabilityBoundingSet"]
    assert settings["RestrictAddressFamilies"] == "AF_UNIX"
    assert not {"ReadWritePaths", "StateDirectory", "RuntimeDirectory", "BusName"} & settings.keys()
    assert {"MemoryMax", "TasksMax", "CPUWeight", "IOWeight"} <= settings.keys()


@pytest.mark.parametrize("service", ["kmodd.service", "kmodd-gateway.service", "kmodd-notifier.service"])
def test_no_number_of_crashes_ends_a_service_for_good(units: Path, service: str) -> None:
    assert read(units, service, "Unit")["StartLimitIntervalSec"] == "0"
    settings = read(units, service)
    assert settings["Restart"] == "on-failure"
    # Each start takes a second of the processor and some lines of the journal.
    assert int(settings["RestartSec"]) >= 2


@pytest.mark.parametrize(
    "socket",
    [
        "kmodd-worker.socket",
        "kmodd-parser.socket",
        "kmodd-inspector.socket",
        "kmodd-inspector-tables.socket",
        "kmodd-inspector-namespaces.socket",
        "kmodd-watcher.socket",
    ],
)
def test_no_number_of_requests_closes_a_socket_of_the_daemon_for_good(units: Path, socket: str) -> None:
    assert read(units, socket, "Socket")["TriggerLimitIntervalSec"] == "0"


def test_a_gateway_that_cannot_start_is_not_started_for_ever(units: Path) -> None:
    assert read(units, "kmodd-gateway.service")["RestartPreventExitStatus"] == "78"
    settings = read(units, "kmodd-gateway.socket", "Socket")
    assert int(settings["TriggerLimitIntervalSec"]) >= 60
    assert int(settings["TriggerLimitBurst"]) <= 10


def test_what_would_break_the_daemon_is_left_out(units: Path) -> None:
    # No module events reach a private network namespace, and no index lies in a hidden /usr/lib/modules.
    assert not {"PrivateNetwork", "ProtectKernelModules", "PrivateUsers"} & read(units, "kmodd.service").keys()
    # A worker has a capability more, so that hidden processes include it.
    assert "ProtectProc" not in read(units, "kmodd.service")


@pytest.mark.parametrize("service", SERVICES)
def test_python_is_isolated_and_the_environment_scrubbed(units: Path, service: str) -> None:
    settings = read(units, service)
    assert settings["ExecStart"].split()[:2] == ["/usr/bin/python3", "-I"]
    assert {"MODPROBE_OPTIONS", "LD_PRELOAD"} <= set(settings["UnsetEnvironment"].split())
