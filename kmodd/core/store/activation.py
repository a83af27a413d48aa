# SPDX-License-Identifier: LGPL-2.1-or-later
"""Activates a version of a custom module: in a kernel's module tree, in its index and, on request, in the kernel.

A change has several steps, each of which can fail or be interrupted. `active` in the store's directory is the desired
version and is written last; `changing` marks a tree that may differ from it. A failure is rolled back immediately, an
interrupted change at the next start.
"""

import asyncio
import errno
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from kmodd.core.events import Audit, Events, ModuleChanged
from kmodd.core.operations.jobs import run_to_completion
from kmodd.core.operations.operations import Operations, check_loaders
from kmodd.core.planning.parameters import Pairs
from kmodd.core.store.compatibility import check_signature
from kmodd.core.store.store import StoreCatalogue, disk_error, failed, recovered, stored
from kmodd.core.store.store import changed as changed_meanwhile
from kmodd.errors import Conflict, Evidence, KmoddError, NoSuchModule
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.ports import Facts, IndexMaker, LoadedModules, ModuleIndex, StoreFolder, Trees
from kmodd.model import Caller, LoadedModule, Loaders, Operation, Request, Step, Verb
from kmodd.model.arguments import Arguments
from kmodd.model.store import IndexNotMadeError, StoredModule
from kmodd.names import ModuleName, canonical

Settled = Callable[[], None]
_SHOWN = ("FileName", "Origin", "Signer")


@dataclass(frozen=True, slots=True)
class Switch:
    """A change of the active version as it is authorized: nothing else may come of it."""

    name: ModuleName
    kernel: str
    former: StoredModule | None
    """The version that is active before."""
    entry: StoredModule | None
    """The version to be active; None to take the former out of force."""
    load: bool
    modules: tuple[ModuleName, ...]
    """Every module that may be inserted or removed, and the named one; sorted."""
    sha256: tuple[str, ...]
    """Of the versions among them that come from the store: first of the named module."""
    disconnect: bool = False
    """Also where live interfaces or devices go with the module that is reloaded."""
    confined: bool = False
    """No module beyond `modules` may be touched for root either."""
    loaders: Loaders | None = None
    """Who loaded what would be removed; None where polkit's rules do not see that."""


class AuthorizedContent:
    """What a file that kmodd put into the running kernel's module tree must contain to be loaded."""

    def __init__(self, trees: Trees, catalogue: StoreCatalogue) -> None:
        self._trees = trees
        self._catalogue = catalogue
        self._folder = f"{trees.folder(catalogue.running)}/"

    def sha256(self, step: Step) -> str:
        """The SHA-256 of the file that a step loads; empty for a file that is not the store's."""
        if not step.path.startswith(self._folder) or not self._trees.is_ours(step.path.removeprefix(self._folder)):
            return ""
        entry = self._catalogue.in_tree(step.module, self._catalogue.running)
        return entry.sha256 if entry is not None else ""


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
        operations: Operations,
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
        self.on_settled: Settled = lambda: None
        """Called when a change came to its end, whatever that was."""

    async def close(self) -> None:
        """Stop rather than delay the daemon's shutdown by depmod; the next start rolls the change back."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def is_changing(self, name: ModuleName, kernel: str) -> bool:
        """Tell whether a change of this module is being made, or undone, at this moment."""
        return self._catalogue.changing == (name, kernel)

    def active(self, name: ModuleName, kernel: str = "") -> StoredModule | None:
        """The active version for a kernel; without one for the running kernel, or else the only one there is.

        NoSuchModule when the store has no such module, Conflict when it is active for several other kernels.
        """
        if kernel or (version_active := self._catalogue.active(name, self._catalogue.running)) is None:
            if all(entry.name != name for entry in self._catalogue.all()):
                raise NoSuchModule(f"no module {name} in the store", module=name)
            active = [entry for entry in self._catalogue.all() if entry.name == name and entry.active]
            fitting = [entry for entry in active if not kernel or entry.kernel == kernel]
            if len(fitting) > 1:
                raise Conflict(f"{name} is active for several kernels; specify one", module=name, argument="options")
            return fitting[0] if fitting else None
        return version_active

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
        sources = self._loaded.attributes(module.name).get("srcversion", "")
        return sources == info.srcversion and ("O" in module.taint) != info.intree

    def foresee(
        self, name: ModuleName, kernel: str, entry: StoredModule | None, *, load: bool, disconnect: bool = False
    ) -> Switch:
        """What making `entry` the active version (None: taking the active one out of force) would do now; needs no right."""
        former = self._catalogue.active(name, kernel)
        modules = {name}
        loaders: set[tuple[ModuleName, int | None]] = set()
        if load and kernel == self._catalogue.running:
            loaded = self._loaded.read(name) is not None
            operations = [
                Operation(Verb.LOAD, needed, itself=True)
                for needed in map(canonical, entry.needs if entry is not None else ())
            ]
            if loaded or entry is not None:
                operations.append(Operation(Verb.RELOAD if loaded else Verb.LOAD, name, itself=True))
            # One by one: what is known to fail tells nothing about the others.
            for operation in operations:
                plan = self._operations.plan(Request((operation,), dry_run=True))
                modules |= {step.module for step in plan.steps if step.error is None}
                loaders |= set(plan.loaders or ())
        of_others = (self._catalogue.active(other, kernel) for other in sorted(modules - {name}))
        shown = (entry or former, *of_others)
        return Switch(
            name,
            kernel,
            former,
            entry,
            load,
            tuple(sorted(modules)),
            tuple(entry.sha256 for entry in shown if entry is not None),
            disconnect,
            loaders=tuple(sorted(loaders, key=str)),
        )

    async def switch(self, switch: Switch, caller: Caller, *, dry_run: bool = False) -> tuple[str, ...]:
        """Do exactly this; what was (or for a dry run would be) loaded or reloaded, in order.

        Conflict, and nothing is done, when a version is not in every field what it was, another one is active, modules would
        be touched that are not among those of `foresee`, or another user loaded one of them since.
        """
        async with self._lock:
            now = self._catalogue.active(switch.name, switch.kernel)
            about = switch.entry or now
            if about is None:
                return ()  # another caller deactivated it: nothing to do
            already = now is not None and switch.entry is not None and _content(now) == _content(switch.entry)
            if now != switch.former and not already:
                error = changed_meanwhile(switch.name)
                self._audit.record(failed(_action(switch.entry), switch.name, caller, error))
                raise error
            if dry_run:
                return await self._rehearse(switch.name, switch.kernel, switch.entry, load=switch.load)
            # Root was not prompted, and so for no particular modules, unless it named them.
            bounds = None if caller.uid == 0 and not switch.confined else switch
            return await self._recorded(
                _action(switch.entry),
                about,
                switch.entry,
                caller,
                load=switch.load,
                bounds=bounds,
                disconnect=switch.disconnect,
            )

    async def activate(
        self, wanted: StoredModule, caller: Caller, *, load: bool, dry_run: bool = False
    ) -> tuple[str, ...]:
        """Bring exactly this version into force, whatever modules that touches; see `switch`."""
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
                    self._audit.record(recovered(name, kernel, self._catalogue.active(name, kernel)))
            # Of a version that kmodd activated before it wrote such lines. What cannot be written is a finding of health.
            with suppress(KmoddError, OSError):
                await asyncio.to_thread(self._trees.override, self._wanted())

    # --- one change ---------------------------------------------------------------------------------------------------

    async def _recorded(
        self,
        action: str,
        about: StoredModule,
        wanted: StoredModule | None,
        caller: Caller,
        *,
        load: bool,
        bounds: Switch | None = None,
        disconnect: bool = False,
    ) -> tuple[str, ...]:
        self._catalogue.changing = about.name, about.kernel
        self._catalogue.placed = self._catalogue.active(about.name, about.kernel)
        try:
            return await self._change(
                about.name, about.kernel, wanted, caller, load=load, bounds=bounds, disconnect=disconnect
            )
        except KmoddError as error:
            self._audit.record(failed(action, about.name, caller, error))
            raise
        finally:
            self._catalogue.changing = None
            self.on_settled()

    async def _change(
        self,
        name: ModuleName,
        kernel: str,
        wanted: StoredModule | None,
        caller: Caller,
        *,
        load: bool,
        bounds: Switch | None,
        disconnect: bool,
    ) -> tuple[str, ...]:
        former = self._catalogue.active(name, kernel)
        entry = await self._still_there(wanted) if wanted is not None else None
        # Read before anything changes: afterwards the file tells other defaults.
        running = kernel == self._catalogue.running
        was_loaded = running and self._loaded.read(name) is not None
        parameters = _values((await self._operations.former(name)).parameters) if was_loaded else ()
        changed = entry is None or await self._is_new(entry)
        touched: list[str] = []
        # A separate task: half a change must not stay because the caller disconnected or the daemon is stopped.
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
                bounds=bounds,
                disconnect=disconnect,
            )
        )
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            await run_to_completion(task)
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
        """What a change would reload; raises what is known to be in its way. The file in the tree decides the rest."""
        entry = await self._still_there(wanted) if wanted is not None else None
        is_new = entry is not None and await self._is_new(entry)
        there = self._loaded.read(name) is not None
        if not load or kernel != self._catalogue.running or (entry is None and not there):
            return ()
        if entry is not None and there and not is_new:
            return ()
        if there:
            # Whatever is loaded in its place, it has to go first.
            plan = self._operations.plan(Request((Operation(Verb.UNLOAD, name, itself=True),), dry_run=True))
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
        bounds: Switch | None,
        disconnect: bool,
    ) -> None:
        """Take the steps; `touched` gets each module as soon as it was reloaded, within `bounds` alone."""
        if changed:
            if entry is not None:
                # First, as it may be refused: a line without its file changes nothing, so there is nothing to undo then.
                await asyncio.to_thread(self._trees.override, self._wanted() | {(name, kernel)})
            await asyncio.to_thread(self._folder.begin_change, name, kernel)
            await self._place(name, kernel, entry)
        if load:
            touched += await self._reload(
                name, entry, parameters, caller, changed=changed, bounds=bounds, disconnect=disconnect
            )
        if changed:
            sha256 = entry.sha256 if entry is not None else ""
            await asyncio.to_thread(self._folder.set_active, name, kernel, sha256)
            self._catalogue.activate(name, kernel, sha256)
            with suppress(OSError):  # it is done; where the mark stays, the next start looks once more
                await asyncio.to_thread(self._folder.end_change, name, kernel)

    async def _place(self, name: ModuleName, kernel: str, entry: StoredModule | None) -> None:
        """Put the version into the tree, or take ours away, and make the index say so."""
        self._catalogue.placed = entry
        if entry is not None:
            await asyncio.to_thread(self._trees.override, self._wanted() | {(name, kernel)})
            await asyncio.to_thread(self._trees.put, name, kernel, self._folder.path(entry))
        else:
            await asyncio.to_thread(self._trees.take_away, name, kernel)
            await asyncio.to_thread(self._trees.override, self._wanted() - {(name, kernel)})
        await self._depmod.refresh(self._trees.folder(kernel))
        self._index.refresh()
        indexed = await asyncio.to_thread(self._trees.indexed, name, kernel)
        if self._is_taken(name, kernel, indexed) != (entry is not None):
            raise await asyncio.to_thread(self._another_taken, name, kernel, indexed)

    def _wanted(self) -> frozenset[tuple[ModuleName, str]]:
        """Modules and kernels that a version is active for."""
        return frozenset((entry.name, entry.kernel) for entry in self._catalogue.all() if entry.active)

    def _is_taken(self, name: ModuleName, kernel: str, indexed: str) -> bool:
        """Tell whether the indexed file is the one kmodd puts there, and not another one in its folder."""
        return self._trees.folder(kernel) / indexed == self._trees.path(name, kernel)

    def _another_taken(self, name: ModuleName, kernel: str, indexed: str) -> Conflict:
        """Why depmod took another file, and what to do; blocking."""
        message = f"the module index of kernel {kernel} takes {indexed or 'no file'} for {name}"
        file, line, text = self._trees.rival(name, kernel)
        if file:
            hint = f"sed -i {line}d {shlex.quote(file)}"
            message = f"{message}, because of line {line} of {file}, which `{hint}` removes"
            return Conflict(message, module=name, evidence=Evidence(file=file, line=line, rule=text, hint=hint))
        path = str(self._trees.folder(kernel) / indexed)
        if self._is_taken(name, kernel, indexed):
            return Conflict(message, module=name, evidence=Evidence(file=path, hint="journalctl -u kmodd"))
        if self._trees.is_ours(indexed):
            hint = f"rm {shlex.quote(path)}"
            message = f"{message}, which kmodd did not create, and which `{hint}` removes"
            return Conflict(message, module=name, evidence=Evidence(file=path, hint=hint))
        return Conflict(message, module=name, evidence=Evidence(file=path, hint="see depmod.d(5)"))

    async def _reload(
        self,
        name: ModuleName,
        entry: StoredModule | None,
        parameters: Pairs,
        caller: Caller,
        *,
        changed: bool,
        bounds: Switch | None,
        disconnect: bool,
    ) -> tuple[str, ...]:
        there = self._loaded.read(name) is not None
        if entry is not None and there and not changed:
            return ()
        if entry is None and not there:
            return ()
        verb = Verb.RELOAD if entry is not None or self._index.path(name) else Verb.UNLOAD
        values = dict[str, str]()
        if verb is Verb.RELOAD and there:
            names = {parameter.name.replace("-", "_") for parameter in self._index.info(name).parameters}
            values = {key: value for key, value in parameters if key in names}
        operation = Operation(verb, name, tuple(values.items()), itself=True)
        hint = f"kmodctl store deactivate {name} --load --disconnect"
        if entry is not None:
            hint = f"kmodctl store activate {name} {shlex.quote(entry.version)} --load --disconnect"
        return await self._run(operation, caller, bounds, disconnect=disconnect, hint=hint)

    async def _run(
        self,
        operation: Operation,
        caller: Caller,
        bounds: Switch | None = None,
        *,
        disconnect: bool = False,
        hint: str = "",
    ) -> tuple[str, ...]:
        """`hint` is the command that does it although something live goes with the module."""
        reason = "the active version in the store changed"
        plan = self._operations.plan(Request((operation,), reason=reason, disconnect=disconnect))
        beyond = sorted(set(plan.modules) - set(bounds.modules)) if bounds is not None else []
        if beyond:
            raise Conflict(
                f"the set of affected modules changed since authorization and now includes {', '.join(beyond)}",
                module=operation.module,
                evidence=Evidence(hint="activate the version without loading it, then load the module"),
            )
        if bounds is not None:
            check_loaders(bounds.loaders, plan, caller.uid)
        if plan.error is not None:
            raise plan.error
        (result,) = await self._operations.execute(plan, caller)
        if result.error is not None:
            if hint and result.error.evidence.consequences:
                result.error.evidence = replace(result.error.evidence, hint=hint)
            raise result.error
        return tuple(result.touched)

    # --- undoing ------------------------------------------------------------------------------------------------------

    async def _restore(self, name: ModuleName, kernel: str, *, read_only: bool = False) -> bool:
        """Bring the tree back to what is active; tell whether that worked.

        Where something was `read_only` the tree may be as it was, and then nothing has to be made, nor could be.
        """
        try:
            if (name, kernel) not in await asyncio.to_thread(self._folder.changes):
                await asyncio.to_thread(self._trees.override, self._wanted())
                return False
            former = self._catalogue.active(name, kernel)
            if not read_only or not await self._is_as_before(name, kernel, former):
                await self._place(name, kernel, former)
            else:
                await asyncio.to_thread(self._trees.override, self._wanted())
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
            await self._run(Operation(verb, name, parameters, itself=True), caller)
        except KmoddError as error:
            self._audit.record(failed(verb, name, caller, error))

    # --- looking ------------------------------------------------------------------------------------------------------

    async def _still_there(self, wanted: StoredModule) -> StoredModule:
        entry = self._catalogue.same(wanted.name, wanted.kernel, wanted.sha256)
        if entry is None:
            raise Conflict(f"this version of {wanted.name} was removed in the meantime", module=wanted.name)
        if _content(entry) != _content(wanted):
            raise changed_meanwhile(wanted.name)
        if await self._digest(self._folder.path(entry)) != entry.sha256:
            raise Conflict(
                f"the stored file of {entry.name} is not what was imported: it was changed on disk",
                module=entry.name,
                evidence=Evidence(hint="remove this version and import it again"),
            )
        return entry

    async def _is_new(self, entry: StoredModule) -> bool:
        """Whether it is not active yet; raises for one that the kernel would refuse, also at the next boot."""
        if await self._in_force(entry):
            return False
        # It may have been imported when signatures were not enforced.
        check_signature(entry.name, entry, self._facts.read())
        return True

    async def _in_force(self, entry: StoredModule) -> bool:
        return (
            entry.active
            and await self._digest(self._trees.path(entry.name, entry.kernel)) == entry.sha256
            and self._is_taken(
                entry.name, entry.kernel, await asyncio.to_thread(self._trees.indexed, entry.name, entry.kernel)
            )
            and await asyncio.to_thread(self._trees.overrides, self._wanted())
        )

    async def _is_as_before(self, name: ModuleName, kernel: str, former: StoredModule | None) -> bool:
        if former is not None:
            return await self._in_force(former)
        there = self._folder.stamp(self._trees.path(name, kernel)) is not None
        return not there and not self._is_taken(
            name, kernel, await asyncio.to_thread(self._trees.indexed, name, kernel)
        )

    async def _digest(self, path: Path) -> str:
        try:
            return (await asyncio.to_thread(self._folder.digest, path))[0]
        except OSError:
            return ""


def _content(entry: StoredModule) -> StoredModule:
    """Everything but whether it is active."""
    return replace(entry, active=False)


def _action(entry: StoredModule | None) -> str:
    return "deactivate" if entry is None else "activate"


def _typed(
    error: KmoddError | OSError | IndexNotMadeError, name: ModuleName, kernel: str, *, loaded_again: bool
) -> KmoddError:
    if isinstance(error, KmoddError):
        if loaded_again and name in error.touched:
            # The reload could not bring the former version back, for the file was another one by then.
            others = tuple(remark for remark in error.aftermath if remark[0] != name)
            failure = error.after((*others, (name, f"{name} was loaded again as before")))
            return replace(failure, touched=tuple(changed for changed in error.touched if changed != name))
        # What was touched is as before again, or the journal says what is not.
        return error
    if isinstance(error, OSError):
        return disk_error(error, name)
    return Conflict(
        f"the module index of kernel {kernel} could not be refreshed: {error}",
        module=name,
        evidence=Evidence(hint="journalctl -u kmodd shows the output of depmod"),
    )


def _values(parameters: Arguments) -> Pairs:
    """What can be given again: flags without a value come from `options` lines alone, which give them each time."""
    return tuple((name, value) for name, value in parameters if value is not None)
