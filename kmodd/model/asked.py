# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a caller asks, what will be done about it, and what became of it."""

from dataclasses import dataclass

from kmodd.errors import KmoddError
from kmodd.model.kinds import Result, StepAction, Verb
from kmodd.names import Alias, ModuleName


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


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing to do, with names already parsed."""

    verb: Verb
    module: ModuleName | Alias
    parameters: tuple[tuple[str, str], ...] = ()
    dependents: bool = False
    """Unload also the modules that use it."""
    unused_dependencies: bool = False
    """Unload also the dependencies nobody needs any more."""


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
    on_behalf_of: str = ""
    """Whom the caller says to speak for: written down and told to polkit's rules, never identity."""


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
    parameters: tuple[tuple[str, str], ...] = ()
    """Parameters in the order the kernel gets them: from configuration, then from the caller."""
    because: str = ""
    """One short clause: `requested`, `dependency of vfat`, `soft dependency of …`, `uses fat`, `not needed any more`."""
    operation: int = 0
    """Index of the operation in the request that this step serves."""
    error: KmoddError | None = None
    """Set on a step that is known to fail; nothing after it in the same operation is planned."""
    optional: bool = False
    """Its failure does not fail the operation: soft dependencies, dependencies that nobody needs any more."""
    withheld: frozenset[str] = frozenset()
    """Parameters whose value stands in a file that not everyone may read."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The exact steps of a request. The same object feeds `Plan`, a dry run, authorisation and execution."""

    request: Request
    targets: tuple[tuple[ModuleName, ...], ...]
    """For each operation the canonical modules it names (an alias may name several)."""
    steps: tuple[Step, ...]
    overrides: tuple[str, ...] = ()
    """Rules that `override-policy` sets aside, each as `file:line: text`."""

    @property
    def modules(self) -> tuple[ModuleName, ...]:
        """Every module that is named or touched, sorted: what gets locked and what polkit is told."""
        named = {name for names in self.targets for name in names}
        return tuple(sorted(named | {step.module for step in self.steps}))

    def label(self, operation: int) -> str:
        """Which modules an operation is about, as its result names them: what was asked for where there is none."""
        return " ".join(self.targets[operation]) or self.request.operations[operation].module

    @property
    def error(self) -> KmoddError | None:
        """The first known failure, or None."""
        return next((step.error for step in self.steps if step.error is not None), None)


@dataclass(frozen=True, slots=True)
class OperationResult:
    """What became of one operation."""

    module: str
    result: Result
    error: KmoddError | None = None
    touched: tuple[ModuleName, ...] = ()
    """Modules really inserted or removed, in order."""
    remarks: tuple[str, ...] = ()
    """What is not as it was before although no operation failed: clauses about undoing."""
