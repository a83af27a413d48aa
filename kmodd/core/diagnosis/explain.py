# SPDX-License-Identifier: LGPL-2.1-or-later
"""The reply of `Explain`: state of a module, why it is loaded, what uses it, and what prevents loading or removing it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from kmodd.core.audit.redaction import LOADED
from kmodd.core.diagnosis.advice import advised, drives, ended, free, sentence, shown_name
from kmodd.core.diagnosis.in_use import unexplained
from kmodd.core.fair_share import with_files
from kmodd.core.module_requests import reason as load_reason
from kmodd.core.planning.policy import COMMAND_LINE, Policy, command_line_rule, where
from kmodd.core.registry import Registry
from kmodd.errors import Conflict, Crashed, DisabledByPolicy, KmoddError, ModuleTreeMissing, NoSuchModule
from kmodd.kernel.ports import Facts, Inspection, LoadedModules, ModuleIndex
from kmodd.model import (
    Consequence,
    Explanation,
    Failure,
    KernelFacts,
    LoadedBy,
    LoadedModule,
    ModuleInfo,
    ModuleLoad,
    Rule,
    State,
    Usage,
    User,
)
from kmodd.model.modules import difference
from kmodd.names import Alias, ModuleName, parse_module_or_alias
from kmodd.suggestions import which_module

BELOW_MAX = 64
"""Modules whose users are named in the commands that free one that they hold."""

LIVE = "Something that goes with it is in use: end that use first, or unload it with --disconnect."
"""The blocker of a module that takes something live away."""

LEASE = "lease"
"""The kind of user that holds a module by a lease: no reference of the kernel's."""

FailureLookup = Callable[[ModuleName], Failure | None]

_PENDING = {
    State.COMING: "Its init() has not returned: nothing can be done with it until it does.",
    State.GOING: "Its exit() has not returned: nothing can be done with it until it does.",
}


class BootLoads:
    """Read when it is needed first: an idle daemon does without the library of the journal."""

    def __init__(
        self,
        index: ModuleIndex,
        journal: Callable[[], Mapping[ModuleName, ModuleLoad]],
        lists: Callable[[], Sequence[Rule]],
        image: Callable[[], frozenset[ModuleName] | None] = lambda: None,
    ) -> None:
        """`journal` answers the loads that the journal of this boot tells, `lists` the modules that are to be loaded at boot,
        `image` those that the initramfs has (None where that is not known).

        All block, and run in a thread; OSError of what cannot be read.
        """
        self._image = image
        self._in_image: frozenset[ModuleName] | None = None
        self._looking: asyncio.Task[frozenset[ModuleName] | None] | None = None
        self._index = index
        self._journal = journal
        self._lists = lists
        self._loads: Mapping[ModuleName, ModuleLoad] | None = None
        self._rules: Sequence[Rule] = ()
        self.unread = ""
        """What of it could not be read last, as a noun; empty when everything could."""

    async def read(self) -> None:
        """Before the questions below. What cannot be read is named in `unread`, and tried again the next time."""
        self.unread = ""
        if self._loads is None:
            try:
                self._loads = await asyncio.to_thread(self._journal)
            except OSError:
                self.unread = "the journal of this boot"
        try:
            self._rules = await asyncio.to_thread(self._lists)
        except OSError:
            self._rules = ()
            self.unread = self.unread or "the list of modules to load at boot"

    async def look_into_image(self) -> None:
        """Read the initramfs, which takes some time, and only once."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(asyncio.to_thread(self._image))
        # A caller that leaves must not end it for the others.
        self._in_image = await asyncio.shield(self._looking)

    def may_be_of_image(self, name: ModuleName, loaded: Sequence[ModuleName]) -> bool:
        """It was loaded before anything that the initramfs does not have; `loaded` is in the order of loading."""
        for each in loaded if self._in_image and name in self._in_image else ():
            if each == name:
                return True
            if each not in (self._in_image or ()):
                return False
        return False

    def load_of(self, name: ModuleName) -> ModuleLoad | None:
        """Who loaded it at boot, as the journal has it."""
        return (self._loads or {}).get(name)

    def rule_of(self, name: ModuleName) -> Rule | None:
        """The line that has it loaded at boot, of a file that everyone may read."""
        return next((rule for rule in self._rules if rule.public and self._names(rule, name)), None)

    def _names(self, rule: Rule, name: ModuleName) -> bool:
        try:
            return name in self._index.resolve(parse_module_or_alias(rule.module))
        except KmoddError:
            return False


class Explainer:
    """Explains and describes modules."""

    def __init__(
        self,
        *,
        loaded: LoadedModules,
        index: ModuleIndex,
        inspection: Inspection,
        facts: Facts,
        policy: Policy,
        registry: Registry,
        failure: FailureLookup,
        load: Callable[[ModuleName], ModuleLoad | None] = lambda _: None,
        held: Callable[[ModuleName], tuple[User, ...]] = lambda _: (),
        refresh: Callable[[], object] | None = None,
        boot: BootLoads | None = None,
    ) -> None:
        """`held` answers the leases of a module, `boot` what is known of loads from before kmodd started.

        `refresh` makes the index notice changed files before it describes a module; the index's own if None.
        """
        self._refresh = refresh or index.refresh
        self._loaded = loaded
        self._index = index
        self._inspection = inspection
        self._facts = facts
        self._policy = policy
        self._registry = registry
        self._failure = failure
        self._boot = boot
        self._watched_load = load
        self._held = held

    async def explain(self, name: ModuleName) -> Explanation:
        """Explain any name, also an unknown one. For a renamed file the module in it is explained."""
        self._index.refresh()
        if self._loaded.read(name) is None:
            module = await with_files(self._index, lambda: self._index.holds(name))
            if module != name:
                return await self._explain_renamed(name, module)
        return await self._explain(name)

    async def _explain_renamed(self, file: ModuleName, module: ModuleName) -> Explanation:
        base = self._index.path(file).rpartition("/")[2]
        if self._loaded.read(module) is not None:
            return replace(await self._explain(module), file=base)
        facts = self._facts.read()
        answer = await self._explain(file)
        rule = command_line_rule(module, facts.command_line)
        if rule is None:
            rule = next(iter(await with_files(self._index, lambda: self._policy.load_rules(module))), None)
        if rule is not None:
            blocker = f"{base} holds the module {module}, which {where(rule)} disables."
            answer = replace(
                answer,
                state=State.DISABLED,
                loadable=False,
                policy=answer.policy or where(rule),
                rule=answer.rule or rule,
                blockers=(*answer.blockers, blocker),
            )
        failure = self._failure(module)
        return replace(answer, name=module, file=base, failure=failure or answer.failure)

    async def _explain(self, name: ModuleName) -> Explanation:
        usage: dict[ModuleName, Usage] = {}
        consequences: tuple[Consequence, ...] = ()
        if self._loaded.read(name) is not None:
            together = (name, *self._below(name))
            foreseen, found = await asyncio.gather(
                self._inspection.consequences(together), asyncio.gather(*map(self._inspection.users, together))
            )
            usage.update(zip(together, found, strict=True))
            consequences = tuple(dict.fromkeys(row for each in together for row in foreseen.get(each, ())))
        if self._boot is not None and self._is_of_boot(name):
            await self._boot.read()
            if self._boot.load_of(name) is None:
                await self._boot.look_into_image()
        # Read after the search: it takes a while, and the answer has to fit itself.
        self._index.refresh()
        return await with_files(self._index, lambda: self._explain_now(name, usage, consequences))

    def _explain_now(
        self, name: ModuleName, usage: dict[ModuleName, Usage], consequences: tuple[Consequence, ...]
    ) -> Explanation:
        module, facts = self._loaded.read(name), self._facts.read()
        if module is not None:
            return self._explain_loaded(module, usage, consequences, facts)
        failure = self._failure(name)
        if failure is not None and failure.stuck:
            # It failed late, which the kernel reports only to the caller, which is gone.
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
                rule=rule,
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
            rule=rule,
            failure=failure,
        )

    def log_restricted(self) -> bool:
        """Only CAP_SYSLOG may read the kernel's log now, or it is not known who may."""
        return self._facts.read().log_restricted

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
            raise Conflict(f"{name} is an alias of several modules: {', '.join(sorted(names))}.", module=name)
        return names[0]

    def writable(self, name: ModuleName) -> frozenset[str]:
        """Parameters of a module that can be written now; empty for what is not there."""
        return frozenset(value.name for value in self._loaded.parameter_files(name) if value.writable)

    def _explain_loaded(
        self,
        module: LoadedModule,
        usage: dict[ModuleName, Usage],
        consequences: tuple[Consequence, ...],
        facts: KernelFacts,
    ) -> Explanation:
        """`usage` is that of the module and of those that hold it, directly or through others."""
        name = module.name
        user_search = usage.get(name, Usage())
        users = self._users(module, user_search)
        blockers = tuple(self._removal_blockers(module, users, facts))
        live = any(row.live for row in consequences)
        if live and module.state is State.LIVE:
            blockers += (LIVE,)
        rule, forbidden = self._rule(name, facts)
        load, loader = self._load(name), self._registry.loader(name)
        because, driven = self._because(module, user_search.users)
        return Explanation(
            name,
            module.state,
            references=module.references,
            holders=module.holders,
            users=users,
            removable=not blockers,
            blockers=blockers,
            loadable=module.state is State.LIVE and not forbidden,
            policy=where(rule) if rule else "",
            rule=rule,
            loaded_by=loader or self._loader(name),
            load=load if loader is None else None,
            failure=self._failure(name),
            because=because,
            driven=driven,
            free=self._free(module, users, usage, facts, disconnect=live),
            consequences=consequences,
            disconnects=live,
            freed=(
                *(user for each in usage.values() for user in each.users),
                *(u for n in usage for u in self._held(n)),
            ),
            partial=user_search.partial,
            differs=self._differs(name),
        )

    def _differs(self, name: ModuleName) -> str:
        if not self._index.path(name):
            return ""
        try:
            return difference(self._loaded.attributes(name), self._index.info(name))
        except KmoddError:
            return ""  # the file is gone or damaged, which a reload would say

    def _users(self, module: LoadedModule, usage: Usage) -> tuple[User, ...]:
        users = [User("module", holder, "uses it") for holder in module.holders]
        users += advised(usage.users)
        beside = module.references - len(module.holders)
        # A bound device holds no reference, and a namespace or what else may hold it is a guess: what does is still to be explained then.
        holding = any(user.kind not in {"device", "namespace", "candidate", "pin"} for user in usage.users)
        if beside > 0 and not holding and module.state is State.LIVE:
            users.append(unexplained(module, usage.partial))
        return (*users, *advised(self._held(module.name)))

    def _below(self, name: ModuleName) -> list[ModuleName]:
        """The modules that hold it, directly or through others, nearest first, each once."""
        modules = self._loaded.snapshot()
        order: list[ModuleName] = []
        queue = [name]
        while queue and len(order) < BELOW_MAX:
            module = modules.get(queue.pop(0))
            if module is not None:
                further = [holder for holder in module.holders if holder != name and holder not in order]
                order += further
                queue += further
        return order

    def _free(
        self,
        module: LoadedModule,
        users: tuple[User, ...],
        usage: dict[ModuleName, Usage],
        facts: KernelFacts,
        *,
        disconnect: bool,
    ) -> tuple[str, ...]:
        """The commands that end every use of the module and of what holds it, and unload it."""
        if module.state is not State.LIVE or facts.modules_disabled:
            return ()
        held: list[User] = []
        for name in (*reversed(self._below(module.name)), module.name):
            each = self._loaded.read(name)
            if each is None:
                continue
            if each.permanent or each.references < 0 or each.state is not State.LIVE:
                return ()
            try:
                self._policy.check_unload(name)
            except DisabledByPolicy:
                return ()
            # Commands for some of the users would look like commands for all of them.
            if name in usage and usage[name].crowded:
                return ()
            using = users if name == module.name else self._users(each, usage.get(name, Usage()))
            # What holds no reference ends with the module, but for a lease.
            held += [user for user in using if each.references > len(each.holders) or user.kind == LEASE]
        return free(module.name, held, dependents=bool(module.holders), disconnect=disconnect)

    def _because(self, module: LoadedModule, users: tuple[User, ...]) -> tuple[str, bool]:
        """Why it is there, and whether that names what it drives."""
        presence = self._registry.presence(module.name)
        if module.holders:
            return f"needed by {', '.join(sorted(module.holders))}", False
        if presence.by is not None:
            author = f"uid {presence.by.uid}" if presence.by.uid is not None else "an unknown user"
            reason = f": {presence.by.reason}" if presence.by.reason else ""
            return f"{LOADED} by {author}{reason}", False
        load = self._load(module.name)
        if load is not None and load.alias:
            return load_reason(load, details=True), False
        if driven := drives(users):
            boot = self._of_boot(module.name) if load is None and self._is_of_boot(module.name) else ""
            return f"{driven}; {boot}" if boot else driven, True
        if load is not None:
            return load_reason(load, details=True), False
        if presence.loaded_at:
            return "loaded by something other than kmodd", False
        return self._earlier(module.name) if module.name in self._registry else "", False

    def _earlier(self, name: ModuleName) -> str:
        """Of a load from before kmodd started that nothing recorded."""
        if origin := self._of_boot(name):
            return origin
        if self._boot is not None and self._boot.unread:
            return f"loaded before kmodd started; {self._boot.unread} cannot be read"
        return "loaded before kmodd started, by what is not known"

    def _of_boot(self, name: ModuleName) -> str:
        """What the initramfs and the lists say of such a load; empty where they say nothing."""
        if self._boot is None:
            return ""
        rule = self._boot.rule_of(name)
        # The kernel lists first what was loaded last (/proc/modules).
        order = tuple(reversed(tuple(self._loaded.snapshot())))
        parts = ["loaded before kmodd started"]
        if in_image := self._boot.may_be_of_image(name, order):
            parts[0] += ", most likely in the initramfs, which has it"
        if rule is not None:
            parts.append(f"{rule.file if rule.file == COMMAND_LINE else f'{rule.file}, line {rule.line},'} lists it")
        return "; ".join(parts) if in_image or rule is not None else ""

    def _is_of_boot(self, name: ModuleName) -> bool:
        """It is loaded, and was when kmodd started."""
        presence = self._registry.presence(name)
        return name in self._registry and not presence.loaded_at and self._watched_load(name) is None

    def _load(self, name: ModuleName) -> ModuleLoad | None:
        """Who loaded it without kmodd."""
        load = self._watched_load(name)
        if load is None and self._boot is not None and self._is_of_boot(name):
            load = self._boot.load_of(name)
        return load

    def _loader(self, name: ModuleName) -> LoadedBy | None:
        """The process that loaded it without kmodd, or that needed it."""
        load = self._load(name)
        if load is None:
            return None
        by = load.request.by if load.request is not None else load.by
        return LoadedBy(
            by.uid,
            by.exe or by.name,
            "",
            load.time,
            alias=load.alias,
            pid=by.pid,
            unit=by.unit,
            container=by.container,
            devices=load.devices,
        )

    def _removal_blockers(self, module: LoadedModule, users: tuple[User, ...], facts: KernelFacts) -> list[str]:
        if module.state in _PENDING:
            failure = self._failure(module.name)
            if failure is not None and failure.error == Crashed.name():
                return [ended(failure.message)]
            return [_PENDING[module.state]]
        blockers = []
        if facts.modules_disabled:
            blockers.append("Loading and unloading of modules is disabled until reboot (kernel.modules_disabled).")
        if module.permanent:
            blockers.append("It has no exit function and stays until the next boot.")
        if module.references < 0:
            blockers.append("This kernel was built without unloading of modules.")
        if module.holders:
            single = len(module.holders) == 1
            blockers.append(
                f"{', '.join(module.holders)} {'uses' if single else 'use'} it: "
                f"unload {'it' if single else 'them'} first, or together with it."
            )
        counts = module.references > len(module.holders)
        blockers += [sentence(user) for user in users if (counts and user.kind != "module") or user.kind == LEASE]
        try:
            self._policy.check_unload(module.name)
        except DisabledByPolicy as error:
            blockers.append(ended(error.message))
        return blockers

    def _load_blockers(self, name: ModuleName, facts: KernelFacts) -> list[str]:
        blockers = []
        if facts.modules_disabled:
            blockers.append("Loading and unloading of modules is disabled until reboot (kernel.modules_disabled).")
        try:
            self._policy.check_load(name, facts.command_line)
            for needed in self._index.dependencies(name):
                if self._loaded.read(needed) is None:
                    self._policy.check_load(needed, facts.command_line, needed_by=name)
            self._policy.check_files(name)
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
                blockers.append(f"It needs {needed}, which is {module.state} and does not become live.")
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
        question = which_module(name, (*self._index.available(), *self._index.builtins()))
        return f"No module {shown_name(name)} for kernel {facts.release}{f'; {question}' if question else '.'}"


def _tree_missing(facts: KernelFacts) -> str:
    return f"There is no module tree for the running kernel {facts.release}: reboot into an installed kernel."
