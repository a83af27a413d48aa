# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reports about the fleet: the status of a ModuleSet, the labels and the condition of a node, events. Pure, as planning is."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from kmodd.coordinator.planning import UP, Member, Phase, Plan, SetPlan, Standing
from kmodd.errors import InvalidArgs, Unavailable
from kmodd.fast_dataclass import dataclass
from kmodd.fleet.resources import Condition, ConditionStatus, ModuleSet, ModuleSetStatus, ModuleState, TopReason

LABEL = "modules.kmodd.org/"
"""Prefix of the labels of a node, one for each set: for nodeSelector and affinity of pods."""
CONDITION = "KernelModulesReady"
"""Type of the condition of a node."""
TOP_REASONS = 5

SILENT_MESSAGE = "the agent of the node does not respond"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a set is not ready on a node."""

    reason: str
    """A name of kmodd's table of errors; empty where the set is only on its way."""
    message: str


def trouble(member: Member, name: str, standing: Standing) -> Trouble | None:
    """Why the set is not ready on the node; None where it is, or where the node was not given it."""
    if standing in UP or standing is Standing.ABSENT:
        return None
    if member.silent:
        return Trouble(Unavailable.name(), SILENT_MESSAGE)
    report = member.report(name)
    if standing is Standing.MOVING or report is None:
        return Trouble("", "the agent has not reported about it")
    return Trouble(report.reason, report.message)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is shown of one set on one node."""

    label: str
    """`ready`, `loadable` or `unavailable`."""
    standing: Standing
    trouble: Trouble | None


def verdict(member: Member, name: str, label: str = "") -> Verdict:
    """What to show; `label` is what the node carries now.

    A report that is behind because something else of the node's spec changed says nothing new about this set: what was shown
    stays. One about another version of the set is not about what the node is to have, and one from before the node started is
    about modules that are gone: unavailable. So is a silent node.
    """
    standing = member.standing(name)
    problem = trouble(member, name, standing)
    if standing is Standing.READY:
        return Verdict("ready", standing, problem)
    if standing is Standing.IDLE:
        return Verdict("loadable", standing, problem)
    report, entry = member.report(name), member.entry(name)
    about_it = report is not None and entry is not None and report.generation == entry.generation
    if (
        standing is Standing.MOVING
        and about_it
        and not member.silent
        and not member.rebooted
        and label in ("ready", "loadable")
    ):
        return Verdict(label, standing, problem)
    return Verdict("unavailable", standing, problem)


def node_labels(member: Member, sets: Sequence[str], changing: Collection[str] = ()) -> dict[str, str | None]:
    """The labels to change on a node that these sets select: None for one to remove; empty where all are right.

    A set whose entry is about to change is unavailable from now on, so that no pod is bound for it any more.
    """
    present = {key: value for key, value in member.node.labels.items() if key.startswith(LABEL)}
    wanted = {
        LABEL + name: "unavailable" if name in changing else verdict(member, name, present.get(LABEL + name, "")).label
        for name in sets
    }
    changes: dict[str, str | None] = {key: value for key, value in wanted.items() if present.get(key) != value}
    changes.update({key: None for key in present if key not in wanted})
    return changes


def node_condition(member: Member, sets: Sequence[str], time: str, present: Condition | None) -> Condition | None:
    """The node's condition, with `present` where nothing is new; None for a node that has none and needs none."""
    if not sets:
        return None
    verdicts = {name: verdict(member, name) for name in sets}
    bad = {name: each for name, each in verdicts.items() if each.trouble is not None}
    moving = [name for name, each in bad.items() if each.standing is Standing.MOVING]
    if member.silent:
        status, reason, message = ConditionStatus.UNKNOWN, "AgentSilent", SILENT_MESSAGE
    elif any(each.standing is Standing.ABSENT for each in verdicts.values()):
        status, reason, message = ConditionStatus.FALSE, "Pending", "the node was not given all of its module sets yet"
    elif (
        moving
        and len(moving) == len(bad)
        and not member.rebooted
        and present is not None
        and present.status is not ConditionStatus.UNKNOWN
    ):
        return present
    elif bad:
        name = min(bad, key=lambda each: (_SEVERITY.index(bad[each].standing), each))
        told = bad[name].trouble
        status, reason = ConditionStatus.FALSE, (told.reason if told else "") or "Pending"
        message = f"module set {name}: {told.message if told else ''}"
    else:
        status, reason, message = ConditionStatus.TRUE, "Ready", f"{_count(len(sets), 'module set')} ready"
    return condition(CONDITION, status, reason, message, time, (present,) if present else ())


_SEVERITY = (
    Standing.FAILED,
    Standing.BLOCKED,
    Standing.SILENT,
    Standing.PENDING,
    Standing.MOVING,
    Standing.ABSENT,
    Standing.READY,
    Standing.IDLE,
)


def condition(
    type_: str,
    status: ConditionStatus,
    reason: str,
    message: str,
    time: str,
    present: Sequence[Condition],
    generation: int = 0,
) -> Condition:
    """A condition whose transition time is kept while its status stays."""
    old = next((each for each in present if each.type == type_), None)
    since = old.last_transition_time if old is not None and old.status is status else time
    return Condition(type_, status, reason, message, since, generation)


def set_status(module_set: ModuleSet, plan: Plan, members: Mapping[str, Member], time: str) -> ModuleSetStatus:
    """Sum up one set; conditions keep their transition times."""
    name, generation = module_set.metadata.name, module_set.metadata.generation
    about = plan.sets[name]
    standings = {node: members[node].standing(name) for node in about.members}
    counts = Counter(standings.values())
    ready = sum(counts[each] for each in UP)
    reasons = top_reasons(name, {node: members[node] for node in about.members}, standings)
    total = len(about.members)
    if total == 0:
        status, reason, message = ConditionStatus.FALSE, "NoNodes", "no node has the labels of nodeSelector"
    elif name in plan.circular:
        status, reason = ConditionStatus.FALSE, "Circular"
        message = "the sets of after form a circle, of which none can be the first"
    elif ready == total:
        status, reason, message = ConditionStatus.TRUE, "Ready", f"{_count(total, 'node')} ready"
    else:
        status, reason = ConditionStatus.FALSE, reasons[0].reason if reasons else "Pending"
        message = f"{ready} of {_count(total, 'node')} ready"
        if reasons:
            top = reasons[0]
            message += f"; {top.reason} on {_count(top.nodes, 'node')}, such as {top.example}: {top.message}"
    present = module_set.status.conditions
    return ModuleSetStatus(
        observed_generation=generation,
        nodes=total,
        ready=ready,
        failed=counts[Standing.FAILED],
        blocked=counts[Standing.BLOCKED],
        updated=about.updated,
        top_reasons=reasons,
        conditions=(
            condition("Ready", status, reason, message, time, present, generation),
            condition("Progressing", *_progress(module_set, about), time, present, generation),
        ),
    )


def unreadable_status(error: InvalidArgs, generation: int, time: str, status: ModuleSetStatus) -> ModuleSetStatus:
    """The status of a set that cannot be read: its nodes stay as they are, so the numbers are the last ones."""
    message = f"{error.message}; nodes keep what they were given before"
    ready = condition("Ready", ConditionStatus.FALSE, error.name(), message, time, status.conditions, generation)
    return ModuleSetStatus(observed_generation=generation, conditions=(ready,))


def _progress(module_set: ModuleSet, plan: SetPlan) -> tuple[ConditionStatus, str, str]:
    total, rollout = len(plan.members), module_set.spec.rollout
    done = f"{plan.updated} of {_count(total, 'node')} updated"
    match plan.phase:
        case Phase.COMPLETE:
            return ConditionStatus.FALSE, plan.phase, f"{_count(total, 'node')} updated"
        case Phase.PAUSED:
            return ConditionStatus.FALSE, plan.phase, f"{done}; rollout.paused is true"
        case Phase.STOPPED:
            failed = _count(plan.failures, "node")
            why = f"{failed} failed after the change and rollout.stopAfterFailures is {rollout.stop_after_failures}"
            return ConditionStatus.FALSE, plan.phase, f"{done}; {why}"
        case Phase.ROLLING:
            return ConditionStatus.TRUE, plan.phase, done


def top_reasons(name: str, members: Mapping[str, Member], standings: Mapping[str, Standing]) -> tuple[TopReason, ...]:
    """The most frequent reasons, the most frequent first, each with the first of its nodes by name."""
    nodes_of: dict[str, list[tuple[str, str]]] = {}
    for node, member in members.items():
        problem = trouble(member, name, standings[node])
        if problem is not None and problem.reason:
            nodes_of.setdefault(problem.reason, []).append((node, problem.message))
    rows = sorted(nodes_of.items(), key=lambda item: (-len(item[1]), item[0]))[:TOP_REASONS]
    return tuple(TopReason(reason, len(nodes), *min(nodes)) for reason, nodes in rows)


@dataclass(frozen=True, slots=True)
class Occurrence:
    """What an Event says."""

    kind: str
    """Kind of the object that it is about: `NodeModules` or `ModuleSet`."""
    name: str
    """Of that object."""
    subject: str
    """What it is about within the object: the set's name, or what of the set."""
    reason: str
    message: str
    warning: bool = False


def node_occurrence(member: Member, name: str) -> Occurrence | None:
    """What to say about a set on a node where its standing changed; None for what passes by."""
    standing = member.standing(name)
    about = ("NodeModules", member.node.name, name)
    report = member.report(name)
    if standing is Standing.READY:
        return Occurrence(*about, "Ready", f"module set {name} is ready")
    if standing is Standing.IDLE:
        return Occurrence(*about, "Loadable", f"module set {name} can be loaded, and no pod needs it")
    if standing is Standing.SILENT:
        return Occurrence(*about, Unavailable.name(), SILENT_MESSAGE, warning=True)
    if report is None or standing not in (Standing.FAILED, Standing.BLOCKED):
        if report is not None and standing is Standing.PENDING and report.state is ModuleState.DRIFTED:
            return Occurrence(*about, "Drifted", f"module set {name}: {report.message}", warning=True)
        return None
    return Occurrence(*about, report.reason or str(report.state), f"module set {name}: {report.message}", warning=True)


def set_occurrence(module_set: ModuleSet, plan: SetPlan) -> Occurrence:
    """What to say about a set whose rollout came to another phase."""
    _, reason, message = _progress(module_set, plan)
    name = module_set.metadata.name
    return Occurrence("ModuleSet", name, "rollout", reason, message, warning=plan.phase is Phase.STOPPED)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
