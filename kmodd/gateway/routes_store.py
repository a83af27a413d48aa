# SPDX-License-Identifier: LGPL-2.1-or-later
"""Routes about custom modules. A file streams to a nameless temporary file, and goes to the daemon as a descriptor."""

import asyncio
import tempfile
from typing import Any

from fastapi import APIRouter, Path, Query, Request

from kmodd.client_store import Store
from kmodd.errors import AccessDenied, LimitsExceeded
from kmodd.gateway import models_rules
from kmodd.gateway.asking import Answer, needs, told
from kmodd.gateway.changes import Changes, Intent
from kmodd.gateway.link import DaemonLink
from kmodd.gateway.principal import Principal
from kmodd.gateway.problem import HttpProblem
from kmodd.gateway.wording import snake
from kmodd.names import parse_description, parse_module, parse_reason, parse_release, parse_version

UPLOADS = 2
"""Files on their way at once."""
NAME = Path(description="Name of the module.")
VERSION = Path(description="A version of it.")
_VERSION = {
    "name": "loop_custom", "version": "1.2", "kernel": "6.1.0-31-amd64", "sha256": "9f86…", "size": 40960,
    "description": "", "signed": False, "signer": "", "active": False,
}  # fmt: skip
_FILE = ("BadModule", "WrongKernel", "BadSignature", "UnknownSymbol", "Shadows", "Lockdown", "Conflict", "TimedOut")
_SWITCH = ("NoSuchModule", "NoSuchVersion", "Conflict", "InUse", "BadSignature", "WrongKernel", "InitFailed", "Busy")


def router(changes: Changes, link: DaemonLink) -> APIRouter:
    """The routes."""
    made = APIRouter(tags=["store"])
    uploads = asyncio.Semaphore(UPLOADS)

    async def switch(who: Principal, member: str, name: str, rest: tuple[str, ...], asked: Any, said: str) -> Answer:
        module = parse_module(name)
        who.require_modules([module])
        options: dict[str, object] = {"on-behalf-of": who.name}
        if asked.load:
            if who.modules:
                # What the file needs is not known before it is active, and would be loaded along.
                raise AccessDenied("this token is for some modules alone: load it by itself afterwards")
            who.require("load")
            who.require("unload")
            options["load"] = True
        if asked.kernel:
            options["kernel"] = parse_release(asked.kernel)
        async with changes.doing(who, Intent(member, module, parse_reason(asked.reason))) as client:
            reloaded = await Store(client).data(member, module, *rest, options=options)
        return Answer({"message": f"Module {module} {said}", "module": module, "reloaded": list(reloaded)})

    @made.get("/v1/store", response_model=models_rules.Versions, operation_id="store",
              **told("read", example={"versions": [_VERSION]}))  # fmt: skip
    async def listing(who: Principal = needs("read")) -> Answer:
        """Every version of every custom module."""
        del who
        return Answer({"versions": [snake(row) for row in await Store(link.client).data("List")]})

    @made.post("/v1/store", response_model=models_rules.Imported, operation_id="import",
               **told("import", *_FILE, example={"name": "loop_custom", "version": "1.2", "sha256": "9f86…"},
                      body="a file"))  # fmt: skip
    async def import_file(
        request: Request,
        version: str = Query("", max_length=64, description="Its version; its own, or of its hash, when left out."),
        description: str = Query("", max_length=1024, description="One line about it."),
        shadow: bool = Query(default=False, description="Take it although the kernel has a module of this name."),
        who: Principal = needs("import"),
    ) -> Answer:
        """Take a module's file into the store; nothing is loaded.

        The body is the file itself, as `application/octet-stream`, plain or compressed with gzip, xz or zstd.
        """
        if who.modules:
            raise AccessDenied("this token is for some modules alone, and a file can be any")
        wanted = {
            "version": parse_version(version) if version else "",
            "description": parse_description(description),
        }
        if uploads.locked():
            raise LimitsExceeded(f"{UPLOADS} files are on their way already")
        # A nameless file in the unit's own /tmp; nothing of it is left, whatever happens.
        async with uploads:
            with tempfile.TemporaryFile() as file:
                size = await _receive(request, file)
                if not size:
                    raise HttpProblem(400, "the body is the module's file; it is empty")
                file.flush()
                file.seek(0)
                async with changes.doing(who, Intent("Import", "", wanted["description"])) as client:
                    found = await Store(client).import_file(
                        file.fileno(), shadow=shadow, on_behalf_of=who.name, **wanted
                    )
        return Answer({"name": found.name, "version": found.version, "sha256": found.sha256})

    @made.post("/v1/store/{name}/{version}/activate", response_model=models_rules.Reloaded, operation_id="activate",
               **told("import", *_SWITCH, body={"load": True},
                      example={"message": "Module loop_custom 1.2 is active", "module": "loop_custom", "reloaded": []}))  # fmt: skip
    async def activate(
        name: str = NAME,
        version: str = VERSION,
        body: models_rules.ActivateRequest | None = None,
        who: Principal = needs("import"),
    ) -> Answer:
        """Bring a version into force, in place of another one."""
        asked = body or models_rules.ActivateRequest()
        exact = parse_version(version)
        return await switch(who, "Activate", name, (exact,), asked, f"{exact} is active")

    @made.post("/v1/store/{name}/deactivate", response_model=models_rules.Reloaded, operation_id="deactivate",
               **told("import", *_SWITCH, body={"load": False},
                      example={"message": "Module loop is the kernel's own", "module": "loop", "reloaded": []}))  # fmt: skip
    async def deactivate(
        name: str = NAME, body: models_rules.ActivateRequest | None = None, who: Principal = needs("import")
    ) -> Answer:
        """Give the kernel's own module back."""
        asked = body or models_rules.ActivateRequest()
        return await switch(who, "Deactivate", name, (), asked, "is the kernel's own, or none")

    @made.delete("/v1/store/{name}/{version}", response_model=models_rules.Message, operation_id="remove_version",
                 **told("import", "NoSuchModule", "NoSuchVersion", "Conflict",
                        example={"message": "Version 1.2 of module loop_custom is removed", "module": "loop_custom"}))  # fmt: skip
    async def remove(
        name: str = NAME,
        version: str = VERSION,
        reason: str = Query("", max_length=1024, description="One line for the journal."),
        who: Principal = needs("import"),
    ) -> Answer:
        """Remove a version that is not active."""
        module, exact = parse_module(name), parse_version(version)
        who.require_modules([module])
        async with changes.doing(who, Intent("Remove", module, parse_reason(reason))) as client:
            await Store(client).remove(module, exact)
        return Answer({"message": f"Version {exact} of module {module} is removed", "module": module})

    return made


async def _receive(request: Request, file: Any) -> int:
    size = 0
    async for chunk in request.stream():
        size += file.write(chunk)
    return size
