# SPDX-License-Identifier: LGPL-2.1-or-later
"""From the evidence of a failed call to one error of the table. A pure function: everything it knows is handed to it."""

from kmodd.core.evidence import StepEvidence
from kmodd.core.load_faults import LOAD_TABLE, init_failed
from kmodd.core.unload_faults import UNLOAD_TABLE, unload_failed
from kmodd.errors import INTERNAL, Crashed, Failed, KmoddError, TimedOut
from kmodd.model import State, StepAction


def diagnose(evidence: StepEvidence) -> KmoddError:
    """Name the cause of a call that did not do what it should."""
    if evidence.outcome.kind == "timed-out":
        return timed_out(evidence)
    if evidence.outcome.kind == "crashed":
        return crashed(evidence)
    inserting = evidence.step.action is StepAction.INSERT
    table, last = (LOAD_TABLE, init_failed) if inserting else (UNLOAD_TABLE, unload_failed)
    for cause in (*table.get(evidence.errno, ()), last):
        error = cause(evidence)
        if error is not None:
            return error
    # The last cause of both tables answers always.
    return Failed(INTERNAL, module=evidence.step.module)


def timed_out(e: StepEvidence) -> KmoddError:
    """The call is still in the kernel; nobody can take it back."""
    name = e.step.module
    where = "init" if e.step.action is StepAction.INSERT else "exit"
    seconds = max(1, round(e.outcome.duration_usec / 1_000_000))
    return TimedOut(
        f"the {where} of {name} has not come back after {seconds} s; {name} stays locked until it does",
        module=name,
        evidence=e.facts_for(f"kmodctl why {name}; cat /proc/{e.outcome.worker}/stack shows where it waits"),
    )


def crashed(e: StepEvidence) -> KmoddError:
    """The kernel killed the worker inside the call, as it does after an oops."""
    name = e.step.module
    where = "init" if e.step.action is StepAction.INSERT else "exit"
    left = e.module is not None and e.module.state is not State.LIVE
    stays = f"; {name} stays half {'loaded' if where == 'init' else 'unloaded'} until the next boot" if left else ""
    return Crashed(
        f"the {where} of {name} crashed the kernel{stays}",
        module=name,
        evidence=e.facts_for("journalctl -k has the oops; reboot soon, and report it to the module's author"),
    )
