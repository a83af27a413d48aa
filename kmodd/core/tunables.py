# SPDX-License-Identifier: LGPL-2.1-or-later
"""From kmodd.toml and its drop-ins to the daemon's settings. A later file wins, key by key."""

from collections.abc import Iterable, Mapping
from typing import Any

from kmodd.core.settings_table import Table
from kmodd.model.document import Document
from kmodd.model.tunables import Tunables

TABLES: Mapping[str, tuple[str, ...]] = {
    "operations": ("timeout", "timeout-max", "per-user", "stuck-max"),
    "prompts": ("per-user", "timeout"),
    "history": ("limit-max",),
    "log": ("level",),
    "desired-state": ("reconcile",),
    "store": ("file-max", "total-max", "versions-max"),
}
LEVELS = ("error", "warning", "notice", "info")


def read_tunables(documents: Iterable[Document]) -> Tunables:
    """The settings of all files together; Conflict names file, line and key of the first that is wrong."""
    found = Tunables()
    for document in documents:
        top = Table(document)
        top.only(TABLES)
        tables = {name: table for name in TABLES if (table := top.table(name)) is not None}
        for name, table in tables.items():
            table.only(TABLES[name])
        found = _over(found, document, tables)
    return found


def _over(was: Tunables, document: Document, tables: Mapping[str, Table]) -> Tunables:
    empty = Table(Document(document.file, {}))

    def table(name: str) -> Table:
        return tables.get(name, empty)

    operations, prompts, store = table("operations"), table("prompts"), table("store")
    values: dict[str, Any] = {
        "timeout": operations.whole("timeout", was.timeout, 1, 3600),
        "timeout_max": operations.whole("timeout-max", was.timeout_max, 1, 3600),
        "operations_per_user": operations.whole("per-user", was.operations_per_user, 1, 64),
        "stuck_max": operations.whole("stuck-max", was.stuck_max, 1, 16),
        "prompts_per_user": prompts.whole("per-user", was.prompts_per_user, 1, 16),
        "prompt_timeout": prompts.whole("timeout", was.prompt_timeout, 5, 900),
        "history_limit_max": table("history").whole("limit-max", was.history_limit_max, 1, 10_000),
        "log_level": table("log").choice("level", LEVELS, was.log_level),
        "reconcile": table("desired-state").flag("reconcile", default=was.reconcile),
        "store_file_max": store.size("file-max", was.store_file_max, 1 << 12, 256 << 20),
        "store_total_max": store.size("total-max", was.store_total_max, 1 << 12, 64 << 30),
        "store_versions_max": store.whole("versions-max", was.store_versions_max, 1, 1024),
    }
    if values["timeout"] > values["timeout_max"]:
        key = "timeout" if "timeout" in operations else "timeout-max"
        operations.refuse(key, "timeout is at most timeout-max")
    return Tunables(**values)
