# SPDX-License-Identifier: LGPL-2.1-or-later
"""Is a binary index whole? libkmod trusts the offsets in modules.*.bin and would crash on a file that was cut off.

depmod writes the header last and the root node at the end (index_write in tools/depmod.c), so a file whose header is
right and whose root node lies inside was written to its end.
"""

import os
import struct

_HEADER = struct.Struct(">III")
_MAGIC = 0xB007F457
_VERSION_MAJOR = 2
_OFFSET = 0x0FFFFFFF
_ROOT_MAX = 64 << 10
_PREFIX, _VALUES, _CHILDREN = 0x80000000, 0x40000000, 0x20000000


def is_sound(path: str) -> bool:
    """Tell whether the index can be given to libkmod; OSError when it cannot be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        size = os.fstat(descriptor).st_size
        start = os.pread(descriptor, _HEADER.size, 0)
        if len(start) < _HEADER.size:
            return False
        magic, version, root = _HEADER.unpack(start)
        if magic != _MAGIC or version >> 16 != _VERSION_MAJOR:
            return False
        if not _HEADER.size <= root & _OFFSET <= size:
            return False
        return _is_node(os.pread(descriptor, _ROOT_MAX, root & _OFFSET), root)
    finally:
        os.close(descriptor)


def _is_node(data: bytes, flags: int) -> bool:
    """Tell whether the root node's prefix, table of children and values lie in the data."""
    position = 0
    if flags & _PREFIX:
        position = data.find(b"\0") + 1
        if position == 0:
            return False
    if flags & _CHILDREN:
        if position + 2 > len(data):
            return False
        first, last = data[position], data[position + 1]
        if not first <= last < 128:
            return False
        position += 2 + 4 * (last - first + 1)
    if flags & _VALUES:
        count = int.from_bytes(data[position : position + 4])
        position += 4
        for _ in range(count):
            position = data.find(b"\0", position + 4) + 1
            if position == 0:
                return False
    return position <= len(data)
