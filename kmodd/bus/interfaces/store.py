# SPDX-License-Identifier: LGPL-2.1-or-later
"""org.kmodd1.Store."""

from collections.abc import Mapping
from typing import Any

from kmodd.bus import asked, options, rows
from kmodd.bus.call import Call, Refusal
from kmodd.bus.interfaces.parts import Parts
from kmodd.bus.interfaces.refusing import refusal
from kmodd.core.store import ImportOptions
from kmodd.errors import KmoddError
from kmodd.model import Attempt, Caller
from kmodd.model.store import StoredModule
from kmodd.names import ModuleName, parse_description, parse_module, parse_release, parse_version


class StoreInterface:
    """Members of org.kmodd1.Store; see dbus/org.kmodd1.xml for what each means."""

    interface = "org.kmodd1.Store"

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    # `import` is a word of the language; the binding knows.
    def import_(self, file: int, wire: options.Wire) -> Call:
        values = options.parse(wire, options.IMPORT)
        wanted = ImportOptions(
            version=parse_version(values["version"]) if values.get("version") else "",
            description=parse_description(values.get("description", "")),
            shadow=values.get("shadow", False),
            dry_run=values.get("dry-run", False),
        )
        store = self._parts.store
        behalf = asked.behalf(options.on_behalf_of(values))

        async def prepare(caller: Caller) -> Call:
            pending = await store.examine(file, wanted, caller)

            async def run(caller: Caller) -> tuple[str, str, str]:
                entry = await store.commit(pending, caller)
                return entry.name, entry.version, entry.sha256

            return Call(run, {**_details(pending.entry, "import"), **behalf}, abandon=lambda: store.abandon(pending))

        def refuse(_: Caller) -> None:
            raise AssertionError("an import is prepared before it is run")

        return Call(refuse, behalf, prepare=prepare)

    def list(self) -> Call:
        return Call(lambda _: [_row(entry) for entry in self._parts.store.all()])

    def activate(self, name: str, version: str, wire: options.Wire) -> Call | Refusal:
        values = options.parse(wire, options.SWITCH)
        kernel = parse_release(values["kernel"]) if "kernel" in values else ""
        load, dry_run = values.get("load", False), values.get("dry-run", False)
        module, wanted = parse_module(name), parse_version(version)
        try:
            entry = self._parts.store.catalogue.one(module, wanted, kernel)
        except KmoddError as error:
            return self._refusal("activate", module, values, error)

        async def run(caller: Caller) -> tuple[str, ...]:
            return await self._parts.activation.activate(entry, caller, load=load, dry_run=dry_run)

        details = {**_details(entry, "activate"), **asked.behalf(options.on_behalf_of(values))}
        return Call(run, details, (asked.LOAD, asked.UNLOAD) if load else ())

    def deactivate(self, name: str, wire: options.Wire) -> Call | Refusal:
        values = options.parse(wire, options.SWITCH)
        module = parse_module(name)
        kernel = parse_release(values["kernel"]) if "kernel" in values else ""
        load, dry_run = values.get("load", False), values.get("dry-run", False)
        try:
            entry = self._parts.activation.active(module, kernel)
        except KmoddError as error:
            return self._refusal("deactivate", module, values, error)

        async def run(caller: Caller) -> tuple[str, ...]:
            if entry is None:
                return ()
            return await self._parts.activation.deactivate(entry, caller, load=load, dry_run=dry_run)

        details = {"module": module, "modules": module, "action": "deactivate"}
        if entry is not None:
            details = _details(entry, "deactivate")
        details |= asked.behalf(options.on_behalf_of(values))
        return Call(run, details, (asked.LOAD, asked.UNLOAD) if load else ())

    def remove(self, name: str, version: str) -> Call | Refusal:
        module, wanted = parse_module(name), parse_version(version)
        try:
            entries = self._parts.store.removable(module, wanted)
        except KmoddError as error:
            return self._refusal("remove", module, {}, error)

        async def run(caller: Caller) -> None:
            await self._parts.store.remove(entries, caller)

        return Call(run, _details(entries[0], "remove"))

    def _refusal(self, action: str, module: ModuleName, values: Mapping[str, Any], error: KmoddError) -> Refusal:
        behalf = options.on_behalf_of(values)
        attempt = Attempt(action, module, dry_run=values.get("dry-run", False), on_behalf_of=behalf)
        return refusal(self._parts.refusals, attempt, error)


def _details(entry: StoredModule, action: str) -> dict[str, str]:
    return {
        "module": entry.name,
        "modules": entry.name,
        "version": entry.version,
        "kernel": entry.kernel,
        "sha256": entry.sha256,
        "action": action,
    }


def _row(entry: StoredModule) -> rows.Row:
    row: rows.Row = {
        "name": ("s", entry.name),
        "version": ("s", entry.version),
        "kernel": ("s", entry.kernel),
        "sha256": ("s", entry.sha256),
        "size": ("t", entry.size),
        "description": ("s", entry.description),
        "signed": ("b", entry.signed),
        "signer": ("s", entry.signer),
        "vermagic": ("s", entry.vermagic),
        "imported-at": ("t", entry.imported_at),
        "active": ("b", entry.active),
    }
    if entry.uid is not None:
        row["uid"] = ("u", entry.uid)
    return row
