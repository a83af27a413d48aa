# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tests' own account of how the kernel reads a string of parameters, compiled from kernel_arguments.c."""

import ctypes
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

SOURCE = Path(__file__).with_suffix(".c")
_MOST = 4096


class _Argument(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p))


@cache
def _library() -> ctypes.CDLL:
    with TemporaryDirectory() as folder:
        library = Path(folder) / "kernel_arguments.so"
        command = ["gcc", "-std=gnu17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([*command, "-o", str(library), str(SOURCE)], check=True)
        return ctypes.CDLL(str(library))


class KernelArguments:
    """The compiled reader."""

    def __init__(self) -> None:
        self._read = _library().read_arguments
        self._read.restype = ctypes.c_size_t
        self._read.argtypes = [ctypes.c_char_p, ctypes.POINTER(_Argument), ctypes.c_size_t]

    def read(self, text: bytes) -> list[tuple[bytes, bytes | None]]:
        """Names and values up to `--`, as the kernel hands them to a module's parameters."""
        buffer = ctypes.create_string_buffer(text)
        found = (_Argument * _MOST)()
        count = self._read(buffer, found, _MOST)
        assert count <= _MOST
        return [(each.name or b"", each.value) for each in found[:count]]
