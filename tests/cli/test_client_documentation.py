# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every example of docs/client.md runs as it stands there, and prints what it says; every method of the client has one."""

import ast
import asyncio
import contextlib
import doctest
import inspect
import io
import re
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmodd.client import Client
from kmodd.client.configuration import Configuration
from kmodd.client.notifier import NotifierClient
from kmodd.client.store import Store
from kmodd.client.surface import AttackSurface
from kmodd.errors import Unavailable
from kmodd.kernel.simulated.modules import RELEASE
from tests.cli.private_bus import private_bus
from tests.kernel.elf import module_file

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/client.md"
BLOCKS = re.findall(r"^```pycon\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
EXAMPLES = [example for block in BLOCKS for example in doctest.DocTestParser().get_examples(block)]
CHECK = doctest.OutputChecker()
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# For other services to share the connection, and for the gateway's clients.
INTERNAL = {"transport", "telling", "send_file"}


@pytest.fixture
def services(tmp_path: Path) -> Iterator[str]:
    """A session bus with the daemon on a simulated kernel and the notifier, as the page has them started."""
    config, state = tmp_path / "notify.toml", tmp_path / "state"
    config.write_text('[smtp]\nhost = "mail.example.com"\nfrom = "kmodd@example.com"\n')
    state.mkdir()
    facts = ("name=special", f"vermagic={RELEASE} SMP preempt mod_unload modversions ", "depends=")
    (tmp_path / "special.ko").write_bytes(module_file(facts, this_module="special", versions={"module_layout": 1}))
    notifier = ["kmodd.notifier.main", "--config", str(config), "--state", str(state)]
    with contextlib.ExitStack() as running, private_bus(tmp_path) as address:
        for program in (["kmodd.daemon.daemon", "--simulate"], notifier):
            command = [sys.executable, "-m", *program, "--address", address]
            process = running.enter_context(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL))
            running.callback(process.terminate)
        asyncio.run(serving(address))
        yield address


async def serving(address: str) -> None:
    """Wait until both services answer."""
    deadline = time.monotonic() + 20
    async with await Client.connect(address) as client, await NotifierClient.connect(address) as notifier:
        for question in (client.properties, notifier.status):
            while True:
                try:
                    await question()
                    break
                except Unavailable:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.05)


async def run(example: doctest.Example, names: dict[str, Any]) -> str:
    """What `python -m asyncio` prints for one example."""
    code = compile(example.source, f"{PAGE.name}:{example.lineno}", "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            result = types.FunctionType(code, names)()
            if inspect.iscoroutine(result):
                await result
        except Exception as error:  # noqa: BLE001 - the example says which
            return "".join(traceback.format_exception_only(error))
    return output.getvalue()


async def test_every_example_prints_what_the_page_says(
    services: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", services)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    wrong = []
    try:
        for example in EXAMPLES:
            printed, wanted = await run(example, names), example.exc_msg or example.want
            if not CHECK.check_output(wanted, printed, FLAGS):
                wrong.append(f">>> {example.source}{printed}instead of:\n{wanted}")
    finally:
        await names["kmodd"].close()
        await names["notifier"].__aexit__()
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("kind", [Client, Configuration, Store, AttackSurface, NotifierClient])
def test_every_method_has_an_example(kind: type) -> None:
    public = {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")} - INTERNAL
    called = {name for example in EXAMPLES for name in re.findall(r"\.(\w+)", example.source)}
    assert public - called == set()
