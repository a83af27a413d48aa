# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodd as the agent uses it, without kmodd and bus: for tests of what is between the agent and the API server."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from kmodd.agent.leases import Leases
from kmodd.agent.node import Look
from kmodd.agent.planning import Action, Actual, Step, Wanted
from kmodd.errors import Conflict, InitFailed, KmoddError

if TYPE_CHECKING:
    from kmodd.client import Client

LOAD = 0.02
"""Seconds that a load or unload takes."""
BAD = "9"
"""The value of max_loop with which the init function of loop fails on nodes that are bad."""


class SimulatedNode:
    """A node as the agent sees it through kmodd, without either."""

    def __init__(self, *, bad: bool = False) -> None:
        self._bad = bad
        self._loaded: dict[str, dict[str, str]] = {}
        self._loaded_at: dict[str, int] = {}
        self.leases = Leases(cast("Client", SimulatedClient()))

    @property
    def loaded(self) -> set[str]:
        """Modules that are loaded."""
        return set(self._loaded)

    async def look(self, wanted: Mapping[str, Wanted], owned: Collection[str]) -> Look:
        """What is loaded, and what a load would do."""
        actual = {name: self._actual(name, wanted.get(name)) for name in dict.fromkeys((*wanted, *owned))}
        return Look(actual, frozenset(self._loaded), "6.1.0-simulated", "0.1.0", "")

    def _actual(self, name: str, wanted: Wanted | None) -> Actual:
        have = self._loaded.get(name)
        if have is None:
            return Actual(load_steps=True)
        parameters = dict(wanted.module.parameters) if wanted is not None else {}
        differs = any(have.get(key) != value for key, value in parameters.items())
        error = Conflict(f"{name} is loaded with other parameters", module=name) if differs else None
        return Actual(loaded=True, load_error=error, loaded_at=self._loaded_at[name])

    async def hold(self, wanted: Wanted) -> None:
        """Nothing else unloads modules here."""
        del wanted

    async def check(self, step: Step) -> KmoddError | None:
        """Nothing is known beforehand."""
        del step
        return None

    async def take(self, step: Step) -> tuple[str, ...]:
        """Do it."""
        await asyncio.sleep(LOAD)
        if step.action is Action.UNLOAD:
            self._loaded.pop(step.module, None)
            return (step.module,)
        if self._bad and dict(step.parameters).get("max_loop") == BAD:
            raise InitFailed(f"init of {step.module} failed", module=step.module)
        self._loaded[step.module] = dict(step.parameters)
        self._loaded_at[step.module] = time.time_ns() // 1000
        return (step.module,)


class SimulatedClient:
    """A bus on which nothing happens."""

    transport = SimpleNamespace(connected=True)

    @asynccontextmanager
    async def signals(self, *rules: str) -> AsyncIterator[AsyncIterator[Any]]:
        """Signals that never come."""
        del rules

        async def never() -> AsyncIterator[Any]:
            await asyncio.get_running_loop().create_future()
            yield None

        yield never()
