# SPDX-License-Identifier: LGPL-2.1-or-later
"""The client's side of `org.kmodd1.Store`.

store = Store(client)
imported = await store.import_file(descriptor, version="2.1")
await store.activate(imported.name, imported.version, load=True)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kmodd.client_answers import Fields
from kmodd.client_transport import variant
from kmodd.model.store import StoredModule
from kmodd.names import ModuleName

if TYPE_CHECKING:
    from kmodd.client import Client

INTERFACE = "org.kmodd1.Store"

_SIGNATURES = {"List": "", "Activate": "ssa{sv}", "Deactivate": "sa{sv}", "Remove": "ss"}
_OPTIONS = {
    "version": "s",
    "description": "s",
    "shadow": "b",
    "load": "b",
    "kernel": "s",
    "dry-run": "b",
    "on-behalf-of": "s",
}


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a file."""

    name: str
    version: str
    sha256: str


class Store:
    """Custom modules."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    async def data(self, member: str, *arguments: object, options: Mapping[str, object] | None = None) -> Any:
        """Call any member but Import, and answer its value as on the bus, without variants; None when it has none."""
        signature = _SIGNATURES[member]
        body = [*arguments, *([_variants(options)] if signature.endswith("a{sv}") else [])]
        return await self._client.call(
            INTERFACE, member, signature, body, reads=member == "List", long=member != "List"
        )

    async def import_file(
        self, file: int, *, version: str = "", description: str = "", shadow: bool = False, on_behalf_of: str = ""
    ) -> Imported:
        """Import the module behind a descriptor that is open for reading; it stays the caller's."""
        given = {"version": version, "description": description, "shadow": shadow, "on-behalf-of": on_behalf_of}
        return await self._send(file, given)

    async def try_file(self, file: int, *, version: str = "", description: str = "", shadow: bool = False) -> Imported:
        """The same as a dry run: what it would be called, and nothing is kept."""
        given = {"version": version, "description": description, "shadow": shadow, "dry-run": True}
        return await self._send(file, given)

    async def _send(self, file: int, given: Mapping[str, object]) -> Imported:
        options = _variants({name: value for name, value in given.items() if value})
        name, version, sha256 = await self._client.send_file(INTERFACE, "Import", "ha{sv}", file, options)
        return Imported(name, version, sha256)

    async def list(self) -> tuple[StoredModule, ...]:
        """Every version."""
        return tuple(stored_module(row) for row in await self.data("List"))

    async def activate(
        self, name: str, version: str, *, load: bool = False, kernel: str = "", dry_run: bool = False
    ) -> tuple[str, ...]:
        """Bring a version into force; what was (or for a dry run would be) loaded or reloaded."""
        return tuple(await self.data("Activate", name, version, options=_switch(kernel, load=load, dry_run=dry_run)))

    async def deactivate(
        self, name: str, *, load: bool = False, kernel: str = "", dry_run: bool = False
    ) -> tuple[str, ...]:
        """Take the active version out of force; what was (or would be) reloaded."""
        return tuple(await self.data("Deactivate", name, options=_switch(kernel, load=load, dry_run=dry_run)))

    async def remove(self, name: str, version: str) -> None:
        """Remove a version that is not active."""
        await self.data("Remove", name, version)


def stored_module(row: Mapping[str, Any]) -> StoredModule:
    """A row of `List`."""
    fields = Fields(row)
    return StoredModule(
        name=ModuleName(fields.text("name")),
        version=fields.text("version"),
        kernel=fields.text("kernel"),
        sha256=fields.text("sha256"),
        size=fields.number("size"),
        description=fields.text("description"),
        signer=fields.text("signer"),
        signed=fields.flag("signed"),
        vermagic=fields.text("vermagic"),
        imported_at=fields.number("imported-at"),
        uid=row.get("uid"),
        active=fields.flag("active"),
    )


def _switch(kernel: str, *, load: bool, dry_run: bool) -> dict[str, object]:
    given: dict[str, object] = {"load": load, "kernel": kernel, "dry-run": dry_run}
    return {name: value for name, value in given.items() if value}


def _variants(options: Mapping[str, object] | None) -> dict[str, object]:
    return {name: variant(_OPTIONS[name], value) for name, value in (options or {}).items()}
