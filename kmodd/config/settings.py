# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads kmodd.toml and its drop-ins into the daemon's settings. A later file wins, key by key."""

from collections.abc import Iterable, Mapping
from typing import Any

from kmodd.config.section import Section
from kmodd.model.settings import LEASES_LIMIT, PROMPT_TIMEOUT_LIMIT, TIMEOUT_LIMIT, DaemonSettings, Document

TABLES: Mapping[str, tuple[str, ...]] = {
    "operations": ("timeout", "timeout-max", "per-user", "stuck-max"),
    "prompts": ("per-user", "timeout"),
    "history": ("limit-max",),
    "log": ("level",),
    "desired-state": ("reconcile",),
    "leases": ("grace", "per-user"),
    "store": ("file-max", "total-max", "versions-max"),
}
LEVELS = ("error", "warning", "notice", "info")


def read_daemon_settings(documents: Iterable[Document]) -> DaemonSettings:
    """The settings of all files together; Conflict names file, line and key of the first that is wrong."""
    settings = DaemonSettings()
    for document in documents:
        top = Section(document)
        top.only(TABLES)
        tables = {name: table for name in TABLES if (table := top.table(name)) is not None}
        for name, table in tables.items():
            table.only(TABLES[name])
        settings = _over(settings, document, tables)
    return settings


def _over(was: DaemonSettings, document: Document, tables: Mapping[str, Section]) -> DaemonSettings:
    empty = Section(Document(document.file, {}))

    def table(name: str) -> Section:
        return tables.get(name, empty)

    operations, prompts, store = table("operations"), table("prompts"), table("store")
    values: dict[str, Any] = {
        "timeout": operations.integer("timeout", was.timeout, 1, TIMEOUT_LIMIT),
        "timeout_max": operations.integer("timeout-max", was.timeout_max, 1, TIMEOUT_LIMIT),
        "operations_per_user": operations.integer("per-user", was.operations_per_user, 1, 64),
        "stuck_max": operations.integer("stuck-max", was.stuck_max, 1, 16),
        "prompts_per_user": prompts.integer("per-user", was.prompts_per_user, 1, 16),
        "prompt_timeout": prompts.integer("timeout", was.prompt_timeout, 5, PROMPT_TIMEOUT_LIMIT),
        "history_limit_max": table("history").integer("limit-max", was.history_limit_max, 1, 10_000),
        "log_level": table("log").text("level", was.log_level, one_of=LEVELS),
        "reconcile": table("desired-state").flag("reconcile", default=was.reconcile),
        "lease_grace": table("leases").integer("grace", was.lease_grace, 0, 86_400),
        "leases_per_user": table("leases").integer("per-user", was.leases_per_user, 1, LEASES_LIMIT),
        "store_file_max": store.size("file-max", was.store_file_max, 1 << 12, 256 << 20),
        "store_total_max": store.size("total-max", was.store_total_max, 1 << 12, 64 << 30),
        "store_versions_max": store.integer("versions-max", was.store_versions_max, 1, 1024),
    }
    if values["timeout"] > values["timeout_max"]:
        key = "timeout" if "timeout" in operations else "timeout-max"
        operations.refuse(key, "timeout must not exceed timeout-max")
    return DaemonSettings(**values)
