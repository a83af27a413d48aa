# SPDX-License-Identifier: LGPL-2.1-or-later
"""The client's side of `org.kmodd1.Configuration`.

configuration = Configuration(client)
await configuration.set_autoload("loop", {"max_loop": "8"}, reason="disk images")
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from kmodd.client import replies as answers
from kmodd.client.replies import Fields, finding
from kmodd.model import OperationResult, Rule
from kmodd.model.rules import Drift, ShownRule

if TYPE_CHECKING:
    from kmodd.client import Client

INTERFACE = "org.kmodd1.Configuration"
_MANY = ("Apply", "Confirm", "Revert")


class ReloadOptions(TypedDict, total=False):
    """Options of `Reload`."""

    reason: str
    on_behalf_of: str


class ChangeOptions(ReloadOptions, total=False):
    """Options of what changes something."""

    dry_run: bool


class ApplyOptions(ChangeOptions, total=False):
    """Options of `Apply`."""

    only_modules: Sequence[str]
    public: bool
    disconnect: bool
    try_seconds: int


class Configuration:
    """The administrator's rules about modules, kmodd's own files and the desired state."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    async def data(self, member: str, *arguments: object, options: Mapping[str, object] | None = None) -> Any:
        """Call any member and answer its value as on the bus, without variants; None when it has none."""
        return await self._client.data(member, *arguments, options=options, interface=INTERFACE, many=member in _MANY)

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
        keys: dict[str, object] = {**options} | ({"hard": True} if hard else {})
        await self.data("SetBlacklisted", module, blacklisted, options=keys)

    async def show(self) -> tuple[ShownRule, ...]:
        """Every rule about modules, in reading order."""
        return tuple(shown_rule(row) for row in await self.data("Show"))

    async def drift(self) -> tuple[Drift, ...]:
        """The drift from the desired state."""
        return tuple(drift(row) for row in await self.data("GetDrift"))

    async def apply(self, **options: Unpack[ApplyOptions]) -> tuple[OperationResult, ...]:
        """Bring the system to the desired state; one result for each operation."""
        return tuple(answers.operation_result(row) for row in await self.data("Apply", options={**options}))

    async def confirm(self, **options: Unpack[ReloadOptions]) -> tuple[OperationResult, ...]:
        """Keep what is on trial; `Conflict` where there is nothing."""
        return tuple(answers.operation_result(row) for row in await self.data("Confirm", options={**options}))

    async def revert(self, **options: Unpack[ReloadOptions]) -> tuple[OperationResult, ...]:
        """Take back what is on trial; `Conflict` where there is nothing."""
        return tuple(answers.operation_result(row) for row in await self.data("Revert", options={**options}))

    async def reload(self, **options: Unpack[ReloadOptions]) -> None:
        """Have all files read again."""
        await self.data("Reload", options={**options})


def shown_rule(data: Mapping[str, Any]) -> ShownRule:
    """A row of `Show`."""
    row = Fields(data)
    return ShownRule(
        Rule(row.text("kind"), row.text("module"), row.text("value"), row.text("file"), row.number("line"), ""),
        ours=row.flag("ours"),
        masks=row.texts("masks"),
        shadowed_by=row.text("shadowed-by"),
        findings=tuple(map(finding, row.get("findings", list, []))),
        public="value" in data,
    )


def drift(data: Mapping[str, Any]) -> Drift:
    """A row of `GetDrift`."""
    row = Fields(data)
    return Drift(
        row.text("module"),
        row.text("kind"),
        row.text("wanted"),
        row.text("actual"),
        row.text("hint"),
        row.texts("command"),
    )
