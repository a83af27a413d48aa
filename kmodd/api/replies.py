# SPDX-License-Identifier: LGPL-2.1-or-later
"""Replies as maps: for each kind of value one function that lists every key and its type."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kmodd.core.listing import ListedModule
from kmodd.core.planning.consequence_text import sentence
from kmodd.errors import INTERNAL, Evidence, Failed, KmoddError
from kmodd.model import (
    ConsequenceKind,
    Explanation,
    Failure,
    Health,
    HistoryEntry,
    LoadedBy,
    Metric,
    ModuleInfo,
    OperationResult,
    Plan,
    Step,
    StepAction,
    User,
)
from kmodd.model.arguments import displayed, shown
from kmodd.model.rules import Drift, Finding, ShownRule

Row = dict[str, tuple[str, Any]]
"""`a{sv}` as the encoder takes it."""
_FORETOLD = frozenset({"error", "message", "hint", "file", "line"})
"""What a plan, which everyone may ask for, tells of a failure."""


def step(planned: Step) -> Row:
    """A row of `Plan`."""
    row: Row = {
        "action": ("s", planned.action.value),
        "module": ("s", planned.module),
        "path": ("s", planned.path),
        "parameters": ("s", displayed(planned.parameters, planned.withheld)),
        "because": ("s", planned.because),
        "consequences": ("as", [sentence(each) for each in planned.consequences]),
        "operation": ("u", planned.operation),
    }
    if planned.action is StepAction.REMOVE:
        own = [each for each in planned.consequences if each.kind is ConsequenceKind.INTERFACE and not each.netns]
        row["interfaces"] = ("as", list(dict.fromkeys(name for each in own for name in (each.name, *each.carries))))
        row["addresses"] = ("as", list(dict.fromkeys(address for each in own for address in each.addresses)))
    if planned.optional:
        row["optional"] = ("b", True)
    if planned.error is not None:
        foretold = failure_in_row(planned.error, planned.error.evidence)
        row |= {key: value for key, value in foretold.items() if key in _FORETOLD}
    return row


def failure_in_row(exception: KmoddError, shown: Evidence, withheld: Sequence[str] = ()) -> Row:
    """A failure inside an answer: what one that is raised has, with the evidence `shown`.

    `withheld` names the parts of the evidence that the caller may not see.
    """
    row: Row = {
        "error": ("s", exception.name()),
        "message": ("s", INTERNAL if isinstance(exception, Failed) else exception.message),
        **evidence(shown),
    }
    if withheld:
        row["withheld"] = ("as", withheld)
    return row


def plan(planned: Plan) -> list[Row]:
    """The answer of `Plan`."""
    return [step(each) for each in planned.steps]


def result(outcome: OperationResult, shown: Evidence, withheld: Sequence[str] = ()) -> Row:
    """A row of `Batch` and `Apply`; `shown` and `withheld` as for `failure_in_row`."""
    row: Row = {
        "module": ("s", outcome.module),
        "action": ("s", outcome.action),
        "result": ("s", outcome.result.value),
        "changed": ("as", outcome.touched),
    }
    return row if outcome.error is None else row | failure_in_row(outcome.error, shown, withheld)


def listed(module: ListedModule) -> Row:
    """A row of `ListModules`."""
    row: Row = {"name": ("s", module.name), "state": ("s", module.state.value)}
    if module.loaded is not None:
        row["size"] = ("t", module.loaded.size)
        row["references"] = ("i", module.loaded.references)
        row["holders"] = ("as", module.loaded.holders)
        row["taint"] = ("s", module.loaded.taint)
    return row


def explanation(explained: Explanation) -> Row:
    """The answer of `Explain`."""
    row: Row = {
        "name": ("s", explained.name),
        "state": ("s", explained.state.value),
        "because": ("s", explained.because),
        "holders": ("as", explained.holders),
        "references": ("i", explained.references),
        "users": ("aa{sv}", [user(each) for each in explained.users]),
        "free": ("as", explained.free),
        "consequences": ("as", [sentence(each) for each in explained.consequences]),
        "disconnects": ("b", explained.disconnects),
        "removable": ("b", explained.removable),
        "blockers": ("as", explained.blockers),
        "loadable": ("b", explained.loadable),
        "policy": ("s", explained.policy),
        "partial": ("s", explained.partial),
    }
    if explained.rule is not None:
        row["policy-kind"] = ("s", explained.rule.kind)
        row["policy-file"] = ("s", explained.rule.file)
        row["policy-line"] = ("u", explained.rule.line)
        row["policy-rule"] = ("s", explained.rule.told)
    if explained.file:
        row["file"] = ("s", explained.file)
    if explained.differs:
        row["differs"] = ("s", explained.differs)
    if explained.withheld:
        row["withheld"] = ("as", explained.withheld)
    if explained.loaded_by is not None:
        row["loaded-by"] = ("a{sv}", loaded_by(explained.loaded_by))
    if explained.failure is not None:
        row["failure"] = ("a{sv}", failure(explained.failure))
    return row


def user(listed_user: User) -> Row:
    """A row of `users`; what does not apply is left out."""
    row: Row = {"kind": ("s", listed_user.kind), "name": ("s", listed_user.name), "detail": ("s", listed_user.detail)}
    if listed_user.command:
        row["command"] = ("s", listed_user.command)
    if listed_user.pid is not None:
        row["pid"] = ("u", listed_user.pid)
    if listed_user.exe:
        row["exe"] = ("s", listed_user.exe)
    for key in ("unit", "container", "netns", "mountns", "file"):
        if text := getattr(listed_user, key):
            row[key] = ("s", text)
    if listed_user.line:
        row["line"] = ("u", listed_user.line)
    if listed_user.count:
        row["count"] = ("u", listed_user.count)
    return row


def loaded_by(load: LoadedBy) -> Row:
    """Who loaded it."""
    row: Row = {"client": ("s", load.client), "reason": ("s", load.reason), "time": ("t", load.time)}
    if load.uid is not None:
        row["uid"] = ("u", load.uid)
    if load.pid is not None:
        row["pid"] = ("u", load.pid)
    for key, text in (("alias", load.alias), ("unit", load.unit), ("container", load.container)):
        if text:
            row[key] = ("s", text)
    if load.devices:
        row["devices"] = ("as", load.devices)
    return row


def failure(failed: Failure) -> Row:
    """A remembered failure with its evidence."""
    return {
        "action": ("s", failed.action),
        "error": ("s", failed.error),
        "message": ("s", failed.message),
        "kernel-log": ("as", ()),
        "hint": ("s", ""),
        "time": ("t", failed.time),
        "stuck": ("b", failed.stuck),
        **evidence(failed.evidence),
    }


def error(exception: KmoddError, shown: Evidence) -> Row:
    """The second argument of an error reply: what it is about, and the evidence `shown`; what is not known is left out."""
    row: Row = {}
    if exception.module:
        row["module"] = ("s", exception.module)
    if exception.argument:
        row["argument"] = ("s", exception.argument)
    if exception.touched:
        row["touched"] = ("as", exception.touched)
    return row | evidence(shown)


def evidence(facts: Evidence) -> Row:
    """What was found out about a failure; what is not known is left out."""
    row: Row = {} if facts.errno is None else {"errno": ("i", facts.errno)}
    texts = {
        "hint": facts.hint,
        "file": facts.file,
        "rule": facts.rule,
        "rule-kind": facts.rule_kind,
        "parameter": facts.parameter,
    }
    row.update({key: ("s", value) for key, value in texts.items() if value})
    if facts.line:
        row["line"] = ("u", facts.line)
    lists = {"kernel-log": facts.kernel_log, "holders": facts.holders, "symbols": facts.symbols}
    row.update({key: ("as", value) for key, value in lists.items() if value})
    if facts.consequences:
        row["consequences"] = ("as", [sentence(each) for each in facts.consequences])
    if facts.users:
        row["users"] = ("aa{sv}", [user(each) for each in facts.users])
    return row


def description(info: ModuleInfo, writable: Iterable[str]) -> Row:
    """The answer of `Describe`; `writable` names the parameters that can be written now."""
    live = frozenset(writable)
    row: Row = {
        "name": ("s", info.name),
        "filename": ("s", info.filename),
        "description": ("s", info.description),
        "license": ("s", info.license),
        "author": ("s", info.author),
        "version": ("s", info.version),
        "srcversion": ("s", info.srcversion),
        "vermagic": ("s", info.vermagic),
        "signer": ("s", info.signer),
        "signed": ("b", info.signed),
        "intree": ("b", info.intree),
        "firmware": ("as", info.firmware),
        "depends": ("as", info.depends),
        "softdep-pre": ("as", info.softdep_pre),
        "softdep-post": ("as", info.softdep_post),
        "aliases": ("as", info.aliases),
        "parameters": (
            "a(sssb)",
            [(each.name, each.type, each.description, each.name in live) for each in info.parameters],
        ),
    }
    if info.holds is not None:
        row["holds"] = ("s", info.holds)
    return row


def health(report: Health) -> Row:
    """The answer of `GetHealth`."""
    checks = [
        {
            "name": ("s", check.name),
            "status": ("s", check.status.value),
            "message": ("s", check.message),
            "module": ("s", check.module),
            "hint": ("s", check.hint),
            **({} if check.finding is None else place(check.finding)),
            **({"error": ("s", check.error), "cause": ("s", check.cause)} if check.error else {}),
        }
        for check in report.checks
    ]
    return {
        "status": ("s", report.status.value),
        "checks": ("aa{sv}", checks),
        "release": ("s", report.facts.release),
        "lockdown": ("s", report.facts.lockdown),
        "signature-enforced": ("b", report.facts.signature_enforced),
        "modules-disabled": ("b", report.facts.modules_disabled),
        "secure-boot": ("b", report.facts.secure_boot),
        "taint": ("t", report.facts.taint),
        "taint-flags": ("as", report.taint_flags),
    }


def place(finding: Finding) -> Row:
    """Where the line of a finding stands, and what to write instead."""
    return {
        "file": ("s", finding.file),
        "line": ("u", finding.line),
        "instead": ("a(ss)", [(line.file, line.text) for line in finding.instead]),
    }


def metric(sample: Metric) -> tuple[str, str, Mapping[str, str], float]:
    """A row of `GetMetrics`."""
    return sample.name, sample.type, dict(sample.labels), float(sample.value)


_HISTORY_TEXTS = {
    "FILE": "file", "RULE": "policy", "RULE_KIND": "rule-kind", "PARAMETER": "parameter",
    "ALIAS": "alias", "COMM": "comm", "UNIT": "unit", "CONTAINER": "container", "CALL_SITE": "call-site",
}  # fmt: skip
_HISTORY_NUMBERS = {"LINE": "line", "PID": "pid", "COUNT": "count"}
_HISTORY_NAMES = {"HOLDERS": "holders", "SYMBOLS": "symbols", "TOUCHED": "touched"}
"""Fields of the evidence, which the journal stores under separate names; names in one string are separated by spaces."""


def history(entry: HistoryEntry) -> Row:
    """A row of `GetHistory`; what is not known is left out."""
    record = entry.record
    texts = {
        "event": record.event,
        "message": record.message,
        "module": record.label,
        "action": record.action,
        "result": record.result,
        "error": record.error,
        "sender": record.sender,
        "exe": record.exe,
        "reason": record.reason,
        "job": record.job,
        "hint": record.hint,
        "on-behalf-of": record.on_behalf_of,
    }
    numbers = {
        "uid": ("u", record.uid),
        "login-uid": ("u", record.login_uid),
        "duration-usec": ("t", record.duration_usec),
        "errno": ("i", record.errno),
    }
    row: Row = {"time": ("t", entry.time)}
    row.update({key: ("s", value) for key, value in texts.items() if value})
    row.update({key: (type_, value) for key, (type_, value) in numbers.items() if value is not None})
    if record.names:
        row["modules"] = ("as", record.names)
    extra = record.extra
    row.update({key: ("s", extra[field]) for field, key in _HISTORY_TEXTS.items() if field in extra})
    row.update({key: ("as", extra[field].split()) for field, key in _HISTORY_NAMES.items() if field in extra})
    row.update(
        {key: ("u", number) for field, key in _HISTORY_NUMBERS.items() if (number := _number(extra.get(field, "")))}
    )
    if record.kernel_log:
        row["kernel-log"] = ("as", record.kernel_log)
    return row


def _number(text: str) -> int:
    return min(int(text), 0xFFFFFFFF) if text.isascii() and text.isdecimal() else 0


def rule(shown_rule: ShownRule) -> Row:
    """A row of `Show`; the value stays behind where not everyone may read the file."""
    row: Row = {
        "kind": ("s", shown_rule.rule.kind),
        "module": ("s", shown_rule.rule.module),
        "file": ("s", shown_rule.rule.file),
        "line": ("u", shown_rule.rule.line),
        "ours": ("b", shown_rule.ours),
        "masks": ("as", shown_rule.masks),
        "shadowed-by": ("s", shown_rule.shadowed_by),
        "findings": ("aa{sv}", list(map(_finding, shown_rule.findings))),
    }
    if shown_rule.public:
        row["value"] = (
            "s",
            shown(shown_rule.rule.value) if shown_rule.rule.kind == "options" else shown_rule.rule.value,
        )
    return row


def _finding(finding: Finding) -> Row:
    return {
        "kind": ("s", finding.kind),
        "severity": ("s", finding.severity),
        "message": ("s", finding.message),
        **place(finding),
    }


def drift(difference: Drift) -> Row:
    """A row of `GetDrift`."""
    row: Row = {
        "module": ("s", difference.module),
        "kind": ("s", difference.kind),
        "wanted": ("s", difference.wanted),
        "actual": ("s", difference.actual),
        "hint": ("s", difference.hint),
    }
    if difference.command:
        row["command"] = ("as", difference.command)
    return row
