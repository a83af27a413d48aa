# SPDX-License-Identifier: LGPL-2.1-or-later
"""Health checks of the kernel, its modules, the next boot and kmodd itself, and of loaded modules against their files."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from kmodd.core.fair_share import read_files
from kmodd.core.operations.operations import STUCK_MAX
from kmodd.core.planning.policy import where
from kmodd.errors import KmoddError
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.ports import LoadedModules, ModuleIndex
from kmodd.model import Failure, HealthCheck, HealthStatus, KernelFacts, LoadedModule, Rule, State
from kmodd.model.modules import BootImage, Trees, difference
from kmodd.model.rules import Drift
from kmodd.names import ModuleName

_OK, _DEGRADED, _FAILING = HealthStatus.OK, HealthStatus.DEGRADED, HealthStatus.FAILING
_PROPRIETARY, _CRASHED, _OUT_OF_TREE, _UNSIGNED = 1 << 0, 1 << 7, 1 << 12, 1 << 13
# Forced load and unload, machine check, bad page, warning, soft lockup (Documentation/admin-guide/tainted-kernels.rst).
_WORRYING = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 9 | 1 << 14
# Errors that indicate a problem of the system; others only concern their caller.
_ALARMING = frozenset({"InitFailed", "TimedOut", "Stuck", "Crashed"})


BROUGHT_MAX = 8
"""Modules named that taint the kernel."""
_LOOKS_MAX = 3
REPLACED_MAX = 32
"""Replaced modules listed individually."""


@dataclass(frozen=True, slots=True)
class HealthInputs:
    """Everything the checks look at, of one moment."""

    facts: KernelFacts
    taint_flags: tuple[str, ...]
    modules: Mapping[ModuleName, LoadedModule]
    failures: tuple[Failure, ...]
    hung: frozenset[ModuleName]
    """Modules that are coming or going for longer than any module takes."""
    forbidden: Mapping[ModuleName, Rule]
    """Modules that are loaded although a rule forbids it."""
    abandoned: int
    """Calls still in the kernel that were abandoned."""
    overflows: int
    stuck_max: int = STUCK_MAX
    """So many of them, and nothing new is begun."""
    trouble: str = ""
    """What the daemon's own check of itself found; empty when it is well."""


def check_daemon(vitals: HealthInputs) -> Iterator[HealthCheck]:
    """The daemon's view of itself."""
    if vitals.trouble:
        yield HealthCheck("daemon", _FAILING, f"kmodd is degraded: {vitals.trouble}.", "", "journalctl -u kmodd")
    else:
        yield HealthCheck("daemon", _OK, "kmodd is running.")


def check_module_tree(vitals: HealthInputs) -> Iterator[HealthCheck]:
    """Files for the running kernel."""
    release = vitals.facts.release
    if vitals.facts.tree_present:
        yield HealthCheck("module-tree", _OK, f"The module tree of kernel {release} is present.")
    else:
        yield HealthCheck(
            "module-tree",
            _FAILING,
            f"No module tree for the running kernel {release}: no module can be loaded.",
            "",
            "reboot into an installed kernel, or install the modules of this one and run depmod",
        )


def check_restrictions(vitals: HealthInputs) -> Iterator[HealthCheck]:
    """What the kernel is configured to forbid; deliberate, so only the total ban counts."""
    facts = vitals.facts
    if facts.modules_disabled:
        yield HealthCheck(
            "modules-disabled",
            _DEGRADED,
            "Loading and unloading of modules is disabled until reboot.",
            "",
            "sysctl kernel.modules_disabled was set to 1 and cannot be set back",
        )
    else:
        yield HealthCheck("modules-disabled", _OK, "Modules can be loaded and unloaded.")
    yield HealthCheck("lockdown", _OK, f"Kernel lockdown is {facts.lockdown}.")
    enforced = "refuses modules without a valid signature" if facts.signature_enforced else "accepts unsigned modules"
    if facts.lockdown != "none":
        enforced = "refuses unsigned modules while it is locked down"
    yield HealthCheck("signatures", _OK, f"The kernel {enforced}.")


def check_taint(vitals: HealthInputs) -> Iterator[HealthCheck]:
    """Flags of the kernel, and which loaded modules brought them."""
    taint = vitals.facts.taint
    flags = "; ".join(vitals.taint_flags)
    brought = [f"{module.name} ({module.taint})" for module in vitals.modules.values() if module.taint]
    more = f" and {len(brought) - BROUGHT_MAX} more" if len(brought) > BROUGHT_MAX else ""
    by = f" Caused by {', '.join(brought[:BROUGHT_MAX])}{more}." if brought else ""
    if taint & _CRASHED:
        yield HealthCheck(
            "taint",
            _FAILING,
            f"The kernel survived a crash ({flags}).",
            "",
            "journalctl -k has the trace; plan a reboot",
        )
    elif taint & _WORRYING:
        yield HealthCheck("taint", _DEGRADED, f"The kernel is tainted ({flags}).{by}", "", "journalctl -k")
    elif taint:
        yield HealthCheck(
            "taint",
            _OK,
            f"The kernel is tainted ({flags}).{by}",
            "",
            "nothing to do; mention it in reports to kernel developers",
        )
    else:
        yield HealthCheck("taint", _OK, "The kernel is not tainted.")
    unsigned = [module for module in vitals.modules.values() if "E" in module.taint]
    for module in unsigned:
        yield HealthCheck(
            "unsigned-module",
            _DEGRADED,
            f"{module.name} has no valid signature.",
            module.name,
            "sign it with a key the kernel trusts; under lockdown it would not load",
        )
    for module in vitals.modules.values():
        if "E" not in module.taint and ("O" in module.taint or "P" in module.taint):
            what = "is proprietary" if "P" in module.taint else "was built out of tree"
            yield HealthCheck("out-of-tree-module", _OK, f"{module.name} {what}.", module.name)


def check_hung(vitals: HealthInputs) -> Iterator[HealthCheck]:
    """Modules whose init() or exit() does not come back."""
    for name in sorted(vitals.hung):
        module = vitals.modules[name]
        call = "init()" if module.state is State.COMING else "exit()"
        yield HealthCheck(
            "stuck-module",
            _DEGRADED,
            f"{name} is {module.state}: its {call} does not return.",
            name,
            "plan a reboot: only the kernel can release it",
        )
    if not vitals.hung:
        yield HealthCheck("stuck-module", _OK, "No module is stuck.")
    if vitals.abandoned >= vitals.stuck_max:
        message = f"{vitals.abandoned} calls are stuck in the kernel: no further load or unload is accepted."
        yield HealthCheck("stuck-calls", _FAILING, message, "", "reboot")
    elif vitals.abandoned:
        message = f"{_count(vitals.abandoned, 'call')} into the kernel did not return."
        yield HealthCheck("stuck-calls", _DEGRADED, message, "", f"at {vitals.stuck_max} no more are accepted")
    else:
        yield HealthCheck("stuck-calls", _OK, "No call is stuck in the kernel.")


def check_failures(vitals: HealthInputs) -> Iterator[HealthCheck]:
    """Operations that failed and were not reset."""
    for failure in vitals.failures:
        alarming = failure.error in _ALARMING
        status = _FAILING if failure.error == "Crashed" else _DEGRADED if alarming else _OK
        hint = failure.evidence.hint or f"kmodctl why {failure.module}"
        yield HealthCheck(
            "failed-operation",
            status,
            f"{failure.action} of {failure.module} failed ({failure.error}): {failure.message}",
            failure.module,
            hint,
        )
    if not vitals.failures:
        yield HealthCheck("failed-operation", _OK, "No failed operation is recorded.")


def check_policy(vitals: HealthInputs) -> Iterator[HealthCheck]:
    """Modules that are there although a rule forbids them."""
    for name, rule in sorted(vitals.forbidden.items()):
        yield HealthCheck(
            "forbidden-module",
            _DEGRADED,
            f"{name} is loaded although {where(rule)} disables it.",
            name,
            f"kmodctl why {name} tells who loaded it; kmodctl unload {name}; if it is loaded again at boot: update-initramfs -u",
        )
    if not vitals.forbidden:
        yield HealthCheck("forbidden-module", _OK, "No disabled module is loaded.")


def check_events(vitals: HealthInputs) -> Iterator[HealthCheck]:
    """Lost kernel events are made up for by reading everything again, so they are worth a line and no alarm."""
    if vitals.overflows:
        message = f"Kernel events were lost {_count(vitals.overflows, 'time')}; everything was read again."
        yield HealthCheck(
            "events", _OK, message, "", "the history may lack modules that were loaded and unloaded in between"
        )
    else:
        yield HealthCheck("events", _OK, "No kernel event was lost.")


CHECKS: tuple[Callable[[HealthInputs], Iterator[HealthCheck]], ...] = (
    check_daemon,
    check_module_tree,
    check_hung,
    check_failures,
    check_taint,
    check_policy,
    check_restrictions,
    check_events,
)
"""All of them, what concerns a person most first."""


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


NAME = "loaded-file"
MODULES_MAX = 16
"""Modules listed individually: an update of the kernel's package may replace all of them."""


class FilesHealth:
    """Compares on request, in the background, and again only when a file or the loaded modules changed."""

    def __init__(self, loaded: LoadedModules, index: ModuleIndex, on_news: Callable[[], None]) -> None:
        """`on_news` is called when the differences are others than before."""
        self._loaded = loaded
        self._index = index
        self._on_news = on_news
        self._stamp: object = None
        self._found: dict[ModuleName, str] = {}
        self._task: asyncio.Task[None] | None = None

    def checks(self) -> Iterator[HealthCheck]:
        """Every difference, as last seen."""
        names = [name for name in self._found if self._loaded.read(name) is not None]
        for name in names[:MODULES_MAX]:
            message = f"{name} differs from its file on disk: {self._found[name]}."
            yield HealthCheck(NAME, HealthStatus.DEGRADED, message, name, f"kmodctl reload {name}")
        if len(names) > MODULES_MAX:
            message = f"And {len(names) - MODULES_MAX} more modules differ from their files on disk."
            yield HealthCheck(NAME, HealthStatus.DEGRADED, message, "", "reboot")
        if not names:
            yield HealthCheck(NAME, HealthStatus.OK, "Every loaded module matches its file on disk.")

    def reading(self) -> asyncio.Task[None] | None:
        """The comparison that is under way, begun here where something changed since the last one."""
        if self._task is None:
            names = self._names()
            stamp = tuple((name, self._index.stamp(name)) for name in names)
            if stamp != self._stamp:
                self._stamp = stamp
                self._task = asyncio.get_running_loop().create_task(self._compare(names))
        return self._task

    async def close(self) -> None:
        """End a comparison that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _names(self) -> list[ModuleName]:
        modules = self._loaded.snapshot()
        return [name for name, module in modules.items() if module.state is State.LIVE and self._index.path(name)]

    async def _compare(self, names: list[ModuleName]) -> None:
        before, differing = self._found, {}
        try:
            for name in names:
                await read_files(self._index, (name,))
                try:
                    differs = difference(self._loaded.attributes(name), self._index.info(name))
                except KmoddError:
                    continue  # its file is gone or damaged: what a reload would say
                if differs and self._loaded.read(name) is not None:
                    differing[name] = differs
                await asyncio.sleep(0)
            self._found = differing
        finally:
            self._task = None
        if differing != before:
            self._on_news()


class Image(Protocol):
    """The initramfs of the running kernel."""

    def stamp(self) -> object:
        """Changes when anything does that decides; cheap."""

    def look(self) -> BootImage | None:
        """Compare; blocking, None where there is no initramfs."""


class BootHealth:
    """What is known of the initramfs and the trees. The image is read in a thread, and again only when a file changed."""

    def __init__(
        self,
        image: Image,
        trees: Callable[[], Trees],
        on_news: Callable[[], None],
        *,
        trees_stamp: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_news` is called when a reading finished whose result was not available when it was requested.

        `trees` blocks; `trees_stamp` answers something else when `trees` would.
        """
        self._image = image
        self._trees = trees
        self._trees_stamp = trees_stamp
        self._seen: tuple[object, Trees] | None = None
        self._on_news = on_news
        self._stamp: object = None
        self._found: BootImage | None = None
        self._reading: asyncio.Task[None] | None = None

    def checks(self) -> Iterator[HealthCheck]:
        """Every finding."""
        yield self._initramfs()
        trees = self._seen[1] if self._seen is not None else Trees()
        if trees.newer:
            message = f"Kernel {trees.newer[-1]} is installed and newer than the running one."
            yield HealthCheck("newer-kernel", _OK, message, "", "reboot to use it")
        for name, file in trees.replaced[:REPLACED_MAX]:
            yield HealthCheck("replaced-module", _OK, f"{file} replaces the kernel's own {name}.", name)

    def drift(self) -> Sequence[Drift]:
        """One row where the initramfs is older than its files; it has the command that refreshes it."""
        image = self.image()
        if image is None or not image.differences:
            return ()
        return (
            Drift("", "initramfs", "up to date with /etc", "; ".join(image.differences), image.refresh, image.command),
        )

    def image(self) -> BootImage | None:
        """As last seen; begins another look when a file changed since."""
        stamp = self._image.stamp()
        others = self._seen is None or self._seen[0] != self._trees_stamp()
        if (stamp != self._stamp or others) and self._reading is None:
            changed, self._stamp = stamp != self._stamp, stamp
            self._reading = asyncio.get_running_loop().create_task(self._look(image=changed, trees=others))
        return self._found

    async def settled(self) -> BootImage | None:
        """As it is now: waits for a look that is under way, and for one more when a file changed since it began."""
        for _ in range(_LOOKS_MAX):
            self.image()
            if self._reading is None:
                break
            await asyncio.shield(self._reading)
        return self._found

    def reading(self) -> asyncio.Task[None] | None:
        """What is being read."""
        return self._reading

    async def close(self) -> None:
        """Wait for a look that is under way: its thread cannot be stopped."""
        if self._reading is not None:
            await asyncio.wait({self._reading})

    async def _look(self, *, image: bool, trees: bool) -> None:
        before = self._found, self._seen
        try:
            if trees:
                # The stamp first: what changes while it is read is read again.
                self._seen = self._trees_stamp(), await asyncio.to_thread(self._trees)
            if image:
                self._found = await asyncio.to_thread(self._image.look)
        finally:
            self._reading = None
        if (self._found, self._seen) != before:
            self._on_news()

    def _initramfs(self) -> HealthCheck:
        image = self.image()
        if image is None:
            return HealthCheck("initramfs", _OK, "No initramfs found for the running kernel.")
        if not image.differences:
            return HealthCheck("initramfs", _OK, f"{image.file} is up to date.")
        how = "by its contents" if image.by_content else "by its time; its contents cannot be read"
        message = f"{image.file} is older than the files it was made from ({how}): {'; '.join(image.differences)}."
        return HealthCheck("initramfs", _DEGRADED, message, "", image.refresh)
