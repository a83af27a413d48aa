# SPDX-License-Identifier: LGPL-2.1-or-later
"""The public part of an explanation: what the caller could read without kmodd. Pure functions.

The daemon reads /proc, the mount tables and the kernel log with privileges that most callers lack, so a public reply leaves
out what /proc, /sys and dmesg would not show to the caller's own user.
"""

from collections.abc import Iterable
from dataclasses import replace

from kmodd.core.diagnosis.advice import UserSentence, drives, sentence
from kmodd.core.diagnosis.in_use import counted
from kmodd.core.module_requests import reason as load_reason
from kmodd.core.planning.consequence_text import is_hidden, public, told_to
from kmodd.errors import Evidence
from kmodd.fast_dataclass import dataclass
from kmodd.model import Explanation, LoadedBy, Plan, User

OTHERS = "of other users"
_UNOWNED = frozenset({"rule", "chain", "set", "object", "table", "state", "trigger", "pin"})
_OF_PROCESSES = frozenset({"process", "mount", "candidate"})
"""Kinds of which users with one pid are counted as one."""
LOADED = "loaded through kmodd"
"""Why a module is there, without who loaded it and for what."""
USERS, CONSEQUENCES, LOADER, LOG = "users", "consequences", "loaded-by", "kernel-log"
"""Names of the parts, as in the answer."""

_PUBLIC_KINDS = frozenset(
    {"module", "mount", "loop", "netdev", "block", "device", "array", "qdisc", "filter", "action", "service", "sysctl", "crypto"}
    | {"configfs", "watchdog", "kernel", "scheduler", "governor", "patch", "format", "socket", "file", "export", "session"}
)  # fmt: skip
"""Kinds that /proc, /sys and rtnetlink show to everyone unless the user of the module has an owner. All others are withheld
where the owner is unknown: processes, what netfilter shows to CAP_NET_ADMIN alone, and whatever kind is added later."""


@dataclass(frozen=True, slots=True)
class View:
    """What a caller may see beyond what everyone may."""

    uid: int | None = None
    """The caller's user, whose own processes and requests are shown; None shows no user's."""
    history: bool = False
    """Who loaded a module and why, for any user."""
    log: bool = False
    """The kernel's log: it is not restricted, or the caller may read it all the same."""


def redact_evidence(evidence: Evidence, view: View) -> tuple[Evidence, tuple[str, ...]]:
    """The evidence of a failure as this view shows it, and the names of the parts that it lacks: `users`, `consequences`, `kernel-log`."""
    withheld = []
    hidden = [user for user in evidence.users if _is_hidden(user, view.uid)]
    if hidden:
        withheld.append(USERS)
        evidence = replace(evidence, users=tuple(_summarized(evidence.users, hidden)))
    if any(is_hidden(row, view.uid) for row in evidence.consequences):
        withheld.append(CONSEQUENCES)
        evidence = replace(evidence, consequences=public(evidence.consequences, view.uid))
    if evidence.kernel_log and not view.log:
        withheld.append(LOG)
        evidence = replace(evidence, kernel_log=())
    return evidence, tuple(withheld)


def redact(explanation: Explanation, view: View) -> Explanation:
    """The explanation as this view shows it; `withheld` names the parts that it lacks."""
    hidden = [user for user in explanation.users if _is_hidden(user, view.uid)]
    users = tuple(_summarized(explanation.users, hidden))
    withheld = [USERS] if hidden else []
    if any(is_hidden(row, view.uid) for row in explanation.consequences):
        withheld.append(CONSEQUENCES)
    loaded_by, failure = explanation.loaded_by, explanation.failure
    if loaded_by is not None and not _shows_loader(explanation, view):
        withheld.append(LOADER)
        loaded_by = None
    if failure is not None and failure.by is not None and not _may_see(failure.by, view):
        failure = replace(failure, by=None)
    if failure is not None:
        evidence, parts = redact_evidence(failure.evidence, view)
        withheld += [part for part in parts if part not in withheld]
        failure = replace(failure, evidence=evidence)
    return replace(
        explanation,
        users=users,
        blockers=tuple(_blockers(explanation, hidden, users)),
        consequences=public(explanation.consequences, view.uid),
        loaded_by=loaded_by,
        load=explanation.load if view.history else None,
        failure=failure,
        free=() if hidden or any(_is_hidden(user, view.uid) for user in explanation.freed) else explanation.free,
        freed=(),
        because=_because(explanation, hidden, users, view),
        withheld=tuple(withheld),
    )


def redact_plan(plan: Plan, uid: int | None) -> Plan:
    """The plan as this user may see it."""
    return replace(
        plan,
        steps=tuple(
            replace(
                step,
                consequences=public(step.consequences, uid),
                error=told_to(step.error, uid) if step.error is not None else None,
            )
            for step in plan.steps
        ),
    )


def is_withheld(plan: Plan, uid: int | None) -> bool:
    """This user may not see all of the plan."""
    return any(is_hidden(row, uid) for step in plan.steps for row in step.consequences)


def _may_see(by: LoadedBy, view: View) -> bool:
    return view.history or (view.uid is not None and by.uid == view.uid)


def _shows_loader(explanation: Explanation, view: View) -> bool:
    """With access to the history; or the caller's own user loaded it through kmodd, and not a process that the kernel saw."""
    by = explanation.loaded_by
    return view.history or (by is not None and explanation.load is None and _may_see(by, view))


def _is_hidden(user: User, uid: int | None) -> bool:
    if user.owner is not None:
        return uid is None or user.owner != uid
    return user.kind not in _PUBLIC_KINDS


def _summarized(users: Iterable[User], hidden: list[User]) -> Iterable[User]:
    """The users, with one row for each kind in place of those that are hidden."""
    shown_names: set[str] = set()
    for user in users:
        if user not in hidden:
            yield user
        elif user.kind not in shown_names:
            shown_names.add(user.kind)
            same = [each for each in hidden if each.kind == user.kind]
            # A process has a row for each path it has open.
            one_by_one = user.kind not in _OF_PROCESSES or any(each.pid is None for each in same)
            count = len(same) if one_by_one else len({each.pid for each in same})
            # A rule of netfilter belongs to no user: only the administrator of the network may see it.
            whose = f" {OTHERS}" if user.kind not in _UNOWNED else ""
            yield User(user.kind, "", f"{counted(user.kind, count)}{whose}", count=count)


def _blockers(explanation: Explanation, hidden: list[User], users: Iterable[User]) -> Iterable[str]:
    """The blockers, with one sentence for each kind in place of those about hidden users."""
    summaries = {user.kind: sentence(user) for user in users if user.count}
    for blocker in explanation.blockers:
        if not isinstance(blocker, UserSentence) or blocker.user not in hidden:
            yield blocker
        elif (summary := summaries.pop(blocker.user.kind, None)) is not None:
            yield summary


def _because(explanation: Explanation, hidden: list[User], users: Iterable[User], view: View) -> str:
    # Holders are in /proc/modules, and go before everything else.
    if explanation.holders:
        return explanation.because
    if explanation.load is not None and not view.history:
        return (
            load_reason(explanation.load, details=False)
            if not explanation.driven
            else _driven(explanation, hidden, users)
        )
    if explanation.loaded_by is not None and explanation.load is None:
        return explanation.because if _shows_loader(explanation, view) else LOADED
    return _driven(explanation, hidden, users)


def _driven(explanation: Explanation, hidden: list[User], users: Iterable[User]) -> str:
    if explanation.driven and hidden:
        return drives(user for user in users if not user.count)
    return explanation.because
