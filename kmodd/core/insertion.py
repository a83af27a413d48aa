# SPDX-License-Identifier: LGPL-2.1-or-later
"""The steps that bring modules in: dependencies, soft dependencies, options, policy and parameters."""

from collections.abc import Callable, Sequence

from kmodd.core.arguments import Pairs, effective, split_options
from kmodd.core.checks import ALWAYS_KNOWN, expectation, same_value
from kmodd.core.draft import Draft, Flight
from kmodd.core.near import did_you_mean
from kmodd.core.policy import Policy, where
from kmodd.errors import (
    BadParameter,
    BadSignature,
    Builtin,
    Busy,
    Conflict,
    Evidence,
    KmoddError,
    Lockdown,
    ModulesDisabled,
    ModuleTreeMissing,
    NoSuchModule,
    Stuck,
    UnknownParameter,
)
from kmodd.kernel.ports import LoadedModules, ModuleIndex
from kmodd.model import KernelFacts, ModuleInfo, Rule, State, Step, StepAction
from kmodd.model.store import ENROL
from kmodd.names import Alias, ModuleName, parse_module_or_alias


class Insertion:
    """Plans the insertions of one operation; every method raises the typed error that would stop it."""

    def __init__(
        self,
        index: ModuleIndex,
        loaded: LoadedModules,
        policy: Policy,
        facts: Callable[[], KernelFacts],
        draft: Draft,
        flight: Callable[[ModuleName], Flight],
        *,
        asked: str,
        operation: int,
        override: bool,
    ) -> None:
        self.steps: list[Step] = []
        self.overrides: list[str] = []
        self._index = index
        self._loaded = loaded
        self._policy = policy
        self._facts = facts
        self._draft = draft
        self._flight = flight
        self._asked = asked
        self._operation = operation
        self._override = override
        self._begun: set[ModuleName] = set()
        self._left_out: set[ModuleName] = set()

    def load(self, name: ModuleName, parameters: Pairs = ()) -> None:
        """Plan what it takes to have the module live with these parameters."""
        if self.is_builtin(name):
            if parameters:
                raise Builtin(
                    f"{name} is built into the kernel, its parameters are set on the kernel command line only",
                    module=name,
                    evidence=Evidence(hint=f"add {name}.NAME=VALUE to the boot loader's configuration"),
                )
            return
        if self._is_live(name):
            self._compare(name, parameters)
            return
        if parameters:
            check_parameters(self._index.info(name), parameters)
        self._insert(name, "requested", parameters=parameters, asked=self._asked)

    def again(self, name: ModuleName, because: str) -> None:
        """Plan the return of a module that this operation takes out."""
        self._insert(name, because)

    def is_builtin(self, name: ModuleName) -> bool:
        """Tell whether it is part of the kernel image."""
        return self._index.is_builtin(name) or self._loaded.is_builtin(name)

    def _is_live(self, name: ModuleName) -> bool:
        module = self._draft.get(name)
        if module is None:
            flight = self._flight(name)
            if flight is Flight.STUCK:
                raise stuck(name)
            return False
        if module.state is State.LIVE:
            return True
        flight = self._flight(name)
        if flight is Flight.STUCK:
            raise stuck(name)
        if flight is Flight.NONE:
            raise busy(name, module.state)
        # An operation of ours has it in hand: it will be live or gone when this one gets its locks.
        return False

    def _compare(self, name: ModuleName, parameters: Pairs) -> None:
        if not parameters:
            return
        info = self._index.info(name)
        check_parameters(info, parameters)
        kinds = {p.name.replace("-", "_"): p.type for p in info.parameters}
        # Values that only root may read stay unread: this runs before anybody was authorised.
        live = {p.name.replace("-", "_"): p.value for p in self._loaded.parameters(name)}
        for parameter, value in parameters:
            shown = live.get(parameter)
            if shown is None or not same_value(kinds.get(parameter, ""), value, shown):
                raise Conflict(
                    f"{name} is already loaded, and the kernel ignores new parameters on a loaded module: "
                    "use Reload, or SetParameter for one that is writable",
                    module=name,
                    evidence=Evidence(parameter=parameter, hint=f"kmodctl reload {name} {parameter}=…"),
                )

    def _insert(
        self, name: ModuleName, because: str, *, optional: bool = False, parameters: Pairs = (), asked: str = ""
    ) -> None:
        if not self._index.exists(name):
            raise self.missing(name)
        needs = self._index.dependencies(name)
        self._check_policy(name, asked=asked)
        absent = []
        for need in needs:
            if self.is_builtin(need) or self._is_live(need):
                continue
            if not self._index.exists(need):
                raise self._missing_dependency(name, need)
            if need in self._begun:
                # Only a soft dependency can close a circle through a hard one; it is left out.
                raise Conflict(f"{name} and {need} depend on each other", module=name)
            self._check_policy(need, needed_by=name)
            absent.append(need)
        self._begun.add(name)
        for need in absent:
            # A soft dependency of the one before may have brought it in already.
            if self._draft.get(need) is None or not self._is_live(need):
                self._begun.add(need)
                self._one(need, f"dependency of {name}", optional, ())
        self._one(name, because, optional, parameters)

    def _one(self, name: ModuleName, because: str, optional: bool, parameters: Pairs) -> None:
        before, after = self._index.softdeps(name)
        self._soft(before, name)
        if (module := self._draft.get(name)) is not None and module.state is State.LIVE:
            return
        self._check_kernel(name)
        rules = [rule for rule in self._index.rules(name) if rule.kind == "options"]
        options = [pair for rule in rules for pair in split_options(rule.value)]
        self.steps.append(
            Step(
                StepAction.INSERT,
                name,
                path=self._index.path(name),
                parameters=effective((*options, *parameters)),
                withheld=_withheld(rules, parameters),
                because=because,
                operation=self._operation,
                optional=optional,
            )
        )
        self._draft.insert(name, self._index.dependencies(name))
        self._soft(after, name)

    def _soft(self, names: tuple[str, ...], of: ModuleName) -> None:
        for text in names:
            for name in self._index.resolve(_parsed(text)):
                if name in self._begun or name in self._left_out or self.is_builtin(name):
                    continue
                steps, draft, begun, overrides = len(self.steps), self._draft, set(self._begun), len(self.overrides)
                self._draft = draft.copy()
                try:
                    if not self._is_live(name):
                        self._insert(name, f"soft dependency of {of}", optional=True)
                except KmoddError:
                    # Absent, forbidden or busy: modprobe goes on without it, and so does this.
                    del self.steps[steps:], self.overrides[overrides:]
                    self._begun = begun
                    self._left_out.add(name)
                else:
                    draft.take(self._draft)
                self._draft = draft

    def _check_policy(self, name: ModuleName, *, asked: str = "", needed_by: str = "") -> None:
        aside = self._policy.check_load(
            name, self._facts().command_line, asked=asked, needed_by=needed_by, override=self._override
        )
        self.overrides.extend(where(rule) for rule in aside)

    def _check_kernel(self, name: ModuleName) -> None:
        facts = self._facts()
        if facts.modules_disabled:
            raise modules_disabled(name)
        if facts.lockdown == "none" and not facts.signature_enforced:
            return
        if self._index.info(name).signed:
            return
        if facts.signature_enforced:
            raise BadSignature(
                f"{name} is not signed, and this kernel loads signed modules only (module.sig_enforce)",
                module=name,
                evidence=Evidence(hint=ENROL),
            )
        raise Lockdown(
            f"{name} is not signed, and the kernel is locked down ({facts.lockdown})",
            module=name,
            evidence=Evidence(hint=ENROL),
        )

    def missing(self, name: ModuleName | Alias) -> KmoddError:
        """Make the error for a name that stands for nothing."""
        facts = self._facts()
        if not facts.tree_present:
            return tree_missing(name, facts.release)
        return NoSuchModule(
            f"there is no module {name} for kernel {facts.release}",
            module=name,
            evidence=Evidence(hint=did_you_mean(name, self._index.available()) or "kmodctl list --state available"),
        )

    def _missing_dependency(self, name: ModuleName, need: ModuleName) -> KmoddError:
        return NoSuchModule(
            f"{name} needs {need}, which has no file in the module tree",
            module=need,
            evidence=Evidence(hint="depmod -a rebuilds the index; otherwise the kernel's package is incomplete"),
        )


def check_parameters(info: ModuleInfo, parameters: Pairs) -> None:
    """Raise UnknownParameter or BadParameter for what the kernel would ignore or refuse."""
    kinds = {p.name.replace("-", "_"): p.type for p in info.parameters}
    for name, value in parameters:
        if name in ALWAYS_KNOWN:
            continue
        if name not in kinds:
            raise UnknownParameter(
                f"{info.name} has no parameter {name}",
                module=info.name,
                argument=name,
                evidence=Evidence(
                    parameter=name, hint=did_you_mean(name, kinds) or f"kmodctl show {info.name} lists its parameters"
                ),
            )
        check_value(info.name, name, kinds[name], value)


def check_value(module: ModuleName, parameter: str, kind: str, value: str) -> None:
    """Raise BadParameter when the parameter's type cannot hold the value."""
    wanted = expectation(kind, value)
    if wanted:
        raise BadParameter(
            f"parameter {parameter} of {module} takes {wanted}",
            module=module,
            argument=parameter,
            evidence=Evidence(parameter=parameter, hint=f"kmodctl show {module} lists its parameters"),
        )


def stuck(name: ModuleName) -> Stuck:
    """Make the error for a module whose earlier call into the kernel did not come back."""
    return Stuck(
        f"{name} is stuck: an earlier operation on it has not come back from the kernel",
        module=name,
        evidence=Evidence(hint=f"kmodctl why {name}; once the kernel lets go: kmodctl reset-failed {name}"),
    )


def busy(name: ModuleName, state: State) -> Busy:
    """Make the error for a module that somebody else is loading or unloading at this moment."""
    doing = "loaded" if state is State.COMING else "unloaded"
    return Busy(
        f"{name} is being {doing} by somebody else at this moment, ask again when it is done",
        module=name,
        evidence=Evidence(hint=f"cat /sys/module/{name}/initstate"),
    )


def modules_disabled(name: ModuleName) -> ModulesDisabled:
    """Make the error for a kernel that was told to change no module any more."""
    return ModulesDisabled(
        "loading and unloading modules is switched off until the next boot (kernel.modules_disabled=1)",
        module=name,
        evidence=Evidence(hint="sysctl kernel.modules_disabled; only a reboot clears it"),
    )


def tree_missing(name: str, release: str) -> ModuleTreeMissing:
    """Make the error for a running kernel whose modules are not installed."""
    return ModuleTreeMissing(
        f"there are no modules for the running kernel {release}: it was upgraded or removed since it booted",
        module=name,
        evidence=Evidence(hint="reboot into an installed kernel, or install the package of the running one"),
    )


def _parsed(text: str) -> ModuleName | Alias:
    # Soft dependencies come from the administrator's files or the module: what the resolver does not know is left out.
    try:
        return parse_module_or_alias(text)
    except KmoddError:
        return Alias(text)


def _withheld(options: Sequence[Rule], given: Pairs) -> frozenset[str]:
    """Parameters whose last value stands in a file that not everyone may read; what the caller gives is known to the caller."""
    if all(rule.public for rule in options):
        return frozenset()
    public = {name: rule.public for rule in options for name, _ in split_options(rule.value)}
    return frozenset(name for name, told in public.items() if not told).difference(name for name, _ in given)
