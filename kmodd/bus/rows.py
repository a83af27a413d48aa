# SPDX-License-Identifier: LGPL-2.1-or-later
"""Answers as maps: for each kind of value one function that names every key and its type."""

from collections.abc import Iterable, Mapping
from typing import Any

from kmodd.core.listing import ListedModule
from kmodd.model import (
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
)
from kmodd.names import kernel_arguments

Row = dict[str, tuple[str, Any]]
"""`a{sv}` as the encoder takes it."""


def step(one: Step) -> Row:
    """A row of `Plan`."""
    told = {name: "…" if name in one.withheld else value for name, value in one.parameters}
    row: Row = {
        "action": ("s", one.action.value),
        "module": ("s", one.module),
        "path": ("s", one.path),
        "parameters": ("s", kernel_arguments(told)),
        "because": ("s", one.because),
        "operation": ("u", one.operation),
    }
    if one.optional:
        row["optional"] = ("b", True)
    if one.error is not None:
        row["error"] = ("s", one.error.name())
        row["message"] = ("s", one.error.message)
    return row


def plan(whole: Plan) -> list[Row]:
    """The answer of `Plan`."""
    return [step(one) for one in whole.steps]


def result(one: OperationResult) -> tuple[str, str, str, tuple[str, ...]]:
    """A row of `Batch`."""
    return one.module, one.result.value, one.error.name() if one.error else "", one.touched


def listed(one: ListedModule) -> Row:
    """A row of `ListModules`."""
    row: Row = {"name": ("s", one.name), "state": ("s", one.state.value)}
    if one.loaded is not None:
        row["size"] = ("t", one.loaded.size)
        row["references"] = ("i", one.loaded.references)
        row["holders"] = ("as", one.loaded.holders)
        row["taint"] = ("s", one.loaded.taint)
    return row


def explanation(one: Explanation) -> Row:
    """The answer of `Explain`."""
    row: Row = {
        "name": ("s", one.name),
        "state": ("s", one.state.value),
        "because": ("s", one.because),
        "holders": ("as", one.holders),
        "references": ("i", one.references),
        "users": ("a(sss)", [(user.kind, user.name, user.detail) for user in one.users]),
        "removable": ("b", one.removable),
        "blockers": ("as", one.blockers),
        "loadable": ("b", one.loadable),
        "policy": ("s", one.policy),
    }
    if one.loaded_by is not None:
        row["loaded-by"] = ("a{sv}", loaded_by(one.loaded_by))
    if one.failure is not None:
        row["failure"] = ("a{sv}", failure(one.failure))
    return row


def loaded_by(one: LoadedBy) -> Row:
    """Who loaded it."""
    row: Row = {"client": ("s", one.client), "reason": ("s", one.reason), "time": ("t", one.time)}
    if one.uid is not None:
        row["uid"] = ("u", one.uid)
    return row


def failure(one: Failure) -> Row:
    """A remembered failure with its evidence."""
    row: Row = {
        "action": ("s", one.action),
        "error": ("s", one.error),
        "message": ("s", one.message),
        "kernel-log": ("as", one.evidence.kernel_log),
        "hint": ("s", one.evidence.hint),
        "time": ("t", one.time),
        "stuck": ("b", one.stuck),
    }
    if one.evidence.errno is not None:
        row["errno"] = ("i", one.evidence.errno)
    return row


def description(one: ModuleInfo, writable: Iterable[str]) -> Row:
    """The answer of `Describe`; `writable` names the parameters that can be written now."""
    live = frozenset(writable)
    return {
        "name": ("s", one.name),
        "filename": ("s", one.filename),
        "description": ("s", one.description),
        "license": ("s", one.license),
        "author": ("s", one.author),
        "version": ("s", one.version),
        "srcversion": ("s", one.srcversion),
        "vermagic": ("s", one.vermagic),
        "signer": ("s", one.signer),
        "signed": ("b", one.signed),
        "intree": ("b", one.intree),
        "firmware": ("as", one.firmware),
        "depends": ("as", one.depends),
        "softdep-pre": ("as", one.softdep_pre),
        "softdep-post": ("as", one.softdep_post),
        "aliases": ("as", one.aliases),
        "parameters": (
            "a(sssb)",
            [(each.name, each.type, each.description, each.name in live) for each in one.parameters],
        ),
    }


def health(one: Health) -> Row:
    """The answer of `GetHealth`."""
    checks = [
        {
            "name": ("s", check.name),
            "status": ("s", check.status.value),
            "message": ("s", check.message),
            "module": ("s", check.module),
            "hint": ("s", check.hint),
        }
        for check in one.checks
    ]
    return {
        "status": ("s", one.status.value),
        "checks": ("aa{sv}", checks),
        "release": ("s", one.facts.release),
        "lockdown": ("s", one.facts.lockdown),
        "signature-enforced": ("b", one.facts.signature_enforced),
        "modules-disabled": ("b", one.facts.modules_disabled),
        "secure-boot": ("b", one.facts.secure_boot),
        "taint": ("t", one.facts.taint),
        "taint-flags": ("as", one.taint_flags),
    }


def metric(one: Metric) -> tuple[str, str, Mapping[str, str], float]:
    """A row of `GetMetrics`."""
    return one.name, one.type, dict(one.labels), float(one.value)


def history(entry: HistoryEntry) -> Row:
    """A row of `GetHistory`; what is not known is left out."""
    record = entry.record
    texts = {
        "event": record.event,
        "message": record.message,
        "module": record.module,
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
        "duration-usec": ("t", record.duration_usec),
        "errno": ("i", record.errno),
    }
    row: Row = {"time": ("t", entry.time)}
    row.update({key: ("s", value) for key, value in texts.items() if value})
    row.update({key: (type_, value) for key, (type_, value) in numbers.items() if value is not None})
    if record.kernel_log:
        row["kernel-log"] = ("as", record.kernel_log)
    return row
