"""Fixtures of the tests that run in the virtual machine: one machine per test module, thrown away afterwards."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.system.client import Client, Kmodctl
from tests.vm import snapshot
from tests.vm.channel import CommandTimeoutError
from tests.vm.machine import Machine
from tests.vm.qemu import GuestDeadError, Options

HERE = Path(__file__).resolve().parent
# Lines of journal and console shown with a failed test.
SHOWN = 120

Boot = Callable[..., Machine]


@pytest.fixture(scope="module")
def vm(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine with this tree's kmodd installed by ``make install``, and running; with ``PROCESSORS`` of the test module."""
    options = Options(processors=getattr(request.module, "PROCESSORS", Options.processors))
    with snapshot.start_with_kmodd(options) as machine:
        yield machine


@pytest.fixture(scope="module")
def clean_vm() -> Iterator[Machine]:
    """A machine with nothing of kmodd in it."""
    with snapshot.start_clean() as machine:
        yield machine


@pytest.fixture(scope="module")
def client(vm: Machine) -> Iterator[Client]:
    """root's client on the system bus of ``vm``."""
    made = Client(vm)
    yield made
    made.process.end()


@pytest.fixture(scope="module")
def kmodctl(vm: Machine) -> Iterator[Kmodctl]:
    """root's kmodctl in ``vm``."""
    made = Kmodctl(vm)
    yield made
    made.process.end()


@pytest.fixture
def fresh_vm() -> Iterator[Machine]:
    """As ``vm``, for one test alone: for tests that leave the kernel in ruins."""
    with snapshot.start_with_kmodd() as machine:
        yield machine


@pytest.fixture
def boot_vm(request: pytest.FixtureRequest) -> Iterator[Boot]:
    """Boots machines cold, for what only the kernel's command line can say: ``boot_vm("lockdown=integrity", kmodd=True)``."""
    with ExitStack() as machines:

        def boot(*cmdline_extra: str, kmodd: bool = False) -> Machine:
            machine = machines.enter_context(snapshot.boot(*cmdline_extra, kmodd=kmodd))
            request.node.user_properties.append(("machine", machine))
            return machine

        yield boot


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests in this folder carry the marker ``vm``."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.vm)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the machine said while a test failed."""
    report = yield
    if report.failed and report.when == "call" and isinstance(item, pytest.Function):
        machines = [value for value in item.funcargs.values() if isinstance(value, Machine)]
        machines += [value for _, value in item.user_properties if isinstance(value, Machine)]
        for machine in machines:
            report.sections += _evidence(machine)
    # The report is serialised; machines are not for it.
    report.user_properties = [pair for pair in report.user_properties if not isinstance(pair[1], Machine)]
    return report


def _evidence(machine: Machine) -> list[tuple[str, str]]:
    sections = [("console of the machine", _end(machine.console()))]
    try:
        machine.check_alive()
        sections.append(("journal of the machine", _end(machine.journal())))
    except (GuestDeadError, CommandTimeoutError) as error:
        sections.append(("the machine is dead", str(error)))
    return sections


def _end(text: str) -> str:
    return "\n".join(text.splitlines()[-SHOWN:])
