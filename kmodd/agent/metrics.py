# SPDX-License-Identifier: LGPL-2.1-or-later
"""Metrics of the agent in a file, for the textfile collector of Prometheus' node_exporter: the agent opens no port.

The file is replaced at most once a second, after something changed, so an idle agent writes nothing.
"""

import asyncio
from collections import Counter as Tally
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from kmodd.fleet.resources import ModuleState
from kmodd.kernel.atomic_file import MODE, write_whole

if TYPE_CHECKING:
    from kmodd.agent.reconciler import Reconciler

SETTLE = 1.0
"""Seconds in which several changes become one file."""


class Metrics:
    """What the reconciler does, as `kmodd_agent_…`."""

    def __init__(self, file: Path, trouble: Callable[[OSError], None] = lambda _: None) -> None:
        """`trouble` is called when the file cannot be written, once until it can."""
        self._file = file
        self._trouble = trouble
        self._failed = False
        self._timer: asyncio.TimerHandle | None = None
        self._reconciler: Reconciler | None = None
        self.registry = registry = CollectorRegistry()
        self._modules = Gauge(
            "kmodd_agent_modules",
            "Modules of the node's specification, by the state that the agent reports.",
            ("state",),
            registry=registry,
        )
        self._leases = Gauge(
            "kmodd_agent_leases", "Modules that the agent holds because pods need them.", registry=registry
        )
        self._api_up = Gauge(
            "kmodd_agent_api_up", "1 while the watch of the node's specification runs.", registry=registry
        )
        self._daemon_up = Gauge("kmodd_agent_daemon_up", "1 while kmodd responds to the agent.", registry=registry)
        self._steps = Counter(
            "kmodd_agent_steps_total",
            "Modules that the agent loaded, reloaded or unloaded, and attempts that failed.",
            ("action", "result"),
            registry=registry,
        )
        self._writes = Counter(
            "kmodd_agent_status_writes_total",
            "Reports to the Kubernetes API, by their result.",
            ("result",),
            registry=registry,
        )

    def follow(self, reconciler: "Reconciler") -> None:
        """Show this one from now on."""
        self._reconciler = reconciler
        reconciler.on_step = lambda action, result: self._count(self._steps, action, result)
        reconciler.on_report = lambda result: self._count(self._writes, result)
        reconciler.on_change = self._soon
        self._soon()

    def _count(self, counter: Counter, *labels: str) -> None:
        counter.labels(*labels).inc()
        self._soon()

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SETTLE, self._show)

    def _show(self) -> None:
        self._timer = None
        if self._reconciler is None:
            return
        states = Tally(self._reconciler.states())
        for state in ModuleState:
            self._modules.labels(state).set(states[state])
        self._leases.set(self._reconciler.leases)
        self._api_up.set(self._reconciler.connected)
        self._daemon_up.set(self._reconciler.reachable)
        try:
            # Everyone may read it: names of states and numbers.
            write_whole(self._file, generate_latest(self.registry), MODE)
        except OSError as error:
            if not self._failed:
                self._trouble(error)
            self._failed = True
        else:
            self._failed = False

    def close(self) -> None:
        """Leave no file with numbers of an agent that has ended."""
        if self._timer is not None:
            self._timer.cancel()
        self._file.unlink(missing_ok=True)
