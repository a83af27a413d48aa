# SPDX-License-Identifier: LGPL-2.1-or-later
"""The client's side of `org.kmodd1.Surface`.

surface = AttackSurface(client)
for row in await surface.modules(reach="unprivileged"):
    print(row.module, row.request)
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from kmodd.client.replies import Fields
from kmodd.fast_dataclass import dataclass
from kmodd.model.surface import Reach
from kmodd.names import ModuleName

if TYPE_CHECKING:
    from kmodd.client import Client
INTERFACE = "org.kmodd1.Surface"


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One installed kernel in the reply of `Respond`."""

    kernel: str
    running: bool
    version: str
    verdict: str
    because: str
    placements: Mapping[str, str]
    blocked: bool
    open_requests: Mapping[str, list[str]]
    requests: int
    dependents: tuple[str, ...]
    initramfs: tuple[str, ...]
    initramfs_known: bool


@dataclass(frozen=True, slots=True)
class UseRow:
    """One module in the reply of `Respond`."""

    module: ModuleName
    loaded: bool
    builtin: bool
    in_use: bool
    references: int
    holders: tuple[str, ...]
    users: tuple[str, ...]
    free: tuple[str, ...]
    loads: int
    last_load: int
    autoload: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The reply of `Respond`."""

    id: str
    title: str
    modules: tuple[str, ...]
    breaks: str
    notes: str
    image_files: tuple[str, ...]
    initcalls: tuple[str, ...]
    stage: str
    proven: bool
    kernels: tuple[KernelRow, ...]
    uses: tuple[UseRow, ...]
    unloaded: tuple[str, ...]
    still_loaded: Mapping[str, str]
    history_known: bool


@dataclass(frozen=True, slots=True)
class ResponseRow:
    """A row of `GetResponses`."""

    id: str
    title: str
    modules: tuple[str, ...]
    rules: tuple[str, ...]
    fixed: tuple[str, ...]
    begun: int


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row of `GetRefused`."""

    alias: str
    modules: tuple[str, ...]
    uid: int | None
    exe: str
    comm: str
    unit: str
    container: str
    count: int
    first: int
    last: int
    file: str
    line: int
    rule: str
    response: str
    allow: str


def outcome(data: Mapping[str, Any]) -> Outcome:
    """The reply of `Respond`."""
    fields = Fields(data)
    return Outcome(
        id=fields.text("id"),
        title=fields.text("title"),
        modules=fields.texts("modules"),
        breaks=fields.text("breaks"),
        notes=fields.text("notes"),
        image_files=fields.texts("image-files"),
        initcalls=fields.texts("initcalls"),
        stage=fields.text("stage"),
        proven=fields.flag("proven"),
        kernels=tuple(_kernel(Fields(row)) for row in fields.get("kernels", list, [])),
        uses=tuple(_use(Fields(row)) for row in fields.get("uses", list, [])),
        unloaded=fields.texts("unloaded"),
        still_loaded=fields.get("still-loaded", dict, {}),
        history_known=fields.flag("history-known"),
    )


def _kernel(fields: Fields) -> KernelRow:
    return KernelRow(
        kernel=fields.text("kernel"),
        running=fields.flag("running"),
        version=fields.text("version"),
        verdict=fields.text("verdict"),
        because=fields.text("because"),
        placements=fields.get("placements", dict, {}),
        blocked=fields.flag("blocked"),
        open_requests=fields.get("open-requests", dict, {}),
        requests=fields.number("requests"),
        dependents=fields.texts("dependents"),
        initramfs=fields.texts("initramfs"),
        initramfs_known=fields.flag("initramfs-known"),
    )


def _use(fields: Fields) -> UseRow:
    return UseRow(
        module=fields.module("module"),
        loaded=fields.flag("loaded"),
        builtin=fields.flag("builtin"),
        in_use=fields.flag("in-use"),
        references=fields.number("references"),
        holders=fields.texts("holders"),
        users=fields.texts("users"),
        free=fields.texts("free"),
        loads=fields.number("loads"),
        last_load=fields.number("last-load"),
        autoload=fields.texts("autoload"),
    )


def response_row(data: Mapping[str, Any]) -> ResponseRow:
    """A row of `GetResponses`."""
    fields = Fields(data)
    return ResponseRow(
        id=fields.text("id"),
        title=fields.text("title"),
        modules=fields.texts("modules"),
        rules=fields.texts("rules"),
        fixed=fields.texts("fixed"),
        begun=fields.number("begun"),
    )


def refused_row(data: Mapping[str, Any]) -> RefusedRow:
    """A row of `GetRefused`."""
    fields = Fields(data)
    return RefusedRow(
        alias=fields.text("alias"),
        modules=fields.texts("modules"),
        uid=fields.number("uid") if "uid" in data else None,
        exe=fields.text("exe"),
        comm=fields.text("comm"),
        unit=fields.text("unit"),
        container=fields.text("container"),
        count=fields.number("count"),
        first=fields.number("first"),
        last=fields.number("last"),
        file=fields.text("file"),
        line=fields.number("line"),
        rule=fields.text("rule"),
        response=fields.text("response"),
        allow=fields.text("allow"),
    )


class EndOptions(TypedDict, total=False):
    """Options of `EndResponse`."""

    reason: str
    on_behalf_of: str
    only_modules: Sequence[str]


class RespondOptions(EndOptions, total=False):
    """Options of `Respond`."""

    modules: Sequence[str]
    files: Sequence[str]
    fixed: Sequence[str]
    unaffected_from: str
    unaffected_before: str
    force_in_use: bool
    dry_run: bool


@dataclass(frozen=True, slots=True)
class GuardRow:
    """A setting that closes routes, or could."""

    name: str
    value: str
    closes: bool
    says: str
    unread: bool
    unusual: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """The surface of one kernel in numbers."""

    kernel: str
    running: bool
    kernels: tuple[str, ...]
    counts: Mapping[str, int]
    """Modules by reach."""
    guards: tuple[GuardRow, ...]
    unreadable: tuple[str, ...]
    nodes_known: bool


@dataclass(frozen=True, slots=True)
class ExposedModule:
    """One module, and its widest route."""

    module: ModuleName
    reach: str
    reach_without: str
    loaded: bool
    routes: int
    kind: str
    request: str
    through: str


@dataclass(frozen=True, slots=True)
class RouteRow:
    """One way on which a module is loaded."""

    kind: str
    request: str
    reach: str
    open: bool
    by_name: bool
    through: str
    more: int
    way: str
    closed_by: str
    file: str
    line: int
    rule: str
    command: bool


@dataclass(frozen=True, slots=True)
class NeededModule:
    """A module that something needs, or a source that cannot be read."""

    module: str
    """Empty for a source that cannot be read."""
    source: str
    evidence: str
    floor: bool
    fault: str


@dataclass(frozen=True, slots=True)
class DecidedModule:
    """What the policy says about one module."""

    module: ModuleName
    blocked: bool
    because: str
    detail: str
    reach: str
    loaded: bool
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SurfaceFault:
    """Something that is not as the policy says."""

    kind: str
    message: str
    module: str
    kernel: str
    file: str
    line: int
    hint: str


@dataclass(frozen=True, slots=True)
class PolicyPlan:
    """The policy, applied to this system."""

    mode: str
    kernels: tuple[str, ...]
    file: str
    block: tuple[str, ...]
    release: tuple[str, ...]
    modules: tuple[DecidedModule, ...]
    """Empty in the reply of `Apply`."""
    remarks: tuple[SurfaceFault, ...]
    until: int = 0
    """When rules on trial end, in microseconds since the epoch; 0 without a trial."""


@dataclass(frozen=True, slots=True)
class LockState:
    """The reply of `Lock`."""

    locked: bool
    pending: tuple[SurfaceFault, ...]
    breaks: tuple[NeededModule, ...]


class AttackSurface:
    """Which modules can be loaded by whom."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    async def data(self, member: str, *arguments: object, options: Mapping[str, object] | None = None) -> Any:
        """Call any member, and answer its value as on the bus, without variants."""
        return await self._client.data(member, *arguments, options=options, interface=INTERFACE, many=True)

    async def summary(self, *, kernel: str = "") -> Summary:
        """The numbers, and the settings that close routes."""
        return summary(await self.data("GetSummary", options=_given(kernel=kernel)))

    async def modules(
        self, *, reach: str = "", match: str = "", limit: int = 0, kernel: str = ""
    ) -> tuple[ExposedModule, ...]:
        """Modules, those that the most users can have loaded first."""
        options = _given(reach=reach, match=match, limit=limit, kernel=kernel)
        return tuple(map(exposed_module, await self.data("Get", options=options)))

    async def routes(self, module: str, *, kernel: str = "") -> tuple[RouteRow, ...]:
        """The routes to one module, the open ones first; `NoSuchModule` for an unknown name."""
        return tuple(map(route_row, await self.data("GetRoutes", module, options=_given(kernel=kernel))))

    async def needed(self, *, kernel: str = "") -> tuple[NeededModule, ...]:
        """The modules that this system needs, and why."""
        return tuple(map(needed_module, await self.data("GetNeeded", options=_given(kernel=kernel))))

    async def plan(self) -> PolicyPlan:
        """What the policy blocks, and why; `Conflict` for an invalid file."""
        return policy_plan(await self.data("Plan"))

    async def apply(
        self, *, weaken: bool = False, dry_run: bool = False, reason: str = "", try_seconds: int = 0
    ) -> PolicyPlan:
        """Write the rules of the policy; `Conflict` where another file undoes one, or modules would be allowed without `weaken`.

        With `try_seconds` they are taken back after so many seconds, unless `confirm` is called before.
        """
        options = _given(weaken=weaken, reason=reason) | {"dry-run": dry_run}
        if try_seconds:
            options["try-seconds"] = try_seconds
        return policy_plan(await self.data("Apply", options=options))

    async def confirm(self, *, reason: str = "") -> tuple[str, ...]:
        """Keep the rules that are on trial; the modules that they block. `Conflict` where there are none."""
        return tuple(await self.data("Confirm", options=_given(reason=reason)))

    async def revert(self, *, reason: str = "") -> tuple[str, ...]:
        """Take the rules back that are on trial; the modules that are allowed again. `Conflict` where there are none."""
        return tuple(await self.data("Revert", options=_given(reason=reason)))

    async def check(self, *, kernel: str = "") -> tuple[SurfaceFault, ...]:
        """What is not as the policy says; empty if everything is."""
        return tuple(map(surface_fault, await self.data("Check", options=_given(kernel=kernel))))

    async def lock(self, *, dry_run: bool = False, reason: str = "") -> LockState:
        """Have no module loaded or unloaded until the next boot; `Conflict` while something is pending."""
        return lock_state(await self.data("Lock", options=_given(reason=reason) | {"dry-run": dry_run}))

    async def respond(self, key: str = "", **options: Unpack[RespondOptions]) -> Outcome:
        """Keep the modules of a vulnerability out; `NoSuchResponse` where there is no record of it."""
        return outcome(await self.data("Respond", key, options={**options}))

    async def responses(self) -> tuple[ResponseRow, ...]:
        """The responses that have not ended."""
        return tuple(map(response_row, await self.data("GetResponses")))

    async def end_response(self, key: str, **options: Unpack[EndOptions]) -> tuple[str, ...]:
        """Remove the rules that a response wrote; their modules."""
        return tuple(await self.data("EndResponse", key, options={**options}))

    async def refused(self, *, since: int = 0) -> tuple[RefusedRow, ...]:
        """Attempts that a rule refused, those that came last first."""
        return tuple(map(refused_row, await self.data("GetRefused", options=_given(since=since))))


def needed_module(data: Mapping[str, Any]) -> NeededModule:
    """A row of `GetNeeded`."""
    fields = Fields(data)
    return NeededModule(
        fields.text("module"),
        fields.text("source"),
        fields.text("evidence"),
        fields.flag("floor"),
        fields.text("fault"),
    )


def policy_plan(data: Mapping[str, Any]) -> PolicyPlan:
    """The reply of `Plan` and `Apply`."""
    fields = Fields(data)
    return PolicyPlan(
        mode=fields.text("mode"),
        kernels=fields.texts("kernels"),
        file=fields.text("file"),
        block=fields.texts("block"),
        release=fields.texts("release"),
        modules=tuple(_decided(Fields(row)) for row in fields.get("modules", list, [])),
        remarks=tuple(surface_fault(row) for row in fields.get("remarks", list, [])),
        until=fields.number("until"),
    )


def lock_state(data: Mapping[str, Any]) -> LockState:
    """The reply of `Lock`."""
    fields = Fields(data)
    return LockState(
        fields.flag("locked"),
        tuple(surface_fault(row) for row in fields.get("pending", list, [])),
        tuple(needed_module(row) for row in fields.get("breaks", list, [])),
    )


def surface_fault(data: Mapping[str, Any]) -> SurfaceFault:
    """A row of `Check`."""
    fields = Fields(data)
    return SurfaceFault(
        kind=fields.text("kind"),
        message=fields.text("message"),
        module=fields.text("module"),
        kernel=fields.text("kernel"),
        file=fields.text("file"),
        line=fields.number("line"),
        hint=fields.text("hint"),
    )


def _decided(fields: Fields) -> DecidedModule:
    return DecidedModule(
        module=fields.module("module"),
        blocked=fields.flag("blocked"),
        because=fields.text("because"),
        detail=fields.text("detail"),
        reach=fields.text("reach"),
        loaded=fields.flag("loaded"),
        ids=fields.texts("ids"),
    )


def summary(data: Mapping[str, Any]) -> Summary:
    """The reply of `GetSummary`."""
    fields = Fields(data)
    return Summary(
        kernel=fields.text("kernel"),
        running=fields.flag("running"),
        kernels=fields.texts("kernels"),
        counts={reach.value: fields.number(reach.value) for reach in Reach},
        guards=tuple(_guard(Fields(row)) for row in fields.get("guards", list, [])),
        unreadable=fields.texts("unreadable"),
        nodes_known=fields.flag("nodes-known"),
    )


def exposed_module(data: Mapping[str, Any]) -> ExposedModule:
    """A row of `Get`."""
    fields = Fields(data)
    return ExposedModule(
        module=fields.module("module"),
        reach=fields.text("reach"),
        reach_without=fields.text("reach-without"),
        loaded=fields.flag("loaded"),
        routes=fields.number("routes"),
        kind=fields.text("kind"),
        request=fields.text("request"),
        through=fields.text("through"),
    )


def route_row(data: Mapping[str, Any]) -> RouteRow:
    """A row of `GetRoutes`."""
    fields = Fields(data)
    return RouteRow(
        kind=fields.text("kind"),
        request=fields.text("request"),
        reach=fields.text("reach"),
        open=fields.flag("open"),
        by_name=fields.flag("by-name"),
        through=fields.text("through"),
        more=fields.number("more"),
        way=fields.text("way"),
        closed_by=fields.text("closed-by"),
        file=fields.text("file"),
        line=fields.number("line"),
        rule=fields.text("rule"),
        command=fields.flag("command"),
    )


def _guard(fields: Fields) -> GuardRow:
    return GuardRow(
        fields.text("name"),
        fields.text("value"),
        fields.flag("closes"),
        fields.text("says"),
        fields.flag("unread"),
        fields.flag("unusual"),
    )


def _given(**options: object) -> dict[str, object]:
    return {name: value for name, value in options.items() if value}
