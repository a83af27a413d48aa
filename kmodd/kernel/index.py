# SPDX-License-Identifier: LGPL-2.1-or-later
"""The module index: what files and configuration say about modules, as modprobe would see it.

Reading order of truth: depmod's binary indexes through libkmod; modprobe.d through libkmod for aliases and through
`kmodd.kernel.modprobe_d` where file and line count; modules.builtin.modinfo and the modules' files for descriptions.
"""

import ctypes
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from kmodd.errors import Evidence, ModuleTreeMissing, NoSuchModule
from kmodd.kernel.command_line import command_line_rules
from kmodd.kernel.configuration_folders import ConfigurationFolders
from kmodd.kernel.indexfile import is_sound
from kmodd.kernel.libkmod import INDEX_BUILTIN, INDEX_DEP, Context, load_library
from kmodd.kernel.modinfo import parse_modinfo
from kmodd.kernel.modprobe_d import DIRECTORIES, read_rules
from kmodd.kernel.modulefile import ModuleFile
from kmodd.kernel.rulebook import Rulebook
from kmodd.kernel.signature import Signers, read_signature
from kmodd.model import ModuleInfo, Rule
from kmodd.names import Alias, ModuleName, canonical

_INDEXES = (
    "modules.dep.bin",
    "modules.alias.bin",
    "modules.symbols.bin",
    "modules.builtin.bin",
    "modules.builtin.alias.bin",
)
_BUILTIN_MODINFO = "modules.builtin.modinfo"

_RESOLVED_MAX = 4096
"""More than the modules of any distribution's kernel: whoever asks for all of them in turn finds them here again."""
_INFO_MAX = 32
"""Facts kept of so many files; those of a thousand modules would take some megabytes and are read in 0.1 ms each."""

_Stamp = tuple[int, int, int, int] | None


class LibkmodIndex:
    """`kmodd.kernel.ports.ModuleIndex` over a root folder (`/`, or a fake one).

    One thread owns it, the one that made it: libkmod's contexts are not thread-safe, and the caches have no lock.
    Where the tree is missing, questions are answered as if no module existed, so that what is loaded can still be
    removed by name; `info` raises ModuleTreeMissing.
    """

    def __init__(
        self,
        root: Path,
        release: str,
        *,
        config_dirs: Sequence[Path] | None = None,
        command_line: str = "",
        library: ctypes.CDLL | None = None,
    ) -> None:
        """`config_dirs` (absolute, the first masking the next) replace the five usual ones below the root."""
        self._library = load_library() if library is None else library
        self._tree = root / "lib/modules" / release
        self._tree_text = str(self._tree)
        self._release = release
        self._directories = [root / name for name in DIRECTORIES] if config_dirs is None else list(config_dirs)
        self._folders = ConfigurationFolders(self._tree, self._directories)
        self._command_line = command_line_rules(command_line)
        self._index_paths = [str(self._tree / name) for name in (*_INDEXES, _BUILTIN_MODINFO)]
        self._tree_stamps: list[_Stamp] = []
        self._configuration_stamps: list[tuple[str, _Stamp]] = []
        self._context: Context | None = None
        self._rules = Rulebook()
        self._lines: dict[ModuleName, str] = {}
        self._builtins: frozenset[ModuleName] = frozenset()
        self._builtin_modinfo: dict[ModuleName, list[bytes]] | None = None
        self._available: tuple[ModuleName, ...] | None = None
        self._resolved: dict[str, tuple[ModuleName, ...]] = {}
        self._dependencies: dict[ModuleName, tuple[ModuleName, ...]] = {}
        self._info: dict[str, tuple[_Stamp, ModuleInfo]] = {}
        self._signers = Signers()
        self._fault = ""
        self.refresh()

    def close(self) -> None:
        """Release libkmod's context; the index is of no use afterwards."""
        if self._context is not None:
            self._context.close()
            self._context = None

    @property
    def tree_present(self) -> bool:
        """The release has an index that can be used."""
        return self._context is not None

    def refresh(self) -> bool:
        """Notice changed indexes and configuration files; True when anything was read again.

        Costs a stat or two for each index, configuration file and configuration folder.
        """
        # Stamps are taken before anything is read: what changes meanwhile is seen the next time.
        tree = [_stamp(path) for path in self._index_paths]
        files = self._folders.files()
        configuration = [(path, _stamp(path)) for path in files]
        tree_changed, configuration_changed = tree != self._tree_stamps, configuration != self._configuration_stamps
        if not (tree_changed or configuration_changed):
            return False
        if configuration_changed:
            self._rules = Rulebook([*(rule for path in files for rule in read_rules(path)), *self._command_line])
        self._open(tree_changed=tree_changed)
        self._tree_stamps, self._configuration_stamps = tree, configuration
        return True

    def forget(self) -> None:
        """Drop what was remembered of single modules: their small objects keep large pieces of the heap in use."""
        self._resolved.clear()
        self._dependencies.clear()
        self._info.clear()

    def _open(self, *, tree_changed: bool) -> None:
        """Make a new context, and read the tables of modules again if their files changed."""
        self.close()
        self._resolved.clear()
        self._fault = self._find_fault()
        if not self._fault:
            self._context = Context(self._library, self._tree_text, [str(path) for path in self._directories])
        if not tree_changed:
            return
        self._dependencies.clear()
        self._available = self._builtin_modinfo = None
        self._lines = {}
        self._builtins = frozenset()
        if self._context is not None:
            for line in self._context.dump(INDEX_DEP).decode("utf-8", "surrogateescape").splitlines():
                name, _, files = line.partition(" ")
                self._lines.setdefault(ModuleName(name), files)
            names = self._context.dump(INDEX_BUILTIN).decode("utf-8", "surrogateescape").split()
            self._builtins = frozenset(map(canonical, names))

    def _find_fault(self) -> str:
        for number, path in enumerate(self._index_paths[: len(_INDEXES)]):
            try:
                if not is_sound(path):
                    return f"{_INDEXES[number]} is damaged"
            except OSError:
                # The other indexes are made by the same run of depmod, but older versions did not know all of them.
                if number == 0:
                    return f"{_INDEXES[number]} is missing"
        return ""

    def resolve(self, name: ModuleName | Alias) -> tuple[ModuleName, ...]:
        """Modules that `modprobe NAME` would load, in its order; empty when it would find none.

        As for modprobe an alias in modprobe.d goes before a module of the same name, and an alias for something that
        does not exist (`alias net-pf-5 off`) is an alias for nothing.
        """
        known = self._resolved.get(name)
        if known is None:
            if self._context is None or "\0" in name:
                return ()
            found = map(canonical, self._context.lookup(name))
            known = tuple(module for module in dict.fromkeys(found) if self.exists(module))
            if len(self._resolved) >= _RESOLVED_MAX:
                self._resolved.clear()
            self._resolved[name] = known
        return known

    def exists(self, name: ModuleName) -> bool:
        """There is a file for it in the index, or it is built in."""
        return name in self._lines or name in self._builtins

    def is_builtin(self, name: ModuleName) -> bool:
        """It is part of the kernel image and has no file in the index: a file takes precedence, as for modprobe."""
        return name in self._builtins and name not in self._lines

    def path(self, name: ModuleName) -> str:
        """Absolute path of its file; empty when built in or unknown. The index may name a file that is gone."""
        line = self._lines.get(name)
        return "" if line is None else os.path.join(self._tree_text, line.partition(":")[0])  # noqa: PTH118 - may be absolute, and asked often

    def dependencies(self, name: ModuleName) -> tuple[ModuleName, ...]:
        """All modules that must be live before it, in the order of insertion; none for what the index does not know.

        A line of modules.dep names them all, the last to be inserted first (depmod sorts them so), and names no
        built-ins. Softdeps of dependencies are not looked at here.
        """
        known = self._dependencies.get(name)
        if known is None:
            line = self._lines.get(name)
            if line is None:
                return ()
            paths = reversed(line.partition(":")[2].split())
            known = tuple(dict.fromkeys(map(_module_of, paths)))
            self._dependencies[name] = known
        return known

    def softdeps(self, name: ModuleName) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(pre, post) soft dependencies in force, names or aliases as written."""
        return self._rules.softdeps(name)

    def weakdeps(self, name: ModuleName) -> tuple[str, ...]:
        """Weak dependencies as libkmod resolves them; empty before kmod 33."""
        return () if self._context is None else tuple(self._context.weakdeps(name))

    def stamp(self, name: ModuleName) -> object:
        """Compares equal as long as `info` answers the same: the file, or the facts of what is built in."""
        path = self.path(name)
        return (self._lines[name], _stamp(path)) if path else (name, self._tree_stamps[-1:])

    def info(self, name: ModuleName) -> ModuleInfo:
        """Static facts from the file, or from modules.builtin.modinfo; NoSuchModule, BadModule, ModuleTreeMissing."""
        if self.is_builtin(name):
            return parse_modinfo(name, "", self._builtin_strings().get(name, ()), builtin=True)
        path = self.path(name)
        if not path:
            raise self._unknown(name)
        stamp = _stamp(path)
        known = self._info.pop(path, None)
        if known is None or known[0] != stamp:
            with ModuleFile(name, path) as file:
                strings = [string for string in file.modinfo().split(b"\0") if string]
                signed, signer = read_signature(file, self._signers)
            known = stamp, parse_modinfo(name, path, strings, signed=signed, signer=signer)
            if len(self._info) >= _INFO_MAX:
                del self._info[next(iter(self._info))]
        self._info[path] = known  # the most recently used stands last
        return known[1]

    def rules(self, name: ModuleName) -> tuple[Rule, ...]:
        """Lines about it in force, aliases left out; of several install, remove or softdep lines the first one acts."""
        return self._rules.about(name)

    def all_rules(self) -> tuple[Rule, ...]:
        """Every line in force, in reading order; modules.softdep is read among the files, the command line last."""
        return self._rules.all

    def available(self) -> Iterable[ModuleName]:
        """Every module with a file, sorted."""
        if self._available is None:
            self._available = tuple(sorted(self._lines))
        return self._available

    def builtins(self) -> Iterable[ModuleName]:
        """Every module that is part of the kernel image, sorted."""
        return tuple(sorted(self._builtins))

    def _builtin_strings(self) -> dict[ModuleName, list[bytes]]:
        """Read modules.builtin.modinfo (since Linux 5.2): `MODULE.key=value` strings."""
        if self._builtin_modinfo is None:
            self._builtin_modinfo = {}
            try:
                data = (self._tree / _BUILTIN_MODINFO).read_bytes()
            except OSError:
                return self._builtin_modinfo
            for string in data.split(b"\0"):
                module, dot, fact = string.partition(b".")
                name = canonical(module.decode("utf-8", "replace"))
                if dot and name in self._builtins:
                    self._builtin_modinfo.setdefault(name, []).append(fact)
        return self._builtin_modinfo

    def _unknown(self, name: ModuleName) -> NoSuchModule | ModuleTreeMissing:
        if not self._fault:
            return NoSuchModule(f"there is no module {name} for kernel {self._release}", module=name)
        hint = (
            "run 'depmod -a'"
            if self._tree.is_dir()
            else "the kernel's package was replaced or removed while this kernel runs: reboot into the installed one"
        )
        return ModuleTreeMissing(
            f"the module tree of kernel {self._release} cannot be used: {self._fault}",
            module=name,
            evidence=Evidence(hint=hint),
        )


def _module_of(path: str) -> ModuleName:
    return canonical(path.rpartition("/")[2].partition(".")[0])


def _stamp(path: str | Path) -> _Stamp:
    """What changes when a regular file does; None where there is none that can be read."""
    try:
        status = os.stat(path)  # noqa: PTH116 - for each file at every refresh
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return (0, 0, status.st_ino, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns)
