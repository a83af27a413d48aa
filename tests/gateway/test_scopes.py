# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each scope is good for, and that a token for some modules gets no further on any route."""

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest

from kmodd.errors import InUse
from kmodd.gateway.http.authentication import Principal
from kmodd.gateway.metrics import GatewayMetrics
from kmodd.gateway.models import UnloadRequest
from kmodd.gateway.operations import Operations
from kmodd.gateway.queries import Queries, SharedAnswers
from kmodd.names import SCOPES
from tests.gateway.processes import Gateway

if TYPE_CHECKING:
    from kmodd.gateway.daemon_connection import DaemonConnection

READS_ONLY = {"/v1/plan"}
"""Routes with a body that change nothing."""
NAMES = {"module": "loop", "parameter": "max_part", "name": "loop_custom", "version": "1.2", "id": "CVE-2026-31431"}


def changing_routes(gateway: Gateway) -> list[tuple[str, str, Any]]:
    """(method, path, example of a body) of every route that changes something."""
    found = []
    for path, methods in gateway.ask("GET", "/openapi.json").document["paths"].items():
        for method, operation in methods.items():
            if method == "get" or path in READS_ONLY:
                continue
            content = operation.get("requestBody", {}).get("content", {})
            body = content.get("application/json", {}).get("example")
            binary = "application/octet-stream" in content
            where = re.sub(r"\{(\w+)\}", lambda match: NAMES[match[1]], path)
            found.append((method.upper(), where, b"file" if binary else body))
    return found


def status(gateway: Gateway, route: tuple[str, str, Any], token: str) -> int:
    """What it answers."""
    method, path, body = route
    if isinstance(body, bytes):
        kind = {"Content-Type": "application/octet-stream"}
        return gateway.ask(method, path, raw=body, headers=kind, token=token).status
    return gateway.ask(method, path, body, token=token).status


def test_a_token_for_some_modules_changes_nothing_else_on_any_route(served: Gateway) -> None:
    token = served.make_token("confined", "admin", modules=["dummy"])
    routes = changing_routes(served)
    assert len(routes) > 20
    assert [route[:2] for route in routes if status(served, route, token) != 403] == []


def test_without_its_scope_no_route_does_anything(served: Gateway) -> None:
    token = served.make_token("reader", "read", "inspect")
    assert [route[:2] for route in changing_routes(served) if status(served, route, token) != 403] == []


def test_import_does_not_activate_and_activate_does_not_import(served: Gateway) -> None:
    kind = {"Content-Type": "application/octet-stream"}
    importer, activator = served.make_token("importer", "import"), served.make_token("activator", "activate")
    assert served.ask("POST", "/v1/store/loop/1/activate", token=importer).status == 403
    assert served.ask("POST", "/v1/store/loop/deactivate", token=importer).status == 403
    assert served.ask("POST", "/v1/store", raw=b"x", headers=kind, token=activator).status == 403
    assert served.ask("DELETE", "/v1/store/loop/1", token=activator).status == 403
    assert served.ask("POST", "/v1/store/loop/1/activate", token=activator).status == 404
    assert served.ask("POST", "/v1/store", raw=b"x", headers=kind, token=importer).status == 422


def test_the_description_names_every_scope(served: Gateway) -> None:
    document = served.ask("GET", "/openapi.json").document
    said = document["components"]["securitySchemes"]["bearer"]["description"]
    assert [scope for scope in SCOPES if f"`{scope}`" not in said] == []


class Daemon:
    """What it is asked, and that everything is in use."""

    client: "Daemon"

    def __init__(self) -> None:
        self.client = self
        self.public: list[bool] = []
        self.evidence = ""

    def telling(self, evidence: str) -> "Daemon":
        """As Client.telling."""
        self.evidence = evidence
        return self

    async def data(self, member: str, *_: object, options: dict[str, object] | None = None) -> Any:
        """Answer an explanation, and refuse everything else."""
        if member != "Explain":
            raise InUse("fat is used by vfat", module="fat")
        self.public.append(bool((options or {}).get("public")))
        return {"name": "fat"}

    def changed(self) -> None:
        """As DaemonConnection.changed."""


@pytest.mark.parametrize(
    ("scopes", "public"), [({"read", "unload"}, True), ({"read", "unload", "inspect"}, False), ({"admin"}, False)]
)
async def test_the_answer_is_public_unless_the_token_may_inspect(scopes: set[str], public: bool) -> None:
    daemon = Daemon()
    link: DaemonConnection = daemon  # type: ignore[assignment]  # what of it is used
    who = Principal("token x", frozenset(scopes))
    loop = asyncio.get_running_loop()
    reading = Queries(link, SharedAnswers(1, loop.time, lambda: 0), GatewayMetrics())
    await reading.explain("fat", public=not who.may("inspect"))
    changes = Operations(link, lambda _: None, loop.time)
    with pytest.raises(InUse):
        await changes.unload(who, "fat", UnloadRequest())
    assert daemon.public == [public]
    assert daemon.evidence == ("public" if public else "full")
