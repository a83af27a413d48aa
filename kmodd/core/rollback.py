# SPDX-License-Identifier: LGPL-2.1-or-later
"""What was done, and how to undo it in reverse."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from kmodd.core.arguments import UNSET, Pairs, effective, split_options
from kmodd.core.checks import is_standard
from kmodd.errors import KmoddError
from kmodd.kernel.ports import LoadedModules, ModuleIndex
from kmodd.model import Step, StepAction
from kmodd.names import ModuleName

NAMED = 4
"""Parameters that could not be restored and are named; the others are counted."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What is needed to bring a module back as it was."""

    parameters: Pairs = ()
    lost: tuple[str, ...] = ()
    """Parameters whose values cannot be known or cannot be given when loading."""


@dataclass(frozen=True, slots=True)
class Undone:
    """What became of undoing."""

    left: tuple[ModuleName, ...] = ()
    """Modules that stay changed."""
    remarks: tuple[tuple[ModuleName, str], ...] = ()
    """(module, clause) about what is not as it was before, and what was loaded again."""


class LiveParameters:
    """Remembers with which parameters modules are live."""

    def __init__(self, index: ModuleIndex, loaded: LoadedModules) -> None:
        self._index = index
        self._loaded = loaded
        self._given: dict[ModuleName, Pairs] = {}

    def inserted(self, name: ModuleName, parameters: Pairs) -> None:
        """Remember what a module was inserted with: many parameters cannot be read from it."""
        if parameters:
            self._given[name] = parameters
        else:
            self._given.pop(name, None)

    def removed(self, name: ModuleName) -> None:
        """Forget it."""
        self._given.pop(name, None)

    def remember(self, name: ModuleName) -> Memory:
        """Read what is needed to bring it back; values only root may read included, as they go back to the kernel only."""
        options = [
            pair for rule in self._index.rules(name) if rule.kind == "options" for pair in split_options(rule.value)
        ]
        base = self._given.get(name, tuple(options))
        try:
            kinds = {p.name.replace("-", "_"): p.type for p in self._index.info(name).parameters}
        except KmoddError:
            # Its file is gone: it cannot be brought back at all, which undoing will find and say.
            kinds = {}
        live: dict[str, str] = {}
        for parameter in self._loaded.parameters(name, private=True):
            key = parameter.name.replace("-", "_")
            # Only what the kernel's own setters read: a setter of the module's own may not exist, or do something else.
            if is_standard(kinds.get(key, "")) and _can_be_given(kinds[key], parameter.value):
                live[key] = parameter.value or ""
        pairs = effective((*base, *live.items()))
        known = {key for key, _ in pairs}
        return Memory(pairs, tuple(key for key in kinds if key not in known))


class Rollback:
    """The steps that one operation really took."""

    def __init__(self, index: ModuleIndex) -> None:
        self._index = index
        self._done: list[tuple[Step, Memory]] = []

    def note(self, step: Step, memory: Memory) -> None:
        """Remember a step that changed something."""
        self._done.append((step, memory))

    @property
    def touched(self) -> tuple[ModuleName, ...]:
        """Modules that were changed, in order, each once."""
        return tuple(dict.fromkeys(step.module for step, _ in self._done))

    async def undo(self, take: Callable[[Step], Awaitable[KmoddError | None]]) -> Undone:
        """Take the opposite steps in reverse order; one that fails does not stop the others."""
        left: list[ModuleName] = []
        remarks: list[tuple[ModuleName, str]] = []
        while self._done:
            step, memory = self._done.pop()
            again = step.action is StepAction.REMOVE
            opposite = replace(
                step,
                action=StepAction.INSERT if again else StepAction.REMOVE,
                path=self._index.path(step.module) if again else "",
                parameters=memory.parameters,
                because="undone",
            )
            error = await take(opposite)
            if error is not None:
                left.append(step.module)
                remarks.append((step.module, f"{step.module} stays {'unloaded' if again else 'loaded'}"))
            elif again:
                clause = f"{step.module} was loaded again with its old parameters{_but(memory.lost)}"
                remarks.append((step.module, clause))
        return Undone(tuple(reversed(left)), tuple(remarks))


def _can_be_given(kind: str, value: str | None) -> bool:
    if value is None or '"' in value or "\n" in value:
        return False
    # An array without elements reads as nothing, and giving that back would set it.
    return UNSET not in value and (value != "" or kind in ("charp", "string"))


def _but(lost: tuple[str, ...]) -> str:
    if not lost:
        return ""
    more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    return f", but {', '.join(lost[:NAMED])}{more} could not be read"
