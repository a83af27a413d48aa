# SPDX-License-Identifier: LGPL-2.1-or-later
"""Settings, the desired state and tokens: no fault of the machine turns a file that is there into none.

A file of modules.d that is taken for absent would give a module up that is to be loaded; a drop-in that is, a limit.
"""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kmodd.config.section import ConfigurationError
from kmodd.config.toml_file import DropIns
from kmodd.errors import Conflict, KmoddError
from kmodd.gateway import settings as gateway_settings
from kmodd.gateway.http.authentication import TokenList
from kmodd.notifier.configuration import files, read_configuration
from kmodd.tokens import DAY, TokenFile, make
from tests.ports.faults import CHANGING, at_every_call, broken

NOTIFY = "[queue]\nbytes = 100000\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in {
        "etc/kmodd/kmodd.toml": "[operations]\ntimeout = 50\n",
        "etc/kmodd/kmodd.toml.d/a.toml": "[operations]\nper-user = 3\n",
        "run/kmodd/kmodd.toml.d/b.toml": "[log]\nlevel = 'debug'\n",
        "etc/kmodd/modules.d/a.toml": '[module.dummy]\nstate = "loaded"\n',
        "usr/lib/kmodd/modules.d/b.toml": '[module.loop]\nstate = "absent"\n',
        "etc/kmodd/gateway.toml": 'hosts = ["example.org"]\n',
        "etc/kmodd/notify.toml": "[queue]\nrows = 20\n",
        "etc/kmodd/notify.toml.d/a.toml": NOTIFY,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with TokenFile(tmp_path / "etc/kmodd/tokens", lambda: None).changing() as known:
        token, _ = make("one", ["read"], [], 1000, DAY)
        known[token.id] = token
    return tmp_path


def drop_ins(root: Path, folder: str, main: str = "") -> Any:
    return [document.values for document in DropIns(root, folder, main=main).read()]


QUESTIONS: dict[str, Callable[[Path], Any]] = {
    "kmodd.toml": lambda root: drop_ins(root, "kmodd.toml.d", "kmodd.toml"),
    "modules.d": lambda root: drop_ins(root, "modules.d"),
    "gateway.toml": lambda root: gateway_settings.read(root / "etc/kmodd/gateway.toml"),
    "notify.toml": lambda root: read_configuration(files(root / "etc/kmodd/notify.toml")),
    "tokens": lambda root: TokenFile(root / "etc/kmodd/tokens", lambda: None).read(),
    "how many tokens": lambda root: len(TokenList(root / "etc/kmodd/tokens")),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_is_right_or_there_is_none(root: Path, question: str) -> None:
    ask = QUESTIONS[question]
    right = ask(root)
    assert right
    raised = 0
    for code, number, faults in at_every_call(lambda: ask(root), str(root)):
        try:
            answer = ask(root)
        except (OSError, KmoddError):
            raised += 1
            continue
        assert answer == right, f"{faults.calls[number]} fails with {errno.errorcode[code]}"
    assert raised, "no fault at all was noticed"


@pytest.mark.parametrize("question", sorted(QUESTIONS.keys() - {"gateway.toml", "notify.toml"}))
def test_what_is_not_there_is_an_empty_answer(tmp_path: Path, question: str) -> None:
    assert not QUESTIONS[question](tmp_path)


def test_a_folder_that_cannot_be_listed_is_reported_once_and_read_when_it_can_be(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old settings stay meanwhile, and the same fault is no news."""
    documents = DropIns(root, "modules.d")
    assert len(documents.read()) == 2
    with broken(errno.EIO, 0, str(root / "etc/kmodd/modules.d")):
        assert documents.changed()
    for _ in range(2):
        with (
            broken(errno.EIO, 0, str(root / "etc/kmodd/modules.d")),
            pytest.raises(Conflict, match="the folder cannot be read"),
        ):
            documents.read()
        with broken(errno.EIO, 0, str(root / "etc/kmodd/modules.d")):
            assert not documents.changed()
    assert documents.changed()
    assert len(documents.read()) == 2


def test_a_token_that_cannot_be_looked_up_is_none(root: Path) -> None:
    (token,) = TokenFile(root / "etc/kmodd/tokens", lambda: None).read().values()

    def get() -> object:
        return TokenList(root / "etc/kmodd/tokens").get(token.id)

    refused = 0
    for _ in at_every_call(get, str(root)):
        refused += get() is None
    assert refused
    assert get() == token


@pytest.mark.parametrize(
    "damage", [b"\xff", b"{", b'{"version": 1, "tokens": [1]}', b"[" * 100_000, b'{"tokens": Infinity}']
)
def test_damaged_tokens_are_an_error_and_authenticate_no_request(root: Path, damage: bytes) -> None:
    path = root / "etc/kmodd/tokens"
    path.write_bytes(damage)
    with pytest.raises(KmoddError, match="damaged"):
        TokenFile(path, lambda: None).read()
    assert TokenList(path).get("x") is None
    with pytest.raises(ConfigurationError):
        len(TokenList(path))


def test_the_tokens_are_the_old_ones_or_the_new_ones(root: Path) -> None:
    path = root / "etc/kmodd/tokens"
    file = TokenFile(path, lambda: None)
    old = path.read_bytes()
    assert "write" in CHANGING

    def add() -> None:
        with file.changing() as known:
            token, _ = make("two", ["load"], [], 1000, DAY)
            known[token.id] = token

    with broken(0, -1, str(root), changes=True) as counted:
        add()
    total = len(counted.calls)
    assert total > 5
    for code in (errno.EIO, errno.ENOSPC, errno.EACCES, errno.EMFILE):
        for number in range(total):
            path.write_bytes(old)
            done = True
            with broken(code, number, str(root), changes=True) as faults:
                try:
                    add()
                except OSError:
                    done = False
            assert faults.failed
            names = {token.name for token in file.read().values()}
            where = f"{faults.calls[number]} fails with {errno.errorcode[code]}"
            assert names in ({"one"}, {"one", "two"}), where
            assert names == {"one", "two"} or not done, where
            left = [one.name for one in path.parent.iterdir() if one.name.startswith(".")]
            assert not left or "unlink" in faults.calls[number], where
