# SPDX-License-Identifier: LGPL-2.1-or-later
"""Answers that many ask for: the daemon is asked once for all who ask at the same time."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

ANSWERS_MAX = 64


@dataclass(frozen=True, slots=True)
class _Answer:
    task: asyncio.Task[bytes]
    generation: int
    until: float


class SharedAnswers:
    """Answers by key, kept until something changed, and no longer than `seconds`.

    What the kernel tells nobody (reference counts) may be that old.
    """

    def __init__(self, seconds: float, clock: Callable[[], float], generation: Callable[[], int]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._generation = generation
        self._answers: dict[object, _Answer] = {}

    async def get(self, key: object, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """The answer for this key, made now or a moment ago; what `make` raises."""
        now = self._clock()
        known = self._answers.get(key)
        if known is None or known.generation != self._generation() or known.until <= now or _failed(known.task):
            if len(self._answers) >= ANSWERS_MAX:
                self._answers = {name: one for name, one in self._answers.items() if one.until > now}
            task = asyncio.ensure_future(_run(make))
            # Whoever asked may have left before it failed.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            known = _Answer(task, self._generation(), now + self._seconds)
            if len(self._answers) < ANSWERS_MAX:
                self._answers[key] = known
        return await asyncio.shield(known.task)


async def _run(make: Callable[[], Awaitable[bytes]]) -> bytes:
    return await make()


def _failed(task: asyncio.Task[bytes]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
