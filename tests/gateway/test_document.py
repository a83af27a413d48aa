# SPDX-License-Identifier: LGPL-2.1-or-later
"""The OpenAPI document tells of every route its scope, an example of all that goes in and out, and its errors; and tells the truth."""

import json
from typing import Any

import pytest

from kmodd.gateway.application import complete_openapi
from kmodd.names import SCOPES
from tests.gateway.operations import OPERATIONS
from tests.gateway.processes import Gateway

EVERY = [*OPERATIONS, ("GET", "/v1/events")]


@pytest.fixture(scope="module")
def paths(served: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = served.ask("GET", "/openapi.json", token=None).document["paths"]
    return found


def test_no_operation_is_left_out(paths: dict[str, Any]) -> None:
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == set(EVERY)


@pytest.mark.parametrize(("method", "path"), EVERY)
def test_every_route_is_described(paths: dict[str, Any], method: str, path: str) -> None:
    operation = paths[path][method.lower()]
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"]
    (answer,) = operation["responses"]["200"]["content"].values()
    assert answer["example"]
    for parameter in operation.get("parameters", ()):
        assert parameter.get("description") or parameter["schema"].get("enum"), parameter
        assert parameter["in"] != "path" or parameter["example"]
    if body := operation.get("requestBody"):
        ((kind, content),) = body["content"].items()
        assert "example" in content or kind == "application/octet-stream"
    errors = {status: one for status, one in operation["responses"].items() if status != "200"}
    assert {"400", "421"} <= errors.keys()
    if path != "/health":
        assert {"401", "403", "429", "500", "503"} <= errors.keys()
        assert operation["security"] == [{"bearer": []}]
        assert operation["x-scope"]
        assert f"Scope: `{operation['x-scope']}`" in operation["description"]
    for status, error in errors.items():
        assert error["description"]
        if (path, status) != ("/health", "503"):
            example = error["content"]["application/problem+json"]["example"]
            assert example["status"] == int(status)


def call(served: Gateway, paths: dict[str, Any], method: str, path: str, token: str | None) -> int:
    """The route's own example, sent; its status."""
    operation = paths[path][method.lower()]
    sent: dict[str, Any] = {}
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", parameter["example"])
    if body := operation.get("requestBody"):
        ((kind, content),) = body["content"].items()
        raw = json.dumps(content["example"]).encode() if "example" in content else b"x"
        sent = {"raw": raw, "headers": {"Content-Type": kind}}
    return served.ask(method, path, token=token, **sent).status


@pytest.mark.parametrize(("method", "path"), [one for one in EVERY if one[1] != "/health"])
def test_without_its_scope_it_is_not_for_a_token(
    served: Gateway, paths: dict[str, Any], method: str, path: str
) -> None:
    told = paths[path][method.lower()]["x-scope"]
    scopes = [word for word in told.replace(",", "").split() if word in SCOPES]
    assert scopes
    for stranger in (None, "kmodd_000000000000_" + "x" * 43):
        # Who keeps asking without a token is told to wait.
        assert call(served, paths, method, path, stranger) in {401, 429}
    for missing in scopes:
        others = [scope for scope in SCOPES if scope not in {missing, "admin"}]
        token = served.make_token(f"all-but-{missing}-{method}-{abs(hash(path))}", *others)
        assert call(served, paths, method, path, token) == 403, missing


@pytest.mark.parametrize(
    ("version", "schema"),
    [
        ("3.0.2", {"allOf": [{"$ref": "#/x"}], "nullable": True}),
        ("3.1.0", {"anyOf": [{"$ref": "#/x"}, {"type": "null"}]}),
    ],
)
def test_a_body_that_may_be_left_out_may_be_null(version: str, schema: dict[str, Any]) -> None:
    def written(*, required: bool) -> object:
        body = {"required": required, "content": {"application/json": {"schema": {"$ref": "#/x"}}}}
        operation: dict[str, Any] = {"requestBody": body, "responses": {"200": {"content": {}}}}
        complete_openapi({"openapi": version, "paths": {"/x": {"post": operation}}})
        return operation["requestBody"]["content"]["application/json"]["schema"]

    assert written(required=False) == schema
    assert written(required=True) == {"$ref": "#/x"}
