# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests and answers of the real gateway with the real daemon behind it."""

import json
from typing import Any

import pytest
from fastapi import APIRouter
from prometheus_client.parser import text_string_to_metric_families

from kmodd.errors import ERRORS
from kmodd.gateway import application
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
    assert found["hint"] == "kmodctl unload fat --dependents"
    ruled = served.ask("POST", "/module/load/pcspkr").document
    assert (ruled["file"], ruled["line"], ruled["rule_kind"]) == ("/etc/modprobe.d/blacklist.conf", 3, "blacklist")
    assert ruled["policy"] == "/etc/modprobe.d/blacklist.conf:3: blacklist pcspkr"
    loader = served.make_token("loader", "load")
    failed = served.ask("POST", "/module/load/kmodd_test_fail", token=loader)
    assert failed.status == 502
    assert "kernel_log" not in failed.document, "a token may be anybody's, and the kernel's log is restricted"
    failed = served.ask("POST", "/module/load/kmodd_test_fail")
    assert "kmodd_test_fail: the flux capacitor is not charged" in failed.document["kernel_log"], "this one may inspect"
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

    def written() -> list[dict[str, str]]:
        found = served.ask("GET", "/v1/history?module=overlay&limit=5").document["records"]
        return [row for row in found if row["event"] == "parameter.set"]

    wait_for(written)  # it is written after the answer
    assert served.ask("GET", "/v1/history?requests=true").document["records"] == [], "no process needed a module"
    (record,) = written()
    assert (record["reason"], record["on_behalf_of"].startswith("token ")) == ("deeper", True)
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
    undone, failed = results
    assert undone == {"module": "tun", "action": "load", "result": "rolled-back", "changed": []}
    assert (failed["module"], failed["result"], failed["error"]) == ("kmodd_test_fail", "failed", "InitFailed")
    assert failed["message"].startswith("kmodd_test_fail failed to initialise")
    assert failed["errno"] > 0
    assert failed["hint"]


def test_a_batch_that_sets_a_parameter(served: Gateway) -> None:
    assert served.ask("POST", "/module/load/overlay").status == 200
    operations = [
        {"action": "set-parameter", "module": "overlay", "parameters": {"redirect_max": "65"}},
        {"action": "reset-failed", "module": "loop"},
    ]
    answer = served.ask("POST", "/v1/batch", {"operations": operations}).document
    first, second = answer["results"]
    assert first == {"module": "overlay", "action": "set-parameter", "result": "changed", "changed": ["overlay"]}
    assert second == {"module": "loop", "action": "reset-failed", "result": "unchanged", "changed": []}
    loader = served.make_token("loader", "load", "read")
    assert served.ask("POST", "/v1/batch", {"operations": operations}, token=loader).status == 403
    assert served.ask("POST", "/v1/batch", {"operations": operations[1:]}, token=loader).status == 200


def test_a_failed_row_of_a_batch_shows_no_more_than_the_token_may_see(served: Gateway) -> None:
    batch = {"operations": [{"action": "load", "module": "kmodd_test_fail"}]}
    reader = served.make_token("no-inspector", "load", "read")
    (row,) = served.ask("POST", "/v1/batch", batch, token=reader).document["results"]
    assert (row["withheld"], "kernel_log" in row) == (["kernel-log"], False)
    inspector = served.make_token("inspector", "load", "read", "inspect")
    (row,) = served.ask("POST", "/v1/batch", batch, token=inspector).document["results"]
    assert "withheld" not in row
    assert any("kmodd_test_fail" in line for line in row["kernel_log"])


def test_a_step_that_will_fail_says_what_to_do(served: Gateway) -> None:
    operations = [{"action": "load", "module": "no_such_thing"}]
    (step,) = served.ask("POST", "/v1/plan", {"operations": operations}).document["steps"]
    assert (step["error"], step["consequences"]) == ("NoSuchModule", [])
    assert step["message"]
    assert step["hint"]


def test_what_is_live_is_taken_away_when_the_body_says_so(served: Gateway) -> None:
    gone = "Network interface wg0 goes with it: it is up and has 10.9.0.1/24."
    unload = [{"action": "unload", "module": "wireguard"}]
    served.ask("POST", "/v1/modules/wireguard/load")
    explained = served.ask("GET", "/v1/modules/wireguard/explain").document
    assert (explained["consequences"], explained["disconnects"], explained["removable"]) == ([gone], True, False)
    (step,) = served.ask("POST", "/v1/plan", {"operations": unload}).document["steps"]
    assert (step["error"], step["consequences"], step["interfaces"]) == ("InUse", [gone], ["wg0"])
    for path, body in (
        ("/v1/modules/wireguard/unload", {}),
        ("/module/unload/wireguard", {}),
        ("/v1/modules/wireguard/reload", {}),
        ("/v1/batch", {"operations": unload}),
    ):
        problem = served.ask("POST", path, {**body, "disconnect": False})
        assert (problem.status, problem.document["type"]) == (409, "urn:kmodd:error:InUse")
        assert "wg0" in problem.document["detail"]
    assert (
        served.ask("POST", "/v1/modules/wireguard/unload").document["hint"] == "kmodctl unload wireguard --disconnect"
    )
    (step,) = served.ask("POST", "/v1/plan", {"operations": unload, "disconnect": True}).document["steps"]
    assert "error" not in step
    assert served.ask("POST", "/v1/modules/wireguard/reload", {"disconnect": True}).status == 200
    (result,) = served.ask("POST", "/v1/batch", {"operations": unload, "disconnect": True}).document["results"]
    assert result["result"] == "changed"
    assert served.ask("POST", "/v1/config/apply", {"disconnect": True}).status == 200


def test_the_token_is_in_the_history(served: Gateway) -> None:
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


@pytest.mark.parametrize("path", ["/health", "/", "/docs", "/openapi.json"])
def test_probes_may_ask_for_the_head_alone(served: Gateway, path: str) -> None:
    answer = served.ask("HEAD", path, token=None)
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) == len(served.ask("GET", path, token=None).body)


def test_what_a_token_may_not_is_written_down(served: Gateway) -> None:
    reader = served.make_token("nosy", "read")
    assert served.ask("POST", "/module/load/loop", token=reader).status == 403
    wait_for(lambda: "token nosy" in served.log.read_text())  # after the answer
    (line,) = [row for row in served.log.read_text().splitlines() if "token nosy" in row]
    assert "lacks the scope for POST /module/load/{module}" in line


async def test_a_bug_is_a_problem_document_too() -> None:
    made = APIRouter()

    @made.get("/broken")
    async def broken() -> None:
        raise LookupError("secret detail")

    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/broken", "raw_path": b"/broken", "query_string": b"",
             "headers": [], "http_version": "1.1", "scheme": "http", "root_path": "", "app": None}  # fmt: skip
    with pytest.raises(LookupError):  # it goes on to who writes it down
        await application.make([made])(scope, receive, send)
    assert (sent[0]["status"], dict(sent[0]["headers"])[b"content-type"]) == (500, b"application/problem+json")
    assert json.loads(sent[1]["body"])["type"] == "urn:kmodd:error:Failed"
    assert b"secret" not in sent[1]["body"]


def test_responses_and_refused_attempts_are_listed(served: Gateway) -> None:
    assert served.ask("GET", "/v1/responses").document == {"responses": []}
    assert served.ask("GET", "/v1/surface/refused").document == {"attempts": []}
    assert served.ask("GET", "/v1/surface/refused?since=-1").status in (400, 422)


def test_the_attack_surface_is_reported_with_its_routes(served: Gateway) -> None:
    report = served.ask("GET", "/v1/surface?reach=userns&limit=3")
    assert report.status == 200
    assert [row["reach"] for row in report.document["modules"]] == ["userns"] * 3
    assert report.document["nodes_known"] is True
    assert {guard["name"] for guard in report.document["guards"]} >= {"kernel.modprobe", "user.max_user_namespaces"}
    (first, *_) = served.ask("GET", "/v1/surface/dccp").document["routes"]
    assert (first["open"], first["rule_kind"], first["line"]) == (False, "install", 2)
    assert served.ask("GET", "/v1/surface/nosuch").status == 404
    assert served.ask("GET", "/v1/surface?kernel=9.9.9").status == 404
    assert served.ask("GET", "/v1/surface?reach=everyone").status in (400, 422)
