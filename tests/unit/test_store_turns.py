# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nobody waits for another user's files to be examined."""

import asyncio

from kmodd.core.store_turns import OF_ROOT, USERS, ExaminationTurns


class Examinations:
    """Files that are examined until they are told to end."""

    def __init__(self) -> None:
        self.turns = ExaminationTurns()
        self.running: list[int | None] = []
        self.end = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def examine(self, uid: int | None) -> None:
        async with self.turns.turn(uid):
            self.running.append(uid)
            await self.end.wait()
            self.running.remove(uid)

    async def hand_over(self, *uids: int | None) -> None:
        self.tasks += [asyncio.create_task(self.examine(uid)) for uid in uids]
        for _ in range(5):
            await asyncio.sleep(0)

    async def finish(self) -> None:
        self.end.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_a_flood_is_its_own_users_alone() -> None:
    files = Examinations()
    await files.hand_over(*[1000] * 8)
    assert files.running == [1000]
    await files.hand_over(1001, 0, None)
    assert files.running == [1000, 1001, 0, None]
    await files.finish()
    assert files.running == []


async def test_many_users_leave_root_its_turn() -> None:
    files = Examinations()
    await files.hand_over(*range(1000, 1020))
    assert len(files.running) == USERS
    await files.hand_over(0, 0, 0)
    assert files.running.count(0) == OF_ROOT
    await files.finish()
    assert files.running == []


async def test_nothing_is_kept_of_users_who_are_gone() -> None:
    files = Examinations()
    await files.hand_over(1000, 1000, 1001)
    for task in files.tasks:
        task.cancel()
    await files.finish()
    assert not files.turns._own
    await files.hand_over(1000)
    assert not files.turns._there


async def test_who_leaves_holds_nobody_up() -> None:
    """While examined, while waiting behind an own file, and while waiting for a place among the users."""
    files = Examinations()
    await files.hand_over(1000, 1000, *range(1001, 1006))
    assert files.running == [1000, 1001, 1002, 1003]
    examined, own, waiting = files.tasks[0], files.tasks[1], files.tasks[5]
    for task in (own, waiting, examined):
        task.cancel()
    await files.hand_over(1000)
    assert files.running[-1] == 1005, "the next in line, and not who was there before"
    files.tasks[2].cancel()
    await files.hand_over()
    assert files.running[-1] == 1000
    await files.finish()
    assert not files.turns._own
    assert files.turns._users._value == USERS
