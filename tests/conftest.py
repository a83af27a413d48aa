# SPDX-License-Identifier: LGPL-2.1-or-later
"""What holds for every test: it leaves nothing behind, and where `CI` is set none is skipped."""

import asyncio
import gc
import inspect
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# What an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("kmodd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kmodd")

# As good as ignored here, and yet the default in a program that a test starts.
_LEFT_TO_CHILDREN = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)

# The cheap layers first, so that a mistake shows early.
_LAYERS = (
    "architecture",
    "unit",
    "kernel",
    "ports",
    "cli",
    "conformance",
    "bus",
    "gateway",
    "dashboard",
    "notifier",
    "fleet",
    "system",
)
# Of each layer these files first: none that takes minutes is left to run alone at the end. The first of the machine prepares the
# snapshot with kmodd; the next two need none.
_LONGEST = (
    "architecture/test_debian_libraries.py",
    "conformance/test_random.py",
    "bus/test_fuzz.py",
    "bus/test_endurance.py",
    "gateway/test_openapi.py",
    "gateway/test_admission.py",
    "dashboard/test_simulated.py",
    "notifier/test_process.py",
    "system/test_store.py",
    "system/test_machine.py",
    "system/test_install.py",
    "system/test_surface_policy.py",
    "system/test_respond.py",
    "system/test_surface.py",
    "system/test_fleet.py",
    "system/test_users_kinds.py",
    "system/test_dashboard.py",
    "system/test_diagnosis.py",
    "system/test_service.py",
    "system/test_gateway.py",
    "system/test_polkit.py",
    "system/test_desired_state.py",
    "system/test_faults.py",
    "system/test_packages.py",
    "system/test_reported_situations.py",
    "system/test_configuration.py",
    "system/test_users.py",
    "system/test_journal.py",
    "system/test_operations.py",
)
_TESTS = Path(__file__).parent

# Memory that programs may be started from: what tests write is synced often, and how fast a disk does that tests nothing.
_MEMORY = Path("/dev/shm")
_ROOM = 1 << 30
"""Bytes that have to be free there."""

_DESCRIPTORS = Path("/proc/self/fd")
_PROCESSES = Path("/proc")


def pytest_configure() -> None:
    """Put `tmp_path` into memory, and let programs that tests start inherit neither an ignored signal nor the wish for no bytecode.

    A shell's background job, `nohup` and CI ignore some signals. Without bytecode each worker would rewrite the assertions of every
    test, and each program compile kmodd, again.
    """
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if _is_usable(_MEMORY):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))
    for number in _LEFT_TO_CHILDREN:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def _is_usable(folder: Path) -> bool:
    if not os.access(folder, os.W_OK):
        return False
    state = os.statvfs(folder)
    return not state.f_flag & os.ST_NOEXEC and state.f_bavail * state.f_frsize >= _ROOM


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests in their order. Coroutine tests are looked after on their own event loop; for the others, none is made."""
    items.sort(key=_turn)
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(inspect.unwrap(item.obj)):
            item.fixturenames.insert(0, "_no_leaked_task")


def _turn(item: pytest.Item) -> tuple[int, int]:
    """Where in the run a test comes; among equals the order is that in which they were found."""
    name = item.path.relative_to(_TESTS).as_posix()
    longest = _LONGEST.index(name) if name in _LONGEST else len(_LONGEST)
    layer = name.partition("/")[0]
    return _LAYERS.index(layer) if layer in _LAYERS else len(_LAYERS), longest


@pytest.fixture
async def _no_leaked_task() -> AsyncIterator[None]:
    """Fail a test whose tasks outlive it and its fixtures."""
    yield
    # What was cancelled or told to end needs a few turns of the loop to get there.
    for _ in range(10):
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if not left:
            return
        await asyncio.sleep(0.001)
    pytest.fail("left running: " + ", ".join(repr(task.get_coro()) for task in left))


@pytest.fixture(autouse=True)
def _no_leaked_descriptor_or_child() -> Iterator[None]:
    """Fail a test that leaves a descriptor open or a child process behind."""
    descriptors, children = _descriptors(), _children()
    yield
    if extra := _descriptors().keys() - descriptors.keys():
        gc.collect()  # Cycles hold descriptors until they are collected; that is no leak.
        now = _descriptors()
        if left := [f"{number} -> {now[number]}" for number in extra & now.keys()]:
            pytest.fail(f"left open: {', '.join(sorted(left))}")
    if left := sorted(_children() - children):
        pytest.fail(f"left behind: {', '.join(left)}")


def _descriptors() -> dict[str, str]:
    found = {}
    for entry in _DESCRIPTORS.iterdir():
        try:
            found[entry.name] = str(entry.readlink())
        except FileNotFoundError:  # the one the listing itself used
            continue
    return found


def _children() -> set[str]:
    """`PID NAME` of each child of this process; the whole of /proc is read only when there is any."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return set()
    found = set()
    for entry in _PROCESSES.iterdir():
        if entry.name.isdigit():
            try:
                head, _, tail = (entry / "stat").read_text().rpartition(")")
            except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
                continue
            if int(tail.split()[1]) == os.getpid():
                found.add(head.replace("(", "", 1))
    return found


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A skipped test proves nothing: with `CI` set it fails the run."""
    if os.environ.get("CI", "") not in ("", "0", "false") and exitstatus == 0 and _skipped(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(config: pytest.Config) -> None:
    """Say why the run fails although no test did."""
    if os.environ.get("CI", "") not in ("", "0", "false") and (count := _skipped(config)):
        print(f"\n{count} skipped: with CI set, that fails the run")


def _skipped(config: pytest.Config) -> int:
    reporter = config.pluginmanager.getplugin("terminalreporter")
    return len(reporter.stats.get("skipped", [])) + len(reporter.stats.get("xfailed", [])) if reporter else 0
