# SPDX-License-Identifier: LGPL-2.1-or-later
"""Handlers of the interface org.kmodd1.Store."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kmodd.api import options
from kmodd.api import polkit_details as asked
from kmodd.api import replies as rows
from kmodd.api.options import refusal
from kmodd.api.services import Services
from kmodd.core.store.activation import Switch
from kmodd.core.store.store import ImportOptions
from kmodd.dbus.authorizer import READ_HISTORY
from kmodd.dbus.call import Call, Permits, Refusal
from kmodd.errors import KmoddError
from kmodd.model import Attempt, Caller
from kmodd.model.store import StoredModule
from kmodd.names import ModuleName, parse_description, parse_module, parse_release, parse_version


class StoreInterface:
    """Members of org.kmodd1.Store; see dbus/org.kmodd1.xml for what each means."""

    interface = "org.kmodd1.Store"

    def __init__(self, services: Services, permits: Permits) -> None:
        self._services = services
        self._permits = permits

    # `import` is a word of the language; the binding knows.
    def import_(self, file: int, values: options.Values) -> Call:
        wanted = ImportOptions(
            version=parse_version(values["version"]) if values.get("version") else "",
            description=parse_description(values.get("description", "")),
            shadow=values.get("shadow", False),
            dry_run=values.get("dry-run", False),
        )
        store = self._services.store
        behalf = asked.behalf(options.on_behalf_of(values))

        async def prepare(caller: Caller) -> Call:
            pending = await store.examine(file, wanted, caller)

            async def run(caller: Caller) -> tuple[str, str, str]:
                entry = await store.commit(pending, caller)
                return entry.name, entry.version, entry.sha256

            details = {**_details((pending.entry,), "import"), **behalf}
            return Call(run, details, dry_run=wanted.dry_run, abandon=lambda: store.abandon(pending))

        def refuse(_: Caller) -> None:
            raise AssertionError("an import is prepared before it is run")

        return Call(refuse, {"action": "import", **behalf}, prepare=prepare)

    def list(self) -> Call:
        async def run(caller: Caller) -> list[rows.Row]:
            details = {"action": "list"}
            quiet = replace(caller, interactive=False)
            entries = self._services.store.all()
            # Who imported a version, and what for, is history; facts of its file are not.
            full = bool(entries) and await self._permits(quiet, "List", READ_HISTORY, details)
            return [_row(entry, full=full) for entry in entries]

        return Call(run, cancellable=True)

    def activate(self, name: str, version: str, values: options.Values) -> Call | Refusal:
        kernel = parse_release(values["kernel"]) if "kernel" in values else ""
        load = values.get("load", False)
        module, wanted = parse_module(name), parse_version(version)
        try:
            entry = self._services.store.catalogue.one(module, wanted, kernel)
        except KmoddError as error:
            return self._refusal("activate", module, values, error)

        return self._switch(
            self._services.activation.foresee(
                module, entry.kernel, entry, load=load, disconnect=values.get("disconnect", False)
            ),
            values,
        )

    def deactivate(self, name: str, values: options.Values) -> Call | Refusal:
        module = parse_module(name)
        kernel = parse_release(values["kernel"]) if "kernel" in values else ""
        load = values.get("load", False)
        try:
            entry = self._services.activation.active(module, kernel)
        except KmoddError as error:
            return self._refusal("deactivate", module, values, error)
        of_kernel = entry.kernel if entry is not None else kernel or self._services.store.catalogue.running
        return self._switch(
            self._services.activation.foresee(
                module, of_kernel, None, load=load, disconnect=values.get("disconnect", False)
            ),
            values,
        )

    def _switch(self, switch: Switch, values: Mapping[str, Any]) -> Call:
        dry_run = values.get("dry-run", False)

        async def run(caller: Caller) -> tuple[str, ...]:
            return await self._services.activation.switch(switch, caller, dry_run=dry_run)

        shown = switch.entry or switch.former
        details = {"module": switch.name, "kernel": switch.kernel} if shown is None else _details((shown,), "")
        details |= {"modules": " ".join(switch.modules), "action": "deactivate" if switch.entry is None else "activate"}
        if switch.sha256:
            details["sha256"] = " ".join(switch.sha256)
        details |= asked.loaded_by(switch.loaders)
        details |= asked.behalf(options.on_behalf_of(values))
        return Call(run, details, (asked.LOAD, asked.UNLOAD) if switch.load else (), dry_run=dry_run)

    def remove(self, name: str, version: str, values: options.Values) -> Call | Refusal:
        module, wanted = parse_module(name), parse_version(version)
        dry_run = values.get("dry-run", False)
        try:
            entries = self._services.store.removable(module, wanted)
        except KmoddError as error:
            return self._refusal("remove", module, values, error)

        async def run(caller: Caller) -> None:
            if not dry_run:
                await self._services.store.remove(entries, caller)

        details = _details(entries, "remove") | asked.behalf(options.on_behalf_of(values))
        return Call(run, details, dry_run=dry_run)

    def _refusal(self, action: str, module: ModuleName, values: Mapping[str, Any], error: KmoddError) -> Refusal:
        behalf = options.on_behalf_of(values)
        attempt = Attempt(action, module, values.get("reason", ""), values.get("dry-run", False), behalf)
        return refusal(self._services.refusals, attempt, error)


def _details(entries: Sequence[StoredModule], action: str) -> dict[str, str]:
    """The same module and version for one kernel or several: every kernel, and every content, each once."""
    return {
        "module": entries[0].name,
        "modules": entries[0].name,
        "version": entries[0].version,
        "kernel": " ".join(dict.fromkeys(entry.kernel for entry in entries)),
        "sha256": " ".join(dict.fromkeys(entry.sha256 for entry in entries)),
        "action": action,
    }


def _row(entry: StoredModule, *, full: bool) -> rows.Row:
    row: rows.Row = {
        "name": ("s", entry.name),
        "version": ("s", entry.version),
        "kernel": ("s", entry.kernel),
        "sha256": ("s", entry.sha256),
        "size": ("t", entry.size),
        "description": ("s", entry.description if full else ""),
        "signed": ("b", entry.signed),
        "signer": ("s", entry.signer),
        "vermagic": ("s", entry.vermagic),
        "imported-at": ("t", entry.imported_at),
        "active": ("b", entry.active),
    }
    if full and entry.uid is not None:
        row["uid"] = ("u", entry.uid)
    return row
