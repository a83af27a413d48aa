"""One QEMU process: its command line, its end, and what it leaves behind."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.clock import clock
from tests.vm import cache, host
from tests.vm.progress import say
from tests.vm.qmp import Qmp, QmpError

if TYPE_CHECKING:
    from tests.vm.image import Image

CMDLINE = (
    "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 systemd.show_status=0 rd.systemd.show_status=0"
    # What protects a kernel from its processes costs an emulated one some 15 % of its time, and no test is about it.
    " mitigations=off init_on_alloc=0 hardened_usercopy=off"
)

HOST = "10.0.2.100"
"""What the guest calls this host, for the ports that it may reach."""
RELAY = Path(__file__).with_name("relay.py")

_NAME = "qemu-system-x86_64"
# The first major version that is fast, and where it is to be had.
_FAST, _SUITE, _PACKAGES = 10, "bookworm-backports", ("qemu-system-x86", "qemu-system-data")
_GUARD = 'trap "" INT TERM HUP; cat; kill -9 "$1"; rm -rf "$2"'


class GuestDeadError(RuntimeError):
    """The machine answers no more: QEMU ended, the kernel panicked, or the agent is gone."""


@dataclass(frozen=True)
class Options:
    """What a machine is like. Machines that differ in any of it cannot share a snapshot."""

    cmdline_extra: tuple[str, ...] = ()
    network: bool = False
    memory: str = "1G"
    # Emulated ones wait for each other: with two of them the same work takes a third more of the host's time.
    processors: int = 1

    @property
    def cmdline(self) -> str:
        network = ("systemd.wants=systemd-networkd.service",) if self.network else ()
        return " ".join((CMDLINE, *network, *self.cmdline_extra))


@dataclass(frozen=True)
class State:
    """A stopped machine on disk: written by :meth:`Qemu.save`, never changed afterwards."""

    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "disk.qcow2"

    @property
    def memory(self) -> Path:
        return self.folder / "memory"

    @property
    def devices(self) -> Path:
        return self.folder / "devices"


def accelerator() -> str:
    """``tcg``, or what ``KMODD_VM_ACCEL`` names. KVM is not tried unasked: where it is there but broken, it hangs."""
    return "kvm" if os.environ.get("KMODD_VM_ACCEL") == "kvm" else "tcg,thread=multi"


@functools.cache
def emulator() -> tuple[str, ...]:
    """The command that runs QEMU, where its own arguments may follow.

    QEMU 10 needs half the processor time of Debian 12's 7.2. Where this machine has an older one, that of Debian 12's backports is
    unpacked into the cache; it needs the same libraries.
    """
    own = (_NAME,)
    if _version(*own) >= _FAST:
        return own
    try:
        folder = cache.entry("qemu", cache.digest([_SUITE, *_PACKAGES]), _unpack)
    except host.HostError as error:
        say(f"this machine's own QEMU, which is slow: {error}")
        return own
    return _unpacked(folder)


def _unpack(folder: Path) -> None:
    say(f"fetching QEMU from {_SUITE}")
    host.unpack_packages(_SUITE, _PACKAGES, folder)
    _version(*_unpacked(folder))


def _unpacked(folder: Path) -> tuple[str, ...]:
    usr = folder / "usr"
    return (str(usr / "bin" / _NAME), "-L", str(usr / "share/qemu"), "-L", "/usr/share/seabios")


def _version(*command: str) -> int:
    """Its major version."""
    found = re.search(r"version (\d+)\.", host.run([*command, "--version"]))
    return int(found[1]) if found else 0


def _network(forward: dict[int, int], reach: dict[int, int]) -> str:
    """A network that leads nowhere but through these ports. QEMU runs a relay for each connection of the guest's."""
    ports = "".join(f",hostfwd=tcp:127.0.0.1:{near}-:{far}" for near, far in forward.items())
    for far, near in reach.items():
        relay = shlex.join([sys.executable, "-I", "-S", str(RELAY), str(near)]).replace(",", ",,")
        ports += f",guestfwd=tcp:{HOST}:{far}-cmd:{relay}"
    return f"user,id=net,restrict=on{ports}"


class Qemu:
    """A running QEMU with a folder of its own for the disk overlay and its sockets.

    ``state`` starts from a saved machine, ``disk`` boots from the disk of one. ``keep_in`` puts disk and memory into this
    folder, from where :meth:`save` makes a :class:`State` of them; without it the machine leaves nothing behind.
    With a network, ``forward`` leads from ports of this host's loopback to the guest's, and ``reach`` from ports of :data:`HOST`
    in the guest to this host's loopback.
    """

    def __init__(
        self,
        image: Image,
        options: Options,
        *,
        state: State | None = None,
        disk: Path | None = None,
        keep_in: Path | None = None,
        forward: dict[int, int] | None = None,
        reach: dict[int, int] | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kmodd-vm-"))
        self._keep_in = keep_in
        self._closed = False
        store = keep_in or self.folder
        backing = state.disk if state else disk or image.disk
        overlay = ["-f", "qcow2", "-F", "qcow2", "-b", str(backing), str(store / "disk.qcow2")]
        host.run(["qemu-img", "create", "-q", *overlay])
        if state and keep_in:
            host.run(["cp", "--sparse=always", str(state.memory), str(keep_in / "memory")])
            (keep_in / "memory").chmod(0o644)
        # A file that others restore from is mapped privately: pages are copied when this machine writes them.
        memory = f"memory-backend-ram,id=ram,size={options.memory}"
        if keep_in:
            memory = f"memory-backend-file,id=ram,size={options.memory},mem-path={keep_in / 'memory'},share=on"
        elif state:
            memory = f"memory-backend-file,id=ram,size={options.memory},mem-path={state.memory},share=off"
        with (self.folder / "qemu.log").open("wb") as log:
            self.process = subprocess.Popen(
                self._command(
                    image,
                    options,
                    store,
                    memory,
                    incoming=state is not None,
                    network=_network(forward or {}, reach or {}),
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": host.SEARCH_PATH},
                start_new_session=True,
            )
        clock.watch(self.process.pid)
        # Waits for the end of this program, however it comes, and then ends QEMU and clears up.
        self._guard = subprocess.Popen(
            ["sh", "-c", _GUARD, "sh", str(self.process.pid), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self.qmp = self._connect()
            if state:
                self._restore(state)
        except BaseException:
            self.close()
            raise

    def _command(
        self, image: Image, options: Options, store: Path, memory: str, *, incoming: bool, network: str
    ) -> list[str]:
        folder = self.folder
        command = [*emulator(), "-nodefaults", "-no-user-config", "-display", "none"]
        # Plain max: without its svm (measured with svm=off) the guest fails to see its own mounts.
        # Page tables of five levels are walked by the emulator, for addresses that no machine of a gigabyte has.
        command += ["-machine", "q35,memory-backend=ram", "-accel", accelerator(), "-cpu", "max,la57=off"]
        command += ["-smp", str(options.processors), "-m", options.memory, "-object", memory, "-rtc", "base=utc"]
        command += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", options.cmdline]
        command += ["-drive", f"file={store / 'disk.qcow2'},if=none,id=disk,format=qcow2,cache=unsafe,discard=unmap"]
        command += ["-device", "virtio-blk-pci,drive=disk", "-device", "virtio-serial-pci"]
        command += ["-chardev", f"socket,id=agent,path={folder / 'agent'},server=on,wait=off"]
        command += ["-device", "virtserialport,chardev=agent,name=org.kmodd.agent"]
        log = f"logfile={folder / 'console.log'},logappend=on"
        command += ["-chardev", f"socket,id=console,path={folder / 'console'},server=on,wait=off,{log}"]
        command += ["-serial", "chardev:console", "-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"]
        if options.network:
            command += ["-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile="]
        if incoming:
            command += ["-incoming", "defer"]
        return command

    def _connect(self) -> Qmp:
        try:
            return Qmp(self.folder / "qmp")
        except (OSError, QmpError) as error:
            raise GuestDeadError(f"QEMU did not start: {self.log()}") from error

    def _restore(self, state: State) -> None:
        self._memory_stays_in_its_file()
        self.qmp.execute("migrate-incoming", uri=f"exec:cat {shlex.quote(str(state.devices))}")
        self.qmp.wait_for_migration()
        self.qmp.execute("cont")

    def save(self) -> None:
        """Write the machine's state into ``keep_in`` and end it."""
        if self._keep_in is None:
            raise ValueError("only a machine started with keep_in can be saved")
        state = State(self._keep_in)
        self.qmp.execute("stop")
        self._memory_stays_in_its_file()
        self.qmp.execute("migrate", uri=f"exec:cat > {shlex.quote(str(state.devices))}")
        self.qmp.wait_for_migration()
        self.qmp.execute("quit")
        self.process.wait(30)
        # QEMU opens the memory's file for writing even to map it privately, so that one keeps its mode.
        for file in (state.disk, state.devices):
            file.chmod(0o444)

    def _memory_stays_in_its_file(self) -> None:
        """Move devices only: a restored machine maps the memory file instead of reading it (0.2 s, shared pages)."""
        capability = {"capability": "x-ignore-shared", "state": True}
        self.qmp.execute("migrate-set-capabilities", capabilities=[capability])

    def log(self) -> str:
        """What QEMU itself had to say."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "qemu.log").read_text(errors="replace").strip()
        return ""

    def console(self) -> str:
        """All that came over the serial console since the start."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "console.log").read_text(errors="replace")
        return ""

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """End QEMU at once and remove its folder. May be called again."""
        if self._closed:
            return
        self._closed = True
        if hasattr(self, "qmp"):
            self.qmp.close()
        if self.running:
            self.process.kill()
        self.process.wait()
        clock.forget(self.process.pid)
        self._guard.kill()
        self._guard.wait()
        if self._guard.stdin:
            self._guard.stdin.close()
        shutil.rmtree(self.folder, ignore_errors=True)
