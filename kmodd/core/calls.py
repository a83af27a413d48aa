# SPDX-License-Identifier: LGPL-2.1-or-later
"""One step made real: the call into the kernel, and the evidence when it did not do what it should."""

import asyncio
import errno as codes
from collections.abc import Callable
from dataclasses import dataclass

from kmodd.core.arguments import spell
from kmodd.core.diagnosis import diagnose
from kmodd.core.evidence import StepEvidence
from kmodd.errors import Conflict, Evidence, KmoddError
from kmodd.kernel.ports import Kernel
from kmodd.model import Outcome, State, Step, StepAction

_TRIES = 3
"""Calls for one insertion where others insert and remove the same module all the while."""
_UNTRUSTED = frozenset({codes.EPERM, codes.ENOKEY, codes.EKEYREJECTED, codes.EKEYEXPIRED, codes.EKEYREVOKED})
"""Answers to a signature, or to none; EPERM under lockdown."""


@dataclass(frozen=True, slots=True)
class CallResult:
    """What became of a step."""

    outcome: Outcome
    changed: bool
    """The call did it; false also when it was so already."""
    error: KmoddError | None = None


class KernelCalls:
    """Makes steps real."""

    def __init__(self, kernel: Kernel, *, capable: Callable[[int], bool] = lambda worker: True) -> None:
        """`capable` tells whether a worker, by process number, holds CAP_SYS_MODULE; it is asked only after an EPERM."""
        self._kernel = kernel
        self._capable = capable

    async def make(self, step: Step, timeout: float, given: tuple[str, ...] = ()) -> CallResult:
        """Take the step; `given` names the parameters that the caller, not the configuration, wants set."""
        for tries_left in reversed(range(_TRIES)):
            called = await self._try(step, timeout, given, last=not tries_left)
            if called is not None:
                return called
        raise AssertionError("the last try answers")

    async def _try(
        self, step: Step, timeout: float, given: tuple[str, ...], *, last: bool = False
    ) -> CallResult | None:
        """Make the call; None when it met somebody else's on the same module, and may be made again."""
        mark = self._kernel.log.mark()
        try:
            if step.action is StepAction.INSERT:
                outcome = await self._kernel.executor.insert(step.path, spell(step.parameters), timeout=timeout)
            else:
                outcome = await self._kernel.executor.remove(step.module, timeout=timeout)
            if outcome.kind == "done" and outcome.errno == 0:
                return CallResult(outcome, changed=True)
            if self._was_so_already(step, outcome):
                error = _ignored_parameters(step) if given else None
                return CallResult(outcome, changed=False, error=error)
            evidence = await self._gather(step, outcome, mark.lines(), given)
            if _was_crossed(evidence) and not last:
                return None
            return CallResult(outcome, changed=False, error=diagnose(evidence))
        finally:
            mark.close()

    def _was_so_already(self, step: Step, outcome: Outcome) -> bool:
        if outcome.kind != "done":
            return False
        if step.action is StepAction.REMOVE:
            return outcome.errno == codes.ENOENT
        if outcome.errno != codes.EEXIST:
            return False
        # An init() may answer EEXIST of its own: then the module is not there.
        module = self._kernel.loaded.read(step.module)
        return module is not None and module.state is State.LIVE

    async def _gather(self, step: Step, outcome: Outcome, log: tuple[str, ...], given: tuple[str, ...]) -> StepEvidence:
        module = self._kernel.loaded.read(step.module)
        busy = step.action is StepAction.REMOVE and outcome.errno in (codes.EAGAIN, codes.EBUSY)
        users = await asyncio.to_thread(self._kernel.usage.users, step.module) if busy and module is not None else ()
        signed, signer, missing, fault = self._judge_file(step)
        untrusted = step.action is StepAction.INSERT and outcome.errno in _UNTRUSTED
        return StepEvidence(
            step=step,
            outcome=outcome,
            facts=self._kernel.facts.read(),
            log=log,
            module=module,
            users=users,
            options=tuple(rule for rule in self._kernel.index.rules(step.module) if rule.kind == "options"),
            given=given,
            signed=signed,
            signer=signer,
            keys=self._kernel.facts.trusted_keys() if untrusted else (),
            file_missing=missing,
            file_fault=fault,
            capable=self._capable(outcome.worker) if outcome.errno == codes.EPERM else True,
        )

    def _judge_file(self, step: Step) -> tuple[bool, str, bool, str]:
        """Whether the file is signed, by whom, whether it is missing, and what is wrong with it."""
        if step.action is StepAction.REMOVE:
            return True, "", False, ""
        try:
            info = self._kernel.index.info(step.module)
        except KmoddError as error:
            # NoSuchModule: the index has no such file any more. BadModule: gone, or one that cannot be parsed, which the
            # kernel's lines tell better where there are any.
            return False, "", error.name() == "NoSuchModule" or error.evidence.errno == codes.ENOENT, error.message
        return info.signed, info.signer, False, ""


def _was_crossed(evidence: StepEvidence) -> bool:
    """Tell whether the module was there, or going, when the kernel looked for one of its name, and is gone now.

    An init() that answers EEXIST or EBUSY of its own, without a word, looks the same the first time.
    """
    inserting = evidence.step.action is StepAction.INSERT and evidence.outcome.kind == "done"
    return inserting and evidence.errno in (codes.EEXIST, codes.EBUSY) and not evidence.init_lines


def _ignored_parameters(step: Step) -> Conflict:
    return Conflict(
        f"somebody else loaded {step.module} meanwhile, so the kernel ignored its parameters: use Reload",
        module=step.module,
        evidence=Evidence(errno=codes.EEXIST, hint=f"kmodctl reload {step.module}"),
    )
