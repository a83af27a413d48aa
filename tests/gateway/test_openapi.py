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

from tests.gateway.operations import OPERATIONS
from tests.gateway.processes import Gateway

CHECKS = [content_type_conformance, negative_data_rejection, response_schema_conformance, status_code_conformance]
EXAMPLES = 15


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
