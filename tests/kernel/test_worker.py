# SPDX-License-Identifier: LGPL-2.1-or-later
"""The worker program itself, driven by hand through its socket. The real calls are refused or not there on a test machine:
what is asserted is what happens before and around them."""

import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.kernel import worker
from kmodd.kernel.executor import worker_program

SCRIPTED = (sys.executable, "-I", "-S", str(Path(__file__).with_name("scripted_worker.py")))
REFUSED = {errno.ENOSYS, errno.EPERM, errno.ENOEXEC, errno.ENOENT}
"""What a kernel without modules, a container, or a kernel that looks at the file answers."""


class Driven:
    """A worker started as the pool does it, without a loop."""

    def __init__(self, program: tuple[str, ...]) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(10)
        self.pid = os.posix_spawn(
            program[0],
            program,
            {},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), worker.SOCKET),
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            ],
        )
        theirs.close()
        assert self.channel.recv(64) == worker.READY

    def ask(self, order: bytes) -> int:
        self.channel.send(order)
        return worker.decode_answer(self.channel.recv(64))[0]

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def status(self, key: str) -> str:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith(key + ":"))


def drive(program: tuple[str, ...]) -> Iterator[Driven]:
    driven = Driven(program)
    yield driven
    driven.channel.close()
    try:
        os.kill(driven.pid, signal.SIGKILL)
        os.waitpid(driven.pid, 0)
    except (ChildProcessError, ProcessLookupError):
        pass  # The test has waited for it.


@pytest.fixture
def real() -> Iterator[Driven]:
    yield from drive(worker_program())


@pytest.fixture
def scripted() -> Iterator[Driven]:
    yield from drive(SCRIPTED)


def test_removing_what_is_not_loaded_answers_the_kernels_errno(real: Driven) -> None:
    assert real.ask(worker.encode("remove", b"kmodd_no_such_module")) in REFUSED


def test_plain_file_goes_to_the_kernel_as_it_is(real: Driven, tmp_path: Path) -> None:
    file = tmp_path / "broken.ko"
    file.write_bytes(b"\x7fELF" + bytes(60))
    assert real.ask(worker.encode("insert", bytes(file), b"")) in REFUSED


@pytest.mark.parametrize("magic", [b"\xfd7zXZ\x00", b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd"])
def test_broken_compressed_file_is_an_errno_and_not_the_end(real: Driven, tmp_path: Path, magic: bytes) -> None:
    file = tmp_path / "broken.ko.xz"
    file.write_bytes(magic + b"garbage" * 10)
    assert real.ask(worker.encode("insert", bytes(file), b"")) > 0
    assert real.ask(worker.encode("remove", b"kmodd_no_such_module")) in REFUSED


def test_missing_file_is_enoent(real: Driven, tmp_path: Path) -> None:
    assert real.ask(worker.encode("insert", bytes(tmp_path / "none.ko"), b"")) == errno.ENOENT


@pytest.mark.parametrize("kind", ["directory", "fifo", "device"])
def test_what_is_no_regular_file_is_never_opened(real: Driven, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "odd.ko"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path = Path("/dev/zero")
    assert real.ask(worker.encode("insert", bytes(path), b"")) == errno.ENOEXEC


def test_link_to_a_module_file_is_followed(real: Driven, tmp_path: Path) -> None:
    (tmp_path / "real.ko").write_bytes(b"\x7fELF" + bytes(60))
    (tmp_path / "weak.ko").symlink_to(tmp_path / "real.ko")
    assert real.ask(worker.encode("insert", bytes(tmp_path / "weak.ko"), b"")) in REFUSED


@pytest.mark.parametrize("order", [b"reboot\0x", b"insert\0x", b"insert\0x\0y\0z", b"remove", b"\0", b"insert"])
def test_order_it_does_not_know_is_refused(real: Driven, order: bytes) -> None:
    assert real.ask(order) == errno.EBADMSG


def test_leaves_when_the_parent_closes_its_end(real: Driven) -> None:
    real.channel.close()
    assert real.wait() == 0


def test_stop_signals_are_for_the_daemon(real: Driven) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(real.pid, number)
    assert real.ask(b"nothing") == errno.EBADMSG


def test_stays_below_fifteen_megabytes_and_single_threaded(real: Driven) -> None:
    real.ask(worker.encode("remove", b"kmodd_no_such_module"))
    assert int(real.status("VmRSS").split()[0]) <= 15 * 1024
    assert real.status("Threads") == "1"
    assert real.status("Name") == "kmodd-worker"


def test_holds_only_its_socket_and_the_standard_three(scripted: Driven) -> None:
    read, write = os.pipe()
    os.set_inheritable(read, True)
    try:
        leaky = Driven(SCRIPTED)
        try:
            assert leaky.ask(worker.encode("insert", b"fds", b"")) == 4
        finally:
            leaky.channel.close()
            assert leaky.wait() == 0
    finally:
        os.close(read)
        os.close(write)
    assert scripted.ask(worker.encode("insert", b"fds", b"")) == 4


def test_has_no_environment(scripted: Driven) -> None:
    # LC_CTYPE is Python's own: it sets it for a process that starts in the C locale (PEP 538).
    assert scripted.ask(worker.encode("insert", b"env", b"")) <= 1


def test_errors_of_the_system_become_errno(scripted: Driven) -> None:
    assert scripted.ask(worker.encode("insert", b"raise:28", b"")) == errno.ENOSPC
    assert scripted.ask(worker.encode("insert", b"memory", b"")) == errno.ENOMEM


def test_dies_with_a_parent_that_is_killed() -> None:
    starter = (
        "import os, socket, sys, time\n"
        "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "pid = os.posix_spawn(sys.argv[1], sys.argv[1:], {}, file_actions=[(os.POSIX_SPAWN_DUP2, b.fileno(), 3)])\n"
        "b.close()\n"
        "a.recv(64)\n"
        "a.send(b'insert\\0sleep:60\\0')\n"
        "print(pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", starter, *SCRIPTED], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        watch = os.pidfd_open(pid)
        try:
            parent.kill()
            assert select.select([watch], [], [], 10)[0], "the worker outlives its parent"
        finally:
            os.close(watch)


@pytest.mark.parametrize("argument", [b"a\0b", b"x" * worker.MESSAGE_MAX])
def test_order_that_cannot_be_spelled_is_refused_before_it_is_sent(argument: bytes) -> None:
    with pytest.raises(ValueError, match=r"argument|order"):
        worker.encode("insert", argument, b"")


def test_never_forces() -> None:
    """The source names no force flag, and the only flags are 0 and O_NONBLOCK."""
    source = Path(worker.__file__).read_text()
    assert "O_TRUNC" not in source
    assert "IGNORE" not in source.replace("_SIG_IGN", "")
