# SPDX-License-Identifier: LGPL-2.1-or-later
"""The module index: facts about modules from files and configuration, as modprobe sees them.

Sources: depmod's binary indexes through libkmod; modprobe.d through libkmod for aliases and through
`kmodd.kernel.modprobe.modprobe_d` where file and line matter; modules.builtin.modinfo and module files for descriptions.

libkmod trusts the offsets in modules.*.bin and would crash on a truncated file, so indexes are checked first. depmod of kmod 30
writes the root node at the end, after all others, that of kmod 34 at the beginning, before its children in their order
(index_write in tools/depmod.c): the file is complete where the root and the last child of each node from there lie in it.
"""

import ctypes
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from itertools import islice
from pathlib import Path

from kmodd.errors import Evidence, ModuleTreeMissing, NoSuchModule, errno_name
from kmodd.kernel.files import NOWHERE, read_if_there
from kmodd.kernel.modprobe.modprobe_d import (
    DEPMOD_SOFTDEPS,
    DIRECTORIES,
    ModprobeFolders,
    ModprobeRules,
    RuleText,
    normalise,
    obstacle,
    parse_rules,
    read_text,
)
from kmodd.kernel.modprobe.modules_load_d import command_line_rules
from kmodd.kernel.modules.libkmod import INDEX_BUILTIN, INDEX_DEP, Context, is_newer, load_library
from kmodd.kernel.modules.module_file import FileFacts, ModuleFacts, Stamp, file_stamp, parse_modinfo
from kmodd.model import FactsPending, ModuleInfo, Rule, Target
from kmodd.names import Alias, ModuleName, canonical
from kmodd.text import shown

_HEADER = struct.Struct(">III")
_MAGIC = 0xB007F457
_VERSION_MAJOR = 2
_OFFSET = 0x0FFFFFFF
_NODE_MAX = 64 << 10
_DEPTH_MAX = 1024
"""Nodes below each other; each stands for a letter of an alias at least."""
_PREFIX, _VALUES, _CHILDREN = 0x80000000, 0x40000000, 0x20000000


class IndexState(Enum):
    """What libkmod makes of an index."""

    SOUND = auto()
    UNUSED = auto()
    """It has no header of an index, so libkmod does not open it and answers as if there were none."""
    DAMAGED = auto()
    """It is truncated, and libkmod would read beyond its end; or it is not a file, and libkmod would block on open."""


def index_state(path: str) -> IndexState:
    """Tell whether the index can be given to libkmod; OSError when it cannot be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return IndexState.DAMAGED
        size = status.st_size
        start = os.pread(descriptor, _HEADER.size, 0)
        if len(start) < _HEADER.size:
            return IndexState.UNUSED
        magic, version, root = _HEADER.unpack(start)
        if magic != _MAGIC or version >> 16 != _VERSION_MAJOR:
            return IndexState.UNUSED
        if not _HEADER.size <= root & _OFFSET <= size:
            return IndexState.DAMAGED
        return IndexState.SOUND if _is_whole(descriptor, root) else IndexState.DAMAGED
    finally:
        os.close(descriptor)


def _is_whole(descriptor: int, node: int) -> bool:
    """Tell whether the root node and the last child of each node from there lie in the file: one of them ends it."""
    for _ in range(_DEPTH_MAX):
        child = _last_child(os.pread(descriptor, _NODE_MAX, node & _OFFSET), node)
        if child is None:
            return False
        if not child:
            return True
        node = child
    return False


def _last_child(data: bytes, flags: int) -> int | None:
    """The last entry in a node's table of children, 0 without one; None where the data ends before the node does."""
    position = child = 0
    if flags & _PREFIX:
        position = data.find(b"\0") + 1
        if position == 0:
            return None
    if flags & _CHILDREN:
        if position + 2 > len(data):
            return None
        first, last = data[position], data[position + 1]
        if not first <= last < 128:
            return None
        position += 2 + 4 * (last - first + 1)
        child = int.from_bytes(data[position - 4 : position])
    if flags & _VALUES:
        count = int.from_bytes(data[position : position + 4])
        position += 4
        for _ in range(count):
            position = data.find(b"\0", position + 4) + 1
            if position == 0:
                return None
    return child if position <= len(data) else None


_INDEXES = (
    "modules.dep.bin",
    "modules.alias.bin",
    "modules.symbols.bin",
    "modules.builtin.bin",
    "modules.builtin.alias.bin",
)
_BUILTIN_MODINFO = "modules.builtin.modinfo"
_ALIASES = "modules.alias"
TABLES = ModuleName("")
"""Stands for depmod's texts where modules are named whose files have to be read."""
_ALIAS = re.compile(rb"^alias ([^ \n]+) [^ \n]+$", re.MULTILINE)
_ALIASES_OF_ONE = re.compile(rb"^alias [^ \n]+ ([^ \n]+)\n(?:alias [^ \n]+ \1\n)*", re.MULTILINE)
"""The lines of one module, which stand together: thousands of modules are found in milliseconds, before any line is taken apart."""

_ORDER = "modules.order"
_SEARCHED_MAX = 64
"""Files that are searched for a module by which no file is called."""

_TABLE_MAX = 16 << 20
"""Bytes of one table of depmod; ten times the largest."""
_RESOLVED_MAX = 4096
"""More than the modules of any distribution's kernel: a caller that reads all of them in turn finds them here again."""
_INFO_MAX = 32
"""Descriptions kept of so many modules; one is made of the strings of a file that was read in 0.1 ms."""


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
        self._root = root
        self._tree = root / "lib/modules" / release
        self._tree_text = str(self._tree)
        self._release = release
        self._directories = [root / name for name in DIRECTORIES] if config_dirs is None else list(config_dirs)
        self._folders = ModprobeFolders(self._tree, self._directories, newer=is_newer(self._library))
        self._command_line = command_line_rules(command_line)
        self._index_paths = [str(self._tree / name) for name in (*_INDEXES, _BUILTIN_MODINFO)]
        self._tree_stamps: list[Stamp] = []
        self._configuration_stamps: list[tuple[str, Stamp]] = []
        self._context: Context | None = None
        self._rules = ModprobeRules()
        self._lines: dict[ModuleName, str] = {}
        self._builtins: frozenset[ModuleName] = frozenset()
        self._builtin_modinfo: dict[ModuleName, list[bytes]] | None = None
        self._parts: tuple[ModuleName, ...] = ()
        self._available: tuple[ModuleName, ...] | None = None
        self._targets: dict[str, tuple[Target, ...]] = {}
        self._dependencies: dict[ModuleName, tuple[ModuleName, ...]] = {}
        self._facts = ModuleFacts()
        self._info: dict[str, tuple[FileFacts, ModuleInfo]] = {}
        self._alias_lines: dict[ModuleName, bytes] | None = None
        self._built: frozenset[ModuleName] | None = None
        """Modules that the kernel's own list names."""
        self._lacking: set[str] = set()
        """Tables that a caller waits for."""
        self._trees_opened = 0
        self.version = 0
        """See ModuleIndex."""
        self._aliases: dict[ModuleName, tuple[str, ...]] = {}
        self._renamed: dict[ModuleName, ModuleName] | None = None
        """Files by the modules in them, of files that are called by another name."""
        self._deferring = False
        self._fault = ""
        self._is_fault_of_the_machine = False
        """The fault is no file's: it may be over the next time."""
        self._unreadable: dict[str, str] = {}
        """Files and folders of modprobe.d that are there and could not be read, and why."""
        self._files: list[str] = []
        """Configuration files in effect, in the order they are read."""
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
        tree = [file_stamp(path) for path in self._index_paths]
        files = self._folders.files()
        configuration = [(path, file_stamp(path)) for path in files]
        tree_changed = tree != self._tree_stamps or self._is_fault_of_the_machine
        configuration_changed = configuration != self._configuration_stamps or self._is_read_otherwise()
        if not (tree_changed or configuration_changed):
            return False
        self._files = files
        if configuration_changed:
            self._read_rules()
        self._open(tree_changed=tree_changed)
        self._tree_stamps, self._configuration_stamps = tree, configuration
        self.version += 1
        return True

    def unreadable(self) -> Mapping[str, str]:
        """Files and folders of modprobe.d that are there and could not be read at the last `refresh`: path, and why."""
        return self._unreadable

    def _read_rules(self) -> None:
        self._unreadable = dict(self._folders.unreadable)
        rules: list[Rule] = []
        for path in self._files:
            text = read_text(path, self._root)
            rules += parse_rules(text.data, path, public=text.public)
            if self._keeps_back(path, text):
                self._unreadable[shown(path)] = text.obstacle
        self._rules = ModprobeRules([*rules, *self._command_line])

    def _is_read_otherwise(self) -> bool:
        """Tell whether what could not be read can be by now, or the other way round: a file's stamp does not say."""
        if not self._unreadable and not self._folders.unreadable:
            return False
        now = dict(self._folders.unreadable)
        for path in self._files:
            if shown(path) in self._unreadable and self._keeps_back(path, text := read_text(path, self._root)):
                now[shown(path)] = text.obstacle
        return now != self._unreadable

    def _keeps_back(self, path: str, text: RuleText) -> bool:
        # Without depmod's own soft dependencies the tree cannot be used: see _find_fault.
        return text.unknown and os.path.dirname(path) != self._tree_text  # noqa: PTH120 - a plain text

    def forget(self) -> None:
        """Drop what was remembered of single modules: their small objects keep large pieces of the heap in use."""
        self._targets.clear()
        self._dependencies.clear()
        self._info.clear()
        self._facts.forget()
        self._aliases.clear()
        self._alias_lines = None

    def _open(self, *, tree_changed: bool) -> None:
        """Make a new context, and read the tables of modules again if their files changed."""
        self.close()
        self._targets.clear()
        self._is_fault_of_the_machine = False
        self._fault = self._find_fault()
        if not self._fault:
            # Single files, in place of the folders they stand in: libkmod sorts and masks them by their names all the same.
            self._context = Context(
                self._library, self._tree_text, [path for path in self._files if not obstacle(path)]
            )
        if not tree_changed:
            return
        self._dependencies.clear()
        self._available = self._builtin_modinfo = self._alias_lines = self._renamed = self._built = None
        self._trees_opened += 1
        self._aliases.clear()
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
                state = index_state(path)
            except OSError as error:
                if error.errno not in NOWHERE:
                    self._is_fault_of_the_machine = True
                    return f"{_INDEXES[number]} cannot be read ({errno_name(error.errno or 0)})"
                state = IndexState.UNUSED
            if state is IndexState.DAMAGED:
                return f"{_INDEXES[number]} is damaged"
            # libkmod continues without the other indexes: older versions of depmod did not know all of them.
            if state is IndexState.UNUSED and number == 0:
                return f"{_INDEXES[number]} is {'damaged' if Path(path).exists() else 'missing'}"
        # libkmod reads this one by itself, beside the files it is given.
        text = read_text(self._tree / DEPMOD_SOFTDEPS, self._root)
        self._is_fault_of_the_machine = text.unknown
        return f"{DEPMOD_SOFTDEPS} {text.obstacle}" if text.obstacle else ""

    def lookup(self, name: str) -> tuple[Target, ...]:
        """What `modprobe NAME` would take in hand, in its order; empty when it would find nothing. Lines of modprobe.d may
        name a module twice, and the last one decides how modprobe ends.

        Follows kmod_module_new_from_lookup: aliases of modprobe.d, names of modules, symbols, names of `install` and `remove`
        lines, aliases of modules, built-in modules; the first of these that has an answer counts.
        """
        target = self._targets.get(name)
        if target is None:
            spelled = None if "\0" in name else normalise(name)
            if self._context is None or spelled is None:
                return ()
            target = self._look_up(self._context, spelled)
            if len(self._targets) >= _RESOLVED_MAX:
                self._targets.clear()
            self._targets[name] = target
        return target

    def _look_up(self, context: Context, spelled: str) -> tuple[Target, ...]:
        aliases = self._rules.aliases(spelled)
        if aliases:
            return tuple(Target(ModuleName(rule.value), rule.module) for rule in aliases)
        name = ModuleName(spelled)
        if name in self._lines:
            return (Target(name),)
        if self._rules.has_command(spelled) and not spelled.startswith("symbol:"):
            return (Target(name),)
        modules = tuple(dict.fromkeys(map(canonical, context.lookup(spelled))))
        if modules == (name,) and name in self._builtins:
            return (Target(name),)
        return tuple(Target(module, spelled) for module in modules)

    def resolve(self, name: ModuleName | Alias) -> tuple[ModuleName, ...]:
        """Modules that `modprobe NAME` would load, in its order; empty when it would find none.

        As for modprobe an alias in modprobe.d goes before a module of the same name, and an alias for something that
        does not exist (`alias net-pf-5 off`) is an alias for nothing.
        """
        return tuple(dict.fromkeys(target.name for target in self.lookup(name) if self.exists(target.name)))

    def exists(self, name: ModuleName) -> bool:
        """There is a file for it in the index, or it is built in."""
        return name in self._lines or name in self._builtins

    def is_builtin(self, name: ModuleName) -> bool:
        """It is part of the kernel image; a file of the same name is never loaded, as for modprobe."""
        return name in self._builtins

    def path(self, name: ModuleName) -> str:
        """Absolute path of its file; empty when built in or unknown. The index may name a file that is gone."""
        line = self._lines.get(name)
        return "" if line is None else os.path.join(self._tree_text, line.partition(":")[0])  # noqa: PTH118 - may be absolute, and called often

    def dependencies(self, name: ModuleName) -> tuple[ModuleName, ...]:
        """All modules that must be live before it, in the order of insertion; none for what the index does not know.

        A line of modules.dep names them all, the last to be inserted first (depmod sorts them so), and names no
        built-ins. Softdeps of dependencies are not looked at here.
        """
        names = self._dependencies.get(name)
        if names is None:
            line = self._lines.get(name)
            if line is None:
                return ()
            paths = reversed(line.partition(":")[2].split())
            names = tuple(dict.fromkeys(map(_module_of, paths)))
            self._dependencies[name] = names
        return names

    def softdeps(self, name: ModuleName) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(pre, post) soft dependencies in effect, names or aliases as written."""
        return self._rules.softdeps(name)

    def weakdeps(self, name: ModuleName) -> tuple[str, ...]:
        """Weak dependencies as libkmod resolves them; empty before kmod 33."""
        return () if self._context is None else tuple(self._context.weakdeps(name))

    def stamp(self, name: ModuleName) -> object:
        """Compares equal as long as `info` answers the same: the file, or the facts of what is built in."""
        path = self.path(name)
        return (self._lines[name], file_stamp(path)) if path else (name, self._tree_stamps[-1:])

    def info(self, name: ModuleName) -> ModuleInfo:
        """Static facts from the file, or from modules.builtin.modinfo; NoSuchModule, BadModule, ModuleTreeMissing."""
        if self.is_builtin(name):
            return parse_modinfo(name, "", self._builtin_strings().get(name, ()), builtin=True)
        path = self.path(name)
        if not path:
            raise self._unknown(name)
        facts = self._read_once(name, path)
        if facts.error is not None:
            self._facts.used(path)
            raise facts.error
        info = self._info.pop(path, None)
        if info is None or info[0] is not facts:
            strings = [string for string in facts.modinfo.split(b"\0") if string]
            info = (
                facts,
                parse_modinfo(
                    name,
                    path,
                    strings,
                    parameters=facts.parameters,
                    signed=facts.signed,
                    signer=facts.signer,
                    holds=facts.holds,
                ),
            )
            if len(self._info) >= _INFO_MAX:
                del self._info[next(iter(self._info))]
        self._info[path] = info  # the most recently used stands last
        return info[1]

    def holds(self, name: ModuleName) -> ModuleName:
        """Name of the module in the file of this name: what the kernel calls it. The same where there is none that can be read."""
        path = "" if self.is_builtin(name) else self.path(name)
        return ModuleName(self._read_once(name, path).holds or name) if path else name

    def file_for(self, module: ModuleName) -> ModuleName:
        """Name of the file that holds a module: its own, or one that was renamed. The same where none is known.

        Renamed files are looked for where no file is called by the module's name, among those that the kernel's own build did
        not make; of a machine with many, among the first 64.
        """
        if self.exists(module):
            return module
        if self._renamed is None:
            others = self._not_of_the_build()
            if self._deferring and (pending := self.unread(others)):
                raise FactsPending(pending)
            self._renamed = {held: name for name in others if (held := self.holds(name)) != name}
        return self._renamed.get(module, module)

    def _not_of_the_build(self) -> tuple[ModuleName, ...]:
        """Modules that the kernel's own list does not name; without one, those outside the folder `kernel`."""
        if self._built is None:
            self._take_table(_ORDER, self._read_table(_ORDER))
        built = self._built
        others = (
            name
            for name, line in self._lines.items()
            if (name not in built if built else not line.startswith("kernel/"))
        )
        return tuple(islice(others, _SEARCHED_MAX))

    def _read_once(self, name: ModuleName, path: str) -> FileFacts:
        """The facts of a file, read where they are not known; FactsPending where that is deferred."""
        facts = self._facts.find(path, file_stamp(path))
        if facts is None:
            if self._deferring:
                raise FactsPending((name,))
            facts = self._facts.read(name, path)
            self._facts.keep(path, facts)
        return facts

    def aliases(self, name: ModuleName) -> tuple[str, ...]:
        """Aliases of the module in depmod's index; none for what is built in. Reads no module file."""
        cached = self._aliases.get(name)
        if cached is None:
            if self._alias_lines is None:
                self._take_table(_ALIASES, self._read_table(_ALIASES))
            lines = _ALIAS.findall((self._alias_lines or {}).get(name, b""))
            cached = self._aliases[name] = tuple(alias.decode("utf-8", "replace") for alias in lines)
        return cached

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """In this block FactsPending is raised in place of reading a module file, or one of depmod's long texts."""
        before, self._deferring = self._deferring, True
        try:
            yield
        finally:
            self._deferring = before

    def unread(self, names: Iterable[ModuleName]) -> tuple[ModuleName, ...]:
        """Those whose module file `info` would read; `TABLES` if a caller waits for a text of depmod's."""
        return tuple(name for name in names if (self._lacking if name == TABLES else self._is_unread(name)))

    def _is_unread(self, name: ModuleName) -> bool:
        path = self.path(name)
        return bool(path) and self._facts.find(path, file_stamp(path)) is None

    def read_facts(self, name: ModuleName) -> tuple[object, object]:
        """Read a module file, or depmod's texts, for `keep_facts`, and change nothing; may be called from any thread. OSError."""
        if name == TABLES:
            opened = self._trees_opened
            return opened, {table: _read_table(self._tree / table) for table in tuple(self._lacking)}
        path = self.path(name)
        return path, self._facts.read(name, path)

    def keep_facts(self, name: ModuleName, facts: object) -> None:
        """Have `info` answer what was read, as long as the file is the same."""
        match facts:
            case (str(path), FileFacts() as read) if path == self.path(name):
                self._facts.keep(path, read)
            case (int(opened), dict(tables)) if opened == self._trees_opened:
                for table, data in tables.items():
                    self._take_table(table, data)

    def rules(self, name: ModuleName) -> tuple[Rule, ...]:
        """Lines about it in effect, without aliases; of several install, remove or softdep lines the first one acts."""
        return self._rules.about(name)

    def all_rules(self) -> tuple[Rule, ...]:
        """Every line in effect, in reading order; modules.softdep is read among the files, the command line last."""
        return self._rules.all

    def available(self) -> Iterable[ModuleName]:
        """Every module with a file, sorted."""
        if self._available is None:
            self._available = tuple(sorted(self._lines))
        return self._available

    def builtins(self) -> Iterable[ModuleName]:
        """Every module that is part of the kernel image, sorted."""
        return tuple(sorted(self._builtins))

    def parts(self) -> Iterable[ModuleName]:
        """Parts of the kernel image that have parameters and could not be modules, sorted: kbuild gives them strings, but no line
        in modules.builtin."""
        self._builtin_strings()
        return self._parts

    def _builtin_strings(self) -> dict[ModuleName, list[bytes]]:
        """Read modules.builtin.modinfo (since Linux 5.2): `MODULE.key=value` strings."""
        if self._builtin_modinfo is None:
            self._take_table(_BUILTIN_MODINFO, self._read_table(_BUILTIN_MODINFO))
        return self._builtin_modinfo or {}

    def _read_table(self, table: str) -> bytes:
        """One of depmod's texts; FactsPending where that is deferred: a text may have megabytes."""
        if self._deferring:
            self._lacking.add(table)
            raise FactsPending((TABLES,))
        return _read_table(self._tree / table)

    def _take_table(self, table: str, data: bytes) -> None:
        """Cache the requested part of a text."""
        self._lacking.discard(table)
        if table == _ORDER:
            self._built = frozenset(_module_of(line) for line in data.decode("utf-8", "replace").splitlines())
        elif table == _ALIASES:
            # depmod writes it beside modules.alias.bin, from the same table.
            lines: dict[ModuleName, bytes] = {}
            for group in _ALIASES_OF_ONE.finditer(data):
                name = canonical(group[1].decode("utf-8", "replace"))
                lines[name] = lines.get(name, b"") + group[0]
            self._alias_lines = lines
        else:
            strings: dict[ModuleName, list[bytes]] = {}
            parts: set[ModuleName] = set()
            for string in data.split(b"\0"):
                module, dot, fact = string.partition(b".")
                name = canonical(module.decode("utf-8", "replace"))
                if dot and name in self._builtins:
                    strings.setdefault(name, []).append(fact)
                elif dot:
                    parts.add(name)
            self._builtin_modinfo = strings
            self._parts = tuple(sorted(parts))

    def _unknown(self, name: ModuleName) -> NoSuchModule | ModuleTreeMissing:
        if not self._fault:
            return NoSuchModule(f"no module {name} for kernel {self._release}", module=name)
        if self._is_fault_of_the_machine:
            hint = "journalctl -k"
        elif self._tree.is_dir():
            hint = "run 'depmod -a'"
        else:
            hint = "the kernel's package was replaced or removed while this kernel is running: reboot into the installed kernel"
        return ModuleTreeMissing(
            f"the module tree of kernel {self._release} cannot be used: {self._fault}",
            module=name,
            evidence=Evidence(hint=hint),
        )


def _read_table(path: Path) -> bytes:
    return read_if_there(path, _TABLE_MAX) or b""


def _module_of(path: str) -> ModuleName:
    return canonical(path.rpartition("/")[2].partition(".")[0])
