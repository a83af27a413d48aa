# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is looked at to say how the machine's modules and kmodd itself are: pure functions from facts to findings."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from kmodd.core.operations import STUCK_MAX
from kmodd.core.policy import where
from kmodd.model import Failure, HealthCheck, HealthStatus, KernelFacts, LoadedModule, Rule, State
from kmodd.names import ModuleName

_OK, _DEGRADED, _FAILING = HealthStatus.OK, HealthStatus.DEGRADED, HealthStatus.FAILING
_PROPRIETARY, _CRASHED, _OUT_OF_TREE, _UNSIGNED = 1 << 0, 1 << 7, 1 << 12, 1 << 13
# Forced load and unload, machine check, bad page, warning, soft lockup (Documentation/admin-guide/tainted-kernels.rst).
_WORRYING = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 9 | 1 << 14
# What says that something is wrong; any other error is an answer to who asked, and the machine is as well as before.
_ALARMING = frozenset({"InitFailed", "TimedOut", "Stuck", "Crashed"})


BROUGHT_MAX = 8
"""Modules named that taint the kernel."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """Everything the checks look at, of one moment."""

    facts: KernelFacts
    taint_flags: tuple[str, ...]
    modules: Mapping[ModuleName, LoadedModule]
    failures: tuple[Failure, ...]
    hung: frozenset[ModuleName]
    """Modules that are coming or going for longer than any module takes."""
    forbidden: Mapping[ModuleName, Rule]
    """Modules that are loaded although a rule forbids it."""
    abandoned: int
    """Calls still in the kernel that nobody waits for."""
    overflows: int
    stuck_max: int = STUCK_MAX
    """So many of them, and nothing new is begun."""
    trouble: str = ""
    """What the daemon's own check of itself found; empty when it is well."""


def check_daemon(vitals: Vitals) -> Iterator[HealthCheck]:
    """The daemon's view of itself."""
    if vitals.trouble:
        yield HealthCheck("daemon", _FAILING, f"kmodd is not well: {vitals.trouble}.", "", "journalctl -u kmodd")
    else:
        yield HealthCheck("daemon", _OK, "kmodd serves.")


def check_module_tree(vitals: Vitals) -> Iterator[HealthCheck]:
    """Files for the running kernel."""
    release = vitals.facts.release
    if vitals.facts.tree_present:
        yield HealthCheck("module-tree", _OK, f"There is a module tree for kernel {release}.")
    else:
        yield HealthCheck(
            "module-tree",
            _FAILING,
            f"There is no module tree for the running kernel {release}, so nothing can be loaded.",
            "",
            "reboot into an installed kernel, or install the modules of this one and run depmod",
        )


def check_restrictions(vitals: Vitals) -> Iterator[HealthCheck]:
    """What the kernel was told to forbid; deliberate, so only the total ban counts."""
    facts = vitals.facts
    if facts.modules_disabled:
        yield HealthCheck(
            "modules-disabled",
            _DEGRADED,
            "Loading and unloading of modules is disabled until the next boot.",
            "",
            "sysctl kernel.modules_disabled was set to 1 and cannot be set back",
        )
    else:
        yield HealthCheck("modules-disabled", _OK, "Modules can be loaded and unloaded.")
    yield HealthCheck("lockdown", _OK, f"Kernel lockdown is {facts.lockdown}.")
    enforced = "refuses modules without a valid signature" if facts.signature_enforced else "accepts unsigned modules"
    if facts.lockdown != "none":
        enforced = "refuses unsigned modules while it is locked down"
    yield HealthCheck("signatures", _OK, f"The kernel {enforced}.")


def check_taint(vitals: Vitals) -> Iterator[HealthCheck]:
    """Flags of the kernel, and which loaded modules brought them."""
    taint = vitals.facts.taint
    flags = "; ".join(vitals.taint_flags)
    brought = [f"{module.name} ({module.taint})" for module in vitals.modules.values() if module.taint]
    more = f" and {len(brought) - BROUGHT_MAX} more" if len(brought) > BROUGHT_MAX else ""
    by = f" Brought by {', '.join(brought[:BROUGHT_MAX])}{more}." if brought else ""
    if taint & _CRASHED:
        yield HealthCheck(
            "taint",
            _FAILING,
            f"The kernel has crashed in part ({flags}).",
            "",
            "journalctl -k has the trace; plan a reboot",
        )
    elif taint & _WORRYING:
        yield HealthCheck(
            "taint", _DEGRADED, f"The kernel is tainted ({flags}).{by}", "", "journalctl -k says what happened"
        )
    elif taint:
        yield HealthCheck(
            "taint",
            _OK,
            f"The kernel is tainted ({flags}).{by}",
            "",
            "nothing to do; reports to kernel developers should say it",
        )
    else:
        yield HealthCheck("taint", _OK, "The kernel is not tainted.")
    unsigned = [module for module in vitals.modules.values() if "E" in module.taint]
    for module in unsigned:
        yield HealthCheck(
            "unsigned-module",
            _DEGRADED,
            f"{module.name} has no valid signature.",
            module.name,
            "sign it with a key the kernel trusts; under lockdown it would not load",
        )
    for module in vitals.modules.values():
        if "E" not in module.taint and ("O" in module.taint or "P" in module.taint):
            what = "is proprietary" if "P" in module.taint else "was built outside the kernel's tree"
            yield HealthCheck("out-of-tree-module", _OK, f"{module.name} {what}.", module.name)


def check_hung(vitals: Vitals) -> Iterator[HealthCheck]:
    """Modules whose init() or exit() does not come back."""
    for name in sorted(vitals.hung):
        module = vitals.modules[name]
        call = "init()" if module.state is State.COMING else "exit()"
        yield HealthCheck(
            "stuck-module",
            _DEGRADED,
            f"{name} is {module.state}: its {call} does not come back.",
            name,
            "the kernel alone can let go of it; plan a reboot",
        )
    if not vitals.hung:
        yield HealthCheck("stuck-module", _OK, "No module is stuck.")
    if vitals.abandoned >= vitals.stuck_max:
        message = f"{vitals.abandoned} calls hang in the kernel: no further load or unload is accepted."
        yield HealthCheck("stuck-calls", _FAILING, message, "", "reboot")
    elif vitals.abandoned:
        message = f"{_count(vitals.abandoned, 'call')} into the kernel did not come back."
        yield HealthCheck("stuck-calls", _DEGRADED, message, "", f"at {vitals.stuck_max} no more are accepted")
    else:
        yield HealthCheck("stuck-calls", _OK, "No call hangs in the kernel.")


def check_failures(vitals: Vitals) -> Iterator[HealthCheck]:
    """Operations that failed and were not reset."""
    for failure in vitals.failures:
        alarming = failure.error in _ALARMING
        status = _FAILING if failure.error == "Crashed" else _DEGRADED if alarming else _OK
        hint = failure.evidence.hint or f"kmodctl why {failure.module}"
        yield HealthCheck(
            "failed-operation",
            status,
            f"{failure.action} of {failure.module} failed ({failure.error}): {failure.message}",
            failure.module,
            hint,
        )
    if not vitals.failures:
        yield HealthCheck("failed-operation", _OK, "No failed operation is remembered.")


def check_policy(vitals: Vitals) -> Iterator[HealthCheck]:
    """Modules that are there although a rule forbids them."""
    for name, rule in sorted(vitals.forbidden.items()):
        yield HealthCheck(
            "forbidden-module",
            _DEGRADED,
            f"{name} is loaded although {where(rule)} forbids it.",
            name,
            f"kmodctl unload {name}; when it comes back at boot, update-initramfs -u",
        )
    if not vitals.forbidden:
        yield HealthCheck("forbidden-module", _OK, "No module is loaded against a rule.")


def check_events(vitals: Vitals) -> Iterator[HealthCheck]:
    """Lost kernel events are made up for by reading everything again, so they are worth a line and no alarm."""
    if vitals.overflows:
        message = f"Kernel events were lost {_count(vitals.overflows, 'time')}; everything was read again."
        yield HealthCheck(
            "events", _OK, message, "", "pairs of load and unload in between may be missing in the history"
        )
    else:
        yield HealthCheck("events", _OK, "No kernel event was lost.")


CHECKS: tuple[Callable[[Vitals], Iterator[HealthCheck]], ...] = (
    check_daemon,
    check_module_tree,
    check_hung,
    check_failures,
    check_taint,
    check_policy,
    check_restrictions,
    check_events,
)
"""All of them, what concerns a person most first."""


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"
