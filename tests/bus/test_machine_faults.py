# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine out of descriptors is no bug of the daemon, and no machine without modules."""

import errno
import os
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


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (errno.EMFILE, "org.freedesktop.DBus.Error.LimitsExceeded"),
        (errno.ENOMEM, "org.freedesktop.DBus.Error.LimitsExceeded"),
        (errno.EIO, "org.kmodd1.Error.NotPermitted"),
    ],
)
@pytest.mark.parametrize("member", ["ListModules", "Plan", "Load"])
async def test_a_call_that_cannot_read_what_is_loaded_says_so(
    service: Bench, monkeypatch: pytest.MonkeyPatch, member: str, code: int, error: str
) -> None:
    arguments: dict[str, tuple[Any, ...]] = {
        "ListModules": ("a{sv}", {}),
        "Plan": ("a(ssa{ss})a{sv}", [["load", "dummy", {}]], {}),
        "Load": ("sa{ss}a{sv}", "dummy", {}, {}),
    }

    def fails(*_: object) -> object:
        raise OSError(code, os.strerror(code), "/proc/modules")

    async with service.client(0) as root:
        await root.call(member, *arguments[member]) if member != "Load" else None
        with monkeypatch.context() as broken:
            for name in ("raw", "snapshot", "read"):
                broken.setattr(service.kernel.loaded, name, fails)
            with pytest.raises(Reply) as refused:
                await root.call(member, *arguments[member])
        assert refused.value.name == error
        assert "dummy" not in service.kernel.machine.snapshot()
        await root.call(member, *arguments[member])
