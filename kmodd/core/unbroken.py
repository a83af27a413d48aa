# SPDX-License-Identifier: LGPL-2.1-or-later
"""Work that goes on to its end when the task that waits for it is cancelled, without a task of its own.

`asyncio.shield` around a second task does the same for one task and three turns of the event loop more, in the middle of
what a caller waits for.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")


class Unbroken(Generic[Answer]):
    """Await it once. A cancellation of the awaiting task is told to `left`, and raised when the work has ended."""

    def __init__(self, work: Coroutine[Any, Any, Answer], left: Callable[[], None]) -> None:
        """`left` is called at once, as often as the task is cancelled; it must not raise."""
        self._work = work
        self._left = left
        self._cancelled = False
        self._waits_for: asyncio.Future[Any] | None = None

    def abandon(self) -> None:
        """Break it off after all: what it waits for is cancelled."""
        if self._waits_for is not None:
            self._waits_for.cancel()

    def __await__(self) -> Generator[Any, None, Answer]:
        answer = yield from self._run()
        if self._cancelled:
            raise asyncio.CancelledError
        return answer

    def _run(self) -> Generator[Any, None, Answer]:
        try:
            while True:
                # Whatever ended the wait, the work finds it in the future it awaits: an answer, an error, that it was
                # cancelled by `abandon`.
                waits_for = self._work.send(None)
                self._waits_for = waits_for
                try:
                    yield None if waits_for is None else _Kept(waits_for, self._tell)
                except GeneratorExit:
                    self._work.close()
                    raise
                except asyncio.CancelledError:
                    if not self._cancelled and (waits_for is None or not waits_for.cancelled()):
                        self._tell()  # It waited for nothing but its next turn.
                except BaseException:  # noqa: BLE001, S110 - it is the future's own, and raised by it again
                    pass
                finally:
                    self._waits_for = None
        except StopIteration as end:
            answer: Answer = end.value
            return answer

    def _tell(self) -> None:
        self._cancelled = True
        self._left()


class _Kept:
    """What the task is given to wait for in place of the future: all the same, but cancelling the task does not cancel it.

    The protocol of future-like objects, see `asyncio.isfuture` and Task.__step in Lib/asyncio/tasks.py: after `cancel` has
    answered false, the task raises CancelledError as soon as it is woken.
    """

    __slots__ = ("_asyncio_future_blocking", "_future", "_tell")

    def __init__(self, future: asyncio.Future[Any], tell: Callable[[], None]) -> None:
        future._asyncio_future_blocking = False
        self._asyncio_future_blocking = True
        self._future = future
        self._tell = tell

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._future.get_loop()

    def add_done_callback(self, callback: Callable[[asyncio.Future[Any]], object], *, context: Context) -> None:
        self._future.add_done_callback(callback, context=context)

    def cancel(self, msg: object = None) -> bool:
        del msg
        self._tell()
        return False
