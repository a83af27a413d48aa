# SPDX-License-Identifier: LGPL-2.1-or-later
"""Marshalled answers are kept by what they were made of, up to a number and a size."""

import asyncio

import pytest

from kmodd.dbus.marshal import ReplyCache

pytestmark = pytest.mark.usefixtures("virtual_time")


class Made:
    def __init__(self, answers: ReplyCache) -> None:
        self.answers = answers
        self.texts: list[str] = []

    def ask(self, asked: str, made_of: object, text: str = "x") -> bytes:
        def make() -> str:
            self.texts.append(text)
            return text

        return self.answers.get(asked, made_of, make).data


async def test_answer_is_made_once_of_equal_things() -> None:
    made = Made(ReplyCache("s"))
    assert made.ask("a", (1, frozenset({"n"}))) is made.ask("a", (1, frozenset({"n"})))
    assert made.texts == ["x"]


async def test_answer_is_made_again_of_something_else() -> None:
    made = Made(ReplyCache("s"))
    assert made.ask("a", 1, "old") != made.ask("a", 2, "new")
    assert made.ask("a", 2) == made.ask("a", 2)
    assert made.texts == ["old", "new"]


async def test_the_most_recent_replies_are_kept() -> None:
    made = Made(ReplyCache("s", size=2))
    for asked in ("a", "b", "a", "c"):
        made.ask(asked, 1, asked)
    made.ask("a", 1, "a")
    assert made.texts == ["a", "b", "c"]
    made.ask("b", 1, "b")
    assert made.texts == ["a", "b", "c", "b"]


async def test_what_is_kept_is_bounded_in_bytes() -> None:
    made = Made(ReplyCache("s", size=1000, size_bytes=1000))
    for turn in range(50):
        made.ask("same", turn, "y" * 400)
    for number in range(50):
        made.ask(str(number), 1, "z" * 100)
    kept = made.answers._kept.values()
    assert 800 < sum(len(body.data) for _, body in kept) == made.answers._bytes <= 1000
    assert len(made.ask("huge", 1, "h" * 5000)) > 5000
    assert made.answers._bytes == 0


async def test_replies_that_are_no_longer_used_are_dropped() -> None:
    forgotten: list[None] = []
    made = Made(ReplyCache("s", keep=0.05, forgotten=lambda: forgotten.append(None)))
    for _ in range(4):
        made.ask("a", 1)
        await asyncio.sleep(0.03)
    assert (made.texts, forgotten) == (["x"], [])
    await asyncio.sleep(0.15)
    assert (len(forgotten), made.answers._bytes, len(made.answers._kept)) == (1, 0, 0)
    made.ask("a", 1)
    assert made.texts == ["x", "x"]
    made.answers.close()
    await asyncio.sleep(0.1)
    assert len(forgotten) == 1
