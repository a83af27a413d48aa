# SPDX-License-Identifier: LGPL-2.1-or-later
"""notify.toml is strict, and a complaint names file, line and the nearest word."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.config.section import ConfigurationError
from kmodd.notifier.configuration import Configuration, Email, Rule, Webhook, files, read_configuration, route
from kmodd.notifier.notice import KINDS
from tests.notifier.conftest import notice

ROOT = Path(__file__).parents[2]

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


def test_without_configuration_no_notification(tmp_path: Path) -> None:
    assert read_configuration(files(tmp_path / "notify.toml")) == Configuration()


def test_secrets_are_in_no_representation(folder: Path) -> None:
    shown = repr(parse(folder, GOOD).endpoints["ops"])
    assert "ABC" not in shown


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("rows = 100", "rowz = 100", 4, "unknown setting queue.rowz; did you mean rows?"),
        ("rows = 100", "rows = true", 4, "queue.rows must be an integer from 10 to 1000000"),
        ("rows = 100", 'rows = "100"', 4, "queue.rows must be an integer"),
        ('url = "https', 'url = "http', 7, "starts with https://"),
        ("url-file", "url-fil", 10, "url is missing"),
        ('format = "chat"', 'format = "char"', 12, "webhook.chat.format must be one of json, chat; did you mean chat?"),
        ("{folder}/key", "{folder}/none", 6, "No such file"),
        ("{folder}/key", "{folder}/url", 6, "expected whsec_"),
        ("secret-file", "# ", 6, "secret-file is missing"),
        ("[webhook.ops]", "[webhook.Ops]", 6, "a name is"),
        ("[webhook.ops]", "[webhok.ops]", 6, "unknown setting webhok; did you mean webhook?"),
        ("root@example.org", "root", 19, "plain e-mail address"),
        ("root@example.org", "a@b\\nBcc: x@y", 19, "without control characters"),
        ("root@example.org", "Root <root@example.org>", 19, "plain e-mail address"),
        ("digest = 300", "digest = -1", 20, "from 0 to 86400"),
        ('host = "mail', 'host = "ma/il', 15, "not a host name"),
        ("[smtp]", '[smtp]\nsecurity = "none"', 15, "only a local server"),
        ('"crash"', '"crush"', 23, "unknown value 'crush'; did you mean crash?"),
        ('["snd-*"]', '["snd/*"]', 27, "a pattern is"),
        ('"warning"', '"warn"', 28, "did you mean warning?"),
        ('    "ops",\n]', '    "oops",\n]', 29, "no such endpoint: 'oops'"),
        ("10.1.0.0/16", "10.1.0.1/16", 1, "expected networks"),
        ("[[rule]]\nevents", "[rule]\nevents", 22, "invalid TOML"),
        ('url = "https', "url = https", 7, "invalid TOML"),
        (SMTP, "", 15, "no mail server is configured"),
    ],
)
def test_mistakes_are_pointed_at(folder: Path, old: str, new: str, line: int, said: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigurationError) as raised:
        parse(folder, GOOD.replace(old, new, 1))
    if "invalid TOML" not in said or "rule" not in new:
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
    with pytest.raises(ConfigurationError, match=r"60-same.toml, line 2: email.ops: another .*notify.toml$"):
        parse(folder, GOOD)


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a = '" + b"x" * (1 << 18) + b"'", b"a=" + b"[" * 5000])
def test_files_that_are_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "notify.toml").write_bytes(data)
    with pytest.raises(ConfigurationError, match=r"notify\.toml, line 1"):
        read_configuration(files(tmp_path / "notify.toml"))


@pytest.mark.parametrize("kind", ["fifo", "zeros"])
def test_what_is_no_regular_file_is_refused_unread(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "notify.toml"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    code = (
        "import sys; from pathlib import Path; from kmodd.notifier.configuration import files, read_configuration; "
        "read_configuration(files(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=20, env={"PYTHONPATH": str(ROOT)}, check=False
    )
    assert "notify.toml, line 1: not a regular file" in done.stderr


def test_a_file_that_others_can_write_is_refused(folder: Path) -> None:
    parse(folder, GOOD)
    (folder / "notify.toml").chmod(0o666)
    with pytest.raises(ConfigurationError, match="file is writable by everybody") as raised:
        read_configuration(files(folder / "notify.toml"))
    assert raised.value.evidence.hint == f"chown root {folder}/notify.toml; chmod o-w {folder}/notify.toml"


def test_an_error_names_the_command_that_reads_the_file_again(folder: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse(folder, "[queue]\nrows = 0\n")
    evidence = raised.value.evidence
    assert (evidence.line, evidence.hint) == (2, "fix the file, then: kmodctl notify reload")
    assert raised.value.sentence == "queue.rows must be an integer from 10 to 1000000"


def test_a_link_to_dev_null_masks(tmp_path: Path) -> None:
    (tmp_path / "notify.toml").symlink_to("/dev/null")
    assert not read_configuration(files(tmp_path / "notify.toml")).endpoints


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


def test_every_destination_is_notified_once() -> None:
    rules = (Rule(("a", "b")), Rule(("b", "c"), errors=("InitFailed",)), Rule(("d",), errors=("NoDevice",)))
    assert route(rules, notice()) == ("a", "b", "c")
    assert route(rules, notice(error="NoDevice")) == ("a", "b", "d")
    assert route((Rule(("a",), uids=(0,)),), notice(uid=None)) == ()
    assert route((Rule(("a",), modules=("fat",)),), notice(module="vfat fat", names=("vfat", "fat"))) == ("a",)
