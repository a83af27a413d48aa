# SPDX-License-Identifier: LGPL-2.1-or-later
"""Triggers and probes of tracefs that hold a module by one of its trace events.

An event that is merely enabled, a probe on a function of a module (kprobe) and a filter of the function tracer hold nothing: they go
with the module. What enables an event of a module when something else happens (`enable_event` of a trigger or a function) holds it
(trace_event_try_get_ref in kernel/trace), and so does a probe on an event.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from kmodd.kernel.files import listdir, read_bytes, read_text
from kmodd.kernel.users.tasks import Budget
from kmodd.model import Remedy, User
from kmodd.names import canonical
from kmodd.text import shown

TRACEFS = "/sys/kernel/tracing"
_TABLE_MAX = 1 << 20
_PINNED_MAX = 64
"""Folders with pinned objects that are listed."""
_TRIGGER = re.compile(r"(?:enable|disable)_event:(?P<system>[^:\s]+):(?P<event>[^:\s]+)")
"""Of a trigger, `enable_event:SYSTEM:EVENT:unlimited`, and of a function, `do_exit:enable_event:SYSTEM:EVENT:unlimited`."""
_PROBE = re.compile(r"e[0-9]*:(?P<name>\S+/\S+) (?P<system>[^.\s]+)\.\S+")
_SYSTEMS = {
    "kvmmmu": "kvm",
    "nfs4": "nfsv4",
    "rpcgss": "auth_rpcgss",
    "mac80211_msg": "mac80211",
    "scsi": "scsi_mod",
    "gpu_scheduler": "gpu_sched",
    "hda_intel": "snd_hda_intel",
    "iwlwifi_data": "iwlwifi",
    "iwlwifi_io": "iwlwifi",
    "iwlwifi_msg": "iwlwifi",
    "iwlwifi_ucode": "iwlwifi",
}
"""Modules by the system of their events, where the two have different names (TRACE_SYSTEM in their sources)."""


def module_of(root: Path, system: str) -> str:
    """The module whose events have this system; empty where it is none's, or another one's than is known."""
    module = _SYSTEMS.get(system, canonical(system))
    return module if has_events(root, module) else ""


def has_events(root: Path, module: str) -> bool:
    """A loaded module has trace events."""
    return (root / "sys/module" / module / "sections/_ftrace_events").exists()


def modules_of_events(root: Path) -> dict[str, str]:
    """The module of each event by its name alone, if it is one's."""
    lines = (read_text(root / TRACEFS.lstrip("/") / "available_events", _TABLE_MAX) or "").splitlines()
    events = [line.partition(":")[::2] for line in lines]
    modules = {system: module_of(root, system) for system in {system for system, _ in events}}
    return {event: modules[system] for system, event in events}


def pinned(root: Path) -> Iterator[User]:
    """What is pinned in the file system of BPF: only who may open it learns what it is attached to (bpf(2), CAP_SYS_ADMIN)."""
    folders = [root / "sys/fs/bpf"]
    for count, folder in enumerate(folders):
        if count == _PINNED_MAX:
            return
        for name in listdir(folder):
            path = folder / name
            if path.is_symlink():
                continue
            if path.is_dir():
                folders.append(path)
            else:
                yield User(
                    "pin", shown(f"/{path.relative_to(root)}"), "pinned, and what it is attached to is not known"
                )


def tracing_users(root: Path, loaded: Mapping[str, int], budget: Budget) -> Iterator[tuple[frozenset[str], User]]:
    """Those of tracefs and its instances.

    `loaded` are the modules that are looked for, with the references that neither a module nor another user holds.
    """
    folder = root / TRACEFS.lstrip("/")
    systems = {each: found for each in listdir(folder / "events") if loaded.get(found := module_of(root, each), 0) > 0}
    if not systems:
        return
    for line in _lines(folder / "dynamic_events", budget):
        probe = _PROBE.match(line)
        if probe is not None and (module := systems.get(probe["system"])):
            modules, name = frozenset({module}), f"probe {probe['name']}"
            switch = f"{TRACEFS}/events/{probe['name']}/enable"
            if (read_text(root / switch.lstrip("/")) or "").startswith("1"):
                setting = User("trigger", shown(name), "enabled", remedy=Remedy.WRITE_SETTING, words=(switch, "0"))
                yield modules, setting
            yield modules, _user(name, line, f"{TRACEFS}/dynamic_events", f"-:{probe['name']}")
    for place in ("", *(f"/instances/{name}" for name in listdir(folder / "instances"))):
        # An event that is enabled by a trigger shows it by a star.
        held = [(system, event) for system in systems for event in _enabled_by_trigger(folder, place, system, budget)]
        files = [f"{place}/set_ftrace_filter", *_triggers(folder, place, budget)] if held else []
        for path in files:
            for line in _lines(Path(f"{folder}{path}"), budget):
                trigger = _TRIGGER.search(line)
                if trigger is not None and (trigger["system"], trigger["event"]) in held:
                    # With a number of times it is another kind of probe, and `unlimited` would be taken for one.
                    end = f"!{line.replace(':unlimited', '', 1)}"
                    user = _user(f"trigger {path.strip('/')}", line, f"{TRACEFS}{path}", end)
                    yield frozenset({systems[trigger["system"]]}), user


def _lines(file: Path, budget: Budget) -> list[str]:
    content = read_bytes(file, _TABLE_MAX) or b""
    lines = content.decode(errors="replace").split("\n")
    if len(content) >= _TABLE_MAX:
        budget.met(f"{file.name} of tracefs has more than {_TABLE_MAX >> 10} KiB")
        lines.pop()  # Cut off, it may name another event.
    return lines


def _enabled_by_trigger(folder: Path, place: str, system: str, budget: Budget) -> Iterator[str]:
    for event in listdir(f"{folder}{place}/events/{system}"):
        if not budget.in_time():
            return
        if (read_text(f"{folder}{place}/events/{system}/{event}/enable") or "").endswith("*"):
            yield event


def _triggers(folder: Path, place: str, budget: Budget) -> Iterator[str]:
    for system in listdir(f"{folder}{place}/events"):
        for event in listdir(f"{folder}{place}/events/{system}"):
            if not budget.in_time():
                return
            yield f"{place}/events/{system}/{event}/trigger"


def _user(name: str, detail: str, file: str, text: str) -> User:
    return User("trigger", shown(name), shown(detail), remedy=Remedy.REMOVE_PROBE, words=(file, text))
