# SPDX-License-Identifier: LGPL-2.1-or-later
"""What decisions may ask of the machine. The real parts and the simulated kernel both have these shapes.

Nothing here is asynchronous but the calls that change the kernel and the event stream: reads come from memory, from
small files of /proc and /sys, or from libkmod's mapped indexes, and take well under a millisecond unless they say so.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from kmodd.model import (
    KernelFacts,
    LoadedModule,
    ModuleInfo,
    Outcome,
    ParameterValue,
    Rule,
    Uevent,
    User,
)
from kmodd.model.configuration import OwnFile, RuleFiles
from kmodd.model.store import Examination, StoredModule
from kmodd.names import Alias, ModuleName


class ModuleIndex(Protocol):
    """Module files, dependencies and modprobe.d, as libkmod reads them for the running kernel."""

    def refresh(self) -> bool:
        """Notice changed indexes and configuration files; True when anything was read again. Cheap when nothing changed."""

    def forget(self) -> None:
        """Drop what was remembered of single modules, since it can be read again."""

    def resolve(self, name: ModuleName | Alias) -> tuple[ModuleName, ...]:
        """Canonical modules a name or alias stands for; a name that is no module is tried as alias; empty when unknown."""

    def exists(self, name: ModuleName) -> bool:
        """There is a file for it or it is built in."""

    def is_builtin(self, name: ModuleName) -> bool:
        """It is part of the kernel image."""

    def path(self, name: ModuleName) -> str:
        """Absolute path of its file; empty when built in or unknown."""

    def dependencies(self, name: ModuleName) -> tuple[ModuleName, ...]:
        """All modules that must be live before it, in the order they have to be inserted; built-ins left out."""

    def softdeps(self, name: ModuleName) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(pre, post) soft dependencies in force, names or aliases as written."""

    def weakdeps(self, name: ModuleName) -> tuple[str, ...]:
        """Weak dependencies, information only; empty where libkmod knows none."""

    def info(self, name: ModuleName) -> ModuleInfo:
        """Static facts from the file; NoSuchModule, BadModule."""

    def stamp(self, name: ModuleName) -> object:
        """Compares equal as long as `info` answers the same, and is cheaper; for answers that are kept."""

    def rules(self, name: ModuleName) -> tuple[Rule, ...]:
        """Lines of modprobe.d about it in force: blacklist, install, remove, options, softdep; files in reading order."""

    def all_rules(self) -> tuple[Rule, ...]:
        """Every line in force."""

    def available(self) -> Iterable[ModuleName]:
        """Every module with a file, sorted."""

    def builtins(self) -> Iterable[ModuleName]:
        """Every module that is part of the kernel image, sorted."""


class LoadedModules(Protocol):
    """/proc/modules and /sys/module."""

    def raw(self) -> bytes:
        """The text of /proc/modules, for caches keyed by it."""

    def snapshot(self) -> Mapping[ModuleName, LoadedModule]:
        """Everything loaded, coming or going, in /proc/modules order."""

    def read(self, name: ModuleName) -> LoadedModule | None:
        """One module now; None when it is not loaded. Built-ins are None."""

    def is_builtin(self, name: ModuleName) -> bool:
        """/sys/module/NAME exists without initstate: built in, with parameters or a version."""

    def parameters(self, name: ModuleName, *, private: bool = False) -> tuple[ParameterValue, ...]:
        """Live parameters; values only root may read are None unless `private`."""

    def write_parameter(self, name: ModuleName, parameter: str, value: str) -> None:
        """Write one; OSError carries the kernel's errno. Links below the module's folder are not followed."""

    def attributes(self, name: ModuleName) -> Mapping[str, str]:
        """`version`, `srcversion`, `taint`, `coresize`, `initsize` where /sys/module/NAME has them."""


class Executor(Protocol):
    """Makes the system calls that can hang or crash, each in a worker process."""

    def start(self) -> None:
        """Be ready for the first order; OSError when no worker can be had."""

    def is_capable(self, worker: int) -> bool:
        """The worker process may make these calls; asked after an EPERM."""

    async def insert(self, path: str, arguments: str, *, timeout: float) -> Outcome:
        """finit_module (decompressing where the kernel cannot)."""

    async def remove(self, name: ModuleName, *, timeout: float) -> Outcome:
        """delete_module with O_NONBLOCK, never with O_TRUNC."""

    def on_let_go(self, worker: int, callback: Callable[[Outcome], None]) -> None:
        """Call back once when an abandoned worker's call ended after all."""

    def give_up(self) -> None:
        """Answer every call under way as one whose time is over: the daemon ends."""

    def identify(self, worker: int) -> str:
        """A name by which another daemon finds this worker; empty when it is gone."""

    def adopt(self, identity: str, ended: Callable[[], None]) -> bool:
        """Call back once when this worker of an earlier daemon is gone; False when it is gone, or cannot be found."""

    @property
    def abandoned(self) -> int:
        """Workers that are still inside a call nobody waits for."""

    async def close(self) -> None:
        """Let idle workers go; abandoned ones are left to the kernel."""


class LogMark(Protocol):
    """A place in the kernel log."""

    def lines(self) -> tuple[str, ...]:
        """What the kernel logged since, oldest first, at most 200 lines, control characters escaped."""

    def close(self) -> None:
        """Forget the place."""


class KernelLog(Protocol):
    """The kernel's ring buffer."""

    def mark(self) -> LogMark:
        """Remember this moment."""


class Usage(Protocol):
    """Finds what in user space keeps a module busy. May take tens of milliseconds: call it in a thread."""

    def users(self, name: ModuleName) -> tuple[User, ...]:
        """Mounts, loop devices, processes, interfaces, block and bound devices; no holder modules, no `kernel` entry."""


class Facts(Protocol):
    """Kernel facts."""

    def read(self) -> KernelFacts:
        """Now."""

    def taint_flags(self, taint: int) -> tuple[str, ...]:
        """Each flag set, as `E: unsigned module was loaded` (Documentation/admin-guide/tainted-kernels)."""

    def trusted_keys(self) -> tuple[str, ...]:
        """Names of the certificates that the kernel holds; empty where they cannot be told."""


class UeventSource(Protocol):
    """Module events from the kernel."""

    on_device: Callable[[str, str], None] | None
    """Called with `add` or `remove` and the modalias of a device, while `events` is read; with `overflow` and no alias when
    events were lost."""

    def events(self) -> AsyncIterator[Uevent]:
        """`add` and `remove` as they come, `overflow` when some were lost."""

    def close(self) -> None:
        """Close the socket."""


class ChangedMeanwhileError(Exception):
    """A file is not what was read before: somebody else wrote it."""


class Configuration(Protocol):
    """modprobe.d and modules-load.d as files. Every method reads or writes a disk: call it in a thread."""

    def files(self) -> RuleFiles:
        """Every file with its lines, in force or masked."""

    def autoload(self) -> Sequence[Rule]:
        """Lines of modules-load.d in force, and modules that the kernel's command line names; the files are small and few."""

    def read(self, file: OwnFile) -> bytes | None:
        """One of kmodd's own files; None when there is none, OSError for what is no regular file."""

    def write(self, file: OwnFile, text: bytes | None, *, expected: bytes | None) -> None:
        """Replace all of `expected` by `text` (None: no file) or nothing; ChangedMeanwhileError, OSError."""

    def remember(self, file: OwnFile, text: bytes | None) -> None:
        """Keep a copy of what was written (None: none); OSError."""

    def remembered(self, file: OwnFile) -> bytes | None:
        """The copy, None when there is none."""

    def is_public(self, file: OwnFile) -> bool:
        """Everyone may read it, or might if there were one."""

    def parse(self, file: OwnFile, text: bytes) -> tuple[Rule, ...]:
        """Read a text as whoever reads the file does."""


class Kernel(Protocol):
    """Everything together, as the composition root hands it to core."""

    @property
    def index(self) -> ModuleIndex: ...
    @property
    def loaded(self) -> LoadedModules: ...
    @property
    def configuration(self) -> Configuration: ...
    @property
    def executor(self) -> Executor: ...
    @property
    def log(self) -> KernelLog: ...
    @property
    def usage(self) -> Usage: ...
    @property
    def facts(self) -> Facts: ...
    @property
    def uevents(self) -> UeventSource: ...
    @property
    def simulated(self) -> bool: ...


class Spool(Protocol):
    """Two files of an import, open for reading and writing."""

    @property
    def copy(self) -> int: ...
    @property
    def plain(self) -> int: ...
    @property
    def copy_path(self) -> Path: ...
    @property
    def plain_path(self) -> Path: ...

    def close(self) -> None:
        """Close both."""

    def remove(self) -> None:
        """Remove what is left of them."""


class StoreFolder(Protocol):
    """The store's own files. Blocking; OSError is the disk's."""

    @property
    def damaged(self) -> tuple[str, ...]:
        """Files that tell of a version and could not be read when `entries` last looked."""

    def prepare(self) -> None:
        """Make it, and clear away what a crash left half done."""

    def spool(self) -> Spool:
        """Files for a new import."""

    def digest(self, path: Path) -> tuple[str, int]:
        """(SHA-256, size in bytes) of a file."""

    def stamp(self, path: Path) -> tuple[int, ...] | None:
        """What changes when the file does; None where there is none."""

    def entries(self) -> list[StoredModule]:
        """Every version."""

    def add(self, file: Path, entry: StoredModule) -> None:
        """Take a spooled file over."""

    def remove(self, entry: StoredModule) -> None:
        """Remove a version."""

    def path(self, entry: StoredModule) -> Path:
        """A version's file."""

    def active(self, name: ModuleName, kernel: str) -> str:
        """The SHA256 of the active version, as the disk has it; empty for none."""

    def set_active(self, name: ModuleName, kernel: str, sha256: str) -> None:
        """Say which version is active, or none."""

    def begin_change(self, name: ModuleName, kernel: str) -> None:
        """The module tree is about to differ from what is active."""

    def end_change(self, name: ModuleName, kernel: str) -> None:
        """The module tree is as is active."""

    def changes(self) -> list[tuple[ModuleName, str]]:
        """Changes that were interrupted."""


class Trees(Protocol):
    """Kernels' module trees, and our folder in them. Blocking; OSError is the disk's."""

    def kernels(self) -> tuple[str, ...]:
        """Releases that have one."""

    def folder(self, kernel: str) -> Path:
        """The tree of a kernel."""

    def path(self, name: ModuleName, kernel: str) -> Path:
        """Where our file of this name belongs."""

    def put(self, name: ModuleName, kernel: str, source: Path) -> None:
        """Put a copy of the file there."""

    def take_away(self, name: ModuleName, kernel: str) -> None:
        """Remove our file of this name."""

    def indexed(self, name: ModuleName, kernel: str) -> str:
        """The file modprobe would take, below the tree; empty for none."""

    def is_ours(self, path: str) -> bool:
        """An indexed file is one of ours."""

    def another(self, name: ModuleName, kernel: str) -> str:
        """A module of this name that is not ours: its path, `built-in`, or empty."""


class IndexMaker(Protocol):
    """depmod."""

    async def refresh(self, tree: Path) -> None:
        """Make a tree's index anew; IndexNotMadeError, OSError."""


class FileExaminer(Protocol):
    """Examines strangers' files in processes without rights."""

    async def examine(self, source: int, copy: int, plain: int, *, maximum: int, unpacked: int) -> Examination:
        """Copy `source` to `copy`, unpack it to `plain`, examine it."""
