# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who cannot be known is refused, and not left waiting."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.bus.bench import Bench, bench
from tests.bus.buses import Reply


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as made:
        yield made


@pytest.mark.parametrize("member", ["GetHealth", "Load"])
@pytest.mark.parametrize("error", [TimeoutError(), ConnectionError(), ValueError("not an answer")], ids=type)
async def test_every_call_is_answered_when_the_bus_does_not_say_whose_it_is(
    service: Bench, member: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def ask(sender: str) -> tuple[int | None, int]:
        del sender
        await asked.wait()
        raise error

    callers = service.service.callers
    async with service.client(1000) as user:
        callers.forget(user.name)
        monkeypatch.setattr(callers, "_credentials", ask)
        arguments: tuple[Any, ...] = ("sa{ss}a{sv}", "dummy", {}, {}) if member == "Load" else ("",)
        calls = [asyncio.create_task(user.call(member, *arguments)) for _ in range(5)]
        await asyncio.sleep(0.05)
        asked.set()
        for call in calls:
            with pytest.raises(Reply) as refused:
                await asyncio.wait_for(call, 2)
            assert refused.value.name == "org.freedesktop.DBus.Error.AccessDenied"
        monkeypatch.undo()
        await user.call("GetHealth", "")  # and it is asked again
    assert service.service.dispatcher.pending == 0
    assert not service.kernel.holds("dummy")
