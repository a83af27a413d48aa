# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a notifier that tells nobody anything answers, refuses, measures and costs."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmodd.client.connection import variant
from kmodd.client.notifier import NAME, PATH
from kmodd.errors import Failed, InvalidArgs, Unavailable
from tests.cli.runner import Runner
from tests.notifier.running import Stage, stage


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "x", "http://h.example/"), "starts with https://"),
        (("add", "x", "https://a:b@h.example/"), "not contain user, password"),
        (("add", "X", "https://h.example/"), "a name is"),
        (("add", "../x", "https://h.example/"), "a name is"),
        (("add", "x", "root"), "plain e-mail address"),
        (("add", "x", "root@example.org"), "no mail server is configured"),
        (("add", "x", "https://h.example/", "--event", "lode"), "did you mean load?"),
        (("add", "x", "https://h.example/", "--module", "a/b"), "a pattern is"),
        (("add", "x", "https://h.example/", "--digest", "5"), "not for a webhook"),
        (("add", "x", "root@example.org", "--format", "chat"), "not for mail"),
        (("test", "none"), "no such endpoint: none"),
        (("enable", "none"), "no such endpoint: none"),
    ],
)
def test_refusals(
    quiet: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    ended = Runner(quiet.address, capsys, monkeypatch)("notify", *words)
    assert said in ended.err
    assert ended.status in (2, 3)
    assert quiet.status()["endpoints"] == []
    assert not (quiet.state / "managed.json").exists()


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A notifier that tells nobody anything."""
    with stage(tmp_path_factory.mktemp("quiet")) as made:
        made.configure()
        made.start()
        yield made


def test_odd_calls_are_refused(quiet: Stage) -> None:
    def call(member: str, signature: str = "", *body: object) -> Any:
        return lambda one: one._transport.call(PATH, NAME, member, signature, body, timeout=5, destination=NAME)

    for question, error in (
        (call("NoSuch"), Failed),
        (call("Test", "u", 5), InvalidArgs),
        (call("Test", "s", "a" * 5000), InvalidArgs),
        (call("AddWebhook", "ssa{sv}", "x", "https://h.example/", {"digest": variant("u", 5)}), InvalidArgs),
        (lambda one: one.add_webhook("x", "https://h.example/", {"key": "whsec_AAAA"}), InvalidArgs),
        (lambda one: one.add_webhook("x", "https://h.example/", {"digest": 5}), InvalidArgs),
        (lambda one: one.add_webhook("x", "https://h.example/", {"events": ["übel"]}), InvalidArgs),
    ):
        with pytest.raises(error):
            quiet.ask(question)()
    assert quiet.status()["endpoints"] == []


def test_only_one_has_the_name(quiet: Stage, tmp_path: Path) -> None:
    with stage(tmp_path) as other:
        other.address, mine = quiet.address, other.address
        assert other.start(wait=False).wait(15) == 1
        other.notifier, other.address = None, mine
        assert "another notifier is running" in other.log.read_text()


def test_idle_it_is_small_and_asleep(quiet: Stage) -> None:
    assert quiet.notifier is not None
    proc = Path(f"/proc/{quiet.notifier.pid}")

    def ticks() -> int:
        fields = (proc / "stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    time.sleep(1)
    before = ticks()
    time.sleep(2)
    assert ticks() - before <= 1
    resident = next(line for line in (proc / "status").read_text().splitlines() if line.startswith("VmRSS"))
    assert int(resident.split()[1]) <= 40 * 1024, resident


def test_metrics(quiet: Stage) -> None:
    samples = quiet.ask(lambda one: one.metrics())()
    assert [(sample.name, sample.value) for sample in samples] == [
        ("kmodd_notifier_watching", 1.0),
        ("kmodd_notifier_refusals_left_out_total", 0.0),
    ]


def test_looking_at_metrics_of_a_notifier_that_is_away_says_so(tmp_path: Path) -> None:
    with stage(tmp_path) as away:
        with pytest.raises(Unavailable) as raised:
            away.ask(lambda one: one.metrics())()
        assert raised.value.message == "kmodd-notifier is not running"
