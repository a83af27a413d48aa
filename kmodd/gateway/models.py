# SPDX-License-Identifier: LGPL-2.1-or-later
"""Models of requests and responses. Requests are validated by them; responses are documented by them.

Written for pydantic 1 (Debian 12) and 2 alike: `extra` as a class keyword and `con…` types exist in both.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, StrictBool, conint, constr

if TYPE_CHECKING:
    Reason = str
    Text = str
    Seconds = int
    TrialSeconds = int
else:
    Reason = constr(strict=True, max_length=1024)
    Text = constr(strict=True, max_length=1024)
    Seconds = conint(strict=True, ge=1, le=600)
    TrialSeconds = conint(strict=True, ge=10, le=86400)

Parameters = dict[str, Text]
DISCONNECT = Field(default=False, description="Also when live interfaces or devices go with the module.")


class Reasoned(BaseModel, extra="forbid"):
    """Why."""

    reason: Reason = Field(default="", description="One line for the journal.")


class Change(Reasoned, extra="forbid"):
    """What every change takes."""

    dry_run: StrictBool = Field(
        default=False, description="Check everything and return what would be done; change nothing."
    )


class TimedChange(Change, extra="forbid"):
    """A change of one module."""

    timeout: Seconds | None = Field(
        default=None, description="Seconds to wait for each call into the kernel; the daemon's setting when left out."
    )


class LoadRequest(TimedChange, extra="forbid"):
    """How to load; every field may be left out, and so may the body."""

    parameters: Parameters = Field(default_factory=dict, description="Parameters of the module, name to value.")
    override_policy: StrictBool = Field(
        default=False,
        description="Load even if modprobe.d blacklists it. Needs the scope `admin`, and polkit's consent.",
    )


class ReloadRequest(LoadRequest, extra="forbid"):
    """How to reload; every field may be left out, and so may the body."""

    disconnect: StrictBool = DISCONNECT


class UnloadRequest(TimedChange, extra="forbid"):
    """How to unload; every field may be left out, and so may the body."""

    dependents: StrictBool = Field(default=False, description="First remove the modules that use it.")
    unused_dependencies: StrictBool = Field(
        default=False, description="Then remove dependencies that are no longer needed."
    )
    disconnect: StrictBool = DISCONNECT


class OperationRequest(BaseModel, extra="forbid"):
    """One operation of a batch."""

    action: Literal["load", "unload", "reload", "set-parameter", "reset-failed"]
    module: Text = Field(description="Name of the module, for `load` also an alias.")
    parameters: Parameters = Field(default_factory=dict)


class BatchRequest(Change, extra="forbid"):
    """Several operations as one."""

    operations: list[OperationRequest] = Field(description="1 to 256 operations, in order.")
    atomic: StrictBool = Field(default=True, description="All operations or none.")
    disconnect: StrictBool = DISCONNECT


class PlanRequest(BaseModel, extra="forbid"):
    """Operations to be planned."""

    operations: list[OperationRequest] = Field(description="1 to 256 operations, in order.")
    atomic: StrictBool = True
    override_policy: StrictBool = False
    dependents: StrictBool = False
    unused_dependencies: StrictBool = False
    disconnect: StrictBool = False


class ParameterRequest(BaseModel, extra="forbid"):
    """A new value."""

    value: Text = Field(description="At most 1024 bytes, without control characters and quotes.")
    reason: Reason = Field(default="", description="One line for the journal.")


class Loaded(BaseModel):
    """A module was loaded."""

    message: str
    module: str
    inserted: list[str] = Field(description="Modules that were inserted, in order; empty when there was nothing to do.")
    dry_run: bool = False


class Unloaded(BaseModel):
    """A module was unloaded."""

    message: str
    module: str
    removed: list[str] = Field(description="Modules that were removed, in order; empty when there was nothing to do.")
    dry_run: bool = False


class User(BaseModel):
    """Something that keeps a module busy."""

    kind: str = Field(
        description="`module`, `mount`, `loop`, `process`, `netdev`, `block`, `device`, `kernel` or another."
    )
    name: str = Field(description="Empty on a row that stands for several.")
    detail: str
    command: str = Field(default="", description="Command that ends this use.")
    pid: int = Field(default=0, description="Only for a process.")
    exe: str = Field(default="", description="The program of the process.")
    unit: str = Field(default="", description="The unit of the process.")
    container: str = Field(default="", description="The container or machine of the process.")
    netns: str = Field(default="", description="Its network namespace, where that is not the system's own.")
    mountns: str = Field(default="", description="Its mount namespace, where that is not the system's own.")
    file: str = Field(default="", description="The file of the configuration that has it set up at boot.")
    line: int = Field(default=0, description="The line of that file.")
    count: int = Field(
        default=0, description="How many users of this kind the row stands for, where they are withheld."
    )


class Outcome(BaseModel):
    """What became of one operation; what does not apply is left out, and only a failure has evidence."""

    module: str
    action: str = Field(description="What was to be done, such as `load`, `set-parameter` or `activate`.")
    result: Literal["changed", "unchanged", "failed", "rolled-back", "skipped"]
    changed: list[str] = Field(description="Modules inserted or removed, in order.")
    error: str = Field(default="", description="Name of the error.")
    message: str = Field(default="", description="One sentence a person can act on.")
    hint: str = ""
    errno: int = 0
    kernel_log: list[str] = Field(default_factory=list, description="Kernel log lines about it.")
    holders: list[str] = Field(default_factory=list, description="Modules that use it.")
    users: list[User] = Field(default_factory=list)
    policy: str = Field(default="", description="The rule that decides.")
    file: str = Field(default="", description="The file that contains it.")
    line: int = 0
    consequences: list[str] = Field(default_factory=list, description="What would go with the module.")
    symbols: list[str] = Field(default_factory=list)
    parameter: str = ""
    withheld: list[str] = Field(
        default_factory=list, description="What is left out: of `users`, `consequences` and `kernel-log`."
    )


class Results(BaseModel):
    """What became of a batch."""

    results: list[Outcome]


class Step(BaseModel):
    """One call into the kernel; `error`, `message`, `hint`, `file` and `line` only on one that will fail.

    What goes with a module only on a removal.
    """

    action: Literal["insert", "remove"]
    module: str
    path: str = ""
    parameters: str = ""
    because: str
    consequences: list[str] = Field(default_factory=list, description="What goes with the module.")
    operation: int
    interfaces: list[str] = Field(default_factory=list, description="Network interfaces of this machine among it.")
    addresses: list[str] = Field(default_factory=list, description="Addresses of this machine among it.")
    error: str = ""
    message: str = ""
    hint: str = ""
    file: str = Field(default="", description="File of the rule that decides.")
    line: int = 0


class Steps(BaseModel):
    """A plan."""

    steps: list[Step]


class Held(BaseModel):
    """A parameter was written."""

    module: str
    parameter: str
    value: str = Field(description="The value that the kernel holds now.")


class DoneResponse(BaseModel):
    """Something was done."""

    message: str
    module: str


class Listed(BaseModel):
    """A module; size, references, holders and taint only of loaded ones."""

    name: str
    state: Literal["live", "coming", "going", "builtin", "available", "absent", "disabled"]
    size: int = 0
    references: int = 0
    holders: list[str] = Field(default_factory=list)
    taint: str = ""


class Modules(BaseModel):
    """Modules, loaded ones first."""

    modules: list[Listed]


Reach = Literal["unprivileged", "userns", "device", "hardware", "root", "none"]


class Exposed(BaseModel):
    """A module, and the widest route by which it can be loaded."""

    module: str
    reach: Reach
    reach_without: Reach = Field(description="The same if no rule and no setting closed a route.")
    loaded: bool
    routes: int = Field(description="Number of open routes.")
    kind: str
    request: str = Field(description="What the kernel requests.")
    through: str = Field("", description="The module that needs it, where the request is for that one.")


class SurfaceReport(BaseModel):
    """The attack surface of a kernel: the numbers, the settings that close routes, and the modules, ranked."""

    kernel: str
    running: bool
    kernels: list[str]
    unprivileged: int
    userns: int
    device: int
    hardware: int
    root: int
    none: int
    guards: list[dict[str, Any]]
    unreadable: list[str]
    nodes_known: bool
    modules: list[Exposed]


class Routes(BaseModel):
    """The routes by which a module can be loaded, the open ones first."""

    routes: list[dict[str, Any]]


class RefusedAttempts(BaseModel):
    """Attempts that a rule refused, those that came last first; alike ones are counted together."""

    attempts: list[dict[str, Any]]


class Responses(BaseModel):
    """Vulnerabilities whose modules are kept out, each with its record."""

    responses: list[dict[str, Any]]


class NeededModules(BaseModel):
    """The modules that the system needs, each with its reasons; before them the sources that cannot be read."""

    modules: list[dict[str, Any]]


class PolicyChange(BaseModel):
    """What applying the policy changes."""

    mode: Literal["off", "audit", "enforce"]
    kernels: list[str]
    file: str
    block: list[str] = Field(description="Modules that are blocked, and were not before.")
    release: list[str] = Field(description="Modules that are allowed again.")
    remarks: list[dict[str, Any]]
    until: int = Field(default=0, description="Of a trial: when it ends, in microseconds since 1970-01-01 UTC.")


class PolicyPlan(PolicyChange):
    """The policy's decision about each module."""

    modules: list[dict[str, Any]]


class PolicyFaults(BaseModel):
    """How the system deviates from the policy; empty if it does not."""

    faults: list[dict[str, Any]]


class ChangedModules(BaseModel):
    """Rules were changed."""

    message: str
    modules: list[str] = Field(description="The modules that they concern.")


class ResponseOutcome(BaseModel):
    """The assessment of a vulnerability, and the actions taken."""

    id: str
    title: str
    modules: list[str]
    stage: Literal["assessed", "in-use", "responded"] = Field(
        description="`in-use`: something uses a module, and nothing was changed."
    )
    proven: bool = Field(description="No name and no alias loads the modules, and none of them is loaded.")
    kernels: list[dict[str, Any]]
    uses: list[dict[str, Any]]
    unloaded: list[str]
    still_loaded: dict[str, str] = Field(description="Module to the reason.")
    history_known: bool


class Described(BaseModel):
    """A module's static facts, and while it is loaded its live ones under `live`."""

    name: str
    filename: str = ""
    description: str = ""
    license: str = ""
    parameters: list[dict[str, Any]] = Field(default_factory=list)
    holds: str = Field(default="", description="Name of the module in the file, where the file is called by another.")
    live: dict[str, Any] = Field(default_factory=dict, description="Only while it is loaded.")


class Explained(BaseModel):
    """What a module is, why it is there, what holds it."""

    name: str
    state: Literal["live", "coming", "going", "builtin", "available", "absent", "disabled"]
    because: str = ""
    holders: list[str]
    references: int
    users: list[User]
    free: list[str] = Field(default_factory=list, description="Commands that end every use and then unload it.")
    consequences: list[str] = Field(
        default_factory=list, description="Sentences: what goes with it when it is removed."
    )
    disconnects: bool = Field(
        default=False, description="Something that is in use goes with it: unloading requires `disconnect`."
    )
    removable: bool
    blockers: list[str]
    loadable: bool
    policy: str
    policy_kind: str = Field(default="", description="`blacklist`, `install`, `module_blacklist` and the like.")
    policy_file: str = ""
    policy_line: int = 0
    policy_rule: str = ""
    file: str = Field(default="", description="The requested file, if it contains a module of another name: `name`.")
    differs: str = Field(default="", description="How what is loaded differs from the file on the disk.")
    withheld: list[str] = Field(
        default_factory=list, description="What is left out: of `users`, `consequences`, `loaded-by` and `kernel-log`."
    )


class Check(BaseModel):
    """One finding."""

    name: str
    status: Literal["ok", "degraded", "failing"]
    message: str
    module: str
    hint: str
    file: str = Field(default="", description="Of a finding about a line of a configuration file.")
    line: int = 0
    instead: list[tuple[str, str]] = Field(
        default_factory=list, description="Lines to write instead: the file each belongs in, and its text."
    )
    error: str = Field(default="", description="Of something that failed: the error's name.")
    cause: str = Field(default="", description="That error's message.")


class HealthReport(BaseModel):
    """How the machine's modules and kmodd are."""

    status: Literal["ok", "degraded", "failing"]
    checks: list[Check]
    release: str
    lockdown: str
    signature_enforced: bool
    modules_disabled: bool
    secure_boot: bool
    taint: int
    taint_flags: list[str]


class Status(BaseModel):
    """How kmodd is, in a word."""

    status: Literal["ok", "degraded", "failing", "unavailable"]


class HistoryRecord(BaseModel):
    """One record of the journal; what is not known is left out."""

    time: int = Field(description="Microseconds since 1970-01-01 UTC.")
    event: str = ""
    message: str = ""


class History(BaseModel):
    """Records, newest last."""

    records: list[HistoryRecord]


class ProblemDocument(BaseModel):
    """RFC 9457, with the evidence; what is not known is left out."""

    type: str = Field(description="`urn:kmodd:error:NAME`, or `about:blank` for HTTP errors.")
    title: str
    status: int
    detail: str = Field(description="One sentence a person can act on.")
    module: str = ""
    argument: str = ""
    holders: list[str] = Field(default_factory=list)
    users: list[User] = Field(default_factory=list)
    kernel_log: list[str] = Field(default_factory=list, description="Kernel log lines about it.")
    policy: str = Field(default="", description="The rule that decided, as `file:line: text`.")
    file: str = Field(
        default="", description="The configuration file of that rule, or the file that cannot be read or written."
    )
    line: int = 0
    rule: str = Field(default="", description="The rule as everyone may read it.")
    rule_kind: str = Field(default="", description="`blacklist`, `install`, `module_blacklist` and the like.")
    consequences: list[str] = Field(default_factory=list, description="What would go with the module.")
    symbols: list[str] = Field(
        default_factory=list, description="Symbols that are missing, or that two modules export."
    )
    parameter: str = ""
    hint: str = ""
    errno: int = 0


class Apply(Change, extra="forbid"):
    """Options of applying the desired state; every field is optional, and so is the body."""

    disconnect: StrictBool = DISCONNECT


class PolicyRequest(Change, extra="forbid"):
    """How to apply the policy for the attack surface; every field is optional, and so is the body."""

    weaken: StrictBool = Field(
        default=False, description="Also allow modules that are blocked now. Needs the scope `surface-allow`."
    )
    try_seconds: TrialSeconds | None = Field(
        default=None, description="Remove the rules again after this many seconds, unless they are confirmed."
    )


class RespondRequest(Change, extra="forbid"):
    """A vulnerability: its CVE, or modules, or a record that the client has read elsewhere."""

    id: Text = Field(default="", description="The CVE; may be left out with `modules`.")
    modules: list[Text] = Field(default_factory=list, description="At most 64 modules to block.")
    files: list[Text] = Field(default_factory=list, description="Source files with the bug, at most 64.")
    fixed: list[Text] = Field(default_factory=list, description="The first fixed version of each stable series.")
    unaffected_from: Text = Field(default="", description="This version and all later ones are not affected.")
    unaffected_before: Text = Field(default="", description="All versions before this one are not affected.")
    force_in_use: StrictBool = Field(
        default=False, description="Block the modules even if something uses one. Modules in use stay loaded."
    )


class AutoloadRequest(Change, extra="forbid"):
    """Whether a module is loaded at every boot."""

    enabled: StrictBool = Field(default=True)
    parameters: Parameters = Field(default_factory=dict, description="Parameters it is loaded with.")


class OptionsRequest(Change, extra="forbid"):
    """Parameters a module gets whenever it is loaded; none takes them away."""

    parameters: Parameters = Field(default_factory=dict)


class BlacklistRequest(Change, extra="forbid"):
    """Whether a module is kept out."""

    blacklisted: StrictBool = Field(default=True)
    hard: StrictBool = Field(default=False, description="Also prevents loading by name.")


class ActivateRequest(BaseModel, extra="forbid"):
    """How to activate a version."""

    load: StrictBool = Field(default=False, description="Also load it. Needs the scopes `load` and `unload`.")
    disconnect: StrictBool = DISCONNECT
    kernel: Text = Field(default="", description="Release of the kernel; the running one when left out.")
    reason: Reason = Field(default="", description="One line for the journal.")


class Message(BaseModel):
    """Something was done."""

    message: str
    module: str = ""


class Rules(BaseModel):
    """Every rule about modules, in reading order."""

    rules: list[dict[str, Any]]


class Drifts(BaseModel):
    """The drift from the desired state."""

    drift: list[dict[str, Any]]


class Versions(BaseModel):
    """Every version in the store."""

    versions: list[dict[str, Any]]


class Imported(BaseModel):
    """What became of a file."""

    name: str
    version: str
    sha256: str


class Reloaded(BaseModel):
    """A version came into force, or went out of it."""

    message: str
    module: str
    reloaded: list[str]


class WebhookRequest(BaseModel, extra="forbid"):
    """A webhook and the events it receives."""

    name: Text
    url: Text = Field(description="https; it is a secret, and never shown again.")
    events: list[Text] = Field(default_factory=list, description="Only these events; all when left out.")
    modules: list[Text] = Field(default_factory=list, description="Only these modules; patterns with `*`.")
    severity: Literal["info", "notice", "warning", "error"] = "info"
    format: Literal["json", "chat"] = "json"


class Webhooks(BaseModel):
    """Every webhook."""

    webhooks: list[dict[str, Any]]


class WebhookKey(BaseModel):
    """A webhook was added."""

    name: str
    key: str


class WebhookTest(BaseModel):
    """A test was queued."""

    name: str
    id: str = Field(description="Value of the header `webhook-id`.")
