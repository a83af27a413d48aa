# SPDX-License-Identifier: LGPL-2.1-or-later
"""What requests and answers about configuration and store look like."""

from typing import Any, Literal

from pydantic import BaseModel, Field, StrictBool

from kmodd.gateway.models import Change, Parameters, Reason, Text


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
    hard: StrictBool = Field(default=False, description="It cannot be loaded by its name either.")


class ActivateRequest(BaseModel, extra="forbid"):
    """How to bring a version into force."""

    load: StrictBool = Field(default=False, description="Also load it. Needs the scopes `load` and `unload`.")
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
    """What is not as it is wanted."""

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
    """A webhook and what it is told of."""

    name: Text
    url: Text = Field(description="https; it is a secret, and never shown again.")
    events: list[Text] = Field(default_factory=list, description="Only these; all when left out.")
    modules: list[Text] = Field(default_factory=list, description="Only these; patterns with `*`.")
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
    id: str = Field(description="As in the header `webhook-id`.")
