# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debian's Cockpit as processes of this host: the web server of Debian 12 with the bridge, cockpit.js and shell of a suite.

The packages are unpacked, not installed. Nobody logs in: the web server starts the bridge as the user who runs it.
"""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.architecture.installation import make
from tests.gateway.processes import free_port
from tests.vm import cache, host

SERVER = ("cockpit-ws", "libjson-glib-1.0-0")
PACKAGES = ("cockpit-bridge", "cockpit-system")
BRIDGE = {"bookworm": ["usr/bin/cockpit-bridge"], "trixie": [sys.executable, "-m", "cockpit.bridge"]}
"""The bridge of Debian 12 is a program, the one of Debian 13 a Python package."""
PATH = "/cockpit/@localhost/kmodd/index.html"
START_TIMEOUT = 30.0


def _packages(suite: str, *names: str) -> Path:
    """A folder with these packages unpacked."""
    key = cache.digest([suite, *names, Path(host.__file__)])
    return cache.entry(f"{suite}-{names[0]}", key, lambda folder: host.unpack_packages(suite, names, folder))


@contextmanager
def cockpit(folder: Path, address: str, suite: str) -> Iterator[str]:
    """Cockpit of a suite with the page installed, on the bus at this address; the page's URL."""
    server, bridge = _packages("bookworm", *SERVER), _packages(suite, *PACKAGES)
    make("install-cockpit", folder / "page")
    data = f"{folder}/page/usr/local/share:{bridge}/usr/share:{server}/usr/share"
    # The web server starts a program without arguments.
    start, (program, *arguments) = folder / "bridge", BRIDGE[suite]
    start.write_text(f"#!/bin/sh\nexec {bridge / program} {' '.join(arguments)}\n")
    start.chmod(0o755)
    port = free_port()
    (libraries,) = server.glob("usr/lib/*-linux-gnu")
    environment = {
        **os.environ,
        "DBUS_SYSTEM_BUS_ADDRESS": address,
        "LD_LIBRARY_PATH": str(libraries),
        "PYTHONPATH": str(bridge / "usr/lib/python3/dist-packages"),
        "XDG_DATA_DIRS": data,
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_DIRS": str(folder),
        "LC_ALL": "C.UTF-8",
    }
    program = str(server / "usr/lib/cockpit/cockpit-ws")
    command = [program, "--no-tls", "--port", str(port), "--address", "127.0.0.1", f"--local-session={start}"]
    with (
        (folder / "cockpit.log").open("w") as log,
        subprocess.Popen(command, env=environment, stderr=log) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}{PATH}"
            _wait(url, process, folder / "cockpit.log")
            yield url
        finally:
            process.terminate()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=START_TIMEOUT):  # noqa: S310 - our own server
                return
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{error}: {log.read_text()}") from error
        except OSError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())


if __name__ == "__main__":  # fetches them
    _packages("bookworm", *SERVER)
    for name in BRIDGE:
        _packages(name, *PACKAGES)
