# SPDX-License-Identifier: LGPL-2.1-or-later
"""Routes for custom modules. An upload streams to an unnamed temporary file, which the daemon gets as a descriptor."""

import tempfile
from typing import Any

from fastapi import APIRouter, Path, Query, Request

from kmodd.client.store import INTERFACE, Store
from kmodd.dbus.interface_xml import installed
from kmodd.gateway import models
from kmodd.gateway.daemon_connection import DaemonConnection
from kmodd.gateway.dependencies import Answer, documented, needs, snake
from kmodd.gateway.http.authentication import Principal
from kmodd.gateway.http.problem import HttpProblem
from kmodd.gateway.operations import AuditContext, FairQueue, Operations
from kmodd.names import parse_description, parse_module, parse_reason, parse_release, parse_version

UPLOADS, UPLOADS_EACH = 6, 2
"""Concurrent uploads, and those of one token. A slow one keeps its slot for upload-timeout."""
NAME = Path(description="Name of the module.")
VERSION = Path(description="A version of it.")
_VERSION = {
    "name": "loop_custom", "version": "1.2", "kernel": "6.1.0-31-amd64", "sha256": "9f86…", "size": 40960,
    "description": "", "signed": False, "signer": "", "active": False,
}  # fmt: skip
_IMPORT, _ACTIVATE, _DEACTIVATE, _REMOVE = (
    installed().method(INTERFACE, member).errors for member in ("Import", "Activate", "Deactivate", "Remove")
)


def router(changes: Operations, link: DaemonConnection) -> APIRouter:
    """The routes."""
    made = APIRouter(tags=["store"])
    uploads = FairQueue(UPLOADS, UPLOADS_EACH, "imports")

    async def switch(
        principal: Principal, member: str, name: str, rest: tuple[str, ...], requested: Any, outcome: str
    ) -> Answer:
        module = parse_module(name)
        principal.require_modules([module])
        reason = parse_reason(requested.reason)
        options: dict[str, object] = {**principal.caller_options(reason)}
        if requested.load:
            # What the file needs is not known before it is active, and would be loaded along.
            principal.require_all_modules()
            principal.require("load")
            principal.require("unload")
            options["load"] = True
            if requested.disconnect:
                options["disconnect"] = True
        if requested.kernel:
            options["kernel"] = parse_release(requested.kernel)
        async with changes.doing(principal, AuditContext(member, (module,), reason)) as client:
            reloaded = await Store(client).data(member, module, *rest, options=options)
        return Answer({"message": f"Module {module} {outcome}", "module": module, "reloaded": list(reloaded)})

    @made.get("/v1/store", response_model=models.Versions, operation_id="store",
              **documented("read", example={"versions": [_VERSION]}))  # fmt: skip
    async def listing(principal: Principal = needs("read")) -> Answer:
        """Every version of every custom module."""
        del principal
        return Answer({"versions": [snake(row) for row in await Store(link.client).data("List")]})

    @made.post("/v1/store", response_model=models.Imported, operation_id="import",
               **documented("import", *_IMPORT, example={"name": "loop_custom", "version": "1.2", "sha256": "9f86…"},
                      body="a file"))  # fmt: skip
    async def import_file(
        request: Request,
        version: str = Query(
            "", max_length=64, description="Its version; by default its own, or one made from its hash."
        ),
        description: str = Query("", max_length=1024, description="A one-line description."),
        reason: str = Query("", max_length=1024, description="One line for the journal."),
        shadow: bool = Query(default=False, description="Import it even if the kernel has a module of this name."),
        principal: Principal = needs("import"),
    ) -> Answer:
        """Take a module's file into the store; nothing is loaded.

        The body is the file itself, as `application/octet-stream`, plain or compressed with gzip, xz or zstd.
        """
        principal.require_all_modules()  # a file can be any
        why = parse_reason(reason)
        wanted = {
            "version": parse_version(version) if version else "",
            "description": parse_description(description),
        }
        # A nameless file in the unit's own /tmp; nothing of it is left, whatever happens.
        async with uploads.turn(principal.name):
            with tempfile.TemporaryFile() as file:
                size = await _receive(request, file)
                if not size:
                    raise HttpProblem(400, "the body must be the module's file; it is empty")
                file.flush()
                file.seek(0)
                async with changes.doing(principal, AuditContext("Import", (), why or wanted["description"])) as client:
                    imported = await Store(client).import_file(
                        file.fileno(), shadow=shadow, **principal.caller_options(why), **wanted
                    )
        return Answer({"name": imported.name, "version": imported.version, "sha256": imported.sha256})

    @made.post("/v1/store/{name}/{version}/activate", response_model=models.Reloaded, operation_id="activate",
               **documented("activate", *_ACTIVATE, body={"load": True},
                      example={"message": "Module loop_custom 1.2 is active", "module": "loop_custom", "reloaded": []}))  # fmt: skip
    async def activate(
        name: str = NAME,
        version: str = VERSION,
        body: models.ActivateRequest | None = None,
        principal: Principal = needs("activate"),
    ) -> Answer:
        """Bring a version into force, in place of another one.

        This is the right to run code in the kernel: the module's aliases count from now on, and the next socket or device
        that matches one loads it, without `load`.
        """
        requested = body or models.ActivateRequest()
        exact = parse_version(version)
        return await switch(principal, "Activate", name, (exact,), requested, f"{exact} is active")

    @made.post("/v1/store/{name}/deactivate", response_model=models.Reloaded, operation_id="deactivate",
               **documented("activate", *_DEACTIVATE, body={"load": False},
                      example={"message": "Module loop has no active version in the store", "module": "loop", "reloaded": []}))  # fmt: skip
    async def deactivate(
        name: str = NAME, body: models.ActivateRequest | None = None, principal: Principal = needs("activate")
    ) -> Answer:
        """Give the kernel's own module back."""
        requested = body or models.ActivateRequest()
        return await switch(principal, "Deactivate", name, (), requested, "has no active version in the store")

    @made.delete("/v1/store/{name}/{version}", response_model=models.Message, operation_id="remove_version",
                 **documented("import", *_REMOVE,
                        example={"message": "Version 1.2 of module loop_custom was removed", "module": "loop_custom"}))  # fmt: skip
    async def remove(
        name: str = NAME,
        version: str = VERSION,
        reason: str = Query("", max_length=1024, description="One line for the journal."),
        principal: Principal = needs("import"),
    ) -> Answer:
        """Remove a version that is not active."""
        module, exact, why = parse_module(name), parse_version(version), parse_reason(reason)
        principal.require_modules([module])
        async with changes.doing(principal, AuditContext("Remove", (module,), why)) as client:
            await Store(client).remove(module, exact, **principal.caller_options(why))
        return Answer({"message": f"Version {exact} of module {module} was removed", "module": module})

    return made


async def _receive(request: Request, file: Any) -> int:
    size = 0
    async for chunk in request.stream():
        size += file.write(chunk)
    return size
