# SPDX-License-Identifier: LGPL-2.1-or-later
"""The steps that take modules out: holders first, then the module, then dependencies nobody needs any more."""

from collections.abc import Callable

from kmodd.core.draft import Draft, Flight
from kmodd.core.insertion import busy, modules_disabled, stuck
from kmodd.core.policy import Policy
from kmodd.core.usage import in_use, not_removable, unloading_not_built_in
from kmodd.errors import Builtin, Evidence, KmoddError
from kmodd.kernel.ports import LoadedModules, ModuleIndex
from kmodd.model import KernelFacts, LoadedModule, State, Step, StepAction, User
from kmodd.names import ModuleName

Users = Callable[[ModuleName], tuple[User, ...]]
"""Finds what in user space keeps a module busy."""


class Removal:
    """Plans the removals of one operation; every method raises the typed error that would stop it."""

    def __init__(
        self,
        index: ModuleIndex,
        loaded: LoadedModules,
        policy: Policy,
        facts: Callable[[], KernelFacts],
        draft: Draft,
        flight: Callable[[ModuleName], Flight],
        *,
        operation: int,
        users: Users | None = None,
    ) -> None:
        self.steps: list[Step] = []
        self._index = index
        self._loaded = loaded
        self._policy = policy
        self._facts = facts
        self._draft = draft
        self._flight = flight
        self._operation = operation
        self._users = users
        self._begun: set[ModuleName] = set()

    @property
    def removed(self) -> tuple[ModuleName, ...]:
        """What the steps take out, in order."""
        return tuple(step.module for step in self.steps)

    def unload(self, name: ModuleName, *, dependents: bool) -> None:
        """Plan what it takes to have the module gone; nothing when it is not loaded."""
        if self._draft.get(name) is None:
            if self._index.is_builtin(name) or self._loaded.is_builtin(name):
                raise Builtin(
                    f"{name} is built into the kernel and cannot be unloaded",
                    module=name,
                    evidence=Evidence(hint="what is part of the kernel image goes with a kernel built without it only"),
                )
            if self._flight(name) is Flight.STUCK:
                raise stuck(name)
            return
        self._remove(name, "requested", dependents=dependents)

    def drop_unused(self) -> None:
        """Plan the removal of dependencies of what was removed that are left without any use, as `modprobe -r` does."""
        candidates = [need for name in self.removed for need in reversed(self._index.dependencies(name))]
        candidates = list(dict.fromkeys(candidates))
        progress = True
        while progress:
            # Again until nothing moves: one that goes may have been the last use of another.
            progress = False
            for name in candidates:
                if self._is_unused(name):
                    self._step(name, "not needed any more", optional=True)
                    progress = True

    def _remove(self, name: ModuleName, because: str, *, dependents: bool) -> None:
        module = self._draft.get(name)
        if module is None or name in self._begun:
            return
        self._begun.add(name)
        self._check(module)
        if module.holders and not dependents:
            raise in_use(module, self._find_users(module))
        for holder in module.holders:
            self._remove(holder, f"uses {name}", dependents=True)
        left = self._draft.get(name)
        if left is not None and left.references > 0:
            raise in_use(left, self._find_users(left))
        self._step(name, because)

    def _check(self, module: LoadedModule) -> None:
        name = module.name
        flight = self._flight(name)
        if flight is Flight.STUCK:
            raise stuck(name)
        if module.state is not State.LIVE and flight is Flight.NONE:
            raise busy(name, module.state)
        if self._facts().modules_disabled:
            raise modules_disabled(name)
        if module.permanent:
            raise not_removable(name)
        if module.state is State.LIVE and module.references < 0:
            raise unloading_not_built_in(name)
        self._policy.check_unload(name)

    def _is_unused(self, name: ModuleName) -> bool:
        module = self._draft.get(name)
        if module is None or module.state is not State.LIVE or module.references or module.permanent:
            return False
        try:
            self._check(module)
        except KmoddError:
            # Whatever speaks against it: it was not asked for, so it stays.
            return False
        return True

    def _find_users(self, module: LoadedModule) -> tuple[User, ...]:
        if self._users is None or module.references <= len(module.holders):
            return ()
        return self._users(module.name)

    def _step(self, name: ModuleName, because: str, *, optional: bool = False) -> None:
        self.steps.append(Step(StepAction.REMOVE, name, because=because, operation=self._operation, optional=optional))
        self._draft.remove(name)
