"""What the host needs, and installing it."""

from __future__ import annotations

import os
import shutil
import subprocess

from tests.vm.progress import say

# program that tells whether it is there -> Debian package
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "gcc-12": "gcc-12",
    "make": "make",
    "ld": "binutils",
    "xz": "xz-utils",
    "zstd": "zstd",
    "depmod": "kmod",
    "newuidmap": "uidmap",
    "tar": "tar",
}
# objtool, which checks modules while they are built, is linked with it and has no program of its own.
LIBRARIES = {"libelf.so.1": "libelf1"}
SEARCH_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


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
    packages = [package for program, package in PROGRAMS.items() if not shutil.which(program, path=SEARCH_PATH)]
    known = run(["ldconfig", "-p"])
    packages += [package for library, package in LIBRARIES.items() if library not in known]
    return sorted(packages)


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
