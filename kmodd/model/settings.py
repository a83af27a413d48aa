# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's settings in kmodd.toml, with their defaults, and a parsed settings file with the line of each value."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from kmodd.fast_dataclass import dataclass

TIMEOUT_LIMIT = 3600
"""Seconds a call into the kernel can be given at most, by a setting or by a caller."""
PROMPT_TIMEOUT_LIMIT = 900
"""Seconds a password prompt can be let stay open at most."""

LEASES_LIMIT = 512
"""Leases of all users together; FileDescriptorStoreMax= of the unit."""


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """Every setting."""

    timeout: int = 30
    """Seconds each call into the kernel has, where the caller names none."""
    timeout_max: int = 600
    """Seconds a caller may ask for."""
    operations_per_user: int = 4
    """Concurrent operations of one user; root has sixteen times as many."""
    stuck_max: int = 4
    """Calls that may hang in the kernel; beyond that nothing new is begun."""
    prompts_per_user: int = 2
    """Concurrent password prompts of one user."""
    prompt_timeout: int = 120
    """Seconds a password prompt may stay open."""
    history_limit_max: int = 1000
    """Records one reading of the history may ask for."""
    log_level: str = "info"
    """`error`, `warning`, `notice` or `info`: less important messages of the daemon are left out. Audit records stay."""
    reconcile: bool = True
    """Bring the machine to the desired state at boot, and load by itself what has `after`."""
    store_file_max: int = 64 << 20
    """Bytes of one imported module file."""
    store_total_max: int = 256 << 20
    """Bytes of all imported files of one user."""
    lease_grace: int = 10
    """Seconds between the end of a module's last lease and its unloading."""
    leases_per_user: int = 64
    """Simultaneous leases of one user; root may have eight times as many."""
    store_versions_max: int = 16
    """Versions kept of one module for one kernel."""


@dataclass(frozen=True, slots=True)
class Document:
    """One TOML file."""

    file: str
    """Its path."""
    values: Mapping[str, Any]
    """As tomllib gives them."""
    lines: Mapping[tuple[str | int, ...], int] = field(default_factory=dict)
    """The line, from 1, that each key first stands on, by its path from the top; tables of an array are counted from 0."""
    public: bool = True
    """Everyone may read the file."""
    reload: str = "kmodctl config reload"
    """The command that has it read again; empty for none."""

    def line(self, *path: str | int) -> int:
        """The line of a key, of the nearest table around it when it has none, or 1."""
        for end in range(len(path), 0, -1):
            if (line_number := self.lines.get(path[:end])) is not None:
                return line_number
        return 1
