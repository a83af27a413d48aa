# SPDX-License-Identifier: LGPL-2.1-or-later
"""Webhooks and the notifier's metrics over HTTP, with the real notifier."""

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.processes import Gateway, gateway
from tests.notifier.running import stage

URL = "https://hooks.example.org/kmodd/3f9a-secret-path"


@pytest.fixture(scope="module")
def notifying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway beside a notifier that has nobody to tell yet."""
    with stage(tmp_path_factory.mktemp("stage")) as made:
        made.configure()
        made.start()
        with gateway(tmp_path_factory.mktemp("gateway"), made.address, "[limits]\nrate = 0\n") as served:
            yield served


def test_a_webhook_comes_and_goes(notifying: Gateway) -> None:
    assert notifying.ask("GET", "/v1/webhooks").document == {"webhooks": []}
    body = {"name": "ops", "url": URL, "events": ["failure", "crash"], "modules": ["nvidia*"], "severity": "warning"}
    added = notifying.ask("POST", "/v1/webhooks", body)
    assert added.status == 200, added.document
    assert added.document["name"] == "ops"
    key = added.document["key"]
    assert key.startswith("whsec_")
    again = notifying.ask("POST", "/v1/webhooks", body)
    assert (again.status, again.document["type"]) == (409, "urn:kmodd:error:Conflict")

    listed = notifying.ask("GET", "/v1/webhooks")
    (row,) = listed.document["webhooks"]
    assert (row["name"], row["target"], row["managed"], row["enabled"]) == ("ops", "hooks.example.org", True, True)
    assert "secret-path" not in listed.body.decode()
    assert key not in listed.body.decode()

    tested = notifying.ask("POST", "/v1/webhooks/ops/test")
    assert (tested.status, tested.document["name"]) == (200, "ops")
    assert tested.document["id"].startswith("msg_")

    families = {one.name: one for one in text_string_to_metric_families(notifying.ask("GET", "/metrics").body.decode())}
    (waiting,) = families["kmodd_notifier_waiting"].samples
    assert waiting.labels == {"endpoint": "ops"}
    assert families["kmodd_notifier_attempts"].type == "counter"
    assert families["kmodd_notifier_watching"].samples[0].value == 1

    assert notifying.ask("DELETE", "/v1/webhooks/ops").document == {"message": "Webhook ops was removed"}
    assert notifying.ask("GET", "/v1/webhooks").document == {"webhooks": []}
    assert notifying.ask("DELETE", "/v1/webhooks/ops").status == 404
    log = notifying.log.read_text()
    assert "secret-path" not in log
    assert key not in log
    assert "token root" in log
    assert "add-webhook ops" in log


@pytest.mark.parametrize(
    "change",
    [
        {"url": "http://hooks.example.org/x"},
        {"url": "ftp://hooks.example.org/x"},
        {"url": "https://user:word@hooks.example.org/x"},
        {"events": ["explosion"]},
        {"name": "a/b"},
        {"modules": ["$(id)"]},
        {"severity": "loud"},
        {"nosuch": 1},
    ],
    ids=str,
)
def test_a_webhook_that_makes_no_sense(notifying: Gateway, change: dict[str, object]) -> None:
    answer = notifying.ask("POST", "/v1/webhooks", {"name": "bad", "url": URL, **change})
    assert (answer.status, answer.document["type"]) == (400, "urn:kmodd:error:InvalidArgs"), answer.document
    assert "secret-path" not in answer.body.decode()
    assert notifying.ask("GET", "/v1/webhooks").document == {"webhooks": []}
