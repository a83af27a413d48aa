# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests made up from the OpenAPI document: the gateway answers each as the document says, and breaks at none."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode, openapi
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.gateway.processes import Gateway

CHECKS = [content_type_conformance, negative_data_rejection, response_schema_conformance, status_code_conformance]
EXAMPLES = 15
# The operations of the document; a test below says that none is missing here. The stream of events does not end.
OPERATIONS = [
    ("POST", "/module/load/{module}"),
    ("POST", "/module/unload/{module}"),
    ("GET", "/v1/modules"),
    ("GET", "/v1/modules/{module}"),
    ("GET", "/v1/modules/{module}/explain"),
    ("POST", "/v1/modules/{module}/load"),
    ("POST", "/v1/modules/{module}/unload"),
    ("POST", "/v1/modules/{module}/reload"),
    ("POST", "/v1/modules/{module}/reset-failed"),
    ("PUT", "/v1/modules/{module}/parameters/{parameter}"),
    ("POST", "/v1/batch"),
    ("POST", "/v1/plan"),
    ("GET", "/health"),
    ("GET", "/v1/health"),
    ("GET", "/v1/history"),
    ("GET", "/metrics"),
    ("GET", "/v1/webhooks"),
    ("POST", "/v1/webhooks"),
    ("POST", "/v1/webhooks/{name}/test"),
    ("DELETE", "/v1/webhooks/{name}"),
    ("GET", "/v1/config"),
    ("GET", "/v1/config/drift"),
    ("PUT", "/v1/config/modules/{module}/autoload"),
    ("PUT", "/v1/config/modules/{module}/options"),
    ("PUT", "/v1/config/modules/{module}/blacklist"),
    ("DELETE", "/v1/config/modules/{module}/blacklist"),
    ("DELETE", "/v1/config/modules/{module}/options"),
    ("DELETE", "/v1/config/modules/{module}/autoload"),
    ("POST", "/v1/config/apply"),
    ("POST", "/v1/config/reload"),
    ("GET", "/v1/store"),
    ("POST", "/v1/store"),
    ("POST", "/v1/store/{name}/{version}/activate"),
    ("POST", "/v1/store/{name}/deactivate"),
    ("DELETE", "/v1/store/{name}/{version}"),
]


def test_no_operation_is_left_out(served: Gateway) -> None:
    paths = served.ask("GET", "/openapi.json").document["paths"]
    found = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert found == {*OPERATIONS, ("GET", "/v1/events")}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_are_as_the_document_says(served: Gateway, method: str, path: str, mode: GenerationMode) -> None:
    operation = openapi.from_dict(served.ask("GET", "/openapi.json").document)[path][method]
    if mode is GenerationMode.NEGATIVE and not any(True for _ in operation.iter_parameters()) and not operation.body:
        return  # nothing could be invalid

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Case[Any]) -> None:
        answer = case.call(
            base_url=f"http://127.0.0.1:{served.port}", headers={"Authorization": f"Bearer {served.token}"}
        )
        assert answer.status_code != 500, answer.text
        # A body that is too long is refused for that alone.
        checks = [check for check in CHECKS if check is not negative_data_rejection or answer.status_code != 413]
        case.validate_response(answer, checks=checks)

    ask()
    assert served.process.poll() is None
    assert "a bug" not in served.log.read_text()
