# SPDX-License-Identifier: LGPL-2.1-or-later
"""Descriptors that systemd keeps over a restart: how they are given to it, and how they come back (sd_notify(3), sd_listen_fds(3))."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kmodd.startup.sd_notify import SdNotify, stored_descriptors

ROOT = Path(__file__).parents[2]


def test_a_descriptor_goes_to_systemd_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        supervisor = SdNotify(os.environ)
        reading, writing = os.pipe()
        supervisor.keep("lease-7", writing)
        message, files, _, _ = socket.recv_fds(systemd, 4096, 4)
        assert message == b"FDSTORE=1\nFDNAME=lease-7"
        (copy,) = files
        os.write(copy, b"x")
        assert os.read(reading, 1) == b"x"
        supervisor.drop("lease-7")
        assert systemd.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=lease-7"
        for file in (reading, writing, copy):
            os.close(file)


def test_without_systemd_nothing_is_kept() -> None:
    SdNotify({}).keep("lease-7", -1)
    SdNotify({}).drop("lease-7")


TAKE = """
import os
from kmodd.startup.sd_notify import stored_descriptors
found = stored_descriptors({**os.environ, "LISTEN_PID": str(os.getpid())}, os.getpid())
print(sorted((name, os.read(file, 9).decode(), os.get_inheritable(file)) for name, file in found.items()))
"""


def test_they_come_back_by_name() -> None:
    ends = [os.pipe() for _ in range(2)]
    for number, (_, writing) in enumerate(ends):
        os.write(writing, str(number).encode())

    def place() -> None:
        for number, (reading, _) in enumerate(ends):
            os.dup2(reading, 100 + number)
        for number in range(2):
            os.dup2(100 + number, 3 + number, inheritable=True)

    done = subprocess.run(
        [sys.executable, "-c", TAKE],
        cwd=ROOT,
        env={"LISTEN_FDS": "2", "LISTEN_FDNAMES": "lease-1:lease-2", "PATH": "/usr/bin"},
        preexec_fn=place,
        close_fds=False,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[('lease-1', '0', False), ('lease-2', '1', False)]\n", done.stderr
    for file in (file for pair in ends for file in pair):
        os.close(file)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "2"},
        {"LISTEN_PID": "7", "LISTEN_FDS": "x"},
        {"LISTEN_PID": "7", "LISTEN_FDS": "٣"},
    ],
)
def test_those_of_another_process_are_left_alone(environment: dict[str, str]) -> None:
    assert stored_descriptors(environment, 7) == {}
