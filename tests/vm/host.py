"""What the host needs, and installing it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tests.vm.progress import say

if TYPE_CHECKING:
    from collections.abc import Sequence

# program that tells whether it is there -> Debian package
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "make": "make",
    "xz": "xz-utils",
    "zstd": "zstd",
    "depmod": "kmod",
    "newuidmap": "uidmap",
    "tar": "tar",
    "scdoc": "scdoc",
}
SEARCH_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"

_MIRROR = re.compile(r"^(?:deb\s+(?:\[[^\]]*\]\s+)?|URIs:\s*)(\S+/debian)/?(?:\s|$)", re.MULTILINE)
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class HostError(RuntimeError):
    """A command on the host failed; the message carries its output."""


def run(argv: list[str], *, cwd: str | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command to its end and answer its output; :class:`HostError` with the output's end when it fails."""
    full = {**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", **(env or {})}
    done = subprocess.run(argv, cwd=cwd, env=full, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        output = (done.stdout + done.stderr).decode(errors="replace")
        raise HostError(f"{' '.join(argv)[:300]} failed with {done.returncode}:\n{output[-6000:]}")
    return done.stdout.decode(errors="replace")


def missing_packages() -> list[str]:
    """The packages to install before a machine can be built, none when all is there."""
    return sorted(package for program, package in PROGRAMS.items() if not shutil.which(program, path=SEARCH_PATH))


def install_missing() -> None:
    """Install what is missing, as root or through sudo; silent when nothing is."""
    packages = missing_packages()
    if not packages:
        return
    root = [] if os.geteuid() == 0 else ["sudo"]
    if root and not shutil.which("sudo"):
        raise HostError(f"install these packages first, or sudo to let this do it: {' '.join(packages)}")
    say("fetching the package lists")
    run([*root, "apt-get", "update", "-qq"])
    say(f"installing {' '.join(packages)}")
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_MODE=l"]
    run([*root, *quiet, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages])


def unpack_packages(suite: str, packages: Sequence[str], folder: Path) -> None:
    """Unpack packages of another suite of Debian, without what they depend on, and install nothing."""
    with TemporaryDirectory() as name:
        work = Path(name)
        for path in ("lists/partial", "cache/archives/partial"):
            (work / path).mkdir(parents=True)
        (work / "sources.list").write_text(f"{source(suite)}\n")
        options = {
            "Dir::Etc::SourceList": work / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": work / "lists",
            "Dir::Cache": work / "cache",
            "Acquire::Languages": "none",
        }
        apt = ["apt-get", "-qq", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
        run([*apt, "update"])
        run([*apt, "download", *(f"{package}/{suite}" for package in packages)], cwd=str(work))
        for package in work.glob("*.deb"):
            run(["dpkg-deb", "-x", str(package), str(folder)])


def source(suite: str) -> str:
    """Where packages of a suite come from, as a line of sources.list: the mirror of this machine."""
    return f"deb [signed-by={_KEYRING}] {_mirror()} {suite} main"


def _mirror() -> str:
    """Where this machine gets Debian's packages from."""
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for file in files:
        if file.suffix in {".list", ".sources"} and file.is_file():
            match = _MIRROR.search(file.read_text())
            if match:
                return match[1]
    raise HostError("no package source in /etc/apt is a mirror of Debian: add one, then try again")
