# SPDX-License-Identifier: LGPL-2.1-or-later
"""Computes the attack surface of one kernel: each request of its tables, resolved as modprobe does and tried against the guards.

A route that needs a module of another route is open when that one is, so the requests are gone through until nothing is added.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from kmodd.core.planning.policy import where
from kmodd.core.surface.kinds import ALWAYS_THERE, HARDWARE, NAME, NODE, Kind, Needs, how, is_hardware, kind_of, spelled
from kmodd.core.surface.resolution import Resolution, Resolver
from kmodd.kernel.ports import ModuleIndex
from kmodd.model import KernelFacts, Target
from kmodd.model.surface import DeviceNode, Exposure, Gate, Reach, Route, Surface, Tables
from kmodd.names import ModuleName
from kmodd.patterns import example, is_pattern

ROUTES_MAX = 64
"""Routes of one module that are listed; those of one kind beyond the first are counted."""
_NUMBERS = re.compile(r"\d+")
_FAMILY = re.compile(r"net[-_]pf[-_](\d+)")
_WHO = {
    Reach.UNPRIVILEGED: "any user",
    Reach.USERNS: "any user in a user namespace",
    Reach.ROOT: "root",
}


@dataclass(slots=True)
class _Request:
    """One request of the kernel, and what is known of it."""

    text: str
    kind: Kind
    needs: Needs
    resolution: Resolution
    open: bool = False
    gate: Gate | None = None
    missing: str = ""
    served: ModuleName | None = None
    """The part of the kernel image that answers it, so that the kernel asks for no module."""


@dataclass(slots=True)
class _RouteCount:
    """A route, and how many more there are like it."""

    route: Route
    more: int = 0


def compute(
    index: ModuleIndex, tables: Tables, facts: KernelFacts, *, running: bool, loaded: Collection[ModuleName] = ()
) -> Surface:
    """All modules of the index. `loaded` counts as there for what needs it; blocking: some hundred milliseconds."""
    return _Computation(index, tables, facts, running=running, loaded=frozenset(loaded)).surface()


class _Computation:
    def __init__(
        self, index: ModuleIndex, tables: Tables, facts: KernelFacts, *, running: bool, loaded: frozenset[ModuleName]
    ) -> None:
        self._index = index
        self._tables = tables
        self._facts = facts
        self._running = running
        self._loaded = loaded
        self._resolver = Resolver(index, facts.command_line)
        self._release = tuple(map(int, _NUMBERS.findall(facts.release)[:2]))
        self._routes: dict[ModuleName, dict[object, _RouteCount]] = {}
        self._modules = tuple(name for name in index.available() if not index.is_builtin(name))
        self._served = {spelled(alias): name for name in index.builtins() for alias in index.info(name).aliases}
        self._owners: dict[str, list[ModuleName]] = {}
        """Modules by their aliases, whatever modprobe.d says about these."""
        self._hardware: dict[ModuleName, tuple[str, int]] = {}
        """An alias of a device for each module, and how many further ones there are."""

    def surface(self) -> Surface:
        requests = self._requests()
        self._open(requests)
        for request in requests:
            self._take(request)
        for node in self._tables.nodes:
            self._node(node)
        for module, (alias, more) in self._hardware.items():
            self._device(module, alias, more)
        exposures = [self._exposure(module) for module in self._modules]
        exposures.sort(key=lambda exposure: exposure.rank)
        return Surface(
            self._facts.release, self._running, self._tables, tuple(exposures), dict(self._index.unreadable())
        )

    # --- requests of the kernel ---------------------------------------------------------------------------------------

    def _requests(self) -> list[_Request]:
        by_name = not any(alias.startswith("net-sch-") for name in self._modules for alias in self._index.aliases(name))
        requests: dict[str, _Request] = {}
        for alias in self._texts():
            found = kind_of(alias, self._release)
            if found is None:
                continue
            kind, match = found
            text = kind.request(alias)
            if text in requests:
                continue
            # Linux asks for net-sch-NAME since 6.8, and for sch_NAME before.
            if kind.name == "traffic-control" and not by_name and match[0].startswith(("sch_", "cls_", "act_")):
                continue
            resolution = self._resolver.load(text)
            if all(self._index.is_builtin(target.name) for target in resolution.targets):
                continue
            requests[text] = _Request(
                text,
                kind,
                kind.needs(match),
                resolution,
                # A caller may ask for an algorithm as one of another type, which the kernel image does not have.
                served=None if kind.name == "algorithm" else self._served.get(spelled(text)),
            )
        return list(requests.values())

    def _texts(self) -> Iterable[str]:
        """Everything the kernel could ask for: aliases of modules and of modprobe.d, and names."""
        for name in self._modules:
            for alias in self._index.aliases(name):
                if is_hardware(alias):
                    first, more = self._hardware.get(name, (example(alias), -1))
                    self._hardware[name] = first, more + 1
                else:
                    self._owners.setdefault(spelled(alias), []).append(name)
                    yield example(alias) if is_pattern(alias) else alias
        for rule in self._index.all_rules():
            if rule.kind == "alias":
                yield example(rule.module)
        yield from self._modules

    def _open(self, requests: list[_Request]) -> None:
        for request in requests:
            guard = self._closed(request.kind.gates)
            request.gate = guard
        there: dict[Reach, set[ModuleName]] = {
            Reach.UNPRIVILEGED: set(self._loaded),
            Reach.USERNS: set(self._loaded),
        }
        waiting = [request for request in requests if request.gate is None and request.served is None]
        added = True
        while added:
            added = False
            for request in waiting:
                modules = there[request.kind.reach]
                request.missing = self._missing(request.needs, modules)
                if request.missing or request.open:
                    continue
                request.open = added = True
                for reach in (Reach.USERNS, request.kind.reach):
                    there[reach].update(request.resolution.inserted, request.resolution.commands)
            waiting = [request for request in waiting if not request.open]

    def _closed(self, gates: Iterable[Gate]) -> Gate | None:
        closing = (self._tables.closed(gate) for gate in (Gate.MODULES_DISABLED, Gate.MODPROBE, *gates))
        return next((guard.gate for guard in closing if guard is not None), None)

    def _missing(self, needs: Needs, there: Collection[ModuleName]) -> str:
        """The request that has to be answered first, and is not."""
        for group in needs:
            if not any(self._is_there(request, there) for request in group):
                return group[0]
        return ""

    def _is_there(self, request: str, there: Collection[ModuleName]) -> bool:
        family = _FAMILY.fullmatch(request)
        if family is not None and int(family[1]) in ALWAYS_THERE:
            return True
        # What is there already answers, wherever modprobe.d leads a request for it.
        names = [target.name for target in self._index.lookup(request)] + self._owners.get(spelled(request), [])
        return any(name in there or self._index.is_builtin(name) for name in names)

    def _take(self, request: _Request) -> None:
        """Note the route for the modules that the request stands for, and for what they depend on."""
        resolution = request.resolution
        for target in dict.fromkeys(resolution.targets):
            if self._index.is_builtin(target.name):
                continue
            # A command of an install line may load anything: the route counts as open.
            command = resolution.commands.get(target.name)
            loads = target.name in resolution.inserted or command is not None
            rule = None if loads else resolution.why_not(target.name, target.name, self._index)
            route = Route(
                request.kind.name,
                request.text,
                request.kind.reach,
                open=request.open and loads,
                by_name=not target.alias,
                gate=request.gate,
                rule=rule,
                missing=request.missing,
                served=request.served,
                command=command,
            )
            self._add(target.name, route)
        self._add_dependencies(
            resolution,
            Route(
                request.kind.name,
                request.text,
                request.kind.reach,
                open=request.open,
                gate=request.gate,
                missing=request.missing,
                served=request.served,
            ),
        )

    def _add_dependencies(self, resolution: Resolution, route: Route) -> None:
        requested = {target.name for target in resolution.targets}
        for name, target in resolution.inserted.items():
            if name not in requested:
                # One of each kind is listed: a library is reached by hundreds.
                alike = self._routes.setdefault(name, {})
                key = (route.kind, route.open, route.reach)
                if key in alike:
                    alike[key].more += 1
                else:
                    alike[key] = _RouteCount(replace(route, through=target))

    # --- devices ------------------------------------------------------------------------------------------------------

    def _node(self, node: DeviceNode) -> None:
        resolution = self._resolver.load(node.request)
        reach, openers = _openers(node)
        gate = self._closed(())
        passable = gate is None and (node.mode is not None or not node.mode_known)
        missing = "" if node.mode is not None or not node.mode_known else f"/dev/{node.path}"
        for target in dict.fromkeys(resolution.targets):
            if self._index.is_builtin(target.name):
                continue
            loads = target.name in resolution.inserted or target.name in resolution.commands
            route = Route(
                NODE,
                node.request,
                reach,
                open=passable and loads,
                by_name=not target.alias,
                gate=gate,
                rule=None if loads else resolution.why_not(target.name, target.name, self._index),
                missing=missing,
                command=resolution.commands.get(target.name),
                node=f"/dev/{node.path}",
                who=openers,
            )
            self._add(target.name, route)
        self._add_dependencies(
            resolution,
            Route(
                NODE,
                node.request,
                reach,
                open=passable,
                gate=gate,
                missing=missing,
                node=f"/dev/{node.path}",
                who=openers,
            ),
        )

    def _device(self, module: ModuleName, alias: str, more: int) -> None:
        """udev calls libkmod in its own process: kernel.modprobe does not matter."""
        resolution = self._resolver.by_alias(Target(module, alias))
        disabled = self._tables.closed(Gate.MODULES_DISABLED)
        gate = None if disabled is None else disabled.gate
        loads = module in resolution.inserted or module in resolution.commands
        rule = None if loads else resolution.why_not(module, module, self._index)
        route = Route(HARDWARE, alias, Reach.HARDWARE, open=loads and gate is None, gate=gate, rule=rule, more=more)
        self._add(module, replace(route, command=resolution.commands.get(module)))
        self._add_dependencies(resolution, Route(HARDWARE, alias, Reach.HARDWARE, open=gate is None, gate=gate))

    # --- all together -------------------------------------------------------------------------------------------------

    def _add(self, module: ModuleName, route: Route) -> None:
        alike = self._routes.setdefault(module, {})
        key = (route.kind, route.request)
        if key in alike:
            alike[key].more += 1
        else:
            alike[key] = _RouteCount(route)

    def _exposure(self, module: ModuleName) -> Exposure:
        self._add(module, self._by_name(module))
        alike = self._routes.pop(module).values()
        routes = [
            each.route if not each.more else replace(each.route, more=each.route.more + each.more) for each in alike
        ]
        # What matters most comes first: open, for the most users, for the module itself.
        routes.sort(key=lambda route: (not route.open, route.reach.rank, route.through is not None))
        reach = min((route.reach for route in routes if route.open), key=lambda reach: reach.rank, default=Reach.NONE)
        without = min((route.reach for route in routes), key=lambda reach: reach.rank)
        return Exposure(module, reach, without, module in self._loaded, tuple(routes[:ROUTES_MAX]))

    def _by_name(self, module: ModuleName) -> Route:
        """`modprobe MODULE` by root."""
        resolution = self._resolver.load(module)
        disabled = self._tables.closed(Gate.MODULES_DISABLED)
        command = resolution.commands.get(module)
        loads = module in resolution.inserted or command is not None
        return Route(
            NAME,
            module,
            Reach.ROOT,
            open=loads and disabled is None,
            by_name=True,
            gate=None if disabled is None else disabled.gate,
            rule=None if loads else resolution.why_not(module, module, self._index),
            command=command,
        )


def _openers(node: DeviceNode) -> tuple[Reach, str]:
    """Who may open a node: one right is enough."""
    if not node.mode_known:
        return Reach.DEVICE, "users whom its mode admits, which could not be read"
    if node.mode is None:
        return Reach.DEVICE, ""
    if node.mode & 0o006:
        return Reach.UNPRIVILEGED, "everyone"
    if node.mode & 0o060 and node.group not in ("", "root"):
        return Reach.DEVICE, f"members of the group {node.group}"
    return Reach.ROOT, "root"


def going(route: Route) -> str:
    """Who goes this way, and what they do."""
    if route.kind == NODE:
        return f"{route.who or 'no one'} by opening {route.node}"
    if route.kind == HARDWARE:
        return "a device that is plugged in"
    if route.kind == NAME:
        return "root, by name"
    return f"{_WHO[route.reach]} who {how(route.kind, route.request)}"


def closing(route: Route, tables: Tables) -> str:
    """Why a route is not open; empty for one that is."""
    if route.open:
        return ""
    if route.gate is not None:
        guard = tables.closed(route.gate)
        return f"{route.gate} = {guard.value or 'none'}: {guard.says}" if guard is not None else route.gate.value
    if route.served is not None:
        return f"{route.served}, which is part of the kernel image, answers the request"
    if route.rule is not None:
        return f"{route.rule.kind} rule {where(route.rule)}"
    if route.missing:
        return f"{route.missing} is needed first, and is not there"
    return "modprobe does not load it: its file or what it needs is missing"
