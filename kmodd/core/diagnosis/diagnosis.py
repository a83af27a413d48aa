# SPDX-License-Identifier: LGPL-2.1-or-later
"""Maps the evidence of a failed call to one error of the table, by pure functions; and the causes of delete_module's errors.

EAGAIN stands for holders and for references, EBUSY for a state that is not live and for a module without exit function, so
the causes are taken from /proc/modules rather than from errno.
"""

import errno as codes
import shlex
from collections.abc import Callable, Mapping

from kmodd.core.diagnosis.evidence import StepEvidence
from kmodd.core.diagnosis.in_use import in_use, not_removable, unloading_not_built_in
from kmodd.core.diagnosis.load_failures import LOAD_TABLE, disabled_until_reboot, init_failed, no_capability
from kmodd.errors import INTERNAL, BadModule, Busy, Crashed, Failed, KmoddError, NotPermitted, NotRemovable, TimedOut
from kmodd.model import State, StepAction

Cause = Callable[[StepEvidence], KmoddError | None]


def not_permitted(e: StepEvidence) -> KmoddError | None:
    """Nothing known forbids it."""
    return NotPermitted(
        f"the kernel does not permit unloading {e.step.module}, and gives no reason",
        module=e.step.module,
        evidence=e.facts_for("cat /sys/kernel/security/lsm"),
    )


def not_live(e: StepEvidence) -> KmoddError | None:
    """`coming` or `going`, by another process."""
    if e.module is None or e.module.state is State.LIVE:
        return None
    doing = "loaded" if e.module.state is State.COMING else "unloaded"
    return Busy(
        f"{e.step.module} is currently being {doing} by another process; try again",
        module=e.step.module,
        evidence=e.facts_for(f"cat /sys/module/{e.step.module}/initstate"),
    )


def permanent(e: StepEvidence) -> KmoddError | None:
    """`[permanent]` in /proc/modules: init without exit."""
    if e.module is None or not e.module.permanent:
        return None
    return not_removable(e.step.module, errno=e.errno, kernel_log=e.kept_lines)


def used(e: StepEvidence) -> KmoddError | None:
    """Holders, users, or references that nothing explains."""
    if e.module is None:
        return None
    if not e.module.holders and not e.users and e.module.references <= 0 and e.errno != codes.EAGAIN:
        return None
    return in_use(e.module, e.users, errno=e.errno, kernel_log=e.kept_lines)


def passed(e: StepEvidence) -> KmoddError | None:
    """The obstacle is gone: another load or unload finished, or the module no longer exists."""
    return Busy(
        f"{e.step.module} was being loaded or unloaded by another process; try again",
        module=e.step.module,
        evidence=e.facts_for(f"kmodctl why {e.step.module}"),
    )


def no_unloading(e: StepEvidence) -> KmoddError | None:
    """CONFIG_MODULE_UNLOAD is off: there is no such system call."""
    return unloading_not_built_in(e.step.module, errno=e.errno)


def unload_failed(e: StepEvidence) -> KmoddError | None:
    """Whatever else it answers."""
    return NotRemovable(
        f"the kernel does not unload {e.step.module} ({e.errno_name})",
        module=e.step.module,
        evidence=e.facts_for("journalctl -k"),
    )


UNLOAD_TABLE: Mapping[int, tuple[Cause, ...]] = {
    codes.EPERM: (no_capability, disabled_until_reboot, not_permitted),
    codes.EAGAIN: (not_live, used, passed),
    codes.EBUSY: (not_live, permanent, used, passed),
    codes.ENOSYS: (no_unloading,),
}
"""For each errno its causes; `unload_failed` follows them all."""


def diagnose(evidence: StepEvidence) -> KmoddError:
    """Name the cause of a call that did not do what it should."""
    if evidence.outcome.kind == "timed-out":
        return timed_out(evidence)
    if evidence.outcome.kind == "crashed":
        return crashed(evidence)
    if evidence.outcome.refusal:
        return file_refused(evidence)
    inserting = evidence.step.action is StepAction.INSERT
    table, last = (LOAD_TABLE, init_failed) if inserting else (UNLOAD_TABLE, unload_failed)
    for cause in (*table.get(evidence.errno, ()), last):
        error = cause(evidence)
        if error is not None:
            return error
    # The last cause of both tables answers always.
    return Failed(INTERNAL, module=evidence.step.module)


def timed_out(e: StepEvidence) -> KmoddError:
    """The call is still in the kernel; it cannot be cancelled."""
    name = e.step.module
    where = "init" if e.step.action is StepAction.INSERT else "exit"
    seconds = max(1, round(e.outcome.duration_usec / 1_000_000))
    return TimedOut(
        f"the {where} of {name} has not returned after {seconds} s; {name} stays locked until it does",
        module=name,
        evidence=e.facts_for(f"kmodctl why {name}; cat /proc/{e.outcome.worker}/stack shows where it waits"),
    )


_REFUSALS: Mapping[str, tuple[str, str]] = {
    "release": ("is for another kernel than the running one", "systemctl restart kmodd.service"),
    "place": ("is not in the module tree of the running kernel", "depmod -a"),
    "kind": ("is not a regular file", "namei -l {path}"),
    "owner": ("is writable by other users than root, or a directory or link on its path is", "namei -l {path}"),
    "digest": ("is not the one that was activated in the store", "kmodctl store list"),
}
"""For each word of the worker's: what is wrong with the file, and a command that shows it or puts it right."""


def file_refused(e: StepEvidence) -> KmoddError:
    """The worker did not hand the file to the kernel."""
    why, hint = _REFUSALS.get(e.outcome.refusal, ("is not one that may be loaded", "journalctl -u kmodd"))
    return BadModule(
        f"the file of {e.step.module} {why}",
        module=e.step.module,
        evidence=e.facts_for(hint.format(path=shlex.quote(e.step.path))),
    )


def crashed(e: StepEvidence) -> KmoddError:
    """The kernel killed the worker inside the call, as it does after an oops."""
    name = e.step.module
    where = "init" if e.step.action is StepAction.INSERT else "exit"
    left = e.module is not None and e.module.state is not State.LIVE
    stays = f"; {name} stays partially {'loaded' if where == 'init' else 'unloaded'} until reboot" if left else ""
    return Crashed(
        f"the {where} of {name} crashed the kernel{stays}",
        module=name,
        evidence=e.facts_for("journalctl -k has the oops; reboot soon, and report it to the module's author"),
    )
