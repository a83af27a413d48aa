# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests and answers of the real gateway with the real daemon behind it."""

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kmodd.errors import ERRORS
from tests.gateway.processes import Gateway, wait_for

SECURITY = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


def test_a_module_is_loaded_and_unloaded(served: Gateway) -> None:
    loaded = served.ask("POST", "/module/load/loop")
    assert loaded.status == 200
    assert loaded.document == {"message": "Module loop loaded successfully", "module": "loop", "inserted": ["loop"]}
    again = served.ask("POST", "/module/load/loop", {"reason": "again"})
    assert (again.status, again.document["inserted"]) == (200, [])
    assert "loop" in {row["name"] for row in served.ask("GET", "/v1/modules").document["modules"]}
    unloaded = served.ask("POST", "/module/unload/loop")
    assert unloaded.status == 200
    assert unloaded.document == {"message": "Module loop unloaded successfully", "module": "loop", "removed": ["loop"]}
    assert "loop" not in {row["name"] for row in served.ask("GET", "/v1/modules").document["modules"]}


def test_names_are_canonical(served: Gateway) -> None:
    assert served.ask("POST", "/v1/modules/snd-pcm/load", {"dry_run": True}).document["module"] == "snd_pcm"


def test_a_dry_run_changes_nothing(served: Gateway) -> None:
    answer = served.ask("POST", "/v1/modules/dummy/load", {"dry_run": True, "parameters": {"numdummies": "2"}})
    assert answer.document == {
        "message": "Module dummy would be loaded",
        "module": "dummy",
        "inserted": ["dummy"],
        "dry_run": True,
    }
    assert served.ask("GET", "/v1/modules/dummy/explain").document["state"] == "available"


def test_a_failure_brings_its_evidence(served: Gateway) -> None:
    served.ask("POST", "/v1/modules/vfat/load")
    held = served.ask("POST", "/module/unload/fat")
    assert held.status == 409
    assert held.headers["content-type"] == "application/problem+json"
    found = held.document
    assert (found["type"], found["module"], found["holders"]) == ("urn:kmodd:error:InUse", "fat", ["vfat"])
    assert found["users"] == [{"kind": "module", "name": "vfat", "detail": "uses it"}]
    assert found["hint"]
    failed = served.ask("POST", "/module/load/kmodd_test_fail")
    assert failed.status == 502
    assert "kmodd_test_fail: the flux capacitor is not charged" in failed.document["kernel_log"]
    assert failed.document["errno"] == 5
    assert served.ask("POST", "/v1/modules/kmodd_test_fail/reset-failed").status == 200
    both = served.ask("POST", "/v1/modules/fat/unload", {"dependents": True})
    assert both.document["removed"] == ["vfat", "fat"]


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/module/load/no_such_thing", None, "NoSuchModule"),
        ("/module/load/pcspkr", {}, "DisabledByPolicy"),
        ("/module/load/kmodd_test_nodev", {}, "NoDevice"),
        ("/module/load/kmodd_test_wrong_kernel", {}, "WrongKernel"),
        ("/module/load/dummy", {"parameters": {"numdummies": "x"}}, "BadParameter"),
        ("/module/load/dummy", {"parameters": {"nosuch": "1"}}, "UnknownParameter"),
        ("/module/load/dummy", {"parameters": {"numdummies": '"'}}, "InvalidArgs"),
        ("/module/load/dummy", {"reason": "two\nlines"}, "InvalidArgs"),
        ("/module/load/dummy", {"reason": "\ud800"}, "InvalidArgs"),
        ("/module/load/dummy", {"dry_run": "yes"}, "InvalidArgs"),
        ("/module/load/dummy", {"timeout": 0}, "InvalidArgs"),
        ("/module/load/dummy", {"timeout": 10**12}, "InvalidArgs"),
        ("/module/load/dummy", {"nosuch": 1}, "InvalidArgs"),
        ("/module/load/dummy", [], "InvalidArgs"),
        ("/module/load/%00", None, "InvalidArgs"),
        ("/module/load/-r", None, "InvalidArgs"),
        ("/module/load/$(id)", None, "InvalidArgs"),
        ("/module/load/" + "x" * 56, None, "InvalidArgs"),
        ("/module/load/%E2%80%AEloop", None, "InvalidArgs"),
        ("/module/unload/ext4", None, "InUse"),
        ("/v1/batch", {"operations": []}, "InvalidArgs"),
        ("/v1/batch", {"operations": [{"action": "explode", "module": "loop"}]}, "InvalidArgs"),
        ("/v1/batch", {"operations": [{"action": "load", "module": "pcspkr"}]}, "DisabledByPolicy"),
        ("/v1/modules/dummy/reload", {"parameters": {"nosuch": "1"}}, "UnknownParameter"),
    ],
)
def test_refusals(served: Gateway, path: str, body: object, error: str) -> None:
    answer = served.ask("POST", path, body)
    assert answer.document["type"] == f"urn:kmodd:error:{error}"
    by_name = {one.name(): one for one in ERRORS.values()}
    assert answer.status == answer.document["status"] == by_name[error].http_status
    assert answer.document["title"] == by_name[error].title


@pytest.mark.parametrize(
    "path", ["/module/load/a%2Fb", "/module/load/../x", "/module/load/", "/v1", "/static/../main.py"]
)
def test_what_is_no_resource_is_not_found(served: Gateway, path: str) -> None:
    answer = served.ask("POST" if path.startswith("/module") else "GET", path)
    assert (answer.status, answer.document["type"]) == (404, "about:blank")


def test_a_method_that_is_not_for_it(served: Gateway) -> None:
    assert served.ask("DELETE", "/v1/modules").status == 405
    assert served.ask("POST", "/health").status == 405


def test_a_parameter_is_written(served: Gateway) -> None:
    served.ask("POST", "/module/load/overlay")
    described = served.ask("GET", "/v1/modules/overlay").document
    writable = [row["name"] for row in described["parameters"] if row["writable"]]
    assert "redirect_max" in writable
    answer = served.ask("PUT", "/v1/modules/overlay/parameters/redirect_max", {"value": "64", "reason": "deeper"})
    assert answer.document == {"module": "overlay", "parameter": "redirect_max", "value": "64"}
    assert served.ask("GET", "/v1/modules/overlay").document["live"]["parameters"]["redirect_max"] == "64"
    assert "deeper" in served.log.read_text()
    assert (
        served.ask("PUT", "/v1/modules/overlay/parameters/redirect_max", {"value": "64", "reason": "a\nb"}).status
        == 400
    )
    assert served.ask("PUT", "/v1/modules/overlay/parameters/nosuch", {"value": "64"}).status == 404
    assert served.ask("PUT", "/v1/modules/overlay/parameters/redirect_max").status == 400


def test_a_batch_and_its_plan(served: Gateway) -> None:
    operations = [{"action": "load", "module": "tun"}, {"action": "load", "module": "kmodd_test_fail"}]
    steps = served.ask("POST", "/v1/plan", {"operations": operations}).document["steps"]
    assert [(row["action"], row["module"]) for row in steps] == [("insert", "tun"), ("insert", "kmodd_test_fail")]
    results = served.ask("POST", "/v1/batch", {"operations": operations, "reason": "both"}).document["results"]
    assert [(row["module"], row["result"], row["error"]) for row in results] == [
        ("tun", "rolled-back", ""),
        ("kmodd_test_fail", "failed", "InitFailed"),
    ]


def test_whoever_asked_is_in_the_history(served: Gateway) -> None:
    token = served.make_token("backup@node7", "read", "load", "unload")
    assert served.ask("POST", "/module/load/tun", {"reason": "nightly"}, token=token).status == 200

    def records() -> list[dict[str, str]]:
        found = served.ask("GET", "/v1/history?module=tun&limit=5", token=token).document["records"]
        return [row for row in found if row["event"] == "module.loaded" and "nightly" in row.get("reason", "")]

    wait_for(records)  # it is written after the answer
    (record,) = records()
    assert record["on_behalf_of"].startswith("token backup@node7 (")
    assert record["reason"] == "nightly"
    assert "token backup@node7" in served.log.read_text()
    assert served.ask("POST", "/module/unload/tun", token=token).status == 200


def test_health_needs_no_token_and_tells_little(served: Gateway) -> None:
    answer = served.ask("GET", "/health", token=None)
    assert answer.status == 200
    assert answer.document.keys() == {"status"}
    report = served.ask("GET", "/v1/health").document
    assert report["status"] in {"ok", "degraded"}
    assert {check["name"] for check in report["checks"]} >= {"daemon", "stuck-module"}


def test_metrics_are_what_prometheus_reads(served: Gateway) -> None:
    served.ask("GET", "/v1/modules")
    served.ask("GET", "/no/such/route")
    answer = served.ask("GET", "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    assert {"kmodd_build_info", "kmodd_gateway_requests", "kmodd_gateway_request_duration_seconds"} <= families.keys()
    assert families["kmodd_gateway_daemon_up"].samples[0].value == 1
    routes = {sample.labels["route"] for sample in families["kmodd_gateway_requests"].samples}
    assert {"/v1/modules", "unknown"} <= routes
    assert not [route for route in routes if "no/such" in route]
    durations = families["kmodd_gateway_request_duration_seconds"].samples
    of_list = [one for one in durations if one.labels["route"] == "/v1/modules"]
    buckets = [one.value for one in of_list if one.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == next(one.value for one in of_list if one.name.endswith("_count"))


@pytest.mark.parametrize("path", ["/", "/docs", "/static/docs.js", "/openapi.json", "/health", "/v1/modules", "/nope"])
def test_every_answer_has_the_headers(served: Gateway, path: str) -> None:
    answer = served.ask("GET", path)
    assert {name: answer.headers.get(name) for name in SECURITY} == SECURITY
    assert answer.headers["date"].endswith(" GMT")
    assert "server" not in answer.headers
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_nothing_from_elsewhere(served: Gateway, path: str) -> None:
    page = served.ask("GET", path, token=None)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    text = page.body.decode()
    assert "//" not in text.replace("<!doctype html>", "").replace("http://www.w3.org/", "")
    assert "<style" not in text
    assert " style=" not in text
    assert "onclick" not in text
    assert served.ask("GET", path, token=None, headers={"If-None-Match": page.headers["etag"]}).status == 304


def test_every_route_tells_its_scope_errors_and_an_example(served: Gateway) -> None:
    document = json.loads(served.ask("GET", "/openapi.json", token=None).body)
    operations = {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert {
        ("POST", "/module/load/{module}"),
        ("POST", "/module/unload/{module}"),
        ("GET", "/v1/events"),
    } <= operations.keys()
    for (method, path), operation in operations.items():
        assert operation["summary"], path
        assert operation["description"], path
        (content,) = operation["responses"]["200"]["content"].values()
        assert content["example"], path
        for status, response in operation["responses"].items():
            if int(status) >= 400 and (path, status) != ("/health", "503"):
                assert list(response["content"]) == ["application/problem+json"], (path, status)
        if path != "/health":
            assert operation["x-scope"]
            assert operation["security"] == [{"bearer": []}]
            assert {"401", "403", "429", "503"} <= operation["responses"].keys()
            assert served.ask(method, path.replace("{", "").replace("}", ""), token=None).status in {401, 429}
    assert "HTTPValidationError" not in document["components"]["schemas"]
