# SPDX-License-Identifier: LGPL-2.1-or-later
"""A file server on FUSE whose only file is open, at a path that looks like a device's, and that then answers nothing any more.

Runs inside the guest as `python3 guest_fuse.py FOLDER`, says `open PID` and waits. Whoever asks for the status of the file hangs.
"""

import ctypes
import errno
import os
import struct
import sys
import threading
import time

HEADER = struct.Struct("=IIQQIIII")
ANSWER = struct.Struct("=IiQ")
ATTRIBUTES = struct.Struct("=6Q3I7I")
LOOKUP, FORGET, GETATTR, OPEN, RELEASE, INIT, OPENDIR, BATCH_FORGET = 1, 2, 3, 14, 18, 26, 27, 42
DIRECTORY, FILE = 0o40755, 0o100644


def attributes(node: int) -> bytes:
    mode = DIRECTORY if node < 3 else FILE
    return ATTRIBUTES.pack(node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(opcode: int, node: int) -> tuple[int, bytes]:
    """The error and the body; the root is 1, `dev` in it is 2, `x` in that is 3. Nothing may be remembered by the kernel."""
    if opcode == INIT:
        return 0, struct.pack("=IIIIHHIIHHI7I", 7, 31, 65536, 0, 12, 9, 65536, 1, 32, 0, 0, *[0] * 7)
    if opcode == LOOKUP:
        return 0, struct.pack("=QQQQII", node + 1, 0, 0, 0, 0, 0) + attributes(node + 1)
    if opcode == GETATTR:
        return 0, struct.pack("=QII", 0, 0, 0) + attributes(node)
    if opcode in (OPEN, OPENDIR):
        return 0, struct.pack("=QII", 1, 0, 0)
    return (0, b"") if opcode == RELEASE else (-errno.ENOSYS, b"")


def serve(device: int, silent: threading.Event) -> None:
    while not silent.is_set():
        data = os.read(device, 1 << 18)
        _, opcode, unique, node, *_ = HEADER.unpack_from(data)
        if silent.is_set():
            return  # asked, and never answered
        if opcode in (FORGET, BATCH_FORGET):
            continue
        error, body = answer(opcode, node)
        os.write(device, ANSWER.pack(ANSWER.size + len(body), error, unique) + body)


def main() -> None:
    folder = sys.argv[1]
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"silent", folder.encode(), b"fuse", 0, options) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    silent = threading.Event()
    threading.Thread(target=serve, args=(device, silent), daemon=True).start()
    opened = os.open(f"{folder}/dev/x", os.O_RDONLY)
    silent.set()
    print("open", os.getpid(), opened, flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
