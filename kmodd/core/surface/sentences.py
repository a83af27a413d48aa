# SPDX-License-Identifier: LGPL-2.1-or-later
"""Routes as clauses for people."""

from kmodd.core.planning.policy import where
from kmodd.core.surface.kinds import HARDWARE, NAME, NODE, how
from kmodd.model.surface import Reach, Route, Tables

_WHO = {
    Reach.UNPRIVILEGED: "any user",
    Reach.USERNS: "any user in a user namespace",
    Reach.ROOT: "root",
}


def going(route: Route) -> str:
    """Who goes this way, and what they do."""
    if route.kind == NODE:
        return f"{route.who or 'no one'} by opening {route.node}"
    if route.kind == HARDWARE:
        return "a device that is plugged in"
    if route.kind == NAME:
        return "root, by name"
    return f"{_WHO[route.reach]} who {how(route.kind, route.request)}"


def closing(route: Route, tables: Tables) -> str:
    """Why a route is not open; empty for one that is."""
    if route.open:
        return ""
    if route.gate is not None:
        guard = tables.closed(route.gate)
        return f"{route.gate} = {guard.value or 'none'}: {guard.says}" if guard is not None else route.gate.value
    if route.served is not None:
        return f"{route.served}, which is part of the kernel image, answers the request"
    if route.rule is not None:
        return f"{route.rule.kind} rule {where(route.rule)}"
    if route.missing:
        return f"{route.missing} is needed first, and is not there"
    return "modprobe does not load it: its file or what it needs is missing"
