# SPDX-License-Identifier: LGPL-2.1-or-later
"""Configuration and store over HTTP."""

from urllib.parse import urlencode

import pytest

from tests.gateway.processes import Gateway, wait_for

OCTETS = {"Content-Type": "application/octet-stream"}


def test_rules_are_shown(served: Gateway) -> None:
    rules = served.ask("GET", "/v1/config").document["rules"]
    assert {"kind", "module", "file", "line", "ours"} <= rules[0].keys()
    assert "pcspkr" in {rule["module"] for rule in rules if rule["kind"] == "blacklist"}
    assert isinstance(served.ask("GET", "/v1/config/drift").document["drift"], list)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("autoload", {"enabled": True, "dry_run": True}),
        ("options", {"parameters": {"redirect_max": "64"}, "dry_run": True, "reason": "a test"}),
        ("blacklist", {"blacklisted": True, "hard": True, "dry_run": True}),
    ],
)
def test_a_rule_is_tried(served: Gateway, path: str, body: object) -> None:
    answer = served.ask("PUT", f"/v1/config/modules/overlay/{path}", body)
    assert answer.status == 200, answer.document
    assert answer.document == {"message": "Rules for module overlay would be updated", "module": "overlay"}
    assert served.ask("PUT", f"/v1/config/modules/a.b/{path}", body).status == 400
    reader = served.make_token(f"reader-{path}", "read", "load")
    assert served.ask("PUT", f"/v1/config/modules/overlay/{path}", body, token=reader).status == 403
    narrow = served.make_token(f"narrow-{path}", "configure", modules=["loop"])
    assert served.ask("PUT", f"/v1/config/modules/overlay/{path}", body, token=narrow).status == 403


def test_the_token_that_changed_a_rule_is_in_the_history(served: Gateway) -> None:
    token = served.make_token("rules@node7", "read", "configure")
    body = {"parameters": {"redirect_max": "64"}, "reason": "wide directories"}
    assert served.ask("PUT", "/v1/config/modules/overlay/options", body, token=token).status == 200

    def records() -> list[dict[str, str]]:
        found = served.ask("GET", "/v1/history?module=overlay&limit=5").document["records"]
        return [row for row in found if row["event"] == "configuration.changed"]

    wait_for(records)  # it is written after the answer
    (record,) = records()
    assert record["on_behalf_of"].startswith("token rules@node7 (")
    assert record["reason"] == "wide directories"
    assert served.ask("PUT", "/v1/config/modules/overlay/options", {}, token=token).status == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("autoload", {"enabled": True}),
        ("options", {"parameters": {"redirect_max": "64"}}),
        ("blacklist", {"blacklisted": True}),
    ],
)
def test_a_rule_is_made_and_taken_away(served: Gateway, path: str, body: object) -> None:
    def ours() -> list[str]:
        rules = served.ask("GET", "/v1/config").document["rules"]
        return [rule["kind"] for rule in rules if rule["ours"] and rule["module"] == "overlay"]

    place = f"/v1/config/modules/overlay/{path}"
    assert served.ask("PUT", place, body).status == 200
    assert ours() == [path]
    assert served.ask("DELETE", f"{place}?reason=a%0Ab").status == 400
    assert served.ask("DELETE", place, token=served.make_token(f"r-{path}", "read")).status == 403
    assert served.ask("DELETE", f"{place}?reason=done").status == 200
    assert ours() == []
    assert served.ask("DELETE", place).status == 200


def test_the_wanted_state_is_applied(served: Gateway) -> None:
    answer = served.ask("POST", "/v1/config/apply", {"dry_run": True})
    assert answer.status == 200, answer.document
    assert isinstance(answer.document["results"], list)
    assert served.ask("POST", "/v1/config/reload").status == 200
    narrow = served.make_token("narrow", "configure", modules=["loop"])
    assert served.ask("POST", "/v1/config/apply", token=narrow).status == 403


def test_a_reason_is_written_down_also_where_the_bus_takes_none(served: Gateway) -> None:
    for method, path, good in [
        ("POST", "/v1/config/reload", 200),
        ("POST", "/v1/modules/loop/reset-failed", 200),
        ("DELETE", "/v1/store/loop/1.0", 404),
    ]:
        for reason, status in ((f"why {path}", good), ("a\nb", 400)):
            body = {"reason": reason} if method == "POST" else None
            query = "" if method == "POST" else f"?{urlencode({'reason': reason})}"
            assert served.ask(method, path + query, body).status == status, path
        wait_for(lambda path=path: f"reason=why {path}" in served.log.read_text())
    assert served.ask("POST", "/v1/store?description=why+import", raw=b"no module", headers=OCTETS).status == 422
    wait_for(lambda: "reason=why import" in served.log.read_text())


def test_a_dry_run_is_not_written_down_as_done(served: Gateway) -> None:
    token = served.make_token("careful", "admin")
    body = {"dry_run": True, "reason": "just looking"}
    for method, path, sent in [
        ("POST", "/v1/modules/dummy/load", body),
        ("PUT", "/v1/config/modules/overlay/autoload", body),
        ("POST", "/v1/config/apply", body),
        ("POST", "/v1/batch", {"operations": [{"action": "load", "module": "dummy"}], **body}),
    ]:
        assert served.ask(method, path, sent, token=token).status == 200, path
    assert served.ask("POST", "/v1/modules/dummy/load", token=token).status == 200
    assert served.ask("POST", "/v1/modules/dummy/unload", {"dry_run": True}, token=token).status == 200

    def said() -> list[str]:
        return [line for line in served.log.read_text().splitlines() if "token careful (" in line]

    wait_for(lambda: len(said()) == 6)
    assert [("done" in line, "a dry run" in line) for line in said()] == [(True, True)] * 4 + [
        (True, False),
        (True, True),
    ]


def test_the_store_is_listed(served: Gateway) -> None:
    assert served.ask("GET", "/v1/store").document == {"versions": []}
    assert served.ask("DELETE", "/v1/store/loop/1.0").status == 404
    assert served.ask("POST", "/v1/store/loop/1.0/activate").status == 404
    assert served.ask("POST", "/v1/store/loop/deactivate").status in {200, 404}


def test_a_token_for_some_modules_loads_nothing_through_the_store(served: Gateway) -> None:
    """A version of `loop` may need any other module."""
    narrow = served.make_token("switcher", "activate", "load", "unload", modules=["loop"])
    for path in ("/v1/store/loop/1.0/activate", "/v1/store/loop/deactivate"):
        assert served.ask("POST", path, {"load": True}, token=narrow).status == 403
        assert served.ask("POST", path, {"load": False}, token=narrow).status in {200, 404}


def test_a_file_that_is_no_module_is_refused(served: Gateway) -> None:
    answer = served.ask("POST", "/v1/store?version=1.0", raw=b"not a module" * 10_000, headers=OCTETS)
    assert (answer.status, answer.document["type"]) == (422, "urn:kmodd:error:BadModule")
    assert served.ask("POST", "/v1/store", raw=b"", headers=OCTETS).status == 400
    assert served.ask("POST", "/v1/store", {"file": "x"}).status == 415
    assert served.ask("POST", "/v1/store?version=a/b", raw=b"x", headers=OCTETS).status == 400
    reader = served.make_token("store-reader", "read")
    assert served.ask("POST", "/v1/store", raw=b"x", headers=OCTETS, token=reader).status == 403
    narrow = served.make_token("store-narrow", "import", modules=["loop"])
    assert served.ask("POST", "/v1/store", raw=b"x", headers=OCTETS, token=narrow).status == 403


def test_a_file_too_long_is_refused_unread(served: Gateway) -> None:
    with served.socket() as sock:
        head = f"POST /v1/store HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {served.token}\r\n"
        sock.sendall(f"{head}Content-Type: application/octet-stream\r\nContent-Length: {65 << 20}\r\n\r\n".encode())
        assert b" 413 " in sock.recv(4096).splitlines()[0]


def test_without_a_notifier_webhooks_are_not_available(served: Gateway) -> None:
    body = {"name": "ops", "url": "https://hooks.example.org/secret-path"}
    for method, path, sent in [
        ("GET", "/v1/webhooks", None),
        ("POST", "/v1/webhooks", body),
        ("POST", "/v1/webhooks/ops/test", None),
        ("DELETE", "/v1/webhooks/ops", None),
    ]:
        answer = served.ask(method, path, sent)
        assert (answer.status, answer.document["type"]) == (503, "urn:kmodd:error:Unavailable"), path
        if method != "GET":
            reader = served.make_token(f"hooks-{method}-{len(path)}", "read", "configure")
            assert served.ask(method, path, sent, token=reader).status == 403
    assert served.ask("POST", "/v1/webhooks", {**body, "name": "a\x00"}).status == 400
    assert served.ask("DELETE", "/v1/webhooks/a%00b").status == 400
    assert "secret-path" not in served.log.read_text()
    assert "add-webhook ops" in served.log.read_text()
