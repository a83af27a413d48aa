# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is only read from the daemon."""

import asyncio
from typing import Any

from kmodd.errors import KmoddError, NoSuchModule, NotLoaded
from kmodd.gateway.asking import encode
from kmodd.gateway.counts import Counts, Sample
from kmodd.gateway.link import DaemonLink
from kmodd.gateway.shared import SharedAnswers
from kmodd.gateway.wording import snake
from kmodd.names import parse_glob, parse_module, parse_module_or_alias

METRICS_TIMEOUT = 5.0
"""Seconds the daemon has for its metrics; Prometheus gives up after ten."""
OBJECT_TRIES = 5
OBJECT_PAUSE = 0.05
"""Seconds between two looks for the object of a module that the kernel lists."""


class Reading:
    """One for the gateway."""

    def __init__(self, link: DaemonLink, shared: SharedAnswers, counts: Counts) -> None:
        self._link = link
        self._shared = shared
        self._counts = counts

    async def modules(self, state: str, match: str) -> bytes:
        """`ListModules` as JSON."""
        options = {"state": state} | ({"match": parse_glob(match)} if match else {})

        async def ask() -> bytes:
            rows = await self._link.client.data("ListModules", options=options)
            return encode({"modules": rows})

        return await self._shared.get(("modules", state, match), ask)

    async def module(self, module: str) -> dict[str, Any]:
        """`Describe`, and the properties of its object while it is loaded."""
        name = parse_module_or_alias(module)
        client = self._link.client
        missing: KmoddError | None = None
        try:
            found = snake(await client.data("Describe", name))
        except NoSuchModule as error:
            # A module can be loaded although its file is gone.
            missing, found = error, {"name": name}
        if any(row.name == found["name"] for row in await self._loaded(found["name"])):
            found |= await self._live(found["name"])
        elif missing is not None:
            missing.module = name
            raise missing
        return found

    async def _live(self, name: str) -> dict[str, Any]:
        # The kernel lists it already, and its object comes with the kernel's event a moment later; or it just went.
        for _ in range(OBJECT_TRIES):
            try:
                return {"live": snake(await self._link.client.module_properties(name))}
            except NotLoaded:
                await asyncio.sleep(OBJECT_PAUSE)
        return {}

    async def _loaded(self, name: str) -> Any:
        return await self._link.client.list_modules(match=name) if ":" not in name else ()

    async def explain(self, module: str) -> dict[str, Any]:
        """`Explain`."""
        return snake(await self._link.client.data("Explain", parse_module(module)))

    async def health(self) -> bytes:
        """`GetHealth` as JSON."""

        async def ask() -> bytes:
            return encode(snake(await self._link.client.data("GetHealth")))

        return await self._shared.get("health", ask)

    async def metrics(self) -> bytes:
        """The daemon's metrics and ours in Prometheus' text format; ours alone when the daemon is away."""

        async def ask() -> bytes:
            samples: list[Sample] | None
            try:
                async with asyncio.timeout(METRICS_TIMEOUT):
                    rows = await self._link.client.data("GetMetrics")
                samples = [(name, kind, labels, value) for name, kind, labels, value in rows]
            except (KmoddError, TimeoutError):
                samples = None
            return self._counts.text(samples)

        return await self._shared.get("metrics", ask)
