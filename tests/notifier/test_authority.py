# SPDX-License-Identifier: LGPL-2.1-or-later
"""Only a well-formed yes of polkit is a yes."""

from typing import Any

import pytest

from kmodd.errors import AccessDenied, Failed, InteractiveAuthorizationRequired, KmoddError, Unavailable
from kmodd.notifier.authority import ACTION, Polkit


class Bus:
    """Answers for the bus (whose uid) and for polkit."""

    def __init__(self, uid: Any, answer: Any) -> None:
        self.uid = uid
        self.answer = answer
        self.asked: list[tuple[str, list[Any]]] = []

    async def call(
        self, path: str, interface: str, member: str, signature: str = "", body: Any = (), **_: object
    ) -> tuple[Any, ...]:
        self.asked.append((member, list(body)))
        if member == "GetConnectionUnixUser":
            if isinstance(self.uid, KmoddError):
                raise self.uid
            return (self.uid,)
        if isinstance(self.answer, KmoddError):
            raise self.answer
        return tuple(self.answer)


def polkit(uid: Any, answer: Any) -> tuple[Polkit, Bus]:
    bus = Bus(uid, answer)
    stands_for: Any = bus
    return Polkit(stands_for), bus


async def test_yes_names_the_user() -> None:
    authority, bus = polkit(1000, [[True, False, {}]])
    assert await authority.check(":1.5", interactive=True) == 1000
    member, body = bus.asked[-1]
    assert member == "CheckAuthorization"
    assert body[0][0] == "system-bus-name"
    assert body[0][1]["name"].value == ":1.5"
    assert (body[1], body[3]) == (ACTION, 1)


async def test_nobody_is_asked_for_a_password_who_did_not_allow_it() -> None:
    authority, bus = polkit(1000, [[False, True, {}]])
    with pytest.raises(InteractiveAuthorizationRequired):
        await authority.check(":1.5", interactive=False)
    assert bus.asked[-1][1][3] == 0


async def test_root_needs_no_polkit() -> None:
    authority, bus = polkit(0, Unavailable("no polkit"))
    assert await authority.check(":1.5", interactive=False) == 0
    assert len(bus.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        [[False, False, {}]],
        [],
        [[]],
        [[1, 0, {}]],
        [["true", False, {}]],
        [[True, False]],
        [None],
        [[True, False, {}], 1],
        Failed("what"),
        Unavailable("polkit is not there"),
        AccessDenied("the bus says no"),
    ],
)
async def test_whatever_else_is_a_no(answer: Any) -> None:
    authority, _ = polkit(1000, answer)
    with pytest.raises(AccessDenied):
        await authority.check(":1.5", interactive=False)


@pytest.mark.parametrize("uid", [Failed("gone"), None, "0", Unavailable("no answer")])
async def test_who_cannot_be_told_is_refused(uid: Any) -> None:
    authority, bus = polkit(uid, [[True, False, {}]])
    with pytest.raises(AccessDenied):
        await authority.check(":1.5", interactive=False)
    assert [member for member, _ in bus.asked] == ["GetConnectionUnixUser"]


async def test_an_unanswered_question_is_taken_back() -> None:
    authority, bus = polkit(1000, Unavailable("no answer in time"))
    with pytest.raises(AccessDenied):
        await authority.check(":1.5", interactive=True)
    (cancelled,) = [body for member, body in bus.asked if member == "CancelCheckAuthorization"]
    (asked,) = [body for member, body in bus.asked if member == "CheckAuthorization"]
    assert cancelled == [asked[-1]]
