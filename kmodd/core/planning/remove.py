# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plans the steps that remove modules: holders first, then the module, then dependencies that are no longer needed."""

from collections.abc import Callable, Mapping, Sequence

from kmodd.core.diagnosis.in_use import in_use, not_removable, unloading_not_built_in
from kmodd.core.planning.consequence_text import disconnecting
from kmodd.core.planning.insert import busy, modules_disabled, stuck
from kmodd.core.planning.planned_state import InFlight, PlannedState, soft_targets
from kmodd.core.planning.policy import Policy
from kmodd.errors import Builtin, Evidence, KmoddError
from kmodd.kernel.ports import LoadedModules, ModuleIndex
from kmodd.model import (
    Consequence,
    ConsequenceKind,
    KernelFacts,
    LoadedModule,
    Operation,
    State,
    Step,
    StepAction,
    Target,
    User,
)
from kmodd.names import ModuleName

Users = Callable[[ModuleName], tuple[User, ...]]
"""Finds what in user space keeps a module busy."""
Foreseen = Mapping[ModuleName, tuple[Consequence, ...]]
"""What goes with modules, of those that were looked at."""
_NOT_LOOKED_AT = Consequence(ConsequenceKind.UNKNOWN, "", detail="its use was not examined")


class Removal:
    """Plans the removals of one operation; every method raises the typed error that would stop it."""

    def __init__(
        self,
        index: ModuleIndex,
        loaded: LoadedModules,
        policy: Policy,
        facts: Callable[[], KernelFacts],
        draft: PlannedState,
        flight: Callable[[ModuleName], InFlight],
        asked: Operation,
        *,
        operation: int,
        users: Users | None = None,
        held: Users = lambda _: (),
        foreseen: Foreseen | None = None,
        disconnect: bool = False,
    ) -> None:
        """`held` answers the leases of a module. `foreseen` is what goes with the modules, None where that was not examined;
        `disconnect` takes it away although it is live.
        """
        self.steps: list[Step] = []
        self.unseen: list[ModuleName] = []
        """Modules that the steps remove and that were not examined."""
        self._asked = asked
        self._foreseen = foreseen
        self._disconnect = disconnect
        self._index = index
        self._loaded = loaded
        self._policy = policy
        self._facts = facts
        self._draft = draft
        self._flight = flight
        self._operation = operation
        self._users = users
        self._held = held
        self._begun: set[ModuleName] = set()
        self._begun_softly: set[ModuleName] = set()
        self._files: dict[ModuleName, ModuleName] = {}
        """Names of module files in the index, for modules requested by such a name."""

    @property
    def removed(self) -> tuple[ModuleName, ...]:
        """What the steps take out, in order."""
        return tuple(step.module for step in self.steps)

    def unload(
        self, name: ModuleName, *, dependents: bool, unused: bool = False, file: ModuleName | None = None
    ) -> None:
        """Plan the removal of the module; nothing if it is not loaded. `file` is the name of its file.

        With `unused` its soft dependencies and the dependencies that are left without any use go too, as by `modprobe -r`: those
        named behind `post:` before it, the others after it.
        """
        self._files[name] = file or name
        if self._draft.get(name) is None:
            if self._index.is_builtin(name) or self._loaded.is_builtin(name):
                raise Builtin(
                    f"{name} is built into the kernel and cannot be unloaded",
                    module=name,
                    evidence=Evidence(
                        hint="modules in the kernel image can only be removed by building another kernel"
                    ),
                )
            if self._flight(name) is InFlight.STUCK:
                raise stuck(name)
            self._policy.check_unload(name)
            return
        before, after = soft_targets(self._index, self._files[name]) if unused else ((), ())
        if unused:
            self._begun_softly.add(name)
        self._remove_softly(after, name)
        before_it = len(self.steps)
        self._remove(name, "requested", dependents=dependents)
        if unused:
            # What the modules before it had needed was looked at when these went.
            self._drop_unused(self.removed[before_it:])
        self._remove_softly(before, name)
        # What modprobe leaves behind: what only another one of them had used.
        while unused and self._drop_unused(self.removed):
            pass

    def check_consequences(self) -> None:
        """InUse where something live goes with a module and `disconnect` was not given.

        Of what is removed by the way too: that nothing needs a module any more says nothing about its interfaces. Called when
        nothing else stands in the way, so that the plan is otherwise the same, examined or not.
        """
        for step in self.steps:
            if not self._disconnect and any(row.live for row in step.consequences):
                raise disconnecting(step.module, step.consequences, self._asked)

    def _remove_softly(self, targets: Sequence[Target], of: ModuleName) -> None:
        """Plan the removal of unused soft dependencies; what cannot be removed stays, except for its own `remove` line."""
        for target in reversed(targets):
            name = target.name
            if name in self._begun_softly:
                continue  # modprobe follows a circle without end
            self._begun_softly.add(name)
            self._policy.check_unload(name)
            if self._draft.get(name) is None or self._index.is_builtin(name) or self._loaded.is_builtin(name):
                continue
            before, after = soft_targets(self._index, name)
            self._remove_softly(after, name)
            if self._is_unused(name):
                self._step(name, f"soft dependency of {of}", optional=True)
                self._drop_unused((name,))
                self._remove_softly(before, name)

    def _drop_unused(self, removed: Sequence[ModuleName]) -> bool:
        """Plan the removal of dependencies of what was removed that are left without any use; True where there were any.

        Each is considered once, in modprobe's order. A `remove` line applies to the requested module, as in modprobe.
        """
        unused = []
        for name in dict.fromkeys(need for gone in removed for need in self._needs(gone)):
            if self._is_unused(name):
                self._step(name, "no longer needed", optional=True)
                unused.append(name)
        return bool(unused)

    def _needs(self, name: ModuleName) -> tuple[ModuleName, ...]:
        needs = self._index.dependencies(self._files.get(name, name))
        return tuple(need if self._draft.get(need) is not None else self._index.holds(need) for need in needs)

    def _remove(self, name: ModuleName, because: str, *, dependents: bool) -> None:
        module = self._draft.get(name)
        if module is None or name in self._begun:
            return
        self._begun.add(name)
        self._check(module)
        self._policy.check_unload(name)
        if leases := self._held(name):
            raise in_use(module, (*leases, *self._find_users(module)))
        if module.holders and not dependents:
            raise in_use(module, self._find_users(module))
        for holder in module.holders:
            self._remove(holder, f"uses {name}", dependents=True)
        left = self._draft.get(name)
        # While an operation of ours loads it, the one reference is the loader's own; this is planned again when it is done.
        if left is not None and left.references > 0 and left.state is State.LIVE:
            raise in_use(left, self._find_users(left))
        self._step(name, because)

    def _check(self, module: LoadedModule) -> None:
        name = module.name
        flight = self._flight(name)
        if flight is InFlight.STUCK:
            raise stuck(name)
        if module.state is not State.LIVE and flight is InFlight.NONE:
            raise busy(name, module.state)
        if self._facts().modules_disabled:
            raise modules_disabled(name)
        if module.permanent:
            raise not_removable(name)
        if module.state is State.LIVE and module.references < 0:
            raise unloading_not_built_in(name)

    def _is_unused(self, name: ModuleName) -> bool:
        module = self._draft.get(name)
        if (
            module is None
            or module.state is not State.LIVE
            or module.references
            or module.permanent
            or self._held(name)
        ):
            return False
        try:
            self._check(module)
        except KmoddError:
            # Any obstacle: it was not requested, so it stays.
            return False
        return True

    def _find_users(self, module: LoadedModule) -> tuple[User, ...]:
        if self._users is None or module.references <= len(module.holders):
            return ()
        return self._users(module.name)

    def _step(self, name: ModuleName, because: str, *, optional: bool = False) -> None:
        self.steps.append(
            Step(
                StepAction.REMOVE,
                name,
                because=because,
                operation=self._operation,
                optional=optional,
                consequences=self._consequences(name),
            )
        )
        self._draft.remove(name)

    def _consequences(self, name: ModuleName) -> tuple[Consequence, ...]:
        if self._foreseen is None:
            self.unseen.append(name)
            return ()
        return self._foreseen.get(name, (_NOT_LOOKED_AT,))
