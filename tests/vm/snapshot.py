"""Machines that have booted already: saved once, restored in a second or two, by any number of tests at once.

Three files make a saved machine: the disk's overlay, the memory, the devices. None is changed afterwards: a restored
machine has an overlay of its own and maps the memory privately.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm import cache, image, qemu
from tests.vm.machine import Machine
from tests.vm.progress import say
from tests.vm.qemu import Options, State

if TYPE_CHECKING:
    from tests.vm.image import Image

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SOURCE = "/usr/src/kmodd"
# What `make install` does not read: a change of these needs no new snapshot.
NOT_INSTALLED = (
    "ansible/",
    "cockpit/",
    "tests/",
    ".ci/",
    ".github/",
    "debian/",
    "docs/screenshots/",
    "pyproject.toml",
    "setup.py",
)
Prepare = Callable[[Machine], None]


def clean_state(built: Image, options: Options) -> State:
    """A machine right after its boot, with nothing of kmodd in it."""
    key = cache.digest([built.identity, repr(options), Path(qemu.__file__), *qemu.emulator(), qemu.accelerator()])
    return State(cache.entry(built.suite.kind("clean"), key, lambda folder: _save(built, options, folder), prune=True))


def prepared_state(
    built: Image, options: Options, name: str, inputs: list[str | bytes | Path], prepare: Prepare
) -> State:
    """A clean machine after ``prepare`` has changed it; ``inputs`` is all that it depends on."""
    clean = clean_state(built, options)
    key = cache.digest([cache.identity(clean.folder), *inputs])

    def make(folder: Path) -> None:
        with Machine(built, options, state=clean, keep_in=folder) as machine:
            prepare(machine)
            machine.save()

    return State(cache.entry(built.suite.kind(name), key, make, prune=True))


def _save(built: Image, options: Options, folder: Path, disk: Path | None = None) -> None:
    say("booting the machine for the snapshot")
    with Machine(built, options, disk=disk, keep_in=folder) as machine:
        if disk:
            _start_kmodd(machine)
        machine.save()


def start_clean(options: Options | None = None, *, forward: dict[int, int] | None = None) -> Machine:
    """A fresh machine with nothing of kmodd in it, within two seconds of the second call."""
    built, options = image.build(), options or Options()
    return Machine(built, options, state=clean_state(built, options), forward=forward)


def start_with_kmodd(options: Options | None = None, *, forward: dict[int, int] | None = None) -> Machine:
    """A fresh machine with this tree's kmodd installed and running."""
    built, options = image.build(), options or Options()
    return Machine(built, options, state=_kmodd_state(built, options), forward=forward)


def boot(
    *cmdline_extra: str, kmodd: bool = False, network: bool = False, forward: dict[int, int] | None = None
) -> Machine:
    """A machine booted cold, for what only the kernel's command line can say (``lockdown=integrity``)."""
    built = image.build()
    # Installing once more would change nothing: the disk on which it was done is as good.
    disk = _kmodd_state(built, Options()).disk if kmodd else None
    machine = Machine(built, Options(cmdline_extra=cmdline_extra, network=network), disk=disk, forward=forward)
    if kmodd:
        try:
            _start_kmodd(machine)
        except BaseException:
            machine.close()
            raise
    return machine


def _kmodd_state(built: Image, options: Options) -> State:
    """Installed once, with the usual options; a machine that differs in these boots from the disk on which it was done."""
    tree, usual = installed_tree(), Options()
    if options == usual:
        return prepared_state(built, options, "kmodd", [tree], lambda machine: install_kmodd(machine, tree))
    installed = _kmodd_state(built, usual)
    key = cache.digest([cache.identity(installed.folder), repr(options)])
    return State(
        cache.entry(
            built.suite.kind("booted"), key, lambda folder: _save(built, options, folder, installed.disk), prune=True
        )
    )


def installed_tree() -> bytes:
    """What ``make install`` may read, as a tar archive that is the same for the same content.

    The files of the working tree that git knows or would know, and the manual pages, which are built on the host. Read
    once, so that an edit under way cannot make the snapshot differ from its name.
    """
    command = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True).stdout.decode().split("\0")
    subprocess.run(["make", "-s", "-C", str(REPOSITORY), "man"], check=True, capture_output=True)
    listed += [str(page.relative_to(REPOSITORY)) for page in (REPOSITORY / "build/man").glob("*.[158]")]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in sorted(set(listed)):
            path = REPOSITORY / name
            if name and not name.startswith(NOT_INSTALLED) and path.is_file():
                data = path.read_bytes()
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(data), path.stat().st_mode & 0o777
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def install_kmodd(machine: Machine, tree: bytes) -> None:
    """As an administrator does it: ``make install``, then start the service and wait until it is ready."""
    say("installing kmodd in the machine")
    machine.unpack(tree, SOURCE)
    machine.run(["make", "-C", SOURCE, "install"], timeout=300, check=True)
    _start_kmodd(machine)


def _start_kmodd(machine: Machine) -> None:
    started = machine.run(["systemctl", "start", "kmodd.service"], timeout=120)
    if started.code:
        status = machine.run(["systemctl", "status", "--no-pager", "-l", "kmodd.service"]).stdout
        raise RuntimeError(f"kmodd does not start:\n{started.stderr}{status}{machine.journal('-u', 'kmodd.service')}")
