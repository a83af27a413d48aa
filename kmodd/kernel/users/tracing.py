# SPDX-License-Identifier: LGPL-2.1-or-later
"""What holds a module by one of its trace events or functions: triggers and probes of tracefs, perf events, programs of BPF.

An event that is merely enabled, a probe on a function of a module (kprobe) and a filter of the function tracer hold nothing: they go
with the module. What enables an event of a module when something else happens (`enable_event` of a trigger or a function) holds it
(trace_event_try_get_ref in kernel/trace), and so does a probe on an event.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from kmodd.fast_dataclass import dataclass
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
_PROBE = re.compile(r"e[0-9]*:(?P<name>\S+/\S+) (?P<system>[^.\s]+)\.(?P<event>\S+)")
_DYNAMIC = re.compile(r"(?P<kind>[a-z])[0-9]*:(?:(?P<system>[^/\s]+)/)?(?P<event>\S+)")
"""What was made by hand: probes (p, r, e, f, t), synthetic events (s) and those of programs (u), which stand without their system."""
_OF_PROGRAMS = "user_events"
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
_SYMBOLS = "proc/1/root/proc/kallsyms"
"""That of the first process: ProtectKernelTunables= hides it."""
_TRACEPOINT = re.compile(rb" __tracepoint_(\w+)\t\[(\w+)\]\n")
_TRAMPOLINE = re.compile(rb" bpf_trampoline_([0-9]{1,20})(?:_[0-9]+)?\t\[bpf\]\n")
"""Before Linux 6.4 a number that counts its changes follows."""
_PIECE = 1 << 20
_FUNCTION = re.compile(r"(?P<name>\S+)(?: \[(?P<module>\w+)\])? \([0-9]+\)")
_DIRECT = re.compile(r"direct(?:\([a-z]+\))?-->bpf_trampoline_(?P<number>[0-9]{1,20})(?:_[0-9]+)?\b")
_OF_TYPES = 1 << 31
"""In the number of a trampoline: the object is type information, and not another program."""
_PERF, _LINKS = "anon_inode:[perf_event]", {"anon_inode:bpf_link", "anon_inode:bpf-link"}
_TRACING = "tracing"
_BY_TRAMPOLINE = {"24", "25", "26"}
"""BPF_TRACE_FENTRY, BPF_TRACE_FEXIT and BPF_MODIFY_RETURN of linux/bpf.h."""
_ATTACHED = {_TRACING, "kprobe_multi"}
"""Types of links of BPF that hold the module of a function (kernel/bpf/trampoline.c, kernel/trace/bpf_trace.c)."""
_KERNEL = "1"
"""The number of the kernel's own type information, which is made first."""


def module_of(root: Path, system: str) -> str:
    """The module whose events have this system; empty where it is none's, or another one's than is known."""
    module = _SYSTEMS.get(system, canonical(system))
    return module if has_events(root, module) else ""


def has_events(root: Path, module: str) -> bool:
    """A loaded module has trace events."""
    return (root / "sys/module" / module / "sections/_ftrace_events").exists()


@dataclass(frozen=True, slots=True)
class Symbols:
    """What /proc/kallsyms has of modules and of BPF."""

    events: Mapping[str, str]
    """The module of each trace event that is one's, by its name."""
    trampolines: frozenset[int]
    """The number of each function that a program of BPF is attached to."""


@dataclass(frozen=True, slots=True)
class TracedFunctions:
    """From `enabled_functions` of tracefs."""

    attached: Mapping[int, tuple[str, str]]
    """Name and module of those to which a program of BPF is attached, by the number of its trampoline (bpf_trampoline_compute_key); no
    module for one of the kernel.
    """
    modules: frozenset[str]
    """Modules with a function that anything traces."""

    def function(self, target: str, type_: str) -> tuple[str, str] | None:
        """The one of this type in this object of type information, in the words of /proc/PID/fdinfo."""
        if not target.isdecimal() or not type_.isdecimal():
            return None
        return self.attached.get(int(target) << 32 | _OF_TYPES | int(type_))


class Tracing:
    """What the kernel tells about events and functions of modules; each table is read when it is first needed."""

    def __init__(self, root: Path, budget: Budget) -> None:
        self.root = root
        self.budget = budget

    @property
    def folder(self) -> Path:
        """That of tracefs."""
        return self.root / TRACEFS.lstrip("/")

    @cached_property
    def events(self) -> dict[str, str]:
        """The module of each event by its name alone, as far as the name of its system tells it; empty for others."""
        lines = (read_text(self.folder / "available_events", _TABLE_MAX) or "").splitlines()
        events = [line.partition(":")[::2] for line in lines]
        modules = {system: module_of(self.root, system) for system in {system for system, _ in events}}
        return {event: modules[system] for system, event in events}

    @cached_property
    def symbols(self) -> Symbols | None:
        """None where they cannot be read, or not in time: the kernel takes long to list them."""
        events: dict[str, str] = {}
        trampolines: set[int] = set()
        try:
            with (self.root / _SYMBOLS).open("rb") as file:
                rest = b""
                while piece := file.read(_PIECE):
                    if not self.budget.in_time():
                        return None
                    lines, end, rest = (rest + piece).rpartition(b"\n")
                    events |= {name.decode(): module.decode() for name, module in _TRACEPOINT.findall(lines + end)}
                    trampolines |= {int(number) for number in _TRAMPOLINE.findall(lines + end)}
        except OSError:
            self.budget.met("the kernel's symbols cannot be read")
            return None
        return Symbols(events, frozenset(trampolines))

    @cached_property
    def functions(self) -> TracedFunctions | None:
        """None where the kernel does not say."""
        content = read_bytes(self.folder / "enabled_functions", _TABLE_MAX)
        if content is None or len(content) >= _TABLE_MAX:
            return None
        functions: dict[int, tuple[str, str]] = {}
        modules: set[str] = set()
        function = ("", "")
        for line in content.decode(errors="replace").splitlines():
            if head := _FUNCTION.match(line):
                function = (head["name"], canonical(head["module"] or ""))
                modules.add(function[1])
            if direct := _DIRECT.search(line):
                functions[int(direct["number"])] = function
        return TracedFunctions(functions, frozenset(modules - {""}))

    @cached_property
    def dynamic(self) -> frozenset[tuple[str, str]] | None:
        """System and name of each event that was made by hand, and is no module's; None where the kernel does not say."""
        content = read_bytes(self.folder / "dynamic_events", _TABLE_MAX)
        if content is None or len(content) >= _TABLE_MAX:
            return None
        events = map(_DYNAMIC.match, content.decode(errors="replace").splitlines())
        return frozenset((event["system"] or _OF_PROGRAMS, event["event"]) for event in events if event is not None)

    def module_of_event(self, system: str, event: str) -> str:
        """Empty for one of the kernel itself, for one that was made by hand, and where that cannot be known."""
        if self.dynamic is not None and (system, event) in self.dynamic:
            return ""
        if module := module_of(self.root, system):
            return module
        if self.dynamic is None:  # By its name alone it could be one of these.
            self.budget.met("dynamic_events of tracefs cannot be read")
            return ""
        return self.symbols.events.get(event, "") if self.symbols is not None else ""


@dataclass(frozen=True, slots=True)
class Use:
    """What an open file holds, or one of what it may hold."""

    name: str
    modules: frozenset[str]
    certain: bool = True


class Attachments:
    """Perf events and links of BPF that processes have open."""

    def __init__(self, tracing: Tracing, loaded: Mapping[str, int]) -> None:
        """`loaded` are the modules that are looked for, with the references that no module holds."""
        self._tracing = tracing
        self._loaded = loaded
        self.linked: set[str] = set()
        """Modules that a link of BPF was seen to hold; it stays where it is pinned as well."""

    def of(self, information: str, target: str) -> Use | None:
        """A perf event or a link of BPF, which holds the module with what it is attached to (perf_trace_init, bpf_trampoline_link_prog)."""
        if target == _PERF:
            name = f"{target}, which may be of one of its trace events"
            return Use(name, self._traced, certain=False) if self._traced else None
        if target not in _LINKS:
            return None
        lines = (line.partition(":\t") for line in (read_text(information) or "").splitlines())
        values = {key: value.strip() for key, _, value in lines}
        use = self._of_link(f"{target} {values.get('link_type', '')}", values)
        if use is not None and use.certain:
            self.linked |= use.modules
        return use

    def _of_link(self, name: str, values: Mapping[str, str]) -> Use | None:
        if event := values.get("tp_name"):
            return self._of_event(name, event)
        if values.get("link_type") in _ATTACHED and self.described:
            return self._of_function(name, values)
        return None

    def _of_event(self, name: str, event: str) -> Use | None:
        module = self._tracing.events.get(event, "")
        # Of the kernel itself, or of a module of which the system of its events is not known.
        unclear = self._traced.difference(self._tracing.events.values()) if not module else frozenset[str]()
        if unclear and (symbols := self._tracing.symbols) is not None:
            module, unclear = symbols.events.get(event, ""), frozenset()
        if module in self._loaded:
            return Use(f"{name} {event}", frozenset({module}))
        name = f"{name} {event}, which may be one of its trace events"
        return Use(name, unclear, certain=False) if unclear else None

    def _of_function(self, name: str, values: Mapping[str, str]) -> Use | None:
        """Which one, the kernel does not say up to 6.1: there it is known where programs are attached to functions of one module alone."""
        functions, possible = self._tracing.functions, self.described
        if values.get("target_obj_id") == _KERNEL:
            return None
        if functions is not None and values.get("link_type") == _TRACING:
            target = values.get("target_obj_id", "")
            if target and (function := functions.function(target, values.get("target_btf_id", ""))):
                modules = frozenset(self._loaded).intersection(function[1:])
                return Use(f"{name} on {function[0]}", modules) if modules else None
            if not target and values.get("attach_type", "") in _BY_TRAMPOLINE:
                if modules := self._of_all_trampolines(functions):
                    return Use(f"{name} on a function of it", modules)
                if functions.attached:
                    possible = possible & {module for _, module in functions.attached.values()}
        elif functions is not None:
            possible = possible & functions.modules
        name = f"{name}, which may be of one of its functions"
        return Use(name, possible, certain=False) if possible else None

    def _of_all_trampolines(self, functions: TracedFunctions) -> frozenset[str]:
        """The module whose functions all are that have a trampoline; empty where there are others, or programs with one."""
        modules = frozenset(module for _, module in functions.attached.values())
        if len(modules) != 1 or not modules <= self.described or (symbols := self._tracing.symbols) is None:
            return frozenset()
        return modules if symbols.trampolines == functions.attached.keys() else frozenset()

    @cached_property
    def _traced(self) -> frozenset[str]:
        """Modules with trace events that something uses."""
        return frozenset(
            name for name, count in self._loaded.items() if count > 0 and has_events(self._tracing.root, name)
        )

    @cached_property
    def described(self) -> frozenset[str]:
        """Modules that something uses and to whose functions a program of BPF can be attached."""
        names = listdir(self._tracing.root / "sys/kernel/btf")
        return frozenset(name for name in names if self._loaded.get(name, 0) > 0)


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


def tracing_users(tracing: Tracing, loaded: Mapping[str, int]) -> Iterator[tuple[frozenset[str], User]]:
    """Those of tracefs and its instances.

    `loaded` are the modules that are looked for, with the references that neither a module nor another user holds.
    """
    root, folder, budget = tracing.root, tracing.folder, tracing.budget
    wanted = {module for module, count in loaded.items() if count > 0 and has_events(root, module)}
    if not wanted:
        return
    for line in _lines(folder / "dynamic_events", budget):
        probe = _PROBE.match(line)
        module = tracing.module_of_event(probe["system"], probe["event"]) if probe is not None else ""
        if probe is not None and module in wanted:
            modules, name = frozenset({module}), f"probe {probe['name']}"
            switch = f"{TRACEFS}/events/{probe['name']}/enable"
            if (read_text(root / switch.lstrip("/")) or "").startswith("1"):
                setting = User("trigger", shown(name), "enabled", remedy=Remedy.WRITE_SETTING, words=(switch, "0"))
                yield modules, setting
            yield modules, _user(name, line, f"{TRACEFS}/dynamic_events", f"-:{probe['name']}")
    for place in ("", *(f"/instances/{name}" for name in listdir(folder / "instances"))):
        enabled = {each: tracing.module_of_event(*each) for each in _enabled_by_trigger(folder, place, budget)}
        held = {each: module for each, module in enabled.items() if module in wanted}
        files = [f"{place}/set_ftrace_filter", *_triggers(folder, place, budget)] if held else []
        for path in files:
            for line in _lines(Path(f"{folder}{path}"), budget):
                trigger = _TRIGGER.search(line)
                if trigger is not None and (module := held.get((trigger["system"], trigger["event"]), "")):
                    # With a number of times it is another kind of probe, and `unlimited` would be taken for one.
                    end = f"!{line.replace(':unlimited', '', 1)}"
                    user = _user(f"trigger {path.strip('/')}", line, f"{TRACEFS}{path}", end)
                    yield frozenset({module}), user


def _lines(file: Path, budget: Budget) -> list[str]:
    content = read_bytes(file, _TABLE_MAX) or b""
    lines = content.decode(errors="replace").split("\n")
    if len(content) >= _TABLE_MAX:
        budget.met(f"{file.name} of tracefs has more than {_TABLE_MAX >> 10} KiB")
        lines.pop()  # Cut off, it may name another event.
    return lines


def _enabled_by_trigger(folder: Path, place: str, budget: Budget) -> Iterator[tuple[str, str]]:
    """System and name of each: it is listed among those that are enabled, and shows by a star what enables it."""
    for line in _lines(Path(f"{folder}{place}/set_event"), budget):
        system, _, event = line.partition(":")
        if not budget.in_time():
            return
        if event and (read_text(f"{folder}{place}/events/{system}/{event}/enable") or "").endswith("*"):
            yield system, event


def _triggers(folder: Path, place: str, budget: Budget) -> Iterator[str]:
    for system in listdir(f"{folder}{place}/events"):
        for event in listdir(f"{folder}{place}/events/{system}"):
            if not budget.in_time():
                return
            yield f"{place}/events/{system}/{event}/trigger"


def _user(name: str, detail: str, file: str, text: str) -> User:
    return User("trigger", shown(name), shown(detail), remedy=Remedy.REMOVE_PROBE, words=(file, text))
