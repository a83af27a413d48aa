# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs inside the virtual machine: drives the kernel's parts by themselves, without a daemon.

`python3 kernel_probe.py ROOT_OF_THE_TREE` takes lines of JSON, [number, function, arguments], and answers each with a
line [number, result, traceback or ""] and a line `end NUMBER`. One process for all: under emulation, starting Python
takes longer than most of what is asked.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1] if __name__ == "__main__" else ".")

from kmodd.kernel.modules.alias_text import AliasText
from kmodd.kernel.proc.facts import ProcFacts
from kmodd.kernel.proc.kmsg import Kmsg
from kmodd.kernel.proc.loaded import ProcModules
from kmodd.kernel.proc.uevents import KernelUevents, kernel_monitor
from kmodd.kernel.users.search import ProcUsage
from kmodd.kernel.users.tasks import Budget, Limits
from kmodd.kernel.worker.executor import WorkerPool
from kmodd.model import Outcome
from kmodd.names import ModuleName

ROOT = Path("/")


def users(name: str) -> list[list[str]]:
    """What a search finds."""
    search = ProcUsage(ROOT, AliasText(ROOT, os.uname().release)).search(Budget(Limits(seconds=30)))
    return [[user.kind, user.name, user.detail] for modules, user in search if name in modules]


async def calls(orders: list[list[Any]]) -> list[dict[str, Any]]:
    """Do orders [verb, name or path, arguments, timeout] one after the other, each with the kernel's lines about it."""
    pool = WorkerPool()
    pool.start()
    answers = []
    for verb, target, arguments, timeout in orders:
        mark = Kmsg(ROOT / "dev/kmsg").mark()
        outcome = await _call(pool, verb, target, arguments, timeout)
        answers.append(_fields(outcome) | {"log": mark.lines(), "abandoned": pool.abandoned})
        mark.close()
    await pool.close()
    return answers


async def _call(pool: WorkerPool, verb: str, target: str, arguments: str, timeout: float) -> Outcome:
    if verb == "insert":
        return await pool.insert(target, arguments, timeout=timeout)
    return await pool.remove(ModuleName(target), timeout=timeout)


def _fields(outcome: Outcome) -> dict[str, Any]:
    fields = asdict(outcome) | {"refusal": outcome.refusal}
    del fields["data"]
    return fields


async def let_go(path: str, release: str) -> dict[str, Any]:
    """Insert a module that hangs, serve others meanwhile, release it, and wait to be told."""
    pool = WorkerPool()
    # Warm: starting Python may take longer than the second that the hang is given.
    await pool.remove(ModuleName("kmodd_no_such_module"), timeout=30)
    stuck = await pool.insert(path, "", timeout=1.0)
    state = ProcModules(ROOT).read(ModuleName("kmodd_test_init_wait"))
    told: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    pool.on_return(stuck.worker, told.set_result)
    other = await pool.remove(ModuleName("kmodd_no_such_module"), timeout=10)
    answer = {
        "stuck": _fields(stuck),
        "other": _fields(other),
        "abandoned": pool.abandoned,
        "state": state and state.state,
    }
    await asyncio.to_thread(Path(release).write_text, "1")
    answer |= {"told": _fields(await asyncio.wait_for(told, 20)), "left": pool.abandoned}
    await pool.close()
    return answer


async def side_by_side(paths: list[str], arguments: str) -> dict[str, Any]:
    """Insert several at once; the seconds it took, and how many processes remain."""
    pool = WorkerPool()
    pool.start()
    started = time.monotonic()
    outcomes = await asyncio.gather(*(pool.insert(path, arguments, timeout=60) for path in paths))
    seconds = time.monotonic() - started
    await asyncio.sleep(1)
    remaining = len(pool.pids)
    await pool.close()
    return {"errnos": [outcome.errno for outcome in outcomes], "seconds": seconds, "remaining": remaining}


async def cost(path: str, name: str, rounds: int) -> dict[str, float]:
    """Least microseconds of a call by a warm worker beyond the system call itself, resident kilobytes of the worker."""
    pool = WorkerPool()
    await pool.remove(ModuleName("kmodd_no_such_module"), timeout=10)
    extra, bare = [], []
    for _ in range(rounds):
        for verb, target in (("insert", path), ("remove", name)):
            started = time.perf_counter_ns()
            outcome = await _call(pool, verb, target, "", 30)
            assert outcome.errno == 0, outcome
            extra.append((time.perf_counter_ns() - started) // 1000 - outcome.duration_usec)
            bare.append(outcome.duration_usec)
    status = Path(f"/proc/{pool.pids[0]}/status").read_text()  # noqa: ASYNC240 - a file of /proc
    await pool.close()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return {"extra": min(extra), "bare": min(bare), "rss": int(kilobytes)}


async def events(command: str, count: int) -> list[list[str | None]]:
    """Run a shell command and take so many events."""
    source = KernelUevents()
    taken: list[list[str | None]] = []
    await asyncio.to_thread(subprocess.run, ["/bin/sh", "-c", command], check=True)
    try:
        async with asyncio.timeout(20):
            async for event in source.events():
                taken.append([event.action, event.module])
                if len(taken) == count:
                    break
    finally:
        source.close()
    return taken


async def overflow(module: str, forged: int) -> dict[str, Any]:
    """Let the socket overflow before it is read; then see that it still hears."""
    monitor: Any = kernel_monitor()
    monitor.set_receive_buffer_size(1 << 16)  # Its own 8 MiB take a minute to fill under emulation.
    source = KernelUevents(monitor)
    for _ in range(forged):
        Path(f"/sys/module/{module}/uevent").write_text("add")  # noqa: ASYNC240 - the loop is meant to be blocked
    actions: dict[str, int] = {}
    async with asyncio.timeout(60):
        async for event in source.events():
            actions[event.action] = actions.get(event.action, 0) + 1
            if event.action == "overflow":
                Path(f"/sys/module/{module}/uevent").write_text("remove")  # noqa: ASYNC240 - as above
            if event.action == "remove":
                break
    source.close()
    return actions


async def write(name: str, parameter: str, value: str) -> list[Any]:
    """Write a parameter; errno and the value read back."""
    pool = WorkerPool()
    outcome = await pool.write_parameter(ModuleName(name), parameter, value, timeout=30)
    _, values = await pool.read_parameters(ModuleName(name), [parameter], timeout=30)
    await pool.close()
    return [outcome.errno, values.get(parameter)]


async def parameters(name: str) -> dict[str, Any]:
    """Public values with modes."""
    pool = WorkerPool()
    files = ProcModules(ROOT).parameter_files(ModuleName(name))
    _, values = await pool.read_parameters(ModuleName(name), [file.name for file in files if file.public], timeout=30)
    await pool.close()
    return {file.name: [values.get(file.name), file.mode] for file in files}


def module(name: str) -> dict[str, Any] | None:
    """One module as loaded, with its attributes."""
    modules = ProcModules(ROOT)
    found = modules.read(ModuleName(name))
    return None if found is None else asdict(found) | {"attributes": modules.attributes(found.name)}


def builtin(name: str) -> bool:
    """Whether it is built in."""
    return ProcModules(ROOT).is_builtin(ModuleName(name))


def facts() -> dict[str, Any]:
    """Kernel facts and the taint's meaning."""
    read = ProcFacts(ROOT)
    now = read.read()
    return asdict(now) | {"flags": read.taint_flags(now.taint)}


def serve() -> None:
    """Answer until the input ends."""
    for line in sys.stdin:
        number, function, arguments = json.loads(line)
        result, fault = None, ""
        try:
            result = globals()[function](*arguments)
            if asyncio.iscoroutine(result):
                result = asyncio.run(result)
        except Exception:  # noqa: BLE001 - whatever it is, the test at the other end has to see it
            fault = traceback.format_exc()
        print(json.dumps([number, result, fault]), f"end {number}", sep="\n", flush=True)


if __name__ == "__main__":
    serve()
