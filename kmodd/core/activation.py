# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which version of a custom module is in force: in a kernel's module tree, in its index, and, when asked, in the kernel.

A change is a few steps of which any can fail or be cut short. `active` in the store's folder is the truth of what is wanted,
and is written last; `changing` says that the tree may differ from it. So what fails is undone at once, and what a crash left
behind is undone at the next start.
"""

import asyncio
import errno
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from kmodd.core.api import Audit, Events, ModuleChanged
from kmodd.core.arguments import Pairs
from kmodd.core.compatibility import check_signature
from kmodd.core.store import disk_error
from kmodd.core.store_catalogue import StoreCatalogue
from kmodd.core.store_records import failed, recovered, stored
from kmodd.core.unbroken import unbroken
from kmodd.errors import Conflict, Evidence, KmoddError, NoSuchModule
from kmodd.kernel.ports import Facts, IndexMaker, LoadedModules, ModuleIndex, StoreFolder, Trees
from kmodd.model import Caller, LoadedModule, Operation, OperationResult, Plan, Request, Verb
from kmodd.model.store import IndexNotMadeError, StoredModule
from kmodd.names import ModuleName

_SHOWN = ("FileName", "Origin", "Signer")


class Reloader(Protocol):
    """What loads and unloads: `kmodd.core.operations.Operations`."""

    def plan(self, request: Request) -> Plan:
        """The steps now."""

    async def execute(self, plan: Plan, caller: Caller) -> Sequence[OperationResult]:
        """Carry them out."""

    def parameters(self, name: ModuleName) -> Pairs:
        """With which parameters a module is loaded now, as far as that can be told."""


class Activation:
    """Switches between versions; one change at a time."""

    def __init__(
        self,
        folder: StoreFolder,
        trees: Trees,
        depmod: IndexMaker,
        catalogue: StoreCatalogue,
        *,
        index: ModuleIndex,
        loaded: LoadedModules,
        facts: Facts,
        operations: Reloader,
        lock: asyncio.Lock,
        audit: Audit,
        events: Events,
    ) -> None:
        self._folder = folder
        self._trees = trees
        self._depmod = depmod
        self._catalogue = catalogue
        self._index = index
        self._loaded = loaded
        self._facts = facts
        self._operations = operations
        self._lock = lock
        self._audit = audit
        self._events = events
        self._under_way: set[asyncio.Task[None]] = set()
        self._changing: tuple[ModuleName, str] | None = None
        self.on_settled: Callable[[], None] = lambda: None
        """Called when a change came to its end, whatever that was."""

    async def close(self) -> None:
        """Stop half way rather than have the daemon's end wait for depmod; the next start undoes it."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def is_changing(self, name: ModuleName, kernel: str) -> bool:
        """Tell whether a change of this module is being made, or undone, at this moment."""
        return self._changing == (name, kernel)

    def active(self, name: ModuleName, kernel: str = "") -> StoredModule | None:
        """The active version for a kernel; without one for the running kernel, or else the only one there is.

        NoSuchModule when the store has no such module, Conflict when it is active for several other kernels.
        """
        if kernel or (found := self._catalogue.active(name, self._catalogue.running)) is None:
            if all(entry.name != name for entry in self._catalogue.all()):
                raise NoSuchModule(f"there is no module {name} in the store", module=name)
            active = [entry for entry in self._catalogue.all() if entry.name == name and entry.active]
            fitting = [entry for entry in active if not kernel or entry.kernel == kernel]
            if len(fitting) > 1:
                raise Conflict(f"{name} is active for several kernels, say for which", module=name, argument="options")
            return fitting[0] if fitting else None
        return found

    def is_origin_of(self, module: LoadedModule) -> bool:
        """Tell whether a loaded module is the active version, as far as the kernel says what it loaded."""
        entry = self._catalogue.active(module.name, self._catalogue.running)
        if entry is None:
            return False
        try:
            info = self._index.info(module.name)
        except KmoddError:
            return False
        # One that was loaded before this version was activated has another checksum of its sources, where it has one at all.
        sources = self._loaded.attributes(module.name).get("srcversion", info.srcversion)
        return sources == info.srcversion and ("O" in module.taint) != info.intree

    async def activate(
        self, wanted: StoredModule, caller: Caller, *, load: bool, dry_run: bool = False
    ) -> tuple[str, ...]:
        """Bring exactly this version into force; what was (or for a dry run would be) loaded or reloaded, in order."""
        async with self._lock:
            if dry_run:
                return await self._rehearse(wanted.name, wanted.kernel, wanted, load=load)
            return await self._recorded("activate", wanted, wanted, caller, load=load)

    async def deactivate(
        self, active: StoredModule, caller: Caller, *, load: bool, dry_run: bool = False
    ) -> tuple[str, ...]:
        """Take this version out of force; what was reloaded (or removed, where no other module has the name)."""
        async with self._lock:
            if self._catalogue.active(active.name, active.kernel) is None:
                return ()
            if dry_run:
                return await self._rehearse(active.name, active.kernel, None, load=load)
            return await self._recorded("deactivate", active, None, caller, load=load)

    async def recover(self) -> None:
        """Undo changes that were interrupted. What cannot be undone now is left for the next start, and is a finding."""
        async with self._lock:
            for name, kernel in await asyncio.to_thread(self._folder.changes):
                if await self._restore(name, kernel):
                    self._audit.record(recovered(name, kernel))

    # --- one change ---------------------------------------------------------------------------------------------------

    async def _recorded(
        self, action: str, about: StoredModule, wanted: StoredModule | None, caller: Caller, *, load: bool
    ) -> tuple[str, ...]:
        self._changing = about.name, about.kernel
        try:
            return await self._change(about.name, about.kernel, wanted, caller, load=load)
        except KmoddError as error:
            self._audit.record(failed(action, about.name, caller, error))
            raise
        finally:
            self._changing = None
            self.on_settled()

    async def _change(
        self, name: ModuleName, kernel: str, wanted: StoredModule | None, caller: Caller, *, load: bool
    ) -> tuple[str, ...]:
        former = self._catalogue.active(name, kernel)
        entry = await self._still_there(wanted) if wanted is not None else None
        # Read before anything changes: afterwards the file tells other defaults.
        running = kernel == self._catalogue.running
        was_loaded = running and self._loaded.read(name) is not None
        parameters = self._operations.parameters(name) if was_loaded else ()
        changed = entry is None or await self._is_new(entry)
        touched: list[str] = []
        # A task of its own: half a change must not stay because somebody hung up or the daemon is told to stop.
        task = asyncio.get_running_loop().create_task(
            self._steps(
                name,
                kernel,
                entry,
                caller,
                changed=changed,
                load=load and running,
                parameters=parameters,
                touched=touched,
            )
        )
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            await unbroken(task)
        except (KmoddError, OSError, IndexNotMadeError) as error:
            read_only = isinstance(error, OSError) and error.errno == errno.EROFS
            restored = await self._restore(name, kernel, read_only=read_only)
            if load:
                await self._bring_back(
                    name, parameters, caller, was_loaded=was_loaded, replaced=restored and bool(touched)
                )
            again = load and was_loaded and self._loaded.read(name) is not None
            raise _typed(error, name, kernel, loaded_again=again) from error
        shown = entry or former
        if shown is not None:
            action = "activate" if entry is not None else "deactivate"
            self._audit.record(stored(action, shown, caller, changed=changed, touched=tuple(touched)))
        if changed and was_loaded:
            self._events.publish(ModuleChanged(name, _SHOWN))
        return tuple(touched)

    async def _rehearse(
        self, name: ModuleName, kernel: str, wanted: StoredModule | None, *, load: bool
    ) -> tuple[str, ...]:
        """What a change would load anew; raises what is known to be in its way. The file in the tree decides the rest."""
        entry = await self._still_there(wanted) if wanted is not None else None
        is_new = entry is not None and await self._is_new(entry)
        there = self._loaded.read(name) is not None
        if not load or kernel != self._catalogue.running or (entry is None and not there):
            return ()
        if entry is not None and there and not is_new:
            return ()
        if there:
            # Whatever is loaded in its place, it has to go first.
            plan = self._operations.plan(Request((Operation(Verb.UNLOAD, name),), dry_run=True))
            if plan.error is not None:
                raise plan.error
        return (name,)

    async def _steps(
        self,
        name: ModuleName,
        kernel: str,
        entry: StoredModule | None,
        caller: Caller,
        *,
        changed: bool,
        load: bool,
        parameters: Pairs,
        touched: list[str],
    ) -> None:
        """Take the steps; `touched` gets what was loaded anew as soon as it was."""
        if changed:
            await asyncio.to_thread(self._folder.begin_change, name, kernel)
            await self._place(name, kernel, entry)
        if load:
            touched += await self._reload(name, entry, parameters, caller, changed=changed)
        if changed:
            sha256 = entry.sha256 if entry is not None else ""
            await asyncio.to_thread(self._folder.set_active, name, kernel, sha256)
            self._catalogue.activate(name, kernel, sha256)
            with suppress(OSError):  # it is done; where the mark stays, the next start looks once more
                await asyncio.to_thread(self._folder.end_change, name, kernel)

    async def _place(self, name: ModuleName, kernel: str, entry: StoredModule | None) -> None:
        """Put the version into the tree, or take ours away, and make the index say so."""
        if entry is not None:
            await asyncio.to_thread(self._trees.put, name, kernel, self._folder.path(entry))
        else:
            await asyncio.to_thread(self._trees.take_away, name, kernel)
        await self._depmod.refresh(self._trees.folder(kernel))
        self._index.refresh()
        indexed = await asyncio.to_thread(self._trees.indexed, name, kernel)
        if self._trees.is_ours(indexed) != (entry is not None):
            raise Conflict(
                f"the module index of kernel {kernel} takes another file for {name}",
                module=name,
                evidence=Evidence(
                    file=indexed,
                    hint="remove the other file below updates/, or see 'search' in /etc/depmod.d (depmod.d(5))",
                ),
            )

    async def _reload(
        self, name: ModuleName, entry: StoredModule | None, parameters: Pairs, caller: Caller, *, changed: bool
    ) -> tuple[str, ...]:
        there = self._loaded.read(name) is not None
        if entry is not None and there and not changed:
            return ()
        if entry is None and not there:
            return ()
        verb = Verb.RELOAD if entry is not None or self._index.path(name) else Verb.UNLOAD
        given: Mapping[str, str] = {}
        if verb is Verb.RELOAD and there:
            known = {one.name.replace("-", "_") for one in self._index.info(name).parameters}
            given = {key: value for key, value in parameters if key in known}
        return await self._run(Operation(verb, name, tuple(given.items())), caller)

    async def _run(self, operation: Operation, caller: Caller) -> tuple[str, ...]:
        plan = self._operations.plan(Request((operation,), reason="the version of the module in the store changed"))
        if plan.error is not None:
            raise plan.error
        (result,) = await self._operations.execute(plan, caller)
        if result.error is not None:
            raise result.error
        return tuple(result.touched)

    # --- undoing ------------------------------------------------------------------------------------------------------

    async def _restore(self, name: ModuleName, kernel: str, *, read_only: bool = False) -> bool:
        """Bring the tree back to what is active; tell whether that worked.

        Where something was `read_only` the tree may be as it was, and then nothing has to be made, nor could be.
        """
        try:
            if (name, kernel) not in await asyncio.to_thread(self._folder.changes):
                return False
            former = self._catalogue.active(name, kernel)
            if not read_only or not await self._is_as_before(name, kernel, former):
                await self._place(name, kernel, former)
            sha256 = former.sha256 if former is not None else ""
            if await asyncio.to_thread(self._folder.active, name, kernel) != sha256:  # its last step had failed
                await asyncio.to_thread(self._folder.set_active, name, kernel, sha256)
            await asyncio.to_thread(self._folder.end_change, name, kernel)
        except (KmoddError, OSError, IndexNotMadeError):
            return False  # `changing` stays, health tells of it
        return True

    async def _bring_back(
        self, name: ModuleName, parameters: Pairs, caller: Caller, *, was_loaded: bool, replaced: bool
    ) -> None:
        """Bring the kernel back to what it had: the failed change left nothing loaded, or (`replaced`) what it had loaded."""
        there = self._loaded.read(name) is not None
        if was_loaded and not there:
            verb = Verb.LOAD
        elif replaced and there:
            verb = Verb.RELOAD if was_loaded else Verb.UNLOAD
        else:
            return
        try:
            await self._run(Operation(verb, name, parameters), caller)
        except KmoddError as error:
            self._audit.record(failed(verb, name, caller, error))

    # --- looking ------------------------------------------------------------------------------------------------------

    async def _still_there(self, wanted: StoredModule) -> StoredModule:
        entry = self._catalogue.same(wanted.name, wanted.kernel, wanted.sha256)
        if entry is None:
            raise Conflict(f"this version of {wanted.name} was removed meanwhile", module=wanted.name)
        if await self._digest(self._folder.path(entry)) != entry.sha256:
            raise Conflict(
                f"the stored file of {entry.name} is not what was imported: somebody changed it on the disk",
                module=entry.name,
                evidence=Evidence(hint="remove this version and import it again"),
            )
        return entry

    async def _is_new(self, entry: StoredModule) -> bool:
        """Tell whether it is not in force yet; raises for one that the kernel would refuse, also at the next boot."""
        if await self._in_force(entry):
            return False
        # It may have been imported when nothing asked for signatures.
        check_signature(entry.name, entry, self._facts.read())
        return True

    async def _in_force(self, entry: StoredModule) -> bool:
        return (
            entry.active
            and await self._digest(self._trees.path(entry.name, entry.kernel)) == entry.sha256
            and self._trees.is_ours(await asyncio.to_thread(self._trees.indexed, entry.name, entry.kernel))
        )

    async def _is_as_before(self, name: ModuleName, kernel: str, former: StoredModule | None) -> bool:
        if former is not None:
            return await self._in_force(former)
        there = self._folder.stamp(self._trees.path(name, kernel)) is not None
        return not there and not self._trees.is_ours(await asyncio.to_thread(self._trees.indexed, name, kernel))

    async def _digest(self, path: Path) -> str:
        try:
            return (await asyncio.to_thread(self._folder.digest, path))[0]
        except OSError:
            return ""


def _typed(
    error: KmoddError | OSError | IndexNotMadeError, name: ModuleName, kernel: str, *, loaded_again: bool
) -> KmoddError:
    if isinstance(error, KmoddError):
        if loaded_again and name in error.touched:
            # The reload could not bring the former version back, for the file was another one by then.
            others = tuple(remark for remark in error.aftermath if remark[0] != name)
            told = error.after((*others, (name, f"{name} was loaded again as it was before")))
            return replace(told, touched=tuple(one for one in error.touched if one != name))
        # What was touched is as before again, or the journal says what is not.
        return error
    if isinstance(error, OSError):
        return disk_error(error, name)
    return Conflict(
        f"the module index of kernel {kernel} could not be refreshed: {error}",
        module=name,
        evidence=Evidence(hint="journalctl -u kmodd has what depmod said"),
    )
