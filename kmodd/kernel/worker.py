# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program inside a worker process: takes one order at a time, makes the system call, answers with errno.

An init or exit function can hang for ever (the caller sits in state D and `kill -9` does nothing) or oops (the kernel
kills the caller). So the caller is this process, which holds nothing else: one SOCK_SEQPACKET socket to its parent as
descriptor 3, stdin and stdout on /dev/null, stderr of the parent so that a start that fails is seen in the journal.

Protocol, one message each way, bytes:

    order   VERB NUL ARGUMENT NUL ARGUMENT …
    answer  ERRNO SPACE NANOSECONDS          (decimal; errno 0 is success; the time of the call alone)

`ready 0` is sent once before the first order, so that the parent can tell a worker that never came up from one that was
killed in a call. End of file on the socket means the parent is gone or does not need this worker: it leaves.

Run as `python3 -I -S /path/of/this/file`. It is stand-alone on purpose: under `-I` the package cannot be imported, and
whatever is imported here is resident once per worker.
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
MESSAGE_MAX = 128 * 1024
"""Bytes of one order. 64 parameters of 1024 bytes with their names fit; the default socket buffer holds 208 KiB."""
READY = b"ready 0"

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_SIGKILL = 9
_STOP_SIGNALS = (1, 2, 15)  # SIGHUP, SIGINT, SIGTERM
_SIG_IGN = 1

# (finit_module, delete_module) by `uname -m`, for 64-bit processes. glibc has no wrapper for finit_module. Numbers from
# arch/*/entry/syscalls/*.tbl and include/uapi/asm-generic/unistd.h; any other machine goes through libkmod.
_SYSCALLS: Mapping[str, tuple[int, int]] = {
    "x86_64": (313, 176),
    "aarch64": (273, 106),
    "riscv64": (273, 106),
    "loongarch64": (273, 106),
    "ppc64": (353, 129),
    "ppc64le": (353, 129),
    "s390x": (344, 129),
}

Handler = Callable[..., int]
"""Takes the order's arguments as bytes and returns an errno."""


class SystemCalls:
    """finit_module and delete_module, bare where possible and through libkmod where not.

    The flags are 0 and O_NONBLOCK, always: nothing here can ignore a version or force a removal.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long
        known = _SYSCALLS.get(os.uname().machine) if sys.maxsize > 2**32 else None
        self._finit, self._delete = known or (0, 0)
        self._kmod: Libkmod | None = None

    def insert(self, path: bytes, arguments: bytes) -> int:
        """Insert the module file, decompressing it first where it is compressed."""
        # Looked at before it is opened: opening a FIFO or a device can block or have effects of its own. Symbolic links
        # are followed, since /lib is one and weak-updates trees consist of them; who can plant one there is root.
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - pathlib is not worth its memory in here
            return errno.ENOEXEC
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return errno.ENOEXEC
            # Anything that is not a known compression goes to the kernel as it is: its own complaint is the evidence.
            if self._finit and not _is_compressed(os.pread(file, 6, 0)):
                number, descriptor = ctypes.c_long(self._finit), ctypes.c_long(file)
                return self._made(self._libc.syscall(number, descriptor, ctypes.c_char_p(arguments), ctypes.c_long(0)))
        finally:
            os.close(file)
        return self._libkmod().insert(path, arguments)

    def remove(self, name: bytes) -> int:
        """Remove a module by its canonical name; never waits for users and never forces."""
        if self._delete:
            number, flags = ctypes.c_long(self._delete), ctypes.c_long(os.O_NONBLOCK)
            return self._made(self._libc.syscall(number, ctypes.c_char_p(name), flags))
        return self._libkmod().remove(name)

    def verbs(self) -> Mapping[bytes, tuple[Handler, int]]:
        """Every order this worker takes: verb → (handler, number of arguments)."""
        return {b"insert": (self.insert, 2), b"remove": (self.remove, 1)}

    def leave_alone(self) -> None:
        """Die with the parent, ignore the signals meant for the daemon, be told apart in `ps`."""
        # A stop signal to the whole control group must not cut a call the daemon is still waiting for: it decides when
        # workers go, by closing their sockets, and the death signal covers the case that it cannot.
        for number in _STOP_SIGNALS:
            self._libc.signal(ctypes.c_int(number), ctypes.c_void_p(_SIG_IGN))
        self._libc.prctl(ctypes.c_int(_PR_SET_PDEATHSIG), ctypes.c_ulong(_SIGKILL), *[ctypes.c_ulong(0)] * 3)
        self._libc.prctl(ctypes.c_int(_PR_SET_NAME), ctypes.c_char_p(b"kmodd-worker"), *[ctypes.c_ulong(0)] * 3)

    def _made(self, result: int) -> int:
        return ctypes.get_errno() if result < 0 else 0

    def _libkmod(self) -> "Libkmod":
        # Loaded at need: with the compression and crypto libraries behind it, it costs about 2 MB.
        if self._kmod is None:
            self._kmod = Libkmod()
        return self._kmod


class Libkmod:
    """Insertion and removal through libkmod: compressed files, and machines whose call numbers are not known here."""

    def __init__(self) -> None:
        lib = ctypes.CDLL("libkmod.so.2", use_errno=True)
        pointer = ctypes.c_void_p
        lib.kmod_new.restype = pointer
        lib.kmod_new.argtypes = [ctypes.c_char_p, pointer]
        for name in ("kmod_module_new_from_path", "kmod_module_new_from_name"):
            getattr(lib, name).argtypes = [pointer, ctypes.c_char_p, ctypes.POINTER(pointer)]
        lib.kmod_module_insert_module.argtypes = [pointer, ctypes.c_uint, ctypes.c_char_p]
        lib.kmod_module_remove_module.argtypes = [pointer, ctypes.c_uint]
        lib.kmod_module_unref.argtypes = lib.kmod_unref.argtypes = [pointer]
        lib.kmod_module_unref.restype = lib.kmod_unref.restype = pointer
        self._lib = lib

    def insert(self, path: bytes, arguments: bytes) -> int:
        """Insert a module file in any compression libkmod was built with."""
        lib = self._lib
        return self._with_module(
            lib.kmod_module_new_from_path, path, lambda module: lib.kmod_module_insert_module(module, 0, arguments)
        )

    def remove(self, name: bytes) -> int:
        """Remove a module by name."""
        lib = self._lib
        return self._with_module(
            lib.kmod_module_new_from_name, name, lambda module: lib.kmod_module_remove_module(module, os.O_NONBLOCK)
        )

    def _with_module(self, new: Callable[..., int], text: bytes, call: Callable[[ctypes.c_void_p], int]) -> int:
        # A context per order: libkmod keeps modules by name, and the same name may come from another file next time.
        # The empty list of configuration paths keeps it from reading modprobe.d, which is not this process's matter.
        nowhere = (ctypes.c_char_p * 1)(None)
        context = self._lib.kmod_new(b"/", ctypes.cast(nowhere, ctypes.c_void_p))
        if not context:
            return errno.ENOMEM
        try:
            module = ctypes.c_void_p()
            result = new(context, text, ctypes.byref(module))
            if result < 0:
                return -result
            try:
                result = call(module)
                return -result if result < 0 else 0
            finally:
                self._lib.kmod_module_unref(module)
        finally:
            self._lib.kmod_unref(context)


def _is_compressed(magic: bytes) -> bool:
    return magic.startswith((b"\xfd7zXZ\x00", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"))


def encode(verb: str, *arguments: bytes) -> bytes:
    """Spell an order; ValueError for a NUL inside or for more than MESSAGE_MAX bytes."""
    if any(b"\0" in argument for argument in arguments):
        raise ValueError("an argument cannot contain NUL")
    order = b"\0".join((verb.encode(), *arguments))
    if len(order) > MESSAGE_MAX:
        raise ValueError(f"an order is at most {MESSAGE_MAX} bytes")
    return order


def decode_answer(answer: bytes) -> tuple[int, int]:
    """(errno, nanoseconds) of an answer."""
    number, _, nanoseconds = answer.partition(b" ")
    return int(number), int(nanoseconds)


def serve(verbs: Mapping[bytes, tuple[Handler, int]], channel: int = SOCKET) -> None:
    """Take orders until the parent closes its end."""
    try:
        os.write(channel, READY)
        while order := os.read(channel, MESSAGE_MAX):
            verb, *arguments = order.split(b"\0")
            handler, count = verbs.get(verb, (None, 0))
            started = time.monotonic_ns()
            if handler is None or len(arguments) != count:
                number = errno.EBADMSG
            else:
                try:
                    number = handler(*arguments)
                except OSError as error:
                    number = error.errno or errno.EIO
                except MemoryError:
                    number = errno.ENOMEM
            os.write(channel, b"%d %d" % (number, time.monotonic_ns() - started))
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
    serve(calls.verbs())


if __name__ == "__main__":
    main()
