# SPDX-License-Identifier: LGPL-2.1-or-later
"""The client's side of `org.kmodd1.Store`.

store = Store(client)
imported = await store.import_file(descriptor, version="2.1")
await store.activate(imported.name, imported.version, load=True)
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kmodd.client.replies import Fields
from kmodd.fast_dataclass import dataclass
from kmodd.model.store import StoredModule
from kmodd.names import ModuleName

if TYPE_CHECKING:
    from kmodd.client import Client

INTERFACE = "org.kmodd1.Store"


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
        return await self._client.data(member, *arguments, options=options, interface=INTERFACE, many=True)

    async def import_file(
        self,
        file: int,
        *,
        version: str = "",
        description: str = "",
        shadow: bool = False,
        reason: str = "",
        on_behalf_of: str = "",
    ) -> Imported:
        """Import the module behind a descriptor that is open for reading; it stays the caller's."""
        options = {"version": version, "description": description, "shadow": shadow}
        options |= {"reason": reason, "on-behalf-of": on_behalf_of}
        return await self._send(file, options)

    async def try_file(
        self, file: int, *, version: str = "", description: str = "", shadow: bool = False, reason: str = ""
    ) -> Imported:
        """The same as a dry run: what it would be called, and nothing is kept."""
        options = {"version": version, "description": description, "shadow": shadow, "reason": reason, "dry-run": True}
        return await self._send(file, options)

    async def _send(self, file: int, details: Mapping[str, object]) -> Imported:
        options = {name: value for name, value in details.items() if value}
        name, version, sha256 = await self._client.send_file(INTERFACE, "Import", file, options)
        return Imported(name, version, sha256)

    async def list(self) -> tuple[StoredModule, ...]:
        """Every version."""
        return tuple(stored_module(row) for row in await self.data("List"))

    async def activate(
        self,
        name: str,
        version: str,
        *,
        load: bool = False,
        disconnect: bool = False,
        kernel: str = "",
        dry_run: bool = False,
        reason: str = "",
    ) -> tuple[str, ...]:
        """Bring a version into force; what was (or for a dry run would be) loaded or reloaded."""
        options = _switch(kernel, reason, load=load, disconnect=disconnect, dry_run=dry_run)
        return tuple(await self.data("Activate", name, version, options=options))

    async def deactivate(
        self,
        name: str,
        *,
        load: bool = False,
        disconnect: bool = False,
        kernel: str = "",
        dry_run: bool = False,
        reason: str = "",
    ) -> tuple[str, ...]:
        """Take the active version out of force; what was (or would be) reloaded."""
        options = _switch(kernel, reason, load=load, disconnect=disconnect, dry_run=dry_run)
        return tuple(await self.data("Deactivate", name, options=options))

    async def remove(
        self, name: str, version: str, *, reason: str = "", on_behalf_of: str = "", dry_run: bool = False
    ) -> None:
        """Remove a version that is not active."""
        options: dict[str, object] = {"reason": reason, "on-behalf-of": on_behalf_of, "dry-run": dry_run}
        await self.data("Remove", name, version, options={key: value for key, value in options.items() if value})


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


def _switch(kernel: str, reason: str, *, load: bool, disconnect: bool, dry_run: bool) -> dict[str, object]:
    options: dict[str, object] = {
        "load": load,
        "disconnect": disconnect,
        "kernel": kernel,
        "reason": reason,
        "dry-run": dry_run,
    }
    return {name: value for name, value in options.items() if value}
