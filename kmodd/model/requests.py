# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests, plans and results."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Final

from kmodd.errors import AccessDenied, KmoddError
from kmodd.model.arguments import Arguments
from kmodd.model.enums import Result, StepAction, Verb
from kmodd.model.modules import Rule
from kmodd.model.reports import Consequence
from kmodd.names import Alias, ModuleName, is_module_name

NAMED_MAX = 8
"""Modules that one sentence names."""
Loaders = tuple[tuple[ModuleName, int | None], ...]
"""Modules, each with the user who loaded it through kmodd; None where it was loaded without."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. Made by the bus from the message, never from anything the caller says about itself."""

    sender: str
    """Unique bus name, such as `:1.42`."""
    uid: int | None
    """None where the bus could not tell; never taken for root."""
    interactive: bool = False
    """The message allows a password prompt."""
    exe: str = ""
    """Path of the caller's executable for the journal, empty when unknown."""
    on_behalf_of: str = ""
    """Whom a gateway speaks for: information for the journal, never identity."""
    login_uid: int | None = None
    """As whom the caller's session logged in (proc_pid_loginuid(5)), which su and sudo keep; None when unknown."""
    reason: str = ""
    """Why the caller says it asks, for the journal."""
    pid: int = 0
    """Number of the caller's process as the bus has it, to be shown; 0 when unknown."""


KMODD: Final = Caller("", 0, exe="kmodd")
"""The daemon itself, for what it does without a call: the desired state, leases that end, trials that are not confirmed."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing to do, with names already parsed."""

    verb: Verb
    module: ModuleName | Alias
    parameters: tuple[tuple[str, str], ...] = ()
    dependents: bool = False
    """Unload also the modules that use it."""
    unused_dependencies: bool = False
    """Unload also the dependencies that are no longer needed."""
    itself: bool = False
    """The module of this very name, where modprobe would follow an alias line of modprobe.d that has the name."""


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request: what is authorised, locked, run and rolled back together."""

    operations: tuple[Operation, ...]
    atomic: bool = True
    dry_run: bool = False
    reason: str = ""
    timeout: float = 30.0
    """Seconds for each call into the kernel."""
    override_policy: bool = False
    disconnect: bool = False
    """Remove modules also when live interfaces or devices go with them."""
    on_behalf_of: str = ""
    """The value of on-behalf-of: recorded and passed to polkit's rules, never identity."""
    only_modules: frozenset[ModuleName] | None = None
    """The only modules that may be touched; None for any."""

    def confine(self, modules: Iterable[ModuleName]) -> None:
        """AccessDenied where one of these modules, which would be touched, is not among `only_modules`."""
        confine(modules, self.only_modules)


def confine(modules: Iterable[ModuleName], only: Collection[ModuleName] | None) -> None:
    """AccessDenied naming the first modules that are not among those a caller may touch; None allows all."""
    outside = sorted(set(modules) - set(only)) if only is not None else []
    if outside:
        more = f" and {len(outside) - NAMED_MAX} more" if len(outside) > NAMED_MAX else ""
        raise AccessDenied(
            f"the call would affect {', '.join(outside[:NAMED_MAX])}{more}, outside of only-modules",
            module=outside[0],
            argument="options",
        )


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request that is no plan and is refused before it is begun, as the journal tells of it."""

    action: str
    module: str
    reason: str = ""
    dry_run: bool = False
    on_behalf_of: str = ""
    """As of a Request."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call into the kernel, or the reason why there will be none."""

    action: StepAction
    module: ModuleName
    path: str = ""
    """The module's file for an insertion, as the index names it."""
    parameters: Arguments = ()
    """Parameters in the order the kernel gets them: from configuration, then from the caller."""
    because: str = ""
    """One short clause: `requested`, `dependency of vfat`, `soft dependency of …`, `uses fat`, `no longer needed`."""
    operation: int = 0
    """Index of the operation in the request that this step serves."""
    error: KmoddError | None = None
    """Set on a step that is known to fail; nothing after it in the same operation is planned."""
    optional: bool = False
    """Its failure does not fail the operation: soft dependencies, dependencies that are no longer needed."""
    withheld: frozenset[str] = frozenset()
    """Parameters whose value stands in a file that not everyone may read."""
    renamed: ModuleName | None = None
    """What the file is called, where that is not the module's name."""
    consequences: tuple[Consequence, ...] = ()
    """What goes with the module that is removed."""
    goes: tuple[str, ...] = ()
    """The same in sentences, as a client is answered it."""

    @property
    def file(self) -> ModuleName:
        """The name by which the index knows the file, and configuration the module."""
        return self.renamed or self.module


@dataclass(frozen=True)
class Plan:
    """The exact steps of a request. The same object feeds `Plan`, a dry run, authorisation and execution."""

    request: Request
    targets: tuple[tuple[ModuleName, ...], ...]
    """For each operation the canonical modules it names (an alias may name several)."""
    steps: tuple[Step, ...]
    overrides: tuple[Rule, ...] = ()
    """Rules that `override-policy` sets aside."""
    unread: tuple[ModuleName, ...] = field(default=(), kw_only=True)
    """Loaded modules assumed to have the requested parameters, which have not been read yet: not to be executed."""

    unseen: tuple[ModuleName, ...] = field(default=(), kw_only=True)
    """Modules that steps remove whose consequences have not been examined yet: not to be executed."""
    loaders: Loaders | None = field(default=None, kw_only=True, compare=False)
    """Modules that steps remove, each with the user who loaded it through kmodd; None where it was not."""
    own: tuple[ModuleName, ...] = field(default=(), kw_only=True, compare=False)
    """Modules that steps remove after steps before them inserted them: the caller will have loaded them."""
    version: int = field(default=-1, kw_only=True, compare=False)
    """How many changes `Operations` knew of when it began to read for this plan; -1 for a plan that is always made again."""
    made: int = field(default=0, kw_only=True, compare=False)
    """When that was, in microseconds since the epoch."""
    seen: tuple[int, bytes] = field(default=(-1, b""), kw_only=True, compare=False)
    """The version of the module index and the text of /proc/modules that it was made from."""

    @cached_property
    def modules(self) -> tuple[ModuleName, ...]:
        """Every named or affected module, sorted: the modules to lock and the details for polkit."""
        names = set(chain.from_iterable(self.targets))
        for step in self.steps:
            # A step that fails may be about an alias that leads nowhere: a text of the caller's, and no module.
            if step.error is None or is_module_name(step.module):
                names.add(step.module)
        return tuple(sorted(names))

    def loaders_for(self, uid: int | None) -> Loaders | None:
        """Who will have loaded what the steps remove, if the user `uid` has them taken; None where that was not looked up."""
        return None if self.loaders is None else (*self.loaders, *((name, uid) for name in self.own))

    @property
    def sha256(self) -> tuple[str, ...]:
        """Contents of what would come out of the store."""
        return ()

    @property
    def action(self) -> str:
        """`load`, `unload`, `reload`, or `batch` for several operations."""
        operations = self.request.operations
        return operations[0].verb.value if len(operations) == 1 else "batch"

    def names(self, operation: int | None) -> tuple[str, ...]:
        """The modules of an operation (None: of the whole request); the requested names or aliases where there are none."""
        if operation is not None:
            return self.targets[operation] or (self.request.operations[operation].module,)
        modules = tuple(dict.fromkeys(chain.from_iterable(self.targets)))
        return modules or tuple(dict.fromkeys(operation.module for operation in self.request.operations))

    def label(self, operation: int | None) -> str:
        """The same, as its result names them."""
        return " ".join(self.names(operation))

    @property
    def error(self) -> KmoddError | None:
        """The first known failure, or None."""
        for step in self.steps:
            if step.error is not None:
                return step.error
        return None


@dataclass(frozen=True, slots=True)
class OperationResult:
    """What became of one operation."""

    module: str
    result: Result
    error: KmoddError | None = None
    touched: tuple[ModuleName, ...] = ()
    """Modules really inserted or removed, in order."""
    action: str = ""
    """What was to be done: a verb, or for `Apply` also `activate`, `set-parameter` or the value of a RuleAction."""
    remarks: tuple[str, ...] = ()
    """What is not as it was before although no operation failed: clauses about undoing."""
