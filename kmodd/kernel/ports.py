# SPDX-License-Identifier: LGPL-2.1-or-later
"""The interfaces of the kernel to core, implemented by the real kernel and by the simulated one.

Only the calls that change the kernel and the event stream are asynchronous: reads come from memory, from small files of
/proc and /sys, or from libkmod's mapped indexes, and take well under a millisecond unless stated otherwise.
"""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from kmodd.model import (
    Consequence,
    KernelFacts,
    LoadedModule,
    ModuleInfo,
    ModuleLoad,
    ModuleRequest,
    Outcome,
    ParameterValue,
    Rule,
    Target,
    Uevent,
    Usage,
)
from kmodd.model.rules import ManagedFile, RuleFiles
from kmodd.model.store import Examination, StoredModule
from kmodd.model.surface import Guard, Reading, Tables
from kmodd.names import Alias, ModuleName


class ModuleIndex(Protocol):
    """Module files, dependencies and modprobe.d, as libkmod reads them for the running kernel."""

    def refresh(self) -> bool:
        """Notice changed indexes and configuration files; True when anything was read again. Cheap when nothing changed.

        What cannot be read of modprobe.d is in `unreadable`, of the indexes a fault of the whole tree; OSError if
        neither is known.
        """

    @property
    def version(self) -> int:
        """How often `refresh` found anything changed; equal numbers mean equal answers, as of the last `refresh`."""

    def unreadable(self) -> Mapping[str, str]:
        """Files and folders of modprobe.d that are there and could not be read at the last `refresh`: path, and why as a clause.

        Any rule may stand there. What modprobe cannot read either, a link that leads nowhere for one, is not among them.
        """

    def forget(self) -> None:
        """Drop what was remembered of single modules, since it can be read again."""

    def resolve(self, name: ModuleName | Alias) -> tuple[ModuleName, ...]:
        """Canonical modules a name or alias stands for; a name that is no module is tried as alias; empty when unknown."""

    def lookup(self, name: str) -> tuple[Target, ...]:
        """What modprobe takes in hand for a name or alias, whether there is such a module or not; empty when unknown."""

    def exists(self, name: ModuleName) -> bool:
        """There is a file for it or it is built in."""

    def is_builtin(self, name: ModuleName) -> bool:
        """It is part of the kernel image."""

    def path(self, name: ModuleName) -> str:
        """Absolute path of its file; empty when built in or unknown."""

    def dependencies(self, name: ModuleName) -> tuple[ModuleName, ...]:
        """All modules that must be live before it, in the order they have to be inserted; built-ins left out."""

    def softdeps(self, name: ModuleName) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(pre, post) soft dependencies in effect, names or aliases as written."""

    def weakdeps(self, name: ModuleName) -> tuple[str, ...]:
        """Weak dependencies, information only; empty where libkmod knows none."""

    def info(self, name: ModuleName) -> ModuleInfo:
        """Static facts from the file; NoSuchModule, BadModule. A compressed file that was not read yet takes up to 0.1 s."""

    def holds(self, name: ModuleName) -> ModuleName:
        """What the kernel calls the module in the file of this name: the same, but for a renamed file. Reads the file as `info`."""

    def file_for(self, module: ModuleName) -> ModuleName:
        """Name of the file that holds a module: the same, or another where no file is called by its name."""

    def aliases(self, name: ModuleName) -> tuple[str, ...]:
        """Aliases of the module as depmod indexed them; none for what is built in. Reads no module file."""

    def deferred(self) -> AbstractContextManager[None]:
        """In this block FactsPending is raised in place of reading a module file, or a text of depmod's of any length."""

    def unread(self, names: Iterable[ModuleName]) -> tuple[ModuleName, ...]:
        """Those whose file would be read; names that FactsPending gave stand for what was to be read then."""

    def read_facts(self, name: ModuleName) -> object:
        """Read what that takes for `keep_facts`, and change nothing; may be called from any thread. OSError for depmod's texts."""

    def keep_facts(self, name: ModuleName, facts: object) -> None:
        """Have `info` answer what was read, as long as the file is the same."""

    def stamp(self, name: ModuleName) -> object:
        """Compares equal as long as `info` answers the same, and is cheaper; for answers that are kept."""

    def rules(self, name: ModuleName) -> tuple[Rule, ...]:
        """Lines of modprobe.d about it in effect: blacklist, install, remove, options, softdep; files in reading order."""

    def all_rules(self) -> tuple[Rule, ...]:
        """Every line in effect."""

    def available(self) -> Iterable[ModuleName]:
        """Every module with a file, sorted."""

    def builtins(self) -> Iterable[ModuleName]:
        """Every module that is part of the kernel image, sorted."""

    def parts(self) -> Iterable[ModuleName]:
        """Parts of the kernel image that have parameters and could not be modules, such as `printk`, sorted."""


class LoadedModules(Protocol):
    """/proc/modules and /sys/module. OSError where they cannot be read: nothing is taken for absent then."""

    def raw(self) -> bytes:
        """The text of /proc/modules, for caches keyed by it."""

    def find(self, text: bytes, name: ModuleName) -> LoadedModule | None:
        """One module of such a text; None when it was not loaded. Built-ins are None."""

    def snapshot(self) -> Mapping[ModuleName, LoadedModule]:
        """Everything loaded, coming or going, in /proc/modules order."""

    def read(self, name: ModuleName) -> LoadedModule | None:
        """One module now; None when it is not loaded. Built-ins are None."""

    def instance(self, name: ModuleName) -> int:
        """A number that differs for each load of the module until the next boot; 0 when it is not loaded."""

    def is_builtin(self, name: ModuleName) -> bool:
        """/sys/module/NAME exists without initstate: built in, with parameters or a version."""

    def parameter_files(self, name: ModuleName) -> tuple[ParameterValue, ...]:
        """Live parameters without their values, in order of their names: to read those is to run code of the module."""

    def attributes(self, name: ModuleName) -> Mapping[str, str]:
        """`version`, `srcversion`, `taint`, `coresize`, `initsize` where /sys/module/NAME has them."""


class Executor(Protocol):
    """Makes the system calls that can hang or crash, each in a worker process."""

    def start(self) -> None:
        """Be ready for the first order; OSError when no worker can be had."""

    def is_capable(self, worker: int) -> bool:
        """Whether the worker process may make these calls; called after an EPERM."""

    async def insert(self, path: str, arguments: str, *, sha256: str = "", timeout: float) -> Outcome:
        """finit_module of a file of the module tree (unpacked first where it is compressed). EACCES with a word in `refusal`
        for a file that may not be inserted, such as one whose content is not `sha256`."""

    async def remove(self, name: ModuleName, *, timeout: float) -> Outcome:
        """delete_module with O_NONBLOCK, never with O_TRUNC."""

    async def read_parameters(
        self, name: ModuleName, parameters: Sequence[str], *, timeout: float
    ) -> tuple[Outcome, Mapping[str, str]]:
        """Values of these live parameters, without their newline; those that cannot be read are left out."""

    async def write_parameter(self, name: ModuleName, parameter: str, value: str, *, timeout: float) -> Outcome:
        """Write one live parameter. Links below the module's folder are not followed."""

    async def lock(self, *, timeout: float) -> Outcome:
        """Write 1 to kernel.modules_disabled: nothing is loaded or unloaded any more until the next boot."""

    def on_return(self, worker: int, callback: Callable[[Outcome], None]) -> None:
        """Call back once when an abandoned worker's call ended after all."""

    def abandon_all(self) -> None:
        """Answer every call under way as one whose time is over: the daemon ends."""

    def identify(self, worker: int) -> str:
        """A name by which another daemon finds this worker; empty when it is gone."""

    def watch_abandoned(self, identity: str, ended: Callable[[], None]) -> bool:
        """Call back once when this worker of an earlier daemon is gone; False when it is gone, or cannot be found."""

    @property
    def abandoned(self) -> int:
        """Workers still in an abandoned call, without those that only read."""

    async def close(self) -> None:
        """Let idle workers go; abandoned ones are left to the kernel."""


class LogMark(Protocol):
    """A place in the kernel log."""

    def lines(self) -> tuple[str, ...]:
        """What the kernel logged since, oldest first, at most 200 lines, control characters escaped."""

    @property
    def fault(self) -> str:
        """Why lines may be missing: the name of an errno; empty when everything was read, and where there is no such log."""

    def close(self) -> None:
        """Forget the place."""


class KernelLog(Protocol):
    """The kernel's ring buffer."""

    def mark(self) -> LogMark:
        """Remember this moment."""


class Inspection(Protocol):
    """Finds out what only a process with more privileges can see. Takes two seconds at most, and is cheap for many callers."""

    async def users(self, name: ModuleName) -> Usage:
        """Mounts, loop devices, processes, interfaces, block and bound devices; no holder modules, no `kernel` entry.

        As it was at most three seconds ago. Never raises for what cannot be had: the answer says that it is partial.
        """

    async def consequences(self, names: Collection[ModuleName]) -> Mapping[ModuleName, tuple[Consequence, ...]]:
        """What goes with each of these modules when it is removed, as it is after the call was made. Five seconds at most.

        Never raises for what cannot be had: a row of the kind `unknown` says so.
        """

    async def executable(self, pid: int) -> str:
        """Path of a process's program; empty when it is gone or cannot be seen."""

    async def close(self) -> None:
        """Let everything go; what waits gets an empty answer."""


class Facts(Protocol):
    """Kernel facts."""

    def read(self) -> KernelFacts:
        """Now; OSError where it cannot be known what the kernel forbids."""

    def taint_flags(self, taint: int) -> tuple[str, ...]:
        """Each flag set, as `E: unsigned module was loaded` (Documentation/admin-guide/tainted-kernels)."""

    def trusted_keys(self) -> tuple[str, ...]:
        """Names of the certificates that the kernel holds; empty if unknown."""


class RequestSource(Protocol):
    """Who asks the kernel for modules, and who loads them, as the kernel traces it."""

    off: str
    """Why nothing is traced, as a clause; empty while it is."""
    lost: int
    """Events that the kernel dropped."""

    def start(self, requested: Callable[[ModuleRequest], None], loaded: Callable[[ModuleLoad], None]) -> None:
        """Tell of each from now on, on the event loop."""

    def close(self) -> None:
        """Let everything go."""


class UeventSource(Protocol):
    """Module events from the kernel."""

    on_device: Callable[[str, str], None] | None
    """Called with `add` or `remove` and the modalias of a device, while `events` is read; with `overflow` and no alias when
    events were lost."""
    on_announced: Callable[[str, str], None] | None
    """Called likewise with the modalias of a device that the kernel announces in whatever way, and what it is called."""

    def events(self) -> AsyncIterator[Uevent]:
        """`add` and `remove` as they come, `overflow` when some were lost."""

    def close(self) -> None:
        """Close the socket."""


class Configuration(Protocol):
    """modprobe.d and modules-load.d as files. Every method reads or writes a disk: call it in a thread."""

    def files(self) -> RuleFiles:
        """Every file with its lines, in effect or masked."""

    def autoload(self) -> Sequence[Rule]:
        """Lines of modules-load.d in effect, and modules named on the kernel command line; the files are small and few."""

    def read(self, file: ManagedFile) -> bytes | None:
        """One of kmodd's own files; None when there is none, OSError for what is not a regular file."""

    def write(self, file: ManagedFile, text: bytes | None, *, expected: bytes | None) -> None:
        """Replace all of `expected` by `text` (None: no file) or nothing; ChangedMeanwhileError, OSError."""

    def remember(self, file: ManagedFile, text: bytes | None) -> None:
        """Keep a copy of what was written (None: none); OSError."""

    def remembered(self, file: ManagedFile) -> bytes | None:
        """The copy, None when there is none."""

    def is_public(self, file: ManagedFile) -> bool:
        """Everyone may read it, or might if there were one."""

    def parse(self, file: ManagedFile, text: bytes) -> tuple[Rule, ...]:
        """Read a text as the reader of the file does."""


class InstalledKernels(Protocol):
    """The kernels of /lib/modules, and what else decides who can have a module loaded. Blocking: call it in a thread."""

    def releases(self) -> tuple[str, ...]:
        """Releases that have an index, the oldest first."""

    def stamp(self, release: str) -> object:
        """Compares equal as long as `index` and `tables` answer the same."""

    def guards(self) -> tuple[Guard, ...]:
        """Settings as they are now: some small files, which may be read on the event loop."""

    def tables(self, release: str) -> Tables:
        """Settings and device nodes as they are now; OSError where a table of the kernel cannot be read."""

    def version_text(self, release: str) -> str:
        """What `uname -rv` prints for a kernel: of the running one as it says, of others as their image does; empty when unknown."""

    def initramfs_modules(self, release: str) -> frozenset[ModuleName] | None:
        """The modules in the initramfs of a kernel; None where there is none, or it cannot be read. Some hundred milliseconds."""

    def initramfs_list(self) -> tuple[Rule, ...]:
        """The modules that the configuration has loaded in the initramfs; OSError where that cannot be known."""

    def index(self, release: str, *, surface: bytes | None = None) -> AbstractContextManager[ModuleIndex]:
        """An index of one's own, for this thread; a release that is not there has an empty one.

        `surface` is read in the place of kmodd's own rules about the attack surface (empty: without any). OSError where that
        takes a file that cannot be written.
        """


class NeedSources(Protocol):
    """What of this system needs modules. Blocking: call it in a thread."""

    def read(self) -> tuple[Reading, ...]:
        """Every source but the initramfs; one that cannot be read says so."""

    def initramfs(self, release: str) -> Reading:
        """The modules in the initramfs of a kernel; may take seconds."""


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
    def inspection(self) -> Inspection: ...
    @property
    def facts(self) -> Facts: ...
    @property
    def installed(self) -> InstalledKernels: ...
    @property
    def needs(self) -> NeedSources: ...
    @property
    def uevents(self) -> UeventSource: ...
    @property
    def requests(self) -> RequestSource: ...
    @property
    def simulated(self) -> bool: ...
    @property
    def boot_id(self) -> str:
        """Another one after each boot (random(4)); empty when unknown, and for a simulated kernel."""


class Spool(Protocol):
    """Two files of an import, in memory."""

    @property
    def copy(self) -> int: ...
    @property
    def plain(self) -> int: ...
    @property
    def size(self) -> int:
        """Bytes of both together."""

    def keep(self, file: int) -> None:
        """Give back the memory of the other one, and let nothing write to this one any more."""

    def remove(self) -> None:
        """Give back the memory of both; again is nothing."""


class StoreFolder(Protocol):
    """The store's own files. Blocking; OSError is the disk's."""

    @property
    def damaged(self) -> tuple[str, ...]:
        """Files that tell of a version and could not be read when `entries` last looked."""

    def prepare(self) -> None:
        """Make it, and clear away what a crash left half done."""

    def spool(self) -> Spool:
        """Files for a new import."""

    def digest(self, file: Path | int) -> tuple[str, int]:
        """(SHA-256, size in bytes) of a file."""

    def stamp(self, path: Path) -> tuple[int, ...] | None:
        """What changes when the file does; None where there is none."""

    def entries(self) -> list[StoredModule]:
        """Every version."""

    def add(self, file: Path | int, entry: StoredModule) -> None:
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

    def override(self, modules: Collection[tuple[ModuleName, str]]) -> None:
        """Have depmod take our files for these modules and kernels, and for no others; Conflict for a file that is not ours."""

    def overrides(self, modules: Collection[tuple[ModuleName, str]]) -> bool:
        """Whether depmod has this override."""

    def rival(self, name: ModuleName, kernel: str) -> tuple[str, int, str]:
        """The line of depmod.d that goes before ours: file, number, text; empty for none."""

    def indexed(self, name: ModuleName, kernel: str) -> str:
        """The file modprobe would take, below the tree; empty for none."""

    def is_ours(self, path: str) -> bool:
        """An indexed file lies in our folder."""

    def another(self, name: ModuleName, kernel: str) -> str:
        """A module of this name that is not ours: its path, `built-in`, or empty."""


class IndexMaker(Protocol):
    """depmod."""

    async def refresh(self, tree: Path) -> None:
        """Rebuild a tree's index; IndexNotMadeError, OSError."""


class FileExaminer(Protocol):
    """Examines strangers' files in processes without rights."""

    async def examine(self, source: int, copy: int, plain: int, *, maximum: int, unpacked: int) -> Examination:
        """Copy `source` to `copy`, unpack it to `plain`, examine it."""
