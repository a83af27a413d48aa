# SPDX-License-Identifier: LGPL-2.1-or-later
"""The client's side of `org.kmodd1.Configuration`.

configuration = Configuration(client)
await configuration.set_autoload("loop", {"max_loop": "8"}, reason="disk images")
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from kmodd import client_answers as answers
from kmodd.client_answers import Fields
from kmodd.client_transport import variant
from kmodd.model import OperationResult, Rule
from kmodd.model.configuration import Drift, Finding, ShownRule

if TYPE_CHECKING:
    from kmodd.client import Client

INTERFACE = "org.kmodd1.Configuration"

_SIGNATURES = {
    "SetAutoload": "sba{ss}a{sv}",
    "SetOptions": "sa{ss}a{sv}",
    "SetBlacklisted": "sba{sv}",
    "Show": "",
    "GetDrift": "",
    "Apply": "a{sv}",
    "Reload": "",
}
_OPTIONS = {"dry-run": "b", "reason": "s", "hard": "b", "on-behalf-of": "s"}
_READS = frozenset({"Show", "GetDrift"})
_CALLS_INTO_KERNEL = frozenset({"Apply"})


class ChangeOptions(TypedDict, total=False):
    """Options of what changes something."""

    dry_run: bool
    reason: str
    on_behalf_of: str


class Configuration:
    """The administrator's rules about modules, kmodd's own files and the wanted state."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    async def data(self, member: str, *arguments: object, options: Mapping[str, object] | None = None) -> Any:
        """Call any member and answer its value as on the bus, without variants; None when it has none."""
        signature = _SIGNATURES[member]
        body = [dict(argument) if isinstance(argument, Mapping) else argument for argument in arguments]
        if signature.endswith("a{sv}"):
            given = {name.replace("_", "-"): value for name, value in (options or {}).items()}
            body.append({name: variant(_OPTIONS[name], value) for name, value in given.items()})
        return await self._client.call(
            INTERFACE, member, signature, body, reads=member in _READS, long=member in _CALLS_INTO_KERNEL
        )

    async def set_autoload(
        self,
        module: str,
        parameters: Mapping[str, str] | None = None,
        *,
        enabled: bool = True,
        **options: Unpack[ChangeOptions],
    ) -> None:
        """Have a module loaded at every boot, or no longer."""
        await self.data("SetAutoload", module, enabled, dict(parameters or {}), options={**options})

    async def set_options(self, module: str, parameters: Mapping[str, str], **options: Unpack[ChangeOptions]) -> None:
        """Write the parameters it gets whenever it is loaded; none takes them away."""
        await self.data("SetOptions", module, dict(parameters), options={**options})

    async def set_blacklisted(
        self, module: str, *, blacklisted: bool = True, hard: bool = False, **options: Unpack[ChangeOptions]
    ) -> None:
        """Keep a module out, `hard` also by its name; or take kmodd's own blacklisting away."""
        given: dict[str, object] = {**options} | ({"hard": True} if hard else {})
        await self.data("SetBlacklisted", module, blacklisted, options=given)

    async def show(self) -> tuple[ShownRule, ...]:
        """Every rule about modules, in reading order."""
        return tuple(shown_rule(row) for row in await self.data("Show"))

    async def drift(self) -> tuple[Drift, ...]:
        """What is not as it is wanted."""
        return tuple(drift(row) for row in await self.data("GetDrift"))

    async def apply(self, **options: Unpack[ChangeOptions]) -> tuple[OperationResult, ...]:
        """Bring the machine to the wanted state; one result for each operation."""
        return tuple(answers.operation_result(row) for row in await self.data("Apply", options={**options}))

    async def reload(self) -> None:
        """Have all files read again."""
        await self.data("Reload")


def shown_rule(data: Mapping[str, Any]) -> ShownRule:
    """A row of `Show`."""
    row = Fields(data)
    pairs = row.get("findings", list, [])
    return ShownRule(
        Rule(row.text("kind"), row.text("module"), row.text("value"), row.text("file"), row.number("line"), ""),
        ours=row.flag("ours"),
        masks=row.texts("masks"),
        shadowed_by=row.text("shadowed-by"),
        findings=tuple(Finding(str(kind), str(message)) for kind, message in pairs),
        public="value" in data,
    )


def drift(data: Mapping[str, Any]) -> Drift:
    """A row of `GetDrift`."""
    row = Fields(data)
    return Drift(row.text("module"), row.text("kind"), row.text("wanted"), row.text("actual"), row.text("hint"))
