# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests and replies about vulnerabilities, as the interface org.kmodd1.Surface has them."""

from kmodd.api import options
from kmodd.api import replies as rows
from kmodd.core.module_requests import RefusedAttempts
from kmodd.core.surface.vulnerabilities import given_record, is_id, spelled
from kmodd.errors import InvalidArgs
from kmodd.model.responses import KernelReport, ModuleUse, Response, ResponseOutcome, Vulnerability
from kmodd.names import ARRAY_MAX, MODULE_NAME_MAX, is_module_name

_ID_MAX = len("module:") + ARRAY_MAX * (MODULE_NAME_MAX + 1)


def requested(key: str, values: options.Values) -> Vulnerability:
    """The record that `Respond` names: only the id where kmodd's own record of it is meant. InvalidArgs."""
    lists = {name: values.get(name, ()) for name in ("modules", "files", "fixed")}
    for name, value in lists.items():
        if len(value) > ARRAY_MAX:
            raise InvalidArgs(f"the option {name} has at most {ARRAY_MAX} entries", argument="options")
    if not key and not lists["modules"]:
        raise InvalidArgs("name a CVE, or modules", argument="id")
    return given_record(
        key,
        lists["modules"],
        files=lists["files"],
        fixed=lists["fixed"],
        unaffected_from=values.get("unaffected-from", ""),
        unaffected_before=values.get("unaffected-before", ""),
    )


def parse_response_id(text: str) -> str:
    """The id of a response: of a CVE, or `module:` and the names of modules. InvalidArgs."""
    kind, colon, names = text.partition(":")
    if len(text) > _ID_MAX or not (
        is_id(text) or (kind == "module" and colon and all(map(is_module_name, names.split(","))))
    ):
        raise InvalidArgs("a response is named by its CVE, or by module: and the names of its modules", argument="id")
    return text


def outcome(result: ResponseOutcome) -> rows.Row:
    """The reply of `Respond`."""
    return {
        **_about(result.vulnerability),
        "stage": ("s", result.stage),
        "proven": ("b", result.proven),
        "kernels": ("aa{sv}", list(map(_kernel, result.kernels))),
        "uses": ("aa{sv}", list(map(_use, result.uses))),
        "unloaded": ("as", list(result.unloaded)),
        "still-loaded": ("a{ss}", dict(result.still_loaded)),
        "history-known": ("b", result.history_known),
    }


def response(kept: Response) -> rows.Row:
    """A row of `GetResponses`."""
    return {
        **_about(kept.vulnerability),
        "begun": ("t", kept.begun),
        "rules": ("as", [rule.module for rule in kept.rules]),
    }


def _about(record: Vulnerability) -> rows.Row:
    row: rows.Row = {
        "id": ("s", record.id),
        "title": ("s", record.title),
        "modules": ("as", list(record.modules)),
        "breaks": ("s", record.breaks),
        "notes": ("s", record.notes),
        "fixed": ("as", list(map(spelled, record.fixed))),
        "image-files": ("as", list(record.image_files)),
        "initcalls": ("as", list(record.initcalls)),
    }
    if record.unaffected_from is not None:
        row["unaffected-from"] = ("s", spelled(record.unaffected_from))
    if record.unaffected_before is not None:
        row["unaffected-before"] = ("s", spelled(record.unaffected_before))
    return row


def _kernel(report: KernelReport) -> rows.Row:
    return {
        "kernel": ("s", report.release),
        "running": ("b", report.running),
        "version": ("s", report.version.text),
        "verdict": ("s", report.verdict.value),
        "because": ("s", report.because),
        "placements": ("a{ss}", {name: place.value for name, place in report.placements.items()}),
        "blocked": ("b", report.blocked),
        "open-requests": ("a{sas}", {name: list(requests) for name, requests in report.open_requests.items()}),
        "requests": ("u", report.requests),
        "dependents": ("as", list(report.dependents[:ARRAY_MAX])),
        "initramfs": ("as", list(report.initramfs)),
        "initramfs-known": ("b", report.initramfs_known),
    }


def _use(use: ModuleUse) -> rows.Row:
    return {
        "module": ("s", use.module),
        "loaded": ("b", use.loaded),
        "builtin": ("b", use.builtin),
        "in-use": ("b", use.in_use),
        "references": ("u", use.references),
        "holders": ("as", list(use.holders)),
        "users": ("as", list(use.users)),
        "free": ("as", list(use.free)),
        "loads": ("u", use.loads),
        "last-load": ("t", use.last_load),
        "autoload": ("as", list(use.autoload)),
    }


def refused(attempts: RefusedAttempts) -> rows.Row:
    """A row of `GetRefused`."""
    row: rows.Row = {
        "alias": ("s", attempts.alias),
        "modules": ("as", list(attempts.modules)),
        "exe": ("s", attempts.exe),
        "comm": ("s", attempts.name),
        "unit": ("s", attempts.unit),
        "container": ("s", attempts.container),
        "count": ("u", attempts.count),
        "first": ("t", attempts.first),
        "last": ("t", attempts.last),
        "file": ("s", attempts.file),
        "line": ("u", attempts.line),
        "rule": ("s", attempts.rule),
        "response": ("s", attempts.response),
        "allow": ("s", attempts.allow),
    }
    if attempts.uid is not None:
        row["uid"] = ("u", attempts.uid)
    return row
