# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plans the steps that insert modules: dependencies, soft dependencies, options, policy and parameters."""

from collections.abc import Callable
from contextlib import suppress

from kmodd.core.diagnosis.advice import shown_name
from kmodd.core.operations.live_values import GivenValues, LiveValues
from kmodd.core.planning.parameters import (
    NO_OPTIONS,
    Options,
    Pairs,
    check_options,
    check_parameters,
    effective,
    is_number,
    parameter_types,
    read_options,
)
from kmodd.core.planning.planned_state import InFlight, Link, PlannedState, chain
from kmodd.core.planning.policy import Policy
from kmodd.errors import (
    BadModule,
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
)
from kmodd.kernel.ports import LoadedModules, ModuleIndex
from kmodd.model import KernelFacts, Rule, State, Step, StepAction, Target
from kmodd.model.arguments import key
from kmodd.model.store import ENROL
from kmodd.names import Alias, ModuleName
from kmodd.suggestions import which_module


class Insertion:
    """Plans the insertions of one operation; every method raises the typed error that would stop it."""

    def __init__(
        self,
        index: ModuleIndex,
        loaded: LoadedModules,
        values: LiveValues,
        policy: Policy,
        facts: Callable[[], KernelFacts],
        draft: PlannedState,
        flight: Callable[[ModuleName], InFlight],
        *,
        given: GivenValues,
        since: float | None,
        requested: str,
        operation: int,
        override: bool,
    ) -> None:
        self.steps: list[Step] = []
        self.overrides: list[Rule] = []
        self.unread: list[ModuleName] = []
        """Loaded modules assumed to have the requested parameters, because these have not been read."""
        self._index = index
        self._loaded = loaded
        self._values = values
        self._policy = policy
        self._facts = facts
        self._draft = draft
        self._flight = flight
        self._given = given
        self._since = since
        self._requested = requested
        self._operation = operation
        self._override = override

    def load(self, target: Target, parameters: Pairs = ()) -> None:
        """Plan what it takes to have the module live with these parameters."""
        name = target.name
        if self.is_builtin(name):
            if parameters:
                raise Builtin(
                    f"{name} is built into the kernel, its parameters can only be set on the kernel command line",
                    module=name,
                    evidence=Evidence(hint=f"add {name}.NAME=VALUE to the boot loader's configuration"),
                )
            return
        module = self.module_in(name)
        if self._is_live(module):
            self._compare(module, name, parameters)
            return
        if parameters and self._index.exists(name):
            check_parameters(self._index.info(name), parameters)
        self._insert(target, module, "requested", parameters=parameters, alias=self._requested)

    def again(self, name: ModuleName, because: str) -> None:
        """Plan the return of a module that this operation takes out."""
        if not self._is_live(name):
            file = self._index.file_for(name)
            self._insert(Target(file), self.module_in(file), because)

    def module_in(self, name: ModuleName) -> ModuleName:
        """What the kernel calls the module that a name in the index stands for: another name where the file was renamed."""
        return name if self._draft.get(name) is not None else self._index.holds(name)

    def is_builtin(self, name: ModuleName) -> bool:
        """Tell whether it is part of the kernel image."""
        return self._index.is_builtin(name) or self._loaded.is_builtin(name)

    def is_present(self, name: ModuleName) -> bool:
        """Tell whether the kernel has it, or will have it by the steps so far."""
        return self._draft.get(name) is not None

    def _is_live(self, name: ModuleName) -> bool:
        module = self._draft.get(name)
        if module is not None and module.state is State.LIVE:
            return True
        flight = self._flight(name)
        if flight is InFlight.STUCK:
            raise stuck(name)
        if module is not None and flight is InFlight.NONE:
            raise busy(name, module.state)
        # An operation of ours has it in hand: it will be live or gone when this one gets its locks.
        return False

    def _compare(self, name: ModuleName, file: ModuleName, parameters: Pairs) -> None:
        if not parameters:
            return
        info = self._index.info(file)
        # Values that only root may read stay unread: this runs before authorization.
        live = {key(p.name): p.value for p in self._values.known(name)}
        check_parameters(info, parameters, live)
        kinds = parameter_types(info)
        if not self._values.is_fresh(name, since=self._since):
            if self._since is not None:
                raise unreadable(name)
            self.unread.append(name)
            return
        for parameter, value in parameters:
            kind, shown = kinds.get(parameter, ""), live.get(parameter)
            # Not authorized yet. Do not confirm a guess of a value that only root may read, nor of a parameter without file.
            guessed = shown is None and (parameter in live or not is_number(kind))
            if guessed or not self._given.is_met(name, parameter, kind, value, shown):
                raise Conflict(
                    f"{name} is already loaded, and the kernel ignores parameters for a loaded module: "
                    "use Reload, or SetParameter for one that is writable",
                    module=name,
                    evidence=Evidence(parameter=parameter, hint=f"kmodctl reload {name} {parameter}=…"),
                )

    def _insert(
        self, target: Target, module: ModuleName, because: str, *, parameters: Pairs = (), alias: str = ""
    ) -> None:
        self._check_policy(target.name, module, alias=alias)
        if not self._index.exists(target.name):
            raise self.missing(target.name)
        # What a rule that can be read says goes first: it says more.
        self._policy.check_files(target.name)
        for link in chain(self._index, target, because):
            name = link.target.name
            if self.is_builtin(name):
                continue
            if not link.required:
                self._optional(link)
            elif not self._is_live(module := self.module_in(name)):
                itself = link.target == target
                if not itself:
                    self._check_policy(name, module, needed_by=target.name)
                    if not self._index.exists(name):
                        raise self._missing_dependency(target.name, name)
                self._check_kernel(name)
                self._step(link, module, parameters if itself else ())

    def _optional(self, link: Link) -> None:
        """Plan a soft dependency, or what only that needs; what cannot be had is left out, as by modprobe."""
        name = link.target.name
        command_line = self._facts().command_line
        if not self._index.exists(name):
            # modprobe runs the command of an install line for a name that no module has, too.
            self._policy.allows_softly(name, command_line)
            return
        try:
            module = self.module_in(name)
            if self._is_live(module):
                return
            self._check_kernel(name)
        except KmoddError:
            return
        if not all(self._policy.allows_softly(each, command_line) for each in {name, module}):
            return
        # The kernel refuses a module whose dependency is not loaded.
        if all(self.is_builtin(need) or self._will_be_live(need) for need in self._index.dependencies(name)):
            with suppress(BadParameter):  # the kernel would refuse it for its options lines, which modprobe ignores
                self._step(link, module, ())

    def _will_be_live(self, name: ModuleName) -> bool:
        module = self._draft.get(self.module_in(name))
        return module is not None and module.state is State.LIVE

    def _step(self, link: Link, module: ModuleName, parameters: Pairs) -> None:
        name = link.target.name
        rules = self._options(link.target) if link.target.alias or self._index.rules(name) else []
        options = read_options(rules) if rules else NO_OPTIONS
        if options.assignments or options.end is not None:
            self._check_options(name, options, parameters)
        self.steps.append(
            Step(
                StepAction.INSERT,
                module,
                path=self._index.path(name),
                parameters=effective((*options.pairs, *parameters)) if rules or parameters else (),
                withheld=_withheld(options, parameters) if rules else frozenset(),
                because=link.because
                if module == name
                else f"{link.because}; in the file {self._index.path(name).rpartition('/')[2]}",
                operation=self._operation,
                optional=not link.required,
                renamed=None if module == name else name,
            )
        )
        self._draft.insert(module, tuple(map(self.module_in, self._index.dependencies(name))))

    def _options(self, target: Target) -> list[Rule]:
        """Lines with options of the module, and of the alias it was reached by, in their order."""
        alias = ModuleName(target.alias)
        if alias and any(rule.kind == "options" for rule in self._index.rules(alias)):
            return [
                rule
                for rule in self._index.all_rules()
                if rule.kind == "options" and rule.module in (target.name, alias)
            ]
        return [rule for rule in self._index.rules(target.name) if rule.kind == "options"]

    def _check_policy(self, name: ModuleName, module: ModuleName, *, alias: str = "", needed_by: str = "") -> None:
        aside = self._policy.check_load(
            name, self._facts().command_line, requested=alias, needed_by=needed_by, override=self._override
        )
        self.overrides.extend(aside)
        if module != name:
            # modprobe goes by the file's name, the kernel and the author of the rule by the module's.
            aside = self._policy.check_load(
                module, self._facts().command_line, needed_by=needed_by, override=self._override
            )
            self.overrides.extend(aside)

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

    def _check_options(self, name: ModuleName, options: Options, requested: Pairs) -> None:
        try:
            info = self._index.info(name)
        except BadModule:
            # The kernel refuses such a file, and says what is wrong with it.
            return
        check_options(info, options, requested)

    def missing(self, name: ModuleName | Alias) -> KmoddError:
        """Make the error for a name that stands for nothing."""
        facts = self._facts()
        if not facts.tree_present:
            return tree_missing(name, facts.release)
        try:
            self._index.info(ModuleName(name))
        except ModuleTreeMissing as error:
            return error  # it is there, and cannot be read
        except KmoddError:
            pass
        return NoSuchModule(
            f"no module {shown_name(name)} for kernel {facts.release}",
            module=name,
            evidence=Evidence(
                hint=which_module(name, (*self._index.available(), *self._index.builtins()))
                or "kmodctl list --state available"
            ),
        )

    def _missing_dependency(self, name: ModuleName, need: ModuleName) -> KmoddError:
        return NoSuchModule(
            f"{name} needs {need}, which has no file in the module tree",
            module=need,
            evidence=Evidence(hint="depmod -a rebuilds the index; otherwise the kernel's package is incomplete"),
        )


def stuck(name: ModuleName) -> Stuck:
    """Make the error for a module whose earlier call into the kernel did not return."""
    return Stuck(
        f"{name} is stuck: an earlier operation on it has not returned from the kernel",
        module=name,
        evidence=Evidence(hint=f"kmodctl why {name}; once the call returns: kmodctl reset-failed {name}"),
    )


def busy(name: ModuleName, state: State) -> Busy:
    """Make the error for a module that another process is loading or unloading now."""
    doing = "loaded" if state is State.COMING else "unloaded"
    return Busy(
        f"{name} is currently being {doing} by another process; try again",
        module=name,
        evidence=Evidence(hint=f"cat /sys/module/{name}/initstate"),
    )


def unreadable(name: ModuleName) -> Busy:
    """Make the error for a loaded module whose parameters could not be read in time."""
    return Busy(
        f"the parameters of {name} cannot be read now",
        module=name,
        evidence=Evidence(hint=f"kmodctl why {name}; try again in a few seconds"),
    )


def modules_disabled(name: ModuleName) -> ModulesDisabled:
    """Make the error for a kernel that changes no more modules."""
    return ModulesDisabled(
        "loading and unloading modules is disabled until reboot (kernel.modules_disabled=1)",
        module=name,
        evidence=Evidence(hint="sysctl kernel.modules_disabled; only a reboot clears it"),
    )


def tree_missing(name: str, release: str) -> ModuleTreeMissing:
    """Make the error for a running kernel whose modules are not installed."""
    return ModuleTreeMissing(
        f"no modules for the running kernel {release}: its package was upgraded or removed since boot",
        module=name,
        evidence=Evidence(hint="reboot into an installed kernel, or install the package of the running one"),
    )


def _withheld(options: Options, requested: Pairs) -> frozenset[str]:
    """Parameters whose last value stands in a file that not everyone may read; what the caller gives is known to the caller."""
    public = {each.name: each.rule.public for each in options.assignments}
    return frozenset(name for name, is_public in public.items() if not is_public).difference(
        name for name, _ in requested
    )
