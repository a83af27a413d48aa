# SPDX-License-Identifier: LGPL-2.1-or-later
"""Say in a sentence what is missing to run kmodd with this interpreter; exit 1 when anything is."""

import ctypes
import importlib.util
import shutil
import sys
from pathlib import Path

LIBRARIES = {
    "dbus_next": "python3-dbus-next",
    "pyudev": "python3-pyudev",
    "structlog": "python3-structlog",
    # Not "systemd": a folder of that name would be taken for it.
    "systemd.journal": "python3-systemd",
}


def missing() -> list[str]:
    """The Debian packages that are not there."""
    packages = []
    for module, package in LIBRARIES.items():
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # the package around it
            found = None
        if found is None:
            packages.append(package)
    try:
        ctypes.CDLL("libkmod.so.2")
    except OSError:
        packages.append("libkmod2")
    if not shutil.which("dbus-daemon") and not shutil.which("dbus-broker"):
        packages.append("dbus")
    if not any(Path(folder, "polkitd").exists() for folder in ("/usr/lib/polkit-1", "/usr/libexec")):
        packages.append("polkitd")
    return packages


if sys.version_info < (3, 11):  # noqa: UP036 - the point is to say so where an older one runs this
    sys.exit(f"kmodd needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}.")
if packages := missing():
    sys.exit(f"Debian packages that are missing: {' '.join(packages)}.")
