# SPDX-License-Identifier: LGPL-2.1-or-later
"""Answers of org.kmodd1.Configuration as maps."""

from kmodd.bus.rows import Row
from kmodd.model.configuration import Drift, ShownRule


def rule(one: ShownRule) -> Row:
    """A row of `Show`; the value stays behind where not everyone may read the file."""
    row: Row = {
        "kind": ("s", one.rule.kind),
        "module": ("s", one.rule.module),
        "file": ("s", one.rule.file),
        "line": ("u", one.rule.line),
        "ours": ("b", one.ours),
        "masks": ("as", one.masks),
        "shadowed-by": ("s", one.shadowed_by),
        "findings": ("a(ss)", [(finding.kind, finding.message) for finding in one.findings]),
    }
    if one.public:
        row["value"] = ("s", one.rule.value)
    return row


def drift(one: Drift) -> Row:
    """A row of `GetDrift`."""
    return {
        "module": ("s", one.module),
        "kind": ("s", one.kind),
        "wanted": ("s", one.wanted),
        "actual": ("s", one.actual),
        "hint": ("s", one.hint),
    }
