# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why delete_module said no.

EAGAIN stands for holders and for references, EBUSY for a state that is not live and for a module without exit, so the
causes are told from /proc/modules rather than from errno.
"""

import errno as codes
from collections.abc import Callable, Mapping

from kmodd.core.evidence import StepEvidence
from kmodd.core.insertion import modules_disabled
from kmodd.core.usage import in_use, not_removable, unloading_not_built_in
from kmodd.errors import Busy, KmoddError, NotPermitted, NotRemovable
from kmodd.model import State

Cause = Callable[[StepEvidence], KmoddError | None]


def no_capability(e: StepEvidence) -> KmoddError | None:
    """delete_module asks for CAP_SYS_MODULE first."""
    if e.capable:
        return None
    return NotPermitted(
        f"kmodd may not unload {e.step.module}: its worker runs without CAP_SYS_MODULE",
        module=e.step.module,
        evidence=e.facts_for("systemctl cat kmodd-worker@.service: CapabilityBoundingSet= has to name CAP_SYS_MODULE"),
    )


def disabled_until_reboot(e: StepEvidence) -> KmoddError | None:
    """modules_disabled forbids unloading too."""
    if not e.facts.modules_disabled:
        return None
    error = modules_disabled(e.step.module)
    error.evidence = e.facts_for(error.evidence.hint)
    return error


def not_permitted(e: StepEvidence) -> KmoddError | None:
    """Nothing known forbids it."""
    return NotPermitted(
        f"the kernel does not permit unloading {e.step.module}, and does not say why",
        module=e.step.module,
        evidence=e.facts_for("cat /sys/kernel/security/lsm"),
    )


def not_live(e: StepEvidence) -> KmoddError | None:
    """`coming` or `going`, in the hands of somebody else."""
    if e.module is None or e.module.state is State.LIVE:
        return None
    doing = "loaded" if e.module.state is State.COMING else "unloaded"
    return Busy(
        f"{e.step.module} is being {doing} by somebody else at this moment, ask again when it is done",
        module=e.step.module,
        evidence=e.facts_for(f"cat /sys/module/{e.step.module}/initstate"),
    )


def permanent(e: StepEvidence) -> KmoddError | None:
    """`[permanent]` in /proc/modules: init without exit."""
    if e.module is None or not e.module.permanent:
        return None
    return not_removable(e.step.module, errno=e.errno, kernel_log=e.log)


def used(e: StepEvidence) -> KmoddError | None:
    """Holders, users, or references that nothing explains."""
    if e.module is None:
        return None
    if not e.module.holders and not e.users and e.module.references <= 0 and e.errno != codes.EAGAIN:
        return None
    return in_use(e.module, e.users, errno=e.errno, kernel_log=e.log)


def passed(e: StepEvidence) -> KmoddError | None:
    """What was in the way is over: somebody else's load or unload, or the module is gone altogether."""
    return Busy(
        f"{e.step.module} was being loaded or unloaded by somebody else at this moment, ask again",
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
