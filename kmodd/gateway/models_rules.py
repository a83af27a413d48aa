# SPDX-License-Identifier: LGPL-2.1-or-later
"""What requests and answers about configuration and store look like."""

from typing import Any

from pydantic import BaseModel, Field, StrictBool

from kmodd.gateway.models import Change, Parameters, Text


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
