# SPDX-License-Identifier: LGPL-2.1-or-later
"""Executes one step: the call into the kernel, and the evidence if it fails."""

import errno as codes
from collections.abc import Callable
from dataclasses import dataclass, replace

from kmodd.core.diagnosis.diagnosis import diagnose
from kmodd.core.diagnosis.evidence import StepEvidence
from kmodd.errors import Conflict, Evidence, KmoddError, machine_fault, no_worker
from kmodd.kernel.ports import Kernel, LogMark
from kmodd.model import Outcome, State, Step, StepAction
from kmodd.model.arguments import spell

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

    def __init__(
        self,
        kernel: Kernel,
        *,
        capable: Callable[[int], bool] = lambda worker: True,
        authorised: Callable[[Step], str] = lambda step: "",
    ) -> None:
        """`capable` tells whether a worker, by process number, holds CAP_SYS_MODULE; called only after an EPERM.

        `authorised` answers the SHA-256 that the file of a step must have; empty if the content is not fixed.
        """
        self._kernel = kernel
        self._capable = capable
        self._authorised = authorised

    async def make(self, step: Step, timeout: float, parameters: tuple[str, ...] = ()) -> CallResult:
        """Take the step; `given` names the parameters that the caller, not the configuration, wants set."""
        for tries_left in reversed(range(_TRIES)):
            called = await self._try(step, timeout, parameters, last=not tries_left)
            if called is not None:
                return called
        raise AssertionError("the last try answers")

    async def _try(
        self, step: Step, timeout: float, parameters: tuple[str, ...], *, last: bool = False
    ) -> CallResult | None:
        """Make the call; None if it collided with another call on the same module, and may be repeated."""
        try:
            mark = self._kernel.log.mark()
        except OSError as error:
            return _not_made(step, error)
        try:
            try:
                outcome = await self._order(step, timeout)
            except OSError as error:
                return _not_made(step, error)
            if outcome.kind == "done" and outcome.errno == 0:
                return CallResult(outcome, changed=True)
            try:
                return await self._judge(step, outcome, mark, parameters, last=last)
            except OSError as error:
                # What became of the call counts, though not all about it can be read.
                return CallResult(outcome, changed=False, error=machine_fault(error, step.module))
        finally:
            mark.close()

    async def _order(self, step: Step, timeout: float) -> Outcome:
        if step.action is StepAction.REMOVE:
            return await self._kernel.executor.remove(step.module, timeout=timeout)
        arguments, sha256 = spell(step.parameters), self._authorised(step)
        return await self._kernel.executor.insert(step.path, arguments, sha256=sha256, timeout=timeout)

    async def _judge(
        self, step: Step, outcome: Outcome, mark: LogMark, parameters: tuple[str, ...], *, last: bool
    ) -> CallResult | None:
        if self._was_so_already(step, outcome):
            return CallResult(outcome, changed=False, error=_ignored_parameters(step) if parameters else None)
        evidence = await self._gather(step, outcome, mark.lines(), parameters)
        if _was_crossed(evidence) and not last:
            return None
        error = diagnose(evidence)
        if mark.fault:
            error.evidence = replace(error.evidence, log_fault=mark.fault)
        return CallResult(outcome, changed=False, error=error)

    def _was_so_already(self, step: Step, outcome: Outcome) -> bool:
        if outcome.kind != "done":
            return False
        if step.action is StepAction.REMOVE:
            return outcome.errno == codes.ENOENT
        if outcome.errno != codes.EEXIST:
            return False
        # An init() may return EEXIST itself: then the module is not loaded.
        module = self._kernel.loaded.read(step.module)
        return module is not None and module.state is State.LIVE

    async def _gather(
        self, step: Step, outcome: Outcome, log: tuple[str, ...], parameters: tuple[str, ...]
    ) -> StepEvidence:
        module = self._kernel.loaded.read(step.module)
        busy = step.action is StepAction.REMOVE and outcome.errno in (codes.EAGAIN, codes.EBUSY)
        users = (await self._kernel.inspection.users(step.module)).users if busy and module is not None else ()
        signed, signer, missing, fault = self._judge_file(step)
        untrusted = step.action is StepAction.INSERT and outcome.errno in _UNTRUSTED
        return StepEvidence(
            step=step,
            outcome=outcome,
            facts=self._kernel.facts.read(),
            log=log,
            module=module,
            users=users,
            options=tuple(rule for rule in self._kernel.index.rules(step.file) if rule.kind == "options"),
            given=parameters,
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
            info = self._kernel.index.info(step.file)
        except KmoddError as error:
            # NoSuchModule: the index has no such file any more. BadModule: gone, or one that cannot be parsed, which the
            # kernel's lines tell better where there are any.
            return False, "", error.name() == "NoSuchModule" or error.evidence.errno == codes.ENOENT, error.message
        return info.signed, info.signer, False, ""


def _not_made(step: Step, error: OSError) -> CallResult:
    """The kernel was not called: the executor says so by raising."""
    return CallResult(Outcome("done", error.errno or codes.EIO), changed=False, error=no_worker(error, step.module))


def _was_crossed(evidence: StepEvidence) -> bool:
    """Tell whether the module was there, or going, when the kernel looked for one of its name, and is gone now.

    An init() that returns EEXIST or EBUSY itself, without a message, looks the same the first time.
    """
    inserting = evidence.step.action is StepAction.INSERT and evidence.outcome.kind == "done"
    return inserting and evidence.errno in (codes.EEXIST, codes.EBUSY) and not evidence.init_lines


def _ignored_parameters(step: Step) -> Conflict:
    return Conflict(
        f"{step.module} was loaded concurrently without these parameters; reload it to apply them",
        module=step.module,
        evidence=Evidence(errno=codes.EEXIST, hint=f"kmodctl reload {step.module}"),
    )
