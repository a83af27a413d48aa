# SPDX-License-Identifier: LGPL-2.1-or-later
"""notify.toml is strict, and a complaint names file, line and the nearest word."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.notifier.configuration import Configuration, Email, Webhook
from kmodd.notifier.configuration_files import files, read_configuration
from kmodd.notifier.notice import KINDS
from kmodd.notifier.rules import Rule, route
from kmodd.notifier.section import ConfigurationError
from kmodd.notifier.toml_lines import key_lines
from tests.notifier.conftest import notice

KEY = "whsec_" + "QUJD" * 8
SMTP = """\
[smtp]
host = "mail.example.org"
from = "kmodd@example.org"
"""
GOOD = """\
allow-networks = ["10.1.0.0/16", "fd00::/8"]

[queue]
rows = 100

[webhook.ops]
url = "https://hooks.example.org/kmodd?x=1"
secret-file = "{folder}/key"

[webhook.chat]
url-file = "{folder}/url"   # a secret
format = "chat"

[smtp]
host = "mail.example.org"
from = "kmodd@example.org"

[email.admins]
to = ["root@example.org", "ops@example.org"]
digest = 300

[[rule]]
events = ["failure", "crash"]
notify = ["ops"]

[[rule]]
modules = ["snd-*"]
severity = "warning"
notify = [
    "admins",  # a list over several lines
    "ops",
]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with secrets."""
    for name, text in (("key", KEY), ("url", "https://chat.example.org/services/T0/B0/secret")):
        (tmp_path / name).write_text(text + "\n")
        (tmp_path / name).chmod(0o600)
    return tmp_path


def parse(folder: Path, text: str) -> Configuration:
    path = folder / "notify.toml"
    path.write_text(text.replace("{folder}", str(folder)))
    return read_configuration(files(path))


def test_everything_is_understood(folder: Path) -> None:
    found = parse(folder, GOOD)
    ops, chat, admins = (found.endpoints[name] for name in ("ops", "chat", "admins"))
    assert isinstance(ops, Webhook)
    assert ops.keys == (b"ABC" * 8,)
    assert (ops.url.host, ops.url.target) == ("hooks.example.org", "/kmodd?x=1")
    assert isinstance(chat, Webhook)
    assert (chat.format, chat.url.target) == ("chat", "/services/T0/B0/secret")
    assert isinstance(admins, Email)
    assert (admins.to, admins.digest) == (("root@example.org", "ops@example.org"), 300)
    assert found.rules[1] == Rule(("admins", "ops"), modules=("snd_*",), severity="warning")
    assert found.rows == 100
    assert [str(network) for network in found.allow_networks] == ["10.1.0.0/16", "fd00::/8"]


def test_nothing_configured_tells_nobody(tmp_path: Path) -> None:
    assert read_configuration(files(tmp_path / "notify.toml")) == Configuration()


def test_secrets_are_in_no_representation(folder: Path) -> None:
    shown = repr(parse(folder, GOOD).endpoints["ops"])
    assert "ABC" not in shown


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("rows = 100", "rowz = 100", 4, "queue.rowz: there is no such setting; did you mean rows?"),
        ("rows = 100", "rows = true", 4, "expected a number from 10"),
        ("rows = 100", 'rows = "100"', 4, "expected a number"),
        ('url = "https', 'url = "http', 7, "starts with https://"),
        ("url-file", "url-fil", 10, "url is missing"),
        ('format = "chat"', 'format = "char"', 12, "expected one of json, chat; did you mean chat?"),
        ("{folder}/key", "{folder}/none", 6, "No such file"),
        ("{folder}/key", "{folder}/url", 6, "expected whsec_"),
        ("secret-file", "# ", 6, "secret-file is missing"),
        ("[webhook.ops]", "[webhook.Ops]", 6, "a name is"),
        ("[webhook.ops]", "[webhok.ops]", 6, "webhok: there is no such setting; did you mean webhook?"),
        ("root@example.org", "root", 19, "plain e-mail address"),
        ("root@example.org", "a@b\\nBcc: x@y", 19, "without control characters"),
        ("root@example.org", "Root <root@example.org>", 19, "plain e-mail address"),
        ("digest = 300", "digest = -1", 20, "from 0 to 86400"),
        ('host = "mail', 'host = "ma/il', 15, "no host name"),
        ("[smtp]", '[smtp]\nsecurity = "none"', 15, "only a server on this machine"),
        ('"crash"', '"crush"', 23, "unknown word 'crush'; did you mean crash?"),
        ('["snd-*"]', '["snd/*"]', 27, "a pattern is"),
        ('"warning"', '"warn"', 28, "did you mean warning?"),
        ('    "ops",\n]', '    "oops",\n]', 29, "there is no endpoint 'oops'"),
        ("10.1.0.0/16", "10.1.0.1/16", 1, "expected networks"),
        ("[[rule]]\nevents", "[rule]\nevents", 22, "this is no TOML"),
        ('url = "https', "url = https", 7, "this is no TOML"),
        (SMTP, "", 15, "there is no mail server"),
    ],
)
def test_mistakes_are_pointed_at(folder: Path, old: str, new: str, line: int, said: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigurationError) as raised:
        parse(folder, GOOD.replace(old, new, 1))
    if "no TOML" not in said or "rule" not in new:
        assert f"notify.toml, line {line}: " in str(raised.value)
    assert said in str(raised.value)


def test_secret_files_that_others_may_read_are_refused(folder: Path) -> None:
    (folder / "key").chmod(0o644)
    with pytest.raises(ConfigurationError, match="may be read or written by others"):
        parse(folder, GOOD)
    (folder / "key").unlink()
    (folder / "key").symlink_to(folder / "url")
    with pytest.raises(ConfigurationError, match="Too many levels of symbolic links"):
        parse(folder, GOOD)


def test_a_secret_url_is_not_repeated(folder: Path) -> None:
    (folder / "url").write_text("htps://chat.example.org/T0/hidden")
    with pytest.raises(ConfigurationError) as raised:
        parse(folder, GOOD)
    assert "hidden" not in str(raised.value)
    assert "url-file" in str(raised.value)


def test_several_keys_sign_while_they_are_exchanged(folder: Path) -> None:
    (folder / "key").write_text(f"{KEY}\nwhsec_{'REVG' * 8}\n")
    ops = parse(folder, GOOD).endpoints["ops"]
    assert isinstance(ops, Webhook)
    assert ops.keys == (b"ABC" * 8, b"DEF" * 8)


def test_drop_ins_add_up_and_say_where_they_are_wrong(folder: Path) -> None:
    drop_ins = folder / "notify.toml.d"
    drop_ins.mkdir()
    (drop_ins / "50-more.toml").write_text(
        '[queue]\nrows = 50\n[email.more]\nto = ["a@example.org"]\n[[rule]]\nnotify = ["more", "ops"]\n'
    )
    found = parse(folder, GOOD)
    assert (found.rows, len(found.rules), "more" in found.endpoints) == (50, 3, True)
    (drop_ins / "60-same.toml").write_text('\n[email.ops]\nto = ["a@example.org"]\n')
    with pytest.raises(ConfigurationError, match=r"60-same.toml, line 2: email.ops: there is another .*notify.toml$"):
        parse(folder, GOOD)


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a = '" + b"x" * (1 << 18) + b"'", b"a=" + b"[" * 5000])
def test_files_that_are_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "notify.toml").write_bytes(data)
    with pytest.raises(ConfigurationError, match=r"notify\.toml, line 1"):
        read_configuration(files(tmp_path / "notify.toml"))


def test_lines_of_odd_toml() -> None:
    text = "\n".join(
        [
            "# [no]",
            'a = """',
            "b = 1",
            '"""',
            "c = [",
            "  1, # d = 2",
            "]",
            "[x . 'y z']",
            '"k" = {e = 1, f = "}"}',
            *["[[t]]", "u.v = 1"] * 2,
        ]
    )
    lines = key_lines(text)
    assert lines == {
        ("a",): 2,
        ("c",): 5,
        ("x", "y z"): 8,
        ("x", "y z", "k"): 9,
        ("t", 0): 10,
        ("t", 0, "u", "v"): 11,
        ("t", 1): 12,
        ("t", 1, "u", "v"): 13,
    }


@given(
    st.lists(st.sampled_from(KINDS[:-1]), max_size=3),
    st.lists(st.sampled_from(["dummy", "d*", "vfat", "snd_*"]), max_size=2),
    st.lists(st.integers(1000, 1002), max_size=2),
    st.sampled_from(["info", "notice", "warning", "error"]),
    st.sampled_from(KINDS[:-1]),
)
def test_a_rule_passes_what_all_its_filters_pass(
    events: list[str], modules: list[str], uids: list[int], severity: str, kind: str
) -> None:
    rule = Rule(("a",), tuple(events), (), tuple(modules), tuple(uids), severity)
    wanted = (
        (not events or kind in events)
        and (not modules or "dummy" in modules or "d*" in modules)
        and (not uids or 1000 in uids)
        and severity != "error"
    )
    assert rule.fits(notice(kind=kind)) is wanted


def test_everyone_is_told_once() -> None:
    rules = (Rule(("a", "b")), Rule(("b", "c"), errors=("InitFailed",)), Rule(("d",), errors=("NoDevice",)))
    assert route(rules, notice()) == ("a", "b", "c")
    assert route(rules, notice(error="NoDevice")) == ("a", "b", "d")
    assert route((Rule(("a",), uids=(0,)),), notice(uid=None)) == ()
    assert route((Rule(("a",), modules=("fat",)),), notice(module="vfat fat")) == ("a",)
