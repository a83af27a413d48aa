# SPDX-License-Identifier: LGPL-2.1-or-later
"""What requests and answers look like. Requests are checked against these; answers are described by them.

Written for pydantic 1 (Debian 12) and 2 alike: `extra` as a class keyword and `con…` types exist in both.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, StrictBool, conint, constr

if TYPE_CHECKING:
    Reason = str
    Text = str
    Seconds = int
else:
    Reason = constr(strict=True, max_length=1024)
    Text = constr(strict=True, max_length=1024)
    Seconds = conint(strict=True, ge=1, le=600)

Parameters = dict[str, Text]


class Reasoned(BaseModel, extra="forbid"):
    """Why."""

    reason: Reason = Field(default="", description="One line for the journal.")


class Change(Reasoned, extra="forbid"):
    """What every change takes."""

    dry_run: StrictBool = Field(
        default=False, description="Check everything, answer what would be done, change nothing."
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
        description="Load although modprobe.d blacklists it. Needs the scope `admin`, and polkit's consent.",
    )


class UnloadRequest(TimedChange, extra="forbid"):
    """How to unload; every field may be left out, and so may the body."""

    dependents: StrictBool = Field(default=False, description="First remove the modules that use it.")
    unused_dependencies: StrictBool = Field(
        default=False, description="Then remove dependencies nobody needs any more."
    )


class OperationRequest(BaseModel, extra="forbid"):
    """One operation of a batch."""

    action: Literal["load", "unload", "reload"]
    module: Text = Field(description="Name of the module, for `load` also an alias.")
    parameters: Parameters = Field(default_factory=dict)


class BatchRequest(Change, extra="forbid"):
    """Several operations as one."""

    operations: list[OperationRequest] = Field(description="1 to 256 operations, in order.")
    atomic: StrictBool = Field(default=True, description="All of them or none.")


class PlanRequest(BaseModel, extra="forbid"):
    """Operations to be planned."""

    operations: list[OperationRequest] = Field(description="1 to 256 operations, in order.")
    atomic: StrictBool = True
    override_policy: StrictBool = False
    dependents: StrictBool = False
    unused_dependencies: StrictBool = False


class ParameterRequest(BaseModel, extra="forbid"):
    """A new value."""

    value: Text = Field(description="At most 1024 bytes, without control characters and quotes.")
    reason: Reason = Field(default="", description="One line for the journal.")


class Loaded(BaseModel):
    """A module was loaded."""

    message: str
    module: str
    inserted: list[str] = Field(description="Modules really inserted, in order; empty when there was nothing to do.")
    dry_run: bool = False


class Unloaded(BaseModel):
    """A module was unloaded."""

    message: str
    module: str
    removed: list[str] = Field(description="Modules really removed, in order; empty when there was nothing to do.")
    dry_run: bool = False


class Outcome(BaseModel):
    """What became of one operation."""

    module: str
    result: Literal["changed", "unchanged", "failed", "rolled-back", "skipped"]
    error: str = Field(description="Name of the error, empty when there was none.")
    touched: list[str]


class Results(BaseModel):
    """What became of a batch."""

    results: list[Outcome]


class Step(BaseModel):
    """One call into the kernel; `error` and `message` only on one that will fail."""

    action: Literal["insert", "remove"]
    module: str
    path: str = ""
    parameters: str = ""
    because: str
    operation: int
    error: str = ""
    message: str = ""


class Steps(BaseModel):
    """A plan."""

    steps: list[Step]


class Held(BaseModel):
    """A parameter was written."""

    module: str
    parameter: str
    value: str = Field(description="What the kernel holds now.")


class Told(BaseModel):
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


class Described(BaseModel):
    """A module's static facts, and while it is loaded its live ones under `live`."""

    name: str
    filename: str = ""
    description: str = ""
    license: str = ""
    parameters: list[dict[str, Any]] = Field(default_factory=list)
    live: dict[str, Any] = Field(default_factory=dict, description="Only while it is loaded.")


class User(BaseModel):
    """Something that keeps a module busy."""

    kind: Literal["module", "mount", "loop", "process", "netdev", "block", "device", "kernel"]
    name: str
    detail: str


class Explained(BaseModel):
    """What a module is, why it is there, what holds it."""

    name: str
    state: Literal["live", "coming", "going", "builtin", "available", "absent", "disabled"]
    because: str = ""
    holders: list[str]
    references: int
    users: list[User]
    removable: bool
    blockers: list[str]
    loadable: bool
    policy: str


class Check(BaseModel):
    """One finding."""

    name: str
    status: Literal["ok", "degraded", "failing"]
    message: str
    module: str
    hint: str


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

    type: str = Field(description="`urn:kmodd:error:NAME`, or `about:blank` for what is wrong as HTTP.")
    title: str
    status: int
    detail: str = Field(description="One sentence a person can act on.")
    module: str = ""
    argument: str = ""
    holders: list[str] = Field(default_factory=list)
    users: list[User] = Field(default_factory=list)
    kernel_log: list[str] = Field(default_factory=list, description="The kernel's own lines about it.")
    policy: str = ""
    hint: str = ""
    errno: int = 0
