# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files of modules.d and kmodd.toml: what they may say, and how they say what is wrong."""

import random
import re
from collections.abc import Mapping
from dataclasses import asdict

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kmodd.config.settings import LEVELS, read_daemon_settings
from kmodd.config.toml_file import parse_document
from kmodd.core.desired.state import KEYS, DesiredState, kernel_fits, read_desired_modules, unmet
from kmodd.errors import Conflict
from kmodd.model.rules import BlacklistMode, DesiredModule, Presence
from kmodd.model.settings import DaemonSettings, Document
from kmodd.names import ModuleName
from tests.unit.fakes import Journal

FULL = """\
[module.kmodd-test]
state = "loaded"
parameters = { number = 3, fast = true, list = [1, 2], text = "two words" }
options = { number = 3 }
blacklist = "soft"
autoload = false
after = ["dep-a", "dep_b"]
unload-when-gone = true
when = { alias = "pci:v00008086*", kernel = ">=6.1" }
version = "1.2-3"
reason = "because"
retry = false
"""


def desired_modules(*texts: str) -> Mapping[ModuleName, DesiredModule]:
    return read_desired_modules(parse_document(text, f"/etc/kmodd/modules.d/{i}.toml") for i, text in enumerate(texts))


def test_every_setting() -> None:
    (entry,) = desired_modules(FULL).values()
    assert entry == DesiredModule(
        module=ModuleName("kmodd_test"),
        file="/etc/kmodd/modules.d/0.toml",
        line=1,
        state=Presence.LOADED,
        parameters=(("number", "3"), ("fast", "1"), ("list", "1,2"), ("text", "two words")),
        options=(("number", "3"),),
        blacklist=BlacklistMode.SOFT,
        autoload=False,
        after=(ModuleName("dep_a"), ModuleName("dep_b")),
        unload_when_gone=True,
        alias="pci:v00008086*",
        kernel=">=6.1",
        version="1.2-3",
        reason="because",
        retry=False,
    )
    assert all(key in FULL for key in KEYS)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (
            '[module.a]\nstate = "loaded"\nparamters = {}',
            3,
            "unknown setting module.a.paramters; did you mean parameters?",
        ),
        ("[modul.a]", 1, "unknown setting modul; did you mean module?"),
        ("[module.a]\n\nzzz = 1", 3, "expected: state, parameters"),
        ('[module.a]\nstate = "there"', 2, "state must be one of loaded, absent"),
        ("[module.a]\nstate = 1", 2, "state must be a string"),
        ('[module.a]\nwhen = { kernal = "6" }', 2, "did you mean kernel?"),
        ('[module.a]\nwhen = { kernel = "> 6 ; rm" }', 2, "kernel must be a comparison"),
        ('[module.a]\nwhen = { alias = "a b" }', 2, "alias must be a pattern"),
        ('[module.a]\nstate = "loaded"\nparameters = { x = 1.5 }', 3, "x must be a string, an integer"),
        ('[module.a]\noptions = { x = "a\\"b" }', 2, "quote"),
        ('[module.a]\noptions = { x = "a\\nb" }', 2, "control characters"),
        ('[module.a]\noptions = { x = 1, "y y" = 2 }', 2, "a parameter name is"),
        ('[module."../x"]', 1, "not a module name"),
        ("[module]\na = 1", 2, "a must be a table"),
        ('[module.a]\nstate = "absent"\nafter = ["b"]', 3, 'needs state = "loaded"'),
        ('[module.a]\nstate = "loaded"\nblacklist = "hard"', 3, "cannot be both desired and blacklisted"),
        ('[module.a]\nstate = "loaded"\nunload-when-gone = true', 3, "requires modules in after"),
        ('[module.a]\nblacklist = "hard"\nautoload = true', 3, "blacklisted"),
        ('[module.a]\nstate = "loaded"\nafter = ["a"]', 3, "cannot come after itself"),
        ('[module.a]\nreason = "x\\ty"', 2, "one line"),
        ("[module.a-b]\n[module.a_b]", 2, "a_b is already described in /etc/kmodd/modules.d/0.toml, line 1"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(text: str, line: int, words: str) -> None:
    with pytest.raises(Conflict) as caught:
        desired_modules(text)
    assert caught.value.message.startswith(f"/etc/kmodd/modules.d/0.toml, line {line}: ")
    assert words in caught.value.message
    assert caught.value.evidence.line == line


def test_one_module_in_two_files_is_refused() -> None:
    with pytest.raises(
        Conflict, match=r"1\.toml, line 2: a is already described in /etc/kmodd/modules\.d/0\.toml, line 1"
    ):
        desired_modules("[module.a]", "#\n[module.a]")


def wanted(name: str, *after: str) -> str:
    return f'[module.{name}]\nstate = "loaded"\nafter = {list(after)}\n'


def test_loops_are_found_over_files() -> None:
    with pytest.raises(
        Conflict, match=r"line 3: (a after c after b after a|b after a after c after b|c after b after a after c):"
    ):
        desired_modules(wanted("x", "a"), wanted("a", "c"), wanted("b", "a"), wanted("c", "b"))
    assert len(desired_modules(wanted("a", "b", "c"), wanted("b", "c"), wanted("c"))) == 3, "a diamond is no loop"


def test_a_long_chain_is_no_loop() -> None:
    chain = "".join(wanted(f"m{i}", f"m{i + 1}") for i in range(1000))
    assert len(desired_modules(chain)) == 1000


@pytest.mark.parametrize(
    ("condition", "release", "fits"),
    [
        (">=6.1", "6.1.0-18-cloud-amd64", True),
        (">=6.1", "5.10.0", False),
        (">=6.1, <7", "6.12.3", True),
        (">=6.1,<6.10", "6.12.3", False),
        ("==6.1", "6.1.55", True),
        ("!=6.1", "6.1.55", False),
        (">6.1", "6.1.55", False),
        (">6.1.4", "6.1.55", True),
        ("6.1.*-cloud-amd64", "6.1.0-18-cloud-amd64", True),
        ("6.1.*-cloud-amd64", "6.1.0-18-amd64", False),
        (">=1", "next", False),
    ],
)
def test_kernel_conditions(condition: str, release: str, fits: bool) -> None:
    assert kernel_fits(condition, release) is fits


def test_devices_are_looked_for_on_demand_only() -> None:
    def never() -> list[str]:
        raise AssertionError

    assert unmet(DesiredModule(ModuleName("a")), "6.1", never) == ""
    entry = DesiredModule(ModuleName("a"), alias="pci:v*d0001*")
    assert unmet(entry, "6.1", lambda: ["usb:v1", "pci:v8086d0001sv"]) == ""
    assert "pci:v*d0001*" in unmet(entry, "6.1", lambda: ["usb:v1"])


def test_daemon_settings() -> None:
    assert read_daemon_settings([]) == DaemonSettings()
    first = "[operations]\ntimeout = 10\nper-user = 8\n[store]\nfile-max = '16M'\n"
    found = read_daemon_settings([parse_document(first, "a"), parse_document("[operations]\ntimeout = 20\n", "b")])
    assert (found.timeout, found.operations_per_user, found.store_file_max) == (20, 8, 16 << 20)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[operation]", 1, "did you mean operations?"),
        ("[operations]\ntimeout = 0", 2, "timeout must be an integer from 1 to 3600"),
        ("[operations]\ntimeout = true", 2, "timeout must be an integer"),
        ("[operations]\ntimeout-max = 20", 2, "timeout must not exceed timeout-max"),
        ("[store]\nfile-max = '64X'", 2, "file-max must be a size such as 64M"),
        ("[log]\nlevel = 'loud'", 2, "level must be one of error, warning, notice, info"),
        ("[desired-state]\nreconcile = 'yes'", 2, "reconcile must be true or false"),
    ],
)
def test_wrong_daemon_settings(text: str, line: int, words: str) -> None:
    with pytest.raises(Conflict) as caught:
        read_daemon_settings([parse_document(text, "kmodd.toml")])
    assert caught.value.message.startswith(f"kmodd.toml, line {line}: ")
    assert words in caught.value.message


SETTINGS = """\
[operations]
timeout = 20
timeout-max = 300
per-user = 8
stuck-max = 2
[prompts]
per-user = 1
timeout = 60
[history]
limit-max = 500
[log]
level = "notice"
[desired-state]
reconcile = false
[store]
file-max = "16M"
total-max = 1_000_000_000
versions-max = 4
"""
DAMAGE = ("", "0", "9" * 30, "-", ".", "e9", *'"[]=\nK\u0663\u202e', "{}", "true", "inf", "timeout", "level")
WITHIN = {
    "timeout": (1, 3600), "timeout_max": (1, 3600), "operations_per_user": (1, 64), "stuck_max": (1, 16),
    "prompts_per_user": (1, 16), "prompt_timeout": (5, 900), "history_limit_max": (1, 10_000),
    "store_file_max": (4096, 256 << 20), "store_total_max": (4096, 64 << 30), "store_versions_max": (1, 1024),
    "lease_grace": (0, 86_400), "leases_per_user": (1, 512),
}  # fmt: skip


def assert_points_into(error: Conflict, text: str) -> None:
    assert error.message.startswith(f"f.toml, line {error.evidence.line}: ")
    assert 1 <= error.evidence.line <= text.count("\n") + 1
    assert error.message.isprintable()
    assert len(error.message) < 500


def test_every_version_that_can_be_imported_can_be_wanted() -> None:
    (entry,) = desired_modules('[module.a]\nversion = "1:2.0~rc1+b-3"\n').values()
    assert entry.version == "1:2.0~rc1+b-3"
    with pytest.raises(Conflict, match="line 2: a version is "):
        desired_modules('[module.a]\nversion = ""\n')


def test_mutated_daemon_settings_are_within_their_bounds_or_refused() -> None:
    chance = random.Random(5)  # noqa: S311 - no secret
    refused = taken = 0
    for _ in range(1500):
        text = SETTINGS
        if chance.random() < 0.5:  # anywhere
            at = chance.randrange(len(text))
            text = text[:at] + chance.choice(DAMAGE) + text[at + chance.choice((0, 1, 1, 4)) :]
        for _ in range(chance.randrange(3)):  # a digit of some value
            at = chance.choice([found.start() for found in re.finditer("[0-9]", text)])
            text = text[:at] + chance.choice(("0", "7", "_", "", "99", "9" * 4, "-")) + text[at + 1 :]
        try:
            found = read_daemon_settings([parse_document(text, "f.toml")])
        except Conflict as error:
            assert_points_into(error, text)
            refused += 1
            continue
        values = asdict(found)
        assert (type(values.pop("reconcile")), values.pop("log_level") in LEVELS) == (bool, True), text
        assert all(type(value) is int and WITHIN[key][0] <= value <= WITHIN[key][1] for key, value in values.items()), (
            text
        )
        assert found.timeout <= found.timeout_max, text
        taken += 1
    assert min(refused, taken) > 200


class Text:
    """Documents from memory."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self._read = ""

    def changed(self) -> bool:
        return self.text != self._read

    def read(self) -> list[Document]:
        self._read = self.text
        return [parse_document(self.text, "f.toml")]


def desired(modules: Text, journal: Journal) -> DesiredState:
    return DesiredState(modules, Text(), release="6.1.0", aliases=list, audit=journal)


def test_a_bad_file_leaves_the_old_settings_in_force_and_is_reported_once() -> None:
    modules, journal = Text(FULL), Journal()
    state = desired(modules, journal)
    assert state.refresh()
    before = state.desired_modules
    modules.text = FULL + "[module.b]\nstat = 1\n"
    assert not state.refresh()
    assert state.desired_modules is before
    assert state.fault is not None
    assert "did you mean state?" in state.fault.message
    with pytest.raises(Conflict):
        state.reload()
    assert journal.events == ["configuration.refused"]
    modules.text = FULL
    assert state.refresh() is False, "the same as before"
    assert state.desired_modules == before
    assert desired(modules, journal).fault is None


@settings(deadline=None)
@given(st.data())
@example(None)
def test_no_mutated_file_does_harm(data: st.DataObject | None) -> None:
    text = FULL
    if data is not None:
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(text)))
            end = min(len(text), at + data.draw(st.integers(0, 30)))
            piece = st.one_of(
                st.sampled_from([*KEYS, "true", "{}", "[]", "9" * 5000, '"\\u202e"']), st.text(max_size=5)
            )
            text = text[:at] + data.draw(piece) + text[end:]
    modules, journal = Text(FULL), Journal()
    state = desired(modules, journal)
    state.reload()
    before = state.desired_modules
    modules.text = text
    state.refresh()
    if state.fault is not None:
        assert state.desired_modules is before
        assert state.fault.message.isprintable()
        assert len(state.fault.message) < 500
    for entry in state.desired_modules.values():
        assert all(key.isprintable() and value.isprintable() for key, value in entry.live)
