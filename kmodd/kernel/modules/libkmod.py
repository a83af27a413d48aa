# SPDX-License-Identifier: LGPL-2.1-or-later
"""Binding of libkmod.so.2 by ctypes: the signatures, and an object that releases what the library returns.

Only names and index dumps come from the library. Module files do not: its ELF reader ends the process with assert() on some
damaged files, so `kmodd.kernel.modules.module_file` reads those.
"""

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kmodd.kernel.files import NOWHERE

SONAME = "libkmod.so.2"

# enum kmod_index of libkmod.h
INDEX_DEP = 0
INDEX_BUILTIN = 4

_POINTER = ctypes.c_void_p
_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "kmod_new": (_POINTER, [ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p)]),
    "kmod_unref": (_POINTER, [_POINTER]),
    "kmod_set_log_priority": (None, [_POINTER, ctypes.c_int]),
    "kmod_load_resources": (ctypes.c_int, [_POINTER]),
    "kmod_dump_index": (ctypes.c_int, [_POINTER, ctypes.c_int, ctypes.c_int]),
    "kmod_list_next": (_POINTER, [_POINTER, _POINTER]),
    "kmod_module_new_from_name": (ctypes.c_int, [_POINTER, ctypes.c_char_p, ctypes.POINTER(_POINTER)]),
    "kmod_module_new_from_lookup": (ctypes.c_int, [_POINTER, ctypes.c_char_p, ctypes.POINTER(_POINTER)]),
    "kmod_module_get_module": (_POINTER, [_POINTER]),
    "kmod_module_get_name": (ctypes.c_char_p, [_POINTER]),
    "kmod_module_get_softdeps": (ctypes.c_int, [_POINTER, ctypes.POINTER(_POINTER), ctypes.POINTER(_POINTER)]),
    "kmod_module_unref": (_POINTER, [_POINTER]),
    "kmod_module_unref_list": (ctypes.c_int, [_POINTER]),
}
# In the library since kmod 33.
_OPTIONAL: dict[str, tuple[type | None, list[type]]] = {
    "kmod_module_get_weakdeps": (ctypes.c_int, [_POINTER, ctypes.POINTER(_POINTER)]),
}


def load_library(soname: str = SONAME) -> ctypes.CDLL:
    """Load the library and declare what is called; OSError when it is not installed, AttributeError when too old."""
    library = ctypes.CDLL(soname)
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    for name, (result, arguments) in _OPTIONAL.items():
        if hasattr(library, name):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    return library


def is_newer(library: ctypes.CDLL) -> bool:
    """It is that of kmod 33 or newer, which reads modprobe.d otherwise: it has the function that came with 33."""
    return hasattr(library, "kmod_module_get_weakdeps")


class Context:
    """A kmod_ctx: the indexes of one module tree and the configuration as it was when this was made.

    A context is not thread-safe: the thread that made it is the only one to use it. No reference to a module outlives
    the method that took it, so closing the context frees everything.
    """

    def __init__(self, library: ctypes.CDLL, tree: str, directories: Sequence[str]) -> None:
        """`tree` is the folder of modules.dep.bin, `directories` hold modprobe.d files, the first masking the next.

        OSError where the indexes are there and cannot be read.
        """
        self._library = library
        paths = (ctypes.c_char_p * (len(directories) + 1))(*map(os.fsencode, directories), None)
        self._context: int | None = library.kmod_new(os.fsencode(tree), paths)
        if self._context is None:
            raise MemoryError("kmod_new failed")
        # The library has logged on stderr which lines of the configuration it ignores; further messages repeat what
        # return values say.
        library.kmod_set_log_priority(self._context, 0)
        # Without mapped indexes every lookup opens and closes them; that still works where one is missing or has no header
        # of an index (EINVAL). Where the machine fails, lookups would find nothing.
        code = -library.kmod_load_resources(self._context)
        if code > 0 and code not in NOWHERE and code != errno.EINVAL:
            self.close()
            raise OSError(code, os.strerror(code), tree)

    def close(self) -> None:
        """Release the context; closing twice is fine."""
        if self._context is not None:
            self._library.kmod_unref(self._context)
            self._context = None

    def lookup(self, alias: str) -> list[str]:
        """Names that `modprobe ALIAS` would load, in its order; empty when nothing matches."""
        entries = _POINTER()  # has to be NULL before the call
        code = self._library.kmod_module_new_from_lookup(self._context, _encode(alias), ctypes.byref(entries))
        return self._take(entries) if code >= 0 else []

    def softdeps(self, name: str) -> tuple[list[str], list[str]]:
        """(pre, post) soft dependencies as the library resolves them to modules."""
        pre, post = _POINTER(), _POINTER()
        with self._module(name) as module:
            self._library.kmod_module_get_softdeps(module, ctypes.byref(pre), ctypes.byref(post))
        return self._take(pre), self._take(post)

    def weakdeps(self, name: str) -> list[str]:
        """Weak dependencies as the library resolves them; empty where it knows none (kmod before 33)."""
        if not is_newer(self._library):
            return []
        pointer = _POINTER()
        with self._module(name) as module:
            self._library.kmod_module_get_weakdeps(module, ctypes.byref(pointer))
        return self._take(pointer)

    def dump(self, index: int) -> bytes:
        """Every entry of an index, one `KEY VALUE` a line; empty when the index cannot be opened."""
        descriptor = os.memfd_create("kmodd-index", os.MFD_CLOEXEC)
        try:
            if self._library.kmod_dump_index(self._context, index, descriptor) < 0:
                return b""
            size = os.lseek(descriptor, 0, os.SEEK_CUR)
            return os.pread(descriptor, size, 0)
        finally:
            os.close(descriptor)

    @contextmanager
    def _module(self, name: str) -> Iterator[_POINTER]:
        module = _POINTER()
        if self._library.kmod_module_new_from_name(self._context, _encode(name), ctypes.byref(module)) < 0:
            raise MemoryError("kmod_module_new_from_name failed")
        try:
            yield module
        finally:
            self._library.kmod_module_unref(module)

    def _take(self, first: _POINTER) -> list[str]:
        """Read the names off a list of modules and free it with its references."""
        names: list[str] = []
        try:
            entry = first.value
            while entry is not None:
                module = self._library.kmod_module_get_module(entry)
                names.append(self._library.kmod_module_get_name(module).decode("utf-8", "replace"))
                self._library.kmod_module_unref(module)
                entry = self._library.kmod_list_next(first, entry)
        finally:
            self._library.kmod_module_unref_list(first)
        return names


def _encode(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise ValueError("a name cannot contain NUL")
    return data
