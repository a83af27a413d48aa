# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's command line and environment."""

import pytest

from kmodd.startup.options import Settings, UsageError


def test_nothing_given_is_the_real_thing() -> None:
    settings = Settings.parse([], {}, 1)
    assert not settings.simulate
    assert settings.address == ""
    assert settings.watchdog_usec == 0


def test_simulation_needs_its_option() -> None:
    settings = Settings.parse(["--simulate", "--address", "unix:path=/x"], {"RUNTIME_DIRECTORY": "/run/kmodd"}, 1)
    assert settings.simulate
    assert settings.address == "unix:path=/x"
    assert settings.runtime_directory == "", "a simulation must not touch what the real daemon remembers"


def test_workers_come_from_where_the_unit_says() -> None:
    environment = {"KMODD_WORKER_SOCKET": "/run/kmodd-worker.socket"}
    assert Settings.parse([], environment, 1).worker_socket == "/run/kmodd-worker.socket"
    assert Settings.parse([], {}, 1).worker_socket == "", "without systemd they are children"
    assert Settings.parse(["--simulate"], environment, 1).worker_socket == "", "a simulation has none"


@pytest.mark.parametrize("arguments", [["--nosuch"], ["--address"], ["x"], ["--simulated"]])
def test_nonsense_is_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        Settings.parse(arguments, {}, 1)


def test_watchdog_of_this_process() -> None:
    assert Settings.parse([], {"WATCHDOG_USEC": "30000000"}, 1).watchdog_usec == 30_000_000
    assert Settings.parse([], {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 1).watchdog_usec == 30_000_000


@pytest.mark.parametrize(
    "environment", [{"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "2"}, {"WATCHDOG_USEC": "-1"}, {"WATCHDOG_USEC": ""}]
)
def test_no_watchdog(environment: dict[str, str]) -> None:
    assert Settings.parse([], environment, 1).watchdog_usec == 0
