# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can be set about the daemon in kmodd.toml. The defaults are the values without any file."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tunables:
    """Every setting."""

    timeout: int = 30
    """Seconds each call into the kernel has, where the caller names none."""
    timeout_max: int = 600
    """Seconds a caller may ask for."""
    operations_per_user: int = 4
    """Operations of one user under way at once; root has sixteen times as many."""
    stuck_max: int = 4
    """Calls that may hang in the kernel; beyond that nothing new is begun."""
    prompts_per_user: int = 2
    """Password prompts of one user at once."""
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
    store_versions_max: int = 16
    """Versions kept of one module for one kernel."""
