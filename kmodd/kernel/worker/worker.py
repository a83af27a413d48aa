# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program in a worker process: takes one order at a time, makes the system call, and answers with errno.

An init or exit function, and the getter or setter of a parameter, are code of the module: they can hang forever (the caller
is in state D and `kill -9` has no effect) or oops (the kernel kills the caller). So the caller is this process, which holds
nothing else: one SOCK_SEQPACKET socket to its parent as descriptor 3, stdin and stdout on /dev/null, and the parent's stderr
so that a failed start is seen in the journal.

Protocol, one message each way, bytes:

    order   VERB NUL ARGUMENT NUL ARGUMENT …
    answer  ERRNO SPACE NANOSECONDS SPACE DATA          (decimal; errno 0 is success; the time of the call alone)

    insert RELEASE FILE SHA256 ARGUMENTS    the file below /lib/modules/RELEASE; an empty SHA256 is not compared
    remove MODULE
    read-parameters MODULE PARAMETER …      DATA: for each one the length of its value, a space, the value; -1 for none
    write-parameter MODULE PARAMETER VALUE
    lock                                    write 1 to kernel.modules_disabled, which only a reboot takes back

An order that this process refuses itself is answered with EACCES and one of `REFUSALS` as DATA. It takes no path: it inserts
only from the module tree of the running kernel.

`ready 0` is sent once before the first order, so that the parent can distinguish a worker that never started from one that
was killed in a call. End of file on the socket means that the parent is gone or does not need this worker: it exits.

Run as `python3 -I -S /path/of/this/file [ROOT]`; ROOT is where tests have /lib/modules and /sys. It is stand-alone on
purpose: what is imported here is resident once per worker.
"""

import ctypes
import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Mapping

SOCKET = 3
"""The descriptor the parent passes."""
REFUSALS = frozenset({"release", "place", "kind", "owner", "digest"})
"""Why a file is not inserted: the order is for another kernel than the running one; the name leads out of the module tree; it is
no regular file; it, or a folder or link on the way, is not root's alone to change; it is not the content that was authorised."""
MESSAGE_MAX = 128 * 1024
"""Bytes of one order. 64 parameters of 1024 bytes with their names fit; the default socket buffer holds 208 KiB."""
READY = b"ready 0"
ANSWER_MAX = 128 * 1024
"""Bytes of one answer."""
VALUE_MAX = 4096
"""Bytes of one parameter's value: sysfs gives a page at most."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_SIGKILL = 9
_STOP_SIGNALS = (1, 2, 15)  # SIGHUP, SIGINT, SIGTERM
_SIG_IGN = 1

# (init_module, finit_module, delete_module) by `uname -m`, for 64-bit processes. glibc has no wrapper for finit_module. Numbers
# from arch/*/entry/syscalls/*.tbl and include/uapi/asm-generic/unistd.h.
_SYSCALLS: Mapping[str, tuple[int, int, int]] = {
    "x86_64": (175, 313, 176),
    "aarch64": (105, 273, 106),
    "riscv64": (105, 273, 106),
    "loongarch64": (105, 273, 106),
    "ppc64": (128, 353, 129),
    "ppc64le": (128, 353, 129),
    "s390x": (128, 344, 129),
}
_OPENAT2 = 437  # on every architecture
_RESOLVE_NO_MAGICLINKS, _RESOLVE_BENEATH = 0x02, 0x08  # include/uapi/linux/openat2.h
_LINKS_MAX = 40  # MAXSYMLINKS of the kernel's own look-up
_CHUNK = 1 << 20

Answer = int | tuple[int, bytes]
Handler = Callable[..., Answer]
"""Takes the order's arguments as bytes and returns an errno, and what is to be added to it."""


class RefusedError(Exception):
    """The order is not carried out; the argument is one of REFUSALS."""


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class SystemCalls:
    """init_module, finit_module and delete_module, bare. ENOSYS on a machine whose call numbers are not known here.

    The flags are 0 and O_NONBLOCK, always: nothing here can ignore a version or force a removal.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long
        numbers = _SYSCALLS.get(os.uname().machine) if sys.maxsize > 2**32 else None
        # -1 is no system call anywhere: the kernel answers ENOSYS.
        self._init, self._finit, self._delete = numbers or (-1, -1, -1)

    def insert_file(self, file: int, arguments: bytes) -> int:
        """Insert the plain module file that is open for reading."""
        return self._made(self._finit, ctypes.c_long(file), ctypes.c_char_p(arguments), ctypes.c_long(0))

    def insert_image(self, image: bytes, arguments: bytes) -> int:
        """Insert a module that had to be unpacked, as libkmod does where the kernel does not unpack."""
        size = ctypes.c_ulong(len(image))
        return self._made(self._init, ctypes.c_char_p(image), size, ctypes.c_char_p(arguments))

    def remove(self, name: bytes) -> int:
        """Remove a module by its canonical name; never waits for users and never forces."""
        return self._made(self._delete, ctypes.c_char_p(name), ctypes.c_long(os.O_NONBLOCK))

    def step(self, folder: int, name: bytes) -> int:
        """Open one entry of a folder for looking at it, without following a link or leaving the folder; OSError."""
        how = _OpenHow(os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
        size = ctypes.c_size_t(ctypes.sizeof(how))
        arguments = ctypes.c_long(folder), ctypes.c_char_p(name), ctypes.byref(how), size
        result: int = self._libc.syscall(ctypes.c_long(_OPENAT2), *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), "openat2")
        return result

    def leave_alone(self) -> None:
        """Die with the parent, ignore the signals meant for the daemon, have a distinct name in `ps`."""
        # A stop signal to the whole control group must not cut a call the daemon is still waiting for: it decides when
        # workers go, by closing their sockets, and the death signal covers the case that it cannot.
        for number in _STOP_SIGNALS:
            self._libc.signal(ctypes.c_int(number), ctypes.c_void_p(_SIG_IGN))
        self._libc.prctl(ctypes.c_int(_PR_SET_PDEATHSIG), ctypes.c_ulong(_SIGKILL), *[ctypes.c_ulong(0)] * 3)
        self._libc.prctl(ctypes.c_int(_PR_SET_NAME), ctypes.c_char_p(b"kmodd-worker"), *[ctypes.c_ulong(0)] * 3)

    def _made(self, number: int, *arguments: object) -> int:
        return ctypes.get_errno() if self._libc.syscall(ctypes.c_long(number), *arguments) < 0 else 0


class ModuleTree:
    """Opens module files of the running kernel's tree, and nothing else.

    Every folder, link and file on the way from the root is looked at through the descriptor that the next step starts from:
    each belongs to this process's own user, which is root, and only that user may write to it. A link is followed by its
    text and by the same rules, also out of the tree: weak-updates trees consist of links to other kernels' modules, and
    /lib is one. Links of /proc that are none (/proc/PID/fd) lead nowhere that way. Hard links are taken: an entry
    in a folder that only root writes to is root's doing.
    """

    def __init__(self, calls: SystemCalls, root: str = "/") -> None:
        self._step = calls.step
        self._root = root
        self._release = os.fsencode(os.uname().release)

    def open(self, release: bytes, file: bytes) -> int:
        """Open /lib/modules/RELEASE/FILE for reading; RefusedError, OSError."""
        if release != self._release:
            raise RefusedError("release")
        parts = file.split(b"/")
        if not file.endswith((b".ko", b".ko.gz", b".ko.xz", b".ko.zst")) or any(
            part in {b"", b".", b".."} for part in parts
        ):
            raise RefusedError("place")
        descriptor = self._walk([b"lib", b"modules", release, *parts])
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise RefusedError("kind")
            # The very file that was looked at. It is regular, so that opening it neither waits nor does anything.
            return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        finally:
            os.close(descriptor)

    def _walk(self, parts: list[bytes]) -> int:
        """A descriptor of what the parts lead to."""
        stack = [os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
        left, links = parts[::-1], 0
        try:
            while left:
                part = left.pop()
                if part in {b"", b"."}:
                    continue
                if part == b"..":
                    if len(stack) > 1:
                        os.close(stack.pop())
                    continue
                opened = self._step(stack[-1], part)
                stack.append(opened)
                status = os.fstat(opened)
                link = stat.S_ISLNK(status.st_mode)
                # The permission bits of a link mean nothing.
                if status.st_uid != os.geteuid() or (status.st_mode & 0o022 and not link):
                    raise RefusedError("owner")
                if link:
                    links += 1
                    if links > _LINKS_MAX:
                        raise OSError(errno.ELOOP, "links")
                    # readlinkat(2) with an empty path reads the link that the descriptor stands for.
                    target = os.readlink(b"", dir_fd=opened)
                    for descriptor in stack[1 if target.startswith(b"/") else -1 :]:
                        os.close(descriptor)
                    del stack[1 if target.startswith(b"/") else -1 :]
                    left += target.split(b"/")[::-1]
            return stack.pop()
        finally:
            for descriptor in stack:
                os.close(descriptor)


class Parameters:
    """Reads and writes /sys/module/MODULE/parameters, which runs the module's own getters and setters."""

    def __init__(self, root: str = "/") -> None:
        self._root = root

    def read(self, module: bytes, *names: bytes) -> Answer:
        """The values of these parameters, in order; those that cannot be read have none."""
        folder = self._folder(module)
        data = bytearray()
        try:
            for name in names:
                value = self._value(folder, name)
                fits = value is not None and len(data) + len(value) < ANSWER_MAX - 32 * len(names) - 64
                data += b"%d %s" % (len(value), value) if value is not None and fits else b"-1 "
        finally:
            os.close(folder)
        return 0, bytes(data)

    def write(self, module: bytes, name: bytes, value: bytes) -> Answer:
        """Write one parameter in one write.

        No newline is added: numbers and switches do not need one, and a `charp` would keep it (param_set_charp in
        kernel/params.c).
        """
        folder = self._folder(module)
        try:
            file = self._file(folder, name, os.O_WRONLY)
        finally:
            os.close(folder)
        try:
            # sysfs drops a write of no bytes before the module sees it (sysfs_kf_write in fs/sysfs/file.c); the text
            # ends at its first NUL, so one NUL is how to write the empty string.
            content = value or b"\0"
            return 0 if os.write(file, content) == len(content) else errno.EIO
        finally:
            os.close(file)

    def _folder(self, module: bytes) -> int:
        folder = os.open(os.path.join(self._root, "sys/module"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # noqa: PTH118
        try:
            for name in (module, b"parameters"):
                _check_entry(name)
                flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                below = os.open(name, flags, dir_fd=folder)
                os.close(folder)
                folder = below
        except BaseException:
            os.close(folder)
            raise
        return folder

    def _value(self, folder: int, name: bytes) -> bytes | None:
        try:
            file = self._file(folder, name, os.O_RDONLY)
        except OSError:
            return None
        try:
            return os.read(file, VALUE_MAX)
        except OSError:
            return None  # Its getter says no.
        finally:
            os.close(file)

    def _file(self, folder: int, name: bytes, flags: int) -> int:
        _check_entry(name)
        file = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return file


class Orders:
    """Everything a worker does."""

    def __init__(self, calls: SystemCalls, root: str = "/") -> None:
        self._calls = calls
        self._tree = ModuleTree(calls, root)
        self._parameters = Parameters(root)
        self._switch = os.path.join(root, "proc/sys/kernel/modules_disabled")  # noqa: PTH118 - no pathlib in here

    def verbs(self) -> Mapping[bytes, tuple[Handler, int]]:
        """Every order: verb → (handler, number of arguments, or its negative for at least so many)."""
        return {
            b"insert": (self.insert, 4),
            b"remove": (self._calls.remove, 1),
            b"read-parameters": (self._parameters.read, -2),
            b"write-parameter": (self._parameters.write, 3),
            b"lock": (self.lock, 0),
        }

    def lock(self) -> Answer:
        """Have the kernel load and unload nothing any more until the next boot."""
        file = os.open(self._switch, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return 0 if os.write(file, b"1") == 1 else errno.EIO
        finally:
            os.close(file)

    def insert(self, release: bytes, name: bytes, digest: bytes, arguments: bytes) -> Answer:
        """Insert a module file of the running kernel's tree, unpacking it first where it is compressed."""
        file = self._tree.open(release, name)
        try:
            # The compared content is the inserted one: the same open file, or what was read from it. While the kernel reads it,
            # no process can have it open for writing (ETXTBSY); before that, only root could change it.
            if digest and _digest(file) != digest:
                raise RefusedError("digest")
            # Anything that is not a known compression goes to the kernel as it is: its own complaint is the evidence.
            start = os.pread(file, 6, 0)
            if not start.startswith((b"\xfd7zXZ\x00", b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
                return self._calls.insert_file(file, arguments)
            image = _unpacked(file, start)
        finally:
            os.close(file)
        return errno.ENOEXEC if image is None else self._calls.insert_image(image, arguments)


def _check_entry(name: bytes) -> None:
    """Take nothing that is not the name of one entry of a folder."""
    if b"/" in name or name in {b"", b".", b".."}:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _digest(file: int) -> bytes:
    # Python has the hashes itself as well: without OpenSSL behind them they take 3 MB less.
    sys.modules.setdefault("_hashlib", None)  # type: ignore[arg-type]  # the documented way to make an import fail
    import hashlib

    digest, position = hashlib.sha256(), 0
    while part := os.pread(file, _CHUNK, position):
        digest.update(part)
        position += len(part)
    return digest.hexdigest().encode()


def _unpacked(file: int, start: bytes) -> bytes | None:
    """The content of a compressed file; None when it cannot be unpacked."""
    # Found by the place of this file, where the first compressed module is met: most machines have none.
    sys.path.append(os.path.abspath(__file__).rsplit(os.sep, 4)[0])  # noqa: PTH100
    try:
        from kmodd.kernel.modules.compression import Damaged, Unsupported, unpack
    finally:
        sys.path.pop()
    image = bytearray()
    os.lseek(file, 0, os.SEEK_SET)
    try:
        for piece in unpack(lambda size: os.read(file, size), start):
            image += piece
    except (Damaged, Unsupported):
        return None
    return bytes(image)


def encode(verb: str, *arguments: bytes) -> bytes:
    """Spell an order; ValueError for a NUL inside or for more than MESSAGE_MAX bytes."""
    if any(b"\0" in argument for argument in arguments):
        raise ValueError("an argument cannot contain NUL")
    order = b"\0".join((verb.encode(), *arguments))
    if len(order) > MESSAGE_MAX:
        raise ValueError(f"an order is at most {MESSAGE_MAX} bytes")
    return order


def decode_answer(answer: bytes) -> tuple[int, int, bytes]:
    """(errno, nanoseconds, data) of an answer."""
    number, _, rest = answer.partition(b" ")
    nanoseconds, _, data = rest.partition(b" ")
    return int(number), int(nanoseconds), data


def decode_values(data: bytes) -> list[bytes | None]:
    """The values in the answer to `read-parameters`; ValueError for what is none."""
    values: list[bytes | None] = []
    while data:
        length, _, data = data.partition(b" ")
        size = int(length)
        if size > len(data):
            raise ValueError("the answer is cut short")
        values.append(None if size < 0 else data[:size])
        data = data[max(size, 0) :]
    return values


def serve(verbs: Mapping[bytes, tuple[Handler, int]], channel: int = SOCKET) -> None:
    """Take orders until the parent closes its end."""
    try:
        os.write(channel, READY)
        while order := os.read(channel, MESSAGE_MAX):
            verb, *arguments = order.split(b"\0")
            handler, count = verbs.get(verb, (None, 0))
            started = time.monotonic_ns()
            answer: Answer
            if handler is None or (len(arguments) != count if count >= 0 else len(arguments) < -count):
                answer = errno.EBADMSG
            else:
                try:
                    answer = handler(*arguments)
                except RefusedError as refused:
                    answer = errno.EACCES, str(refused).encode()
                except OSError as error:
                    answer = error.errno or errno.EIO
                except MemoryError:
                    answer = errno.ENOMEM
            number, data = answer if isinstance(answer, tuple) else (answer, b"")
            os.write(channel, b"%d %d %s" % (number, time.monotonic_ns() - started, data))
    except (BrokenPipeError, ConnectionResetError):
        pass  # The parent left between two messages.


def isolate() -> None:
    """Hold nothing but the socket and the three standard descriptors; be nowhere in the file system."""
    highest = max(int(entry) for entry in os.listdir("/proc/self/fd"))  # noqa: PTH208 - no pathlib in here
    os.closerange(SOCKET + 1, highest + 1)
    os.chdir("/")
    os.umask(0o077)


def main() -> None:
    """Serve the parent that started this process."""
    isolate()
    calls = SystemCalls()
    calls.leave_alone()
    serve(Orders(calls, *sys.argv[1:2]).verbs())


if __name__ == "__main__":
    main()
