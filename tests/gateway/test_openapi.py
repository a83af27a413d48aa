# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests made up from the OpenAPI document: the gateway answers each as the document says, and breaks at none.

With the newest libraries and with Debian 12's, which write another version of the document.
"""

import sys
from collections.abc import Iterator
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
from tests.gateway.processes import Gateway, gateway

CHECKS = [content_type_conformance, negative_data_rejection, response_schema_conformance, status_code_conformance]
EXAMPLES = 15
INTERPRETERS = {"newest": sys.executable, "debian": "/usr/bin/python3"}


@pytest.fixture(scope="module", params=INTERPRETERS)
def checked(
    request: pytest.FixtureRequest, simulation: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """A gateway with the libraries of one interpreter."""
    folder = tmp_path_factory.mktemp("checked")
    with gateway(folder, simulation, "[limits]\nrate = 0\n", interpreter=INTERPRETERS[request.param]) as made:
        yield made


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_are_as_the_document_says(checked: Gateway, method: str, path: str, mode: GenerationMode) -> None:
    operation = openapi.from_dict(checked.ask("GET", "/openapi.json").document)[path][method]
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
            base_url=f"http://127.0.0.1:{checked.port}", headers={"Authorization": f"Bearer {checked.token}"}
        )
        assert answer.status_code != 500, answer.text
        # A body that is too long is refused for that alone.
        checks = [check for check in CHECKS if check is not negative_data_rejection or answer.status_code != 413]
        case.validate_response(answer, checks=checks)

    ask()
    assert checked.process.poll() is None
    assert "a bug" not in checked.log.read_text()
