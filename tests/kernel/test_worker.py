# SPDX-License-Identifier: LGPL-2.1-or-later
"""The worker program itself, driven by hand through its socket. The real calls are refused or not there on a test machine:
what is asserted is what happens before and around them."""

import errno
import gzip
import hashlib
import lzma
import os
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmodd.kernel.worker import worker
from kmodd.kernel.worker.executor import worker_program

SCRIPTED = (sys.executable, "-I", "-S", str(Path(__file__).with_name("scripted_worker.py")))
RELEASE = os.uname().release
MODULE = b"\x7fELF" + bytes(60)
REFUSED = {errno.ENOSYS, errno.EPERM, errno.ENOEXEC, errno.ENOENT}
"""What a kernel without modules, a container, or a kernel that looks at the file answers."""


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout


PACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstd}


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
        return self.told(order)[0]

    def told(self, order: bytes) -> tuple[int, bytes]:
        """The errno, and what is added to it."""
        self.channel.send(order)
        number, _, data = worker.decode_answer(self.channel.recv(worker.ANSWER_MAX))
        return number, data

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
def tree(tmp_path: Path) -> Path:
    """A module tree of the running kernel below a root folder, as distributions have it: /lib is a link."""
    made = tmp_path / "usr/lib/modules" / RELEASE / "kernel"
    made.mkdir(parents=True)
    for folder in (made, *made.parents):
        if folder == tmp_path:
            break
        folder.chmod(0o755)
    (tmp_path / "lib").symlink_to("usr/lib")
    return made.parent


@pytest.fixture
def rooted(tree: Path, tmp_path: Path) -> Iterator[Driven]:
    """The real program, with its files below a root folder."""
    assert tree.is_dir()
    yield from drive((*worker_program(), str(tmp_path)))


@pytest.fixture
def scripted() -> Iterator[Driven]:
    yield from drive(SCRIPTED)


def test_removing_what_is_not_loaded_answers_the_kernels_errno(real: Driven) -> None:
    assert real.ask(worker.encode("remove", b"kmodd_no_such_module")) in REFUSED


def insertion(file: str, *, release: str = RELEASE, sha256: str = "", arguments: str = "") -> bytes:
    return worker.encode("insert", release.encode(), file.encode(), sha256.encode(), arguments.encode())


def module(path: Path, content: bytes = MODULE) -> Path:
    path.write_bytes(content)
    path.chmod(0o644)
    return path


def test_plain_file_goes_to_the_kernel_as_it_is(rooted: Driven, tree: Path) -> None:
    module(tree / "kernel/broken.ko")
    assert rooted.told(insertion("kernel/broken.ko")) in {(number, b"") for number in REFUSED}


@pytest.mark.parametrize("suffix", ["gz", "xz", "zst"])
def test_compressed_file_is_unpacked_first(rooted: Driven, tree: Path, suffix: str) -> None:
    packed = PACK[suffix](MODULE)
    module(tree / f"kernel/packed.ko.{suffix}", packed)
    assert rooted.told(insertion(f"kernel/packed.ko.{suffix}")) in {(number, b"") for number in REFUSED}


def test_what_is_unpacked_is_what_was_packed(tree: Path) -> None:
    """The kernel that would say so is in the virtual machine."""
    for suffix, pack in PACK.items():
        path = module(tree / f"kernel/packed.ko.{suffix}", pack(MODULE * 1000))
        with path.open("rb") as file:
            assert worker._unpacked(file.fileno(), pack(MODULE)[:6]) == MODULE * 1000


@pytest.mark.parametrize("magic", [b"\xfd7zXZ\x00", b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd"])
def test_broken_compressed_file_is_an_errno_and_not_the_end(rooted: Driven, tree: Path, magic: bytes) -> None:
    module(tree / "kernel/broken.ko.xz", magic + b"garbage" * 10)
    assert rooted.ask(insertion("kernel/broken.ko.xz")) == errno.ENOEXEC
    assert rooted.ask(worker.encode("remove", b"kmodd_no_such_module")) in REFUSED


def test_missing_file_is_enoent(rooted: Driven) -> None:
    assert rooted.told(insertion("kernel/none.ko")) == (errno.ENOENT, b"")


# --- files it does not insert -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "release", ["0.0.1-other", "", ".", "..", "../modules/" + RELEASE, RELEASE + "/", RELEASE + "/kernel"]
)
def test_other_kernel_than_the_running_one_is_refused(rooted: Driven, tree: Path, release: str) -> None:
    module(tree / "kernel/good.ko")
    other = tree.parent / "0.0.1-other/kernel"
    other.mkdir(parents=True)
    module(other / "good.ko")
    assert rooted.told(insertion("kernel/good.ko", release=release)) == (errno.EACCES, b"release")


@pytest.mark.parametrize(
    "file",
    [
        "",
        ".",
        "..",
        "kernel",
        "/etc/passwd",
        "/kernel/good.ko",
        "kernel/../kernel/good.ko",
        "../{release}/kernel/good.ko",
        "kernel/./good.ko",
        "kernel//good.ko",
        "kernel/good.ko/",
        "../../../../proc/self/fd/3",
        "kernel/good.txt",
        "modules.dep",
    ],
)
def test_name_that_is_no_module_file_below_the_tree_is_refused(rooted: Driven, tree: Path, file: str) -> None:
    module(tree / "kernel/good.ko")
    module(tree / "kernel/good.txt")
    module(tree / "modules.dep")
    assert rooted.told(insertion(file.format(release=RELEASE))) == (errno.EACCES, b"place")


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket", "device"])
def test_what_is_no_regular_file_is_never_opened(rooted: Driven, tree: Path, kind: str) -> None:
    path = tree / "kernel/odd.ko"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o755)
    else:
        os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 5))
    path.chmod(0o755)
    assert rooted.told(insertion("kernel/odd.ko")) == (errno.EACCES, b"kind")


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o777, 0o4666])
def test_file_that_others_may_write_is_refused(rooted: Driven, tree: Path, mode: int) -> None:
    module(tree / "kernel/good.ko").chmod(mode)
    assert rooted.told(insertion("kernel/good.ko")) == (errno.EACCES, b"owner")


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
@pytest.mark.parametrize("folder", [".", "kernel", ".."])
def test_folder_that_others_may_write_to_is_refused(rooted: Driven, tree: Path, folder: str, mode: int) -> None:
    module(tree / "kernel/good.ko")
    (tree / folder).chmod(mode)
    assert rooted.told(insertion("kernel/good.ko")) == (errno.EACCES, b"owner")


@pytest.mark.parametrize("what", ["kernel/good.ko", "kernel", "kernel/link.ko"])
def test_what_belongs_to_another_user_is_refused(rooted: Driven, tree: Path, what: str) -> None:
    module(tree / "kernel/good.ko")
    (tree / "kernel/link.ko").symlink_to("good.ko")
    os.chown(tree / what, 1000, -1, follow_symlinks=False)
    file = what if what.endswith(".ko") else "kernel/good.ko"
    assert rooted.told(insertion(file)) == (errno.EACCES, b"owner")


def test_magic_link_of_proc_leads_nowhere(rooted: Driven, tree: Path, tmp_path: Path) -> None:
    """The text of /proc/PID/fd/N is followed like any other; what the kernel would open behind it is not."""
    (tree / "kernel/magic.ko").symlink_to("/proc/self/fd/3")
    assert rooted.ask(insertion("kernel/magic.ko")) == errno.ENOENT  # there is no /proc below this root
    (tree / "kernel/loop.ko").symlink_to("loop.ko")
    assert rooted.ask(insertion("kernel/loop.ko")) == errno.ELOOP
    (tree / "kernel/up.ko").symlink_to("../../../../../../../../../etc/passwd")
    (tmp_path / "etc").mkdir(mode=0o755)
    (tmp_path / "etc/passwd").mkdir(mode=0o755)
    assert rooted.told(insertion("kernel/up.ko")) == (errno.EACCES, b"kind")


@pytest.mark.parametrize("target", ["/{modules}/0.0.1-other/extra/weak.ko", "../../0.0.1-other/extra/weak.ko"])
def test_link_of_roots_to_another_tree_is_followed_by_the_same_rules(rooted: Driven, tree: Path, target: str) -> None:
    """Weak updates: a module that was built for an older kernel of the same interface."""
    extra = tree.parent / "0.0.1-other/extra"
    extra.mkdir(parents=True)
    extra.parent.chmod(0o755)
    extra.chmod(0o755)
    weak = module(extra / "weak.ko")
    (tree / "weak-updates").mkdir(mode=0o755)
    (tree / "weak-updates/weak.ko").symlink_to(target.format(modules="lib/modules"))
    assert rooted.told(insertion("weak-updates/weak.ko")) in {(number, b"") for number in REFUSED}
    extra.chmod(0o777)
    assert rooted.told(insertion("weak-updates/weak.ko")) == (errno.EACCES, b"owner")
    extra.chmod(0o755)
    weak.chmod(0o666)
    assert rooted.told(insertion("weak-updates/weak.ko")) == (errno.EACCES, b"owner")


def test_hard_link_is_the_file_itself(rooted: Driven, tree: Path) -> None:
    """Image-based systems keep every file so."""
    os.link(module(tree / "kernel/good.ko"), tree / "kernel/same.ko")
    assert rooted.told(insertion("kernel/same.ko")) in {(number, b"") for number in REFUSED}


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_content_that_was_not_authorised_is_refused(rooted: Driven, tree: Path, suffix: str) -> None:
    file = f"kernel/good.ko{suffix}"
    path = module(tree / file, gzip.compress(MODULE) if suffix else MODULE)
    authorised = hashlib.sha256(path.read_bytes()).hexdigest()
    assert rooted.told(insertion(file, sha256=authorised)) in {(number, b"") for number in REFUSED}
    module(path, path.read_bytes() + b"!")
    assert rooted.told(insertion(file, sha256=authorised)) == (errno.EACCES, b"digest")
    assert rooted.told(insertion(file, sha256="nonsense")) == (errno.EACCES, b"digest")


def test_refusals_leave_no_descriptor_behind(rooted: Driven, tree: Path) -> None:
    module(tree / "kernel/good.ko")
    os.mkfifo(tree / "kernel/fifo.ko")
    (tree / "kernel/link.ko").symlink_to("loop.ko")
    (tree / "kernel/loop.ko").symlink_to("/lib/modules/" + RELEASE + "/kernel/link.ko")
    before = len(list(Path(f"/proc/{rooted.pid}/fd").iterdir()))
    for file in (
        "kernel/good.ko",
        "kernel/fifo.ko",
        "kernel/link.ko",
        "kernel/none.ko",
        "kernel/good.ko/x.ko",
        "../x.ko",
    ):
        for sha256 in ("", "0" * 64):
            rooted.ask(insertion(file, sha256=sha256))
    assert len(list(Path(f"/proc/{rooted.pid}/fd").iterdir())) == before


# --- parameters ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def parameters(tmp_path: Path) -> Path:
    made = tmp_path / "sys/module/softdog/parameters"
    made.mkdir(parents=True)
    (made / "soft_margin").write_text("60\n")
    (made / "text").write_text("two words\n")
    return made


def values(driven: Driven, *names: str, module: str = "softdog") -> list[bytes | None]:
    number, data = driven.told(worker.encode("read-parameters", module.encode(), *(name.encode() for name in names)))
    assert number == 0
    return worker.decode_values(data)


def test_parameters_are_read_in_the_order_of_the_request(rooted: Driven, parameters: Path) -> None:
    (parameters / "empty").write_text("")
    (parameters / "odd").write_bytes(b"\0 12 \xff\n")
    asked = ("text", "empty", "none", "odd", "soft_margin")
    assert values(rooted, *asked) == [b"two words\n", b"", None, b"\0 12 \xff\n", b"60\n"]


def test_big_values_never_make_an_answer_too_big(rooted: Driven, parameters: Path) -> None:
    names = [f"p{number:03}" for number in range(200)]
    for name in names:
        (parameters / name).write_bytes(b"x" * 5000)
    read = values(rooted, *names)
    assert read[0] == b"x" * worker.VALUE_MAX
    assert read[-1] is None
    assert len(read) == 200


def test_nothing_but_parameters_of_a_module_is_read_or_written(
    rooted: Driven, parameters: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    (parameters / "link").symlink_to(secret)
    (parameters / "folder").mkdir()
    os.mkfifo(parameters / "fifo")
    (tmp_path / "sys/module/linked").symlink_to("softdog")
    odd = ("link", "folder", "fifo", "..", ".", "../../../../secret", "")
    assert values(rooted, *odd) == [None] * len(odd)
    for module in ("linked", "", ".", "..", "softdog/../softdog", "none"):
        assert rooted.ask(worker.encode("read-parameters", module.encode(), b"text")) in {
            errno.ENOENT,
            errno.ENOTDIR,
        }, module
    for name in odd:
        assert rooted.ask(worker.encode("write-parameter", b"softdog", name.encode(), b"1")) > 0, name
    assert secret.read_text() == "x"


def test_parameter_is_written_as_it_is(rooted: Driven, parameters: Path) -> None:
    assert rooted.ask(worker.encode("write-parameter", b"softdog", b"soft_margin", b"30")) == 0
    assert (
        parameters / "soft_margin"
    ).read_bytes() == b"30\n"  # over the old text: a value of sysfs has no length of its own
    (parameters / "new").write_bytes(b"")
    assert rooted.ask(worker.encode("write-parameter", b"softdog", b"new", b"")) == 0
    assert (parameters / "new").read_bytes() == b"\0"  # sysfs does not pass on a write of no bytes


@pytest.mark.parametrize("data", [b"5 abc", b"x abc", b"3"])
def test_values_that_are_cut_short_are_no_values(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"short|invalid"):
        worker.decode_values(data)


@pytest.mark.parametrize(
    "order",
    [
        b"reboot\0x",
        b"insert\0x",
        b"insert\0x\0y\0z",
        b"insert\0/x.ko\0",
        b"remove",
        b"\0",
        b"insert",
        b"read-parameters\0x",
    ],
)
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
            assert leaky.ask(insertion("fds")) == 4
        finally:
            leaky.channel.close()
            assert leaky.wait() == 0
    finally:
        os.close(read)
        os.close(write)
    assert scripted.ask(insertion("fds")) == 4


def test_has_no_environment(scripted: Driven) -> None:
    # LC_CTYPE is Python's own: it sets it for a process that starts in the C locale (PEP 538).
    assert scripted.ask(insertion("env")) <= 1


def test_errors_of_the_system_become_errno(scripted: Driven) -> None:
    assert scripted.ask(insertion("raise:28")) == errno.ENOSPC
    assert scripted.ask(insertion("memory")) == errno.ENOMEM


def test_dies_with_a_parent_that_is_killed() -> None:
    starter = (
        "import os, socket, sys, time\n"
        "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "pid = os.posix_spawn(sys.argv[1], sys.argv[1:], {}, file_actions=[(os.POSIX_SPAWN_DUP2, b.fileno(), 3)])\n"
        "b.close()\n"
        "a.recv(64)\n"
        "a.send(b'remove\\0sleep:60')\n"
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


def test_locks_by_the_switch_alone(tmp_path: Path) -> None:
    switch = tmp_path / "proc/sys/kernel/modules_disabled"
    switch.parent.mkdir(parents=True)
    for driven in drive((*worker_program(), str(tmp_path))):
        assert driven.ask(b"lock") == errno.ENOENT
        assert not switch.exists(), "a kernel without modules has none"
        switch.write_bytes(b"0")
        assert driven.ask(b"lock\0now") == errno.EBADMSG
        assert switch.read_bytes() == b"0"
        assert driven.ask(b"lock") == 0
        assert switch.read_bytes() == b"1"
