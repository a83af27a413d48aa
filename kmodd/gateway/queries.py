# SPDX-License-Identifier: LGPL-2.1-or-later
"""Queries of the daemon, and responses shared by clients that ask at the same time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from kmodd.client.notifier import NotifierClient
from kmodd.client.surface import AttackSurface
from kmodd.errors import KmoddError, NoSuchModule, NotLoaded
from kmodd.fast_dataclass import dataclass
from kmodd.gateway.daemon_connection import DaemonConnection
from kmodd.gateway.dependencies import encode, snake
from kmodd.gateway.metrics import GatewayMetrics, Sample
from kmodd.names import parse_glob, parse_module, parse_module_or_alias, parse_release

ANSWERS_MAX = 64


@dataclass(frozen=True, slots=True)
class _Answer:
    task: asyncio.Task[bytes]
    generation: int
    until: float


class SharedAnswers:
    """Answers by key, kept until something changed, and no longer than `seconds`.

    Facts without events (reference counts) may be that old.
    """

    def __init__(self, seconds: float, clock: Callable[[], float], generation: Callable[[], int]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._generation = generation
        self._answers: dict[object, _Answer] = {}

    async def get(self, key: object, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """The answer for this key, made now or a moment ago; what `make` raises."""
        now = self._clock()
        cached = self._answers.get(key)
        if cached is None or cached.generation != self._generation() or cached.until <= now or _failed(cached.task):
            if len(self._answers) >= ANSWERS_MAX:
                self._answers = {name: cached for name, cached in self._answers.items() if cached.until > now}
            task = asyncio.ensure_future(_run(make))
            # The client may have disconnected before it failed.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            cached = _Answer(task, self._generation(), now + self._seconds)
            if len(self._answers) < ANSWERS_MAX:
                self._answers[key] = cached
        return await asyncio.shield(cached.task)


async def _run(make: Callable[[], Awaitable[bytes]]) -> bytes:
    return await make()


def _failed(task: asyncio.Task[bytes]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


METRICS_TIMEOUT = 5.0
"""Seconds the daemon has for its metrics; Prometheus gives up after ten."""
OBJECT_TRIES = 5
OBJECT_PAUSE = 0.05
"""Seconds between two looks for the object of a module that the kernel lists."""


class Queries:
    """One for the gateway."""

    def __init__(self, link: DaemonConnection, shared: SharedAnswers, counts: GatewayMetrics) -> None:
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
            described = snake(await client.data("Describe", name))
        except NoSuchModule as error:
            # A module can be loaded although its file is gone.
            missing, described = error, {"name": name}
        if any(row.name == described["name"] for row in await self._loaded(described["name"])):
            described |= await self._live(described["name"])
        elif missing is not None:
            missing.module = name
            raise missing
        return described

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

    async def explain(self, module: str, *, public: bool) -> dict[str, Any]:
        """`Explain`; `public` leaves out what any local user could not read."""
        return snake(
            await self._link.client.data("Explain", parse_module(module), options={"public": True} if public else {})
        )

    async def surface(self, kernel: str, reach: str, match: str, limit: int) -> bytes:
        """`GetSummary` and `Get` of `org.kmodd1.Surface` as JSON."""
        of_kernel = {"kernel": parse_release(kernel)} if kernel else {}
        options: dict[str, object] = dict(of_kernel)
        options |= {"reach": reach} if reach else {}
        options |= {"match": parse_glob(match)} if match else {}
        options |= {"limit": limit} if limit else {}

        async def ask() -> bytes:
            surface = AttackSurface(self._link.client)
            numbers = snake(await surface.data("GetSummary", options=of_kernel))
            return encode(numbers | {"modules": [snake(row) for row in await surface.data("Get", options=options)]})

        return await self._shared.get(("surface", kernel, reach, match, limit), ask)

    async def routes(self, module: str, kernel: str) -> dict[str, Any]:
        """`GetRoutes` of `org.kmodd1.Surface`."""
        options = {"kernel": parse_release(kernel)} if kernel else {}
        rows = await AttackSurface(self._link.client).data("GetRoutes", parse_module(module), options=options)
        return {"routes": [snake(row) for row in rows]}

    async def responses(self) -> dict[str, Any]:
        """`GetResponses` of `org.kmodd1.Surface`."""
        rows = await AttackSurface(self._link.client).data("GetResponses")
        return {"responses": [snake(row) for row in rows]}

    async def health(self) -> bytes:
        """`GetHealth` as JSON."""

        async def ask() -> bytes:
            return encode(snake(await self._link.client.data("GetHealth")))

        return await self._shared.get("health", ask)

    async def metrics(self) -> bytes:
        """Everybody's metrics in Prometheus' text format; ours alone when the others are away."""

        async def ask() -> bytes:
            daemon, notifier = await asyncio.gather(self._of_daemon(), self._of_notifier())
            return self._counts.text(daemon, notifier)

        return await self._shared.get("metrics", ask)

    async def _of_daemon(self) -> list[Sample] | None:
        try:
            async with asyncio.timeout(METRICS_TIMEOUT):
                rows = await self._link.client.data("GetMetrics")
                return [(name, kind, labels, value) for name, kind, labels, value in rows]
        except (KmoddError, TimeoutError):
            return None

    async def _of_notifier(self) -> list[Sample]:
        # It need not be installed, and is not started for this.
        try:
            async with asyncio.timeout(METRICS_TIMEOUT):
                samples = await NotifierClient(self._link.client.transport).metrics()
        except (KmoddError, TimeoutError):
            return []
        return [(metric.name, metric.type, dict(metric.labels), metric.value) for metric in samples]
