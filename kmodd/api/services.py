# SPDX-License-Identifier: LGPL-2.1-or-later
"""The parts of core that the interfaces of the bus call."""

from collections.abc import Awaitable, Callable, Iterable, Sequence

from kmodd.core.audit.records import Refusals
from kmodd.core.desired.apply import DesiredStateService
from kmodd.core.diagnosis.explain import Explainer
from kmodd.core.fair_share import Slices
from kmodd.core.leases import Leases
from kmodd.core.listing import Listing
from kmodd.core.operations.jobs import Jobs
from kmodd.core.operations.live_values import LiveValues
from kmodd.core.operations.operations import Operations
from kmodd.core.operations.parameters import Parameters
from kmodd.core.registry import Registry
from kmodd.core.rules.configuration import Configuration
from kmodd.core.store.activation import Activation
from kmodd.core.store.store import Store
from kmodd.core.surface.cve_responses import Responses
from kmodd.core.surface.enforcement import Enforcement
from kmodd.core.surface.locking import KernelLock
from kmodd.core.surface.service import Surfaces
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.ports import LoadedModules, ModuleIndex
from kmodd.model import Caller, Health, HealthStatus, HistoryEntry, HistoryQuery, Metric
from kmodd.model.settings import DaemonSettings


@dataclass(frozen=True, slots=True)
class Services:
    """Everything the interfaces delegate to."""

    operations: Operations
    refusals: Refusals
    parameters: Parameters
    leases: Leases
    values: LiveValues
    explainer: Explainer
    listing: Listing
    registry: Registry
    jobs: Jobs
    loaded: LoadedModules
    index: ModuleIndex
    configuration: Configuration
    desired: DesiredStateService
    store: Store
    activation: Activation
    health: Callable[[], Health | Awaitable[Health]]
    """Every check, now."""
    health_status: Callable[[], HealthStatus]
    """The status as last seen, for the property."""
    metrics: Callable[[], Iterable[Metric]]
    history: Callable[[HistoryQuery, Caller], Awaitable[Sequence[HistoryEntry]]]
    machine_id: Callable[[], str]
    surfaces: Surfaces
    enforcement: Enforcement
    responses: Responses
    kernel_lock: KernelLock
    slices: Slices
    """Long reads, in turns."""
    boot_id: str = ""
    """Of the running kernel; empty when unknown, and for a simulated one."""
    daemon_settings: Callable[[], DaemonSettings] = DaemonSettings
    """The daemon's settings in effect."""
    trim_heap: Callable[[], None] = lambda: None
    """Returns memory that is free to the system."""
