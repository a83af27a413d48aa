# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loads of this boot as the journal has them from systemd-modules-load."""

import re
from collections.abc import Callable
from pathlib import Path

from kmodd.journal.reader import Reader, microseconds
from kmodd.model import ModuleLoad, Requester
from kmodd.names import ModuleName, canonical, is_module_name

UNIT = "systemd-modules-load.service"
_INSERTED = re.compile(r"Inserted module '([^']{1,64})'")
"""module_load_and_warn in systemd's src/shared/module-util.c, since version 218."""
_ENTRIES_MAX = 1000


def boot_loads(open_reader: Callable[[], Reader], root: Path) -> dict[ModuleName, ModuleLoad]:
    """By module. Blocking. The matches are on fields that journald sets itself; OSError where the boot is not known."""
    boot = (root / "proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    reader = open_reader()
    try:
        for match in (f"_SYSTEMD_UNIT={UNIT}", "_UID=0", f"_BOOT_ID={boot}"):
            reader.add_match(match)
        reader.seek_realtime(0)
        loads: dict[ModuleName, ModuleLoad] = {}
        for _ in range(_ENTRIES_MAX):
            fields = reader.get_next()
            if not fields:
                break
            inserted = _INSERTED.fullmatch(str(fields.get("MESSAGE", "")))
            if inserted is None or not is_module_name(name := canonical(inserted[1])):
                continue
            pid = fields.get("_PID")
            exe = str(fields.get("_EXE", "")) or "systemd-modules-load"
            by = Requester(pid if isinstance(pid, int) else 0, 0, "systemd-modules", exe, UNIT)
            loads[ModuleName(name)] = ModuleLoad(
                ModuleName(name), by, time=microseconds(fields.get("__REALTIME_TIMESTAMP"))
            )
        return loads
    finally:
        reader.close()
