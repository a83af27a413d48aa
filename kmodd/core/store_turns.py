# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose file is examined next. Anybody may hand one over, and the worst ones take a minute: no user may wait for another's."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

OF_USER: Final = 1
"""Files of one user examined at the same time; further ones wait."""
OF_ROOT: Final = 2
USERS: Final = 4
"""Users whose files are examined at the same time, root apart: each process takes memory."""


class ExaminationTurns:
    """Bounds how many files are examined at once, for each user and altogether."""

    def __init__(self) -> None:
        self._users = asyncio.Semaphore(USERS)
        self._own: dict[int | None, asyncio.Semaphore] = {}
        self._there: Counter[int | None] = Counter()
        """Files under examination or waiting, by user."""

    @asynccontextmanager
    async def turn(self, uid: int | None) -> AsyncIterator[None]:
        """Wait for this user's turn, and have it."""
        own = self._own.setdefault(uid, asyncio.Semaphore(OF_ROOT if uid == 0 else OF_USER))
        self._there[uid] += 1
        try:
            async with own:
                if uid == 0:
                    yield
                else:
                    async with self._users:
                        yield
        finally:
            self._there[uid] -= 1
            if not self._there[uid]:
                del self._there[uid], self._own[uid]
