# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who gets in, what for, and until when."""

import base64
import json
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kmodd import tokens
from kmodd.errors import Failed, InvalidArgs
from tests.gateway.processes import ROOT, Gateway, gateway

NOW = 1_700_000_000


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Basic cm9vdDpyb290",
        "Bearer kmodd_000000000000_" + "A" * 43,
        "Bearer kmodd_..._" + "A" * 43,
        "Bearer a.b.c",
        "Bearer " + "x" * 9000,
        "Bearer \x80\xff",
    ],
)
def test_without_a_valid_token_requests_are_refused(served: Gateway, header: str) -> None:
    headers = {"Authorization": header} if header else {}
    answer = served.ask("POST", "/module/load/loop", token=None, headers=headers)
    # Many tries from one address are slowed down.
    assert answer.status in {401, 429}
    if answer.status == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert "loop" not in {row["name"] for row in served.ask("GET", "/v1/modules").document["modules"]}


def test_a_token_in_the_url_is_not_looked_at(served: Gateway) -> None:
    assert served.ask("GET", f"/v1/modules?access_token={served.token}", token=None).status in {401, 429}


def test_one_wrong_character_is_too_many(served: Gateway) -> None:
    wrong = served.token[:-2] + ("AA" if served.token[-2:] != "AA" else "BB")
    assert served.ask("GET", "/v1/modules", token=wrong).status in {401, 429}
    assert served.ask("GET", "/v1/modules").status == 200


def test_two_headers_are_one_too_many(served: Gateway) -> None:
    with served.socket() as sock:
        header = f"Authorization: Bearer {served.token}\r\n"
        sock.sendall(f"GET /v1/modules HTTP/1.1\r\nHost: localhost\r\n{header}{header}\r\n".encode())
        assert sock.recv(64).split()[1] in {b"401", b"429"}


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        (["read"], {"read"}),
        (["load"], {"load"}),
        (["unload"], {"unload"}),
        (["load", "unload"], {"load", "unload", "reload"}),
        (["set-parameter"], {"set-parameter"}),
        (["admin"], {"read", "load", "unload", "reload", "set-parameter", "override"}),
        (["configure", "import"], set()),
    ],
)
def test_scopes(served: Gateway, scopes: list[str], allowed: set[str]) -> None:
    token = served.make_token("scoped", *scopes)
    dry = {"dry_run": True}
    requests = {
        "read": ("GET", "/v1/modules", None),
        "load": ("POST", "/module/load/dummy", dry),
        "unload": ("POST", "/module/unload/dummy", dry),
        "reload": ("POST", "/v1/modules/dummy/reload", dry),
        "set-parameter": ("PUT", "/v1/modules/nosuch/parameters/x", {"value": "1"}),
        "override": ("POST", "/module/load/pcspkr", {**dry, "override_policy": True}),
    }
    refused = {name for name, request in requests.items() if served.ask(*request, token=token).status == 403}
    assert refused == requests.keys() - allowed
    served.revoke(token)


def test_a_batch_needs_the_scopes_of_its_operations(served: Gateway) -> None:
    token = served.make_token("half", "read", "load")
    batch = {"operations": [{"action": "load", "module": "dummy"}], "dry_run": True}
    assert served.ask("POST", "/v1/batch", batch, token=token).status == 200
    batch["operations"] = [{"action": "load", "module": "dummy"}, {"action": "unload", "module": "dummy"}]
    assert served.ask("POST", "/v1/batch", batch, token=token).status == 403


def test_a_token_for_some_modules_touches_no_other(served: Gateway) -> None:
    token = served.make_token("narrow", "load", "unload", "set-parameter", "read", modules=["vfat", "dummy"])
    assert served.ask("POST", "/module/load/dummy", {"dry_run": True}, token=token).status == 200
    dragged = served.ask("POST", "/module/load/vfat", token=token)
    assert (dragged.status, dragged.document["detail"]) == (403, "the call would affect fat, outside of only-modules")
    for method, path, body in [
        ("POST", "/module/load/loop", None),
        ("POST", "/module/load/net-pf-10", None),
        ("POST", "/module/unload/ext4", None),
        ("POST", "/v1/modules/loop/reload", None),
        ("POST", "/v1/modules/loop/reset-failed", None),
        ("PUT", "/v1/modules/overlay/parameters/redirect_max", {"value": "1"}),
        ("POST", "/v1/batch", {"operations": [{"action": "load", "module": "loop"}]}),
        ("POST", "/v1/batch", {"operations": [{"action": "load", "module": "vfat"}], "atomic": False}),
    ]:
        assert served.ask(method, path, body, token=token).status == 403, path
    served.ask("POST", "/module/load/vfat")
    assert served.ask("POST", "/module/unload/fat", {"dependents": True}, token=token).status == 403
    assert served.ask("POST", "/module/unload/fat", {"dependents": True}).status == 200


def test_an_expired_token_is_none(served: Gateway) -> None:
    token = served.make_token("old", "read", now=int(time.time()) - 120, lifetime=60)
    assert served.ask("GET", "/v1/modules", token=token).status == 401


def test_a_revoked_token_counts_no_more_at_once(served: Gateway) -> None:
    token = served.make_token("gone", "read")
    assert served.ask("GET", "/v1/modules", token=token).status == 200
    served.revoke(token)
    assert served.ask("GET", "/v1/modules", token=token).status in {401, 429}


def test_a_damaged_file_authenticates_no_token(served: Gateway) -> None:
    file = served.folder / "tokens"
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    assert served.ask("GET", "/v1/modules").status in {401, 429}
    file.write_text(whole)
    assert served.ask("GET", "/v1/modules").status == 200


def test_no_secret_is_written_anywhere(served: Gateway) -> None:
    assert served.ask("GET", f"/v1/modules?token={served.token}").status == 400
    served.ask("POST", f"/module/load/{served.token[:50]}")
    written = (
        served.log.read_text() + (served.folder / "tokens").read_text() + served.ask("GET", "/metrics").body.decode()
    )
    assert len(served.secrets) > 5
    assert not [secret for secret in served.secrets if secret in written]


def test_it_does_not_start_without_a_way_to_authenticate(tmp_path: Path) -> None:
    settings = tmp_path / "gateway.toml"
    settings.write_text(f'listen = ["127.0.0.1:0"]\ntokens = "{tmp_path / "none"}"\n')
    command = [sys.executable, "-m", "kmodd.gateway.main", "--config", str(settings)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 78
    assert "create a token with kmodctl token create" in done.stderr


def test_a_request_over_the_rate_gets_retry_after(simulation: str, tmp_path: Path) -> None:
    with gateway(tmp_path, simulation, "[limits]\nrate = 0.5\nburst = 3\n") as made:
        other = made.make_token("other", "read")
        statuses = [made.ask("GET", "/v1/modules").status for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        assert int(made.ask("GET", "/v1/modules").headers["retry-after"]) in {1, 2}
        assert made.ask("GET", "/v1/modules", token=other).status == 200
        assert made.ask("GET", "/health", token=None).status == 200


# --- the file and the command ------------------------------------------------------------------------------------------


def test_a_token_has_256_random_bits_and_only_its_hash_is_kept() -> None:
    made, text = tokens.make("ci", ["load", "read"], ["snd-pcm"], NOW, 60)
    parts = tokens.split(text)
    assert parts is not None
    identifier, secret = parts
    assert identifier == made.id
    assert len(base64.urlsafe_b64decode(secret + "=")) == 32
    assert (made.scopes, made.modules, made.expires) == (("read", "load"), ("snd_pcm",), NOW + 60)
    assert made.matches(secret)
    assert not made.matches(secret[::-1])
    assert secret not in tokens.spell({made.id: made})
    assert tokens.parse(tokens.spell({made.id: made})) == {made.id: made}


@pytest.mark.parametrize(
    ("name", "scopes", "modules", "lifetime"),
    [
        ("", ["read"], [], 60),
        ("two words", ["read"], [], 60),
        ("x" * 65, ["read"], [], 60),
        ("ok", [], [], 60),
        ("ok", ["root"], [], 60),
        ("ok", ["read"], ["../x"], 60),
        ("ok", ["read"], [f"m{number}" for number in range(65)], 60),
        ("ok", ["read"], [], 59),
        ("ok", ["read"], [], 3661 * 86400),
    ],
)
def test_what_makes_no_token(name: str, scopes: list[str], modules: list[str], lifetime: int) -> None:
    with pytest.raises(InvalidArgs):
        tokens.make(name, scopes, modules, NOW, lifetime)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"version": 2, "tokens": []}', '{"version": 1, "tokens": [{}]}', '{"version": 1, "tokens": 1}'],
)
def test_a_file_of_another_shape_is_refused(text: str) -> None:
    with pytest.raises(Failed):
        tokens.parse(text)


def kmodctl(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kmodd.cli", "token", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_kmodctl_makes_lists_and_revokes(tmp_path: Path) -> None:
    file = ["--file", str(tmp_path / "new/tokens")]
    made = kmodctl("create", "ci", "--scope", "load,read", "--module", "loop", "--expires", "12h", *file)
    assert made.returncode == 0, made.stderr
    parts = tokens.split(made.stdout.strip())
    assert parts is not None
    path = tmp_path / "new/tokens"
    assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0
    assert tokens.parse(path.read_text())[parts[0]].matches(parts[1])
    assert [entry.name for entry in path.parent.iterdir()] == ["tokens"]
    again = kmodctl("create", "ci", "--scope", "read", *file)
    assert (again.returncode, "named ci already" in again.stderr) == (5, True)
    listed = json.loads(kmodctl("list", "--json", *file).stdout)
    assert [(row["name"], row["scopes"], row["modules"], row["expired"]) for row in listed] == [
        ("ci", ["read", "load"], ["loop"], False)
    ]
    assert "digest" not in listed[0]
    assert parts[1] not in kmodctl("list", *file).stdout
    assert kmodctl("revoke", "ci", *file).stdout == f"ci ({parts[0]}) was revoked\n"
    assert kmodctl("revoke", "ci", *file).returncode == 2
    assert kmodctl("list", *file).stdout == "No tokens.\n"


def test_kmodctl_says_what_makes_no_sense(tmp_path: Path) -> None:
    file = ["--file", str(tmp_path / "tokens")]
    assert "is not a time span" in kmodctl("create", "x", "--scope", "read", "--expires", "soon", *file).stderr
    assert kmodctl("create", "x", "--scope", "root", *file).returncode == 2
    assert kmodctl("list", "--file", "/proc/1/mem/x").returncode == 11
    assert not (tmp_path / "tokens").exists()


def test_requests_without_a_token_are_rate_limited(served: Gateway) -> None:
    """The last test of these: it takes what strangers have for some seconds."""
    for _ in range(40):
        answer = served.ask("GET", "/v1/modules", token=None)
        if answer.status == 429:
            break
    assert answer.document["detail"] == "too many requests without a valid token from this address"
    assert int(answer.headers["retry-after"]) >= 1
    assert served.ask("GET", "/v1/modules").status == 200
