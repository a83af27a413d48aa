# SPDX-License-Identifier: LGPL-2.1-or-later
"""The answer to `Explain`: what a module is, why it is there, what holds it, what would keep it from loading."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from kmodd.core.near import did_you_mean
from kmodd.core.policy import Policy, command_line_rule, where
from kmodd.core.registry import Registry
from kmodd.core.sentences import ended
from kmodd.errors import Busy, Conflict, Crashed, DisabledByPolicy, KmoddError, ModuleTreeMissing, NoSuchModule
from kmodd.kernel.ports import Facts, LoadedModules, ModuleIndex, Usage
from kmodd.model import Explanation, Failure, KernelFacts, LoadedModule, ModuleInfo, Rule, State, User
from kmodd.names import Alias, ModuleName

SEARCHES = 4
"""Searches for users at once; each reads all of /proc in a thread."""

FailureLookup = Callable[[ModuleName], Failure | None]

_PENDING = {
    State.COMING: "Its init() has not come back: nothing can be done with it until the kernel lets go.",
    State.GOING: "Its exit() has not come back: nothing can be done with it until the kernel lets go.",
}


class Explainer:
    """Explains and describes modules."""

    def __init__(
        self,
        *,
        loaded: LoadedModules,
        index: ModuleIndex,
        usage: Usage,
        facts: Facts,
        policy: Policy,
        registry: Registry,
        failure: FailureLookup,
        refresh: Callable[[], object] | None = None,
    ) -> None:
        """`refresh` makes the index notice changed files before it is asked for a description; the index's own if None."""
        self._refresh = refresh or index.refresh
        self._loaded = loaded
        self._index = index
        self._usage = usage
        self._facts = facts
        self._policy = policy
        self._registry = registry
        self._failure = failure
        self._searches: dict[ModuleName, asyncio.Future[tuple[User, ...]]] = {}

    async def explain(self, name: ModuleName) -> Explanation:
        """Explain any name, also one nobody knows; Busy when too many searches for users are under way."""
        found = await self._users(name) if self._loaded.read(name) is not None else ()
        # Read after the search: it takes a while, and the answer has to fit itself.
        self._index.refresh()
        module, facts = self._loaded.read(name), self._facts.read()
        if module is not None:
            return self._explain_loaded(module, found, facts)
        failure = self._failure(name)
        if failure is not None and failure.stuck:
            # It failed in the end, which the kernel announces to nobody but the caller, and he is gone.
            failure = replace(failure, stuck=False)
        if self._index.is_builtin(name) or self._loaded.is_builtin(name):
            return Explanation(
                name,
                State.BUILTIN,
                references=0,
                blockers=("It is part of the kernel image and cannot be removed.",),
                loadable=True,
                failure=failure,
                because="part of the kernel image",
            )
        rule, forbidden = self._rule(name, facts)
        if not self._index.exists(name):
            return Explanation(
                name,
                State.ABSENT,
                references=0,
                blockers=(self._absence(name, facts),),
                policy=where(rule) if rule else "",
                failure=failure,
            )
        blockers = tuple(self._load_blockers(name, facts))
        return Explanation(
            name,
            State.DISABLED if forbidden else State.AVAILABLE,
            references=0,
            blockers=blockers,
            loadable=not blockers,
            policy=where(rule) if rule else "",
            failure=failure,
        )

    def describe(self, name: ModuleName | Alias) -> ModuleInfo:
        """Static facts of a module, or of the one an alias stands for: as `find`, and BadModule."""
        return self.info(self.find(name))

    def info(self, name: ModuleName) -> ModuleInfo:
        """Static facts of a module that was found."""
        return self._index.info(name)

    def stamp(self, name: ModuleName) -> object:
        """Compares equal as long as `info` answers the same."""
        return self._index.stamp(name)

    def find(self, name: ModuleName | Alias) -> ModuleName:
        """The module of this name, or the one an alias stands for.

        NoSuchModule, Conflict (the alias stands for several), ModuleTreeMissing.
        """
        self._refresh()
        names = self._index.resolve(name)
        if not names:
            facts = self._facts.read()
            if not facts.tree_present:
                raise ModuleTreeMissing(_tree_missing(facts), module=name)
            raise NoSuchModule(self._absence(name, facts), module=name)
        if len(names) > 1:
            raise Conflict(f"{name} stands for several modules: {', '.join(sorted(names))}.", module=name)
        return names[0]

    def writable(self, name: ModuleName) -> frozenset[str]:
        """Parameters of a module that can be written now; empty for what is not there."""
        return frozenset(value.name for value in self._loaded.parameters(name) if value.writable)

    def _explain_loaded(self, module: LoadedModule, found: tuple[User, ...], facts: KernelFacts) -> Explanation:
        name = module.name
        users = [User("module", holder, "uses it") for holder in module.holders]
        users += found
        beside = module.references - len(module.holders)
        if beside > 0 and not found and module.state is State.LIVE:
            counted = "1 reference" if beside == 1 else f"{beside} references"
            users.append(User("kernel", "kernel", f"{counted} that nothing in user space explains"))
        blockers = tuple(self._removal_blockers(module, users, facts))
        rule, forbidden = self._rule(name, facts)
        return Explanation(
            name,
            module.state,
            references=module.references,
            holders=module.holders,
            users=tuple(users),
            removable=not blockers,
            blockers=blockers,
            loadable=module.state is State.LIVE and not forbidden,
            policy=where(rule) if rule else "",
            loaded_by=self._registry.presence(name).by,
            failure=self._failure(name),
            because=self._because(module, found),
        )

    def _because(self, module: LoadedModule, found: tuple[User, ...]) -> str:
        presence = self._registry.presence(module.name)
        if module.holders:
            return f"needed by {', '.join(sorted(module.holders))}"
        if presence.by is not None:
            who = f"uid {presence.by.uid}" if presence.by.uid is not None else "an unknown user"
            reason = f": {presence.by.reason}" if presence.by.reason else ""
            return f"loaded through kmodd by {who}{reason}"
        drives = [user.name for user in found if user.kind in {"netdev", "block", "device"}]
        if drives:
            return f"drives {', '.join(sorted(set(drives)))}"
        if presence.loaded_at:
            return "loaded by something other than kmodd"
        return "loaded before kmodd started" if module.name in self._registry else ""

    def _removal_blockers(self, module: LoadedModule, users: list[User], facts: KernelFacts) -> list[str]:
        if module.state in _PENDING:
            failure = self._failure(module.name)
            if failure is not None and failure.error == Crashed.name():
                return [ended(failure.message)]
            return [_PENDING[module.state]]
        blockers = []
        if facts.modules_disabled:
            blockers.append(
                "Loading and unloading of modules is disabled until the next boot (kernel.modules_disabled)."
            )
        if module.permanent:
            blockers.append("It has no exit function and stays until the next boot.")
        if module.references < 0:
            blockers.append("This kernel was built without unloading of modules.")
        if module.holders:
            one = len(module.holders) == 1
            blockers.append(
                f"{', '.join(module.holders)} {'uses' if one else 'use'} it: "
                f"unload {'it' if one else 'them'} first, or together with it."
            )
        if module.references > len(module.holders):
            blockers += [_sentence(user) for user in users if user.kind != "module"]
        try:
            self._policy.check_unload(module.name)
        except DisabledByPolicy as error:
            blockers.append(ended(error.message))
        return blockers

    def _load_blockers(self, name: ModuleName, facts: KernelFacts) -> list[str]:
        blockers = []
        if facts.modules_disabled:
            blockers.append(
                "Loading and unloading of modules is disabled until the next boot (kernel.modules_disabled)."
            )
        try:
            self._policy.check_load(name, facts.command_line)
            for needed in self._index.dependencies(name):
                if self._loaded.read(needed) is None:
                    self._policy.check_load(needed, facts.command_line, needed_by=name)
            restricted = facts.lockdown != "none" or facts.signature_enforced
            if restricted and not self._index.info(name).signed:
                why = "signatures are enforced" if facts.signature_enforced else f"lockdown is {facts.lockdown}"
                blockers.append(f"Its file is not signed, and {why}.")
        # A file that cannot be read is the blocker itself: Explain answers for every module.
        except KmoddError as error:
            blockers.append(ended(error.message))
        for needed in self._index.dependencies(name):
            module = self._loaded.read(needed)
            if module is not None and module.state in _PENDING:
                blockers.append(f"It needs {needed}, which is {module.state} and does not come back.")
        return blockers

    def _rule(self, name: ModuleName, facts: KernelFacts) -> tuple[Rule | None, bool]:
        """The rule that decides about loading, and whether it forbids it."""
        rule = command_line_rule(name, facts.command_line)
        if rule is not None:
            return rule, True
        rules = self._policy.load_rules(name) if self._index.exists(name) else self._index.rules(name)
        rules = tuple(rule for rule in rules if rule.kind in {"blacklist", "install", "alias"})
        return (rules[0], True) if rules else (None, False)

    def _absence(self, name: str, facts: KernelFacts) -> str:
        if not facts.tree_present:
            return _tree_missing(facts)
        question = did_you_mean(name, self._index.available())
        return f"There is no module {name} for kernel {facts.release}{f'; {question}' if question else '.'}"

    async def _users(self, name: ModuleName) -> tuple[User, ...]:
        search = self._searches.get(name)
        if search is None:
            if len(self._searches) >= SEARCHES:
                raise Busy("Too many searches for users are under way; ask again in a moment.", module=name)
            search = self._searches[name] = asyncio.ensure_future(asyncio.to_thread(self._usage.users, name))
            search.add_done_callback(lambda _: self._searches.pop(name, None))
        # A caller that leaves must not end the search for the others who wait for it.
        return await asyncio.shield(search)


def _tree_missing(facts: KernelFacts) -> str:
    return f"There is no module tree for the running kernel {facts.release}: reboot into an installed kernel."


def _sentence(user: User) -> str:
    match user.kind:
        case "mount":
            return f"It is mounted at {user.name} ({user.detail})."
        case "loop":
            return f"Loop device {user.name} is set up ({user.detail})."
        case "process":
            return f"{user.name} has it open ({user.detail})."
        case "netdev":
            return f"Network interface {user.name} uses it ({user.detail})."
        case "block":
            return f"Block device {user.name} uses it ({user.detail})."
        case "kernel":
            return f"The kernel itself holds it: {user.detail}."
        case _:
            return f"{user.name} uses it ({user.detail})."
