# SPDX-License-Identifier: LGPL-2.1-or-later
"""Replies of `org.kmodd1.Surface` about vulnerabilities and refused attempts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kmodd.client.replies import Fields
from kmodd.names import ModuleName


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One installed kernel in the reply of `Respond`."""

    kernel: str
    running: bool
    version: str
    verdict: str
    because: str
    placements: Mapping[str, str]
    blocked: bool
    open_requests: Mapping[str, list[str]]
    requests: int
    dependents: tuple[str, ...]
    initramfs: tuple[str, ...]
    initramfs_known: bool


@dataclass(frozen=True, slots=True)
class UseRow:
    """One module in the reply of `Respond`."""

    module: ModuleName
    loaded: bool
    builtin: bool
    in_use: bool
    references: int
    holders: tuple[str, ...]
    users: tuple[str, ...]
    free: tuple[str, ...]
    loads: int
    last_load: int
    autoload: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The reply of `Respond`."""

    id: str
    title: str
    modules: tuple[str, ...]
    breaks: str
    notes: str
    image_files: tuple[str, ...]
    initcalls: tuple[str, ...]
    stage: str
    proven: bool
    kernels: tuple[KernelRow, ...]
    uses: tuple[UseRow, ...]
    unloaded: tuple[str, ...]
    still_loaded: Mapping[str, str]
    history_known: bool


@dataclass(frozen=True, slots=True)
class ResponseRow:
    """A row of `GetResponses`."""

    id: str
    title: str
    modules: tuple[str, ...]
    rules: tuple[str, ...]
    fixed: tuple[str, ...]
    begun: int


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row of `GetRefused`."""

    alias: str
    modules: tuple[str, ...]
    uid: int | None
    exe: str
    comm: str
    unit: str
    container: str
    count: int
    first: int
    last: int
    file: str
    line: int
    rule: str
    response: str
    allow: str


def outcome(data: Mapping[str, Any]) -> Outcome:
    """The reply of `Respond`."""
    fields = Fields(data)
    return Outcome(
        id=fields.text("id"),
        title=fields.text("title"),
        modules=fields.texts("modules"),
        breaks=fields.text("breaks"),
        notes=fields.text("notes"),
        image_files=fields.texts("image-files"),
        initcalls=fields.texts("initcalls"),
        stage=fields.text("stage"),
        proven=fields.flag("proven"),
        kernels=tuple(_kernel(Fields(row)) for row in fields.get("kernels", list, [])),
        uses=tuple(_use(Fields(row)) for row in fields.get("uses", list, [])),
        unloaded=fields.texts("unloaded"),
        still_loaded=fields.get("still-loaded", dict, {}),
        history_known=fields.flag("history-known"),
    )


def _kernel(fields: Fields) -> KernelRow:
    return KernelRow(
        kernel=fields.text("kernel"),
        running=fields.flag("running"),
        version=fields.text("version"),
        verdict=fields.text("verdict"),
        because=fields.text("because"),
        placements=fields.get("placements", dict, {}),
        blocked=fields.flag("blocked"),
        open_requests=fields.get("open-requests", dict, {}),
        requests=fields.number("requests"),
        dependents=fields.texts("dependents"),
        initramfs=fields.texts("initramfs"),
        initramfs_known=fields.flag("initramfs-known"),
    )


def _use(fields: Fields) -> UseRow:
    return UseRow(
        module=fields.module("module"),
        loaded=fields.flag("loaded"),
        builtin=fields.flag("builtin"),
        in_use=fields.flag("in-use"),
        references=fields.number("references"),
        holders=fields.texts("holders"),
        users=fields.texts("users"),
        free=fields.texts("free"),
        loads=fields.number("loads"),
        last_load=fields.number("last-load"),
        autoload=fields.texts("autoload"),
    )


def response_row(data: Mapping[str, Any]) -> ResponseRow:
    """A row of `GetResponses`."""
    fields = Fields(data)
    return ResponseRow(
        id=fields.text("id"),
        title=fields.text("title"),
        modules=fields.texts("modules"),
        rules=fields.texts("rules"),
        fixed=fields.texts("fixed"),
        begun=fields.number("begun"),
    )


def refused_row(data: Mapping[str, Any]) -> RefusedRow:
    """A row of `GetRefused`."""
    fields = Fields(data)
    return RefusedRow(
        alias=fields.text("alias"),
        modules=fields.texts("modules"),
        uid=fields.number("uid") if "uid" in data else None,
        exe=fields.text("exe"),
        comm=fields.text("comm"),
        unit=fields.text("unit"),
        container=fields.text("container"),
        count=fields.number("count"),
        first=fields.number("first"),
        last=fields.number("last"),
        file=fields.text("file"),
        line=fields.number("line"),
        rule=fields.text("rule"),
        response=fields.text("response"),
        allow=fields.text("allow"),
    )
