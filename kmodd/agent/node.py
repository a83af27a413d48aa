# SPDX-License-Identifier: LGPL-2.1-or-later
"""The node as kmodd describes it, and the three calls that change it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from kmodd.agent.leases import Leases
from kmodd.agent.planning import Action, Actual, Step, Wanted
from kmodd.client import CallerOptions, Client
from kmodd.client.replies import Fields, failed
from kmodd.errors import KmoddError, NotLoaded
from kmodd.fast_dataclass import dataclass
from kmodd.model import Explanation, State
from kmodd.names import ON_BEHALF_OF_MAX

STORE = "org.kmodd1.Store"
SIGNALS = (
    "interface='org.kmodd1.Manager',member='ModuleAdded'",
    "interface='org.kmodd1.Manager',member='ModuleRemoved'",
    "interface='org.freedesktop.DBus.Properties',member='PropertiesChanged',path_namespace='/org/kmodd1/module'",
)
NAMED_SETS = 8
"""Sets that a reason names."""


@dataclass(frozen=True, slots=True)
class Look:
    """What kmodd says at one moment."""

    actual: Mapping[str, Actual]
    """By module, of those that are specified or the agent's."""
    loaded: frozenset[str]
    kernel_release: str
    version: str
    boot_id: str
    """Empty where kmodd does not know it: an older one, or one with a simulated kernel."""


class Node:
    """kmodd, as the agent uses it. Every error is one of `kmodd.errors`."""

    def __init__(self, client: Client, uid: int) -> None:
        self._client = client
        self._uid = uid
        self.leases = Leases(client)

    async def look(self, wanted: Mapping[str, Wanted], owned: Collection[str]) -> Look:
        """Everything that is decided from. Changes nothing but leases that are not needed any more, and needs no authorization."""
        self.leases.keep({name for name, module in wanted.items() if module.demanded})
        properties = await self._client.properties()
        rows = await self._client.list_modules()
        loaded = frozenset(str(row.name) for row in rows)
        moving = {str(row.name) for row in rows if row.state is not State.LIVE}
        names = [name for name, module in wanted.items() if not module.conflict]
        load = await self._plan([("load", name, dict(wanted[name].module.parameters)) for name in names])
        leaving = [name for name in owned if name in loaded and not (name in wanted and wanted[name].now)]
        unload = await self._plan([("unload", name, {}) for name in leaving])
        versions = await self._versions({name for name in names if wanted[name].module.version})
        actual: dict[str, Actual] = {}
        for name in dict.fromkeys((*wanted, *owned)):
            error, steps = load.get(name, (None, False))
            live = await self._live(name) if name in loaded else {}
            parameters = live.get("Parameters", {})
            keys = [key for key, _ in wanted[name].module.parameters] if name in wanted else []
            versioned = name in wanted and bool(wanted[name].module.version)
            active, stored = versions.get(name, (None, ()))
            actual[name] = Actual(
                loaded=name in loaded,
                moving=name in moving,
                load_error=error,
                load_steps=steps,
                unload_error=unload.get(name, (None, False))[0],
                parameters=tuple((key, str(parameters[key])) for key in keys if key in parameters),
                version=str(live.get("Version", "")),
                loaded_at=int(live.get("LoadedAt", 0)),
                active_version=active,
                stored_versions=stored,
                differs=(await self._client.explain(name)).differs if versioned and name in loaded else "",
            )
        return Look(
            actual,
            loaded,
            str(properties.get("KernelRelease", "")),
            str(properties.get("Version", "")),
            str(properties.get("BootId", "")),
        )

    async def _plan(
        self, operations: list[tuple[str, str, dict[str, str]]]
    ) -> dict[str, tuple[KmoddError | None, bool]]:
        """By module: the first error that an operation would end with, and whether it would do anything."""
        outcomes: dict[str, tuple[KmoddError | None, bool]] = {}
        for start in range(0, len(operations), 64):
            chunk = operations[start : start + 64]
            rows = await self._client.data("Plan", chunk, options={"atomic": False})
            for row in map(Fields, rows):
                name = chunk[row.number("operation")][1]
                error, _ = outcomes.get(name, (None, False))
                if error is None and row.text("error") and not row.flag("optional"):
                    error = failed(row)
                outcomes[name] = (error, True)
        return outcomes

    async def _live(self, name: str) -> Mapping[str, Any]:
        # The object follows the module after a moment, and may be gone again.
        with suppress(NotLoaded):
            return await self._client.module_properties(name)
        return {}

    async def _versions(self, names: Collection[str]) -> dict[str, tuple[str | None, tuple[str, ...]]]:
        if not names:
            return {}
        versions: dict[str, tuple[str | None, tuple[str, ...]]] = {}
        for row in map(Fields, await self._client.data("List", interface=STORE)):
            name = str(row.module("name")).replace("-", "_")
            if name in names:
                active, stored = versions.get(name, (None, ()))
                version = row.text("version")
                versions[name] = (version if row.flag("active") else active, (*stored, version))
        return versions

    async def check(self, step: Step) -> KmoddError | None:
        """Why the step would fail now, as far as kmodd knows without doing it."""
        operation = (str(step.action), step.module, dict(step.parameters))
        return (await self._plan([operation])).get(step.module, (None, False))[0]

    async def take(self, step: Step) -> tuple[str, ...]:
        """Do it; the modules that were inserted or removed, in order."""
        options = _caller_options(step.sets)
        if step.action is Action.LOAD:
            return await self._client.load(step.module, dict(step.parameters), **options)
        if step.action is Action.RELOAD:
            return await self._client.reload(step.module, dict(step.parameters), **options)
        return await self._client.unload(step.module, **options)

    async def hold(self, wanted: Wanted) -> None:
        """Hold a loaded module for the pods that need it."""
        await self.leases.take(wanted.name, dict(wanted.module.parameters), _caller_options(wanted.sets))

    async def explain(self, module: str) -> Explanation:
        """What kmodd knows about a module, as far as our user may see it."""
        return await self._client.explain(module)

    async def brought(self, module: str) -> tuple[str, ...]:
        """Modules that it needs and that our user loaded; those of which kmodd does not say so are not among them."""
        ours: list[str] = []
        pending, seen = [module], {module}
        while pending:
            needs: Iterable[str] = ()
            with suppress(KmoddError):
                needs = map(str, (await self._client.describe(pending.pop())).depends)
            for need in needs:
                if need in seen:
                    continue
                seen.add(need)
                pending.append(need)
                with suppress(KmoddError):
                    if self.is_ours(await self.explain(need)):
                        ours.append(need)
        return tuple(ours)

    def is_ours(self, explanation: Explanation) -> bool:
        """kmodd says that our user loaded it. What it does not say counts as no."""
        return explanation.loaded_by is not None and explanation.loaded_by.uid == self._uid


def _caller_options(sets: Sequence[str]) -> CallerOptions:
    """Why, and for whom: informational, for the journal and for polkit's rules."""
    if not sets:
        return {"reason": "no ModuleSet wants it any more"}
    more = f" and {len(sets) - NAMED_SETS} more" if len(sets) > NAMED_SETS else ""
    return {
        "reason": f"ModuleSet {', '.join(sets[:NAMED_SETS])}{more}",
        "on_behalf_of": _on_behalf_of(sets),
    }


def _on_behalf_of(sets: Sequence[str]) -> str:
    """As many sets as there is room for: `ModuleSet/network ModuleSet/storage`. A set's name is a DNS label."""
    text = ""
    for name in sets:
        longer = f"{text} ModuleSet/{name}".lstrip()
        if len(longer) > ON_BEHALF_OF_MAX:
            break
        text = longer
    return text
