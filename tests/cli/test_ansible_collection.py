# SPDX-License-Identifier: LGPL-2.1-or-later
"""Modules of the Ansible collection against the real daemon on a simulated kernel.

Of Ansible only the class `AnsibleModule` is replaced; tests/system/test_ansible.py runs them with Debian's Ansible.
"""

import errno
import importlib
import os
import stat
import sys
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from kmodd import VERSION
from kmodd.cli.arguments import ExitCode
from kmodd.client.configuration import Configuration
from kmodd.client.surface import AttackSurface, ResponseRow
from kmodd.errors import Conflict, Evidence
from kmodd.model.rules import ShownRule
from tests.cli.runner import Runner

ROOT = Path(__file__).parents[2]
COLLECTION = ROOT / "ansible"


class Ended(Exception):
    """A task ended with this result."""

    def __init__(self, result: dict[str, Any], *, failed: bool) -> None:
        super().__init__(result)
        self.result, self.failed = result, failed


class StandIn:
    """What a module sees of `AnsibleModule`."""

    params: Mapping[str, Any] = types.MappingProxyType({})
    check_mode = False

    def __init__(self, argument_spec: dict[str, Any], **_: object) -> None:
        assert self.params.keys() <= argument_spec.keys()
        self.params = {name: self.params.get(name, argument.get("default")) for name, argument in argument_spec.items()}

    def exit_json(self, **result: Any) -> NoReturn:
        raise Ended(result, failed=False)

    def fail_json(self, **result: Any) -> NoReturn:
        raise Ended(result, failed=True)


Play = Callable[..., dict[str, Any]]


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StandIn]]:
    """The collection can be imported by its name."""
    basic = types.ModuleType("ansible.module_utils.basic")
    stand_in: type[StandIn] = type("AnsibleModule", (StandIn,), {})
    vars(basic).update(AnsibleModule=stand_in, missing_required_lib=lambda name, reason: f"no {name} {reason}")
    for name in ("ansible", "ansible.module_utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, basic.__name__, basic)
    place = tmp_path / "ansible_collections/kmodd"
    place.mkdir(parents=True)
    (place / "kmodd").symlink_to(COLLECTION)
    monkeypatch.syspath_prepend(tmp_path)
    yield stand_in
    for name in [name for name in sys.modules if name.startswith("ansible_collections")]:
        del sys.modules[name]


@pytest.fixture
def play(imported: type[StandIn], run: Runner, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Run one task: what it returns, with `failed` when it fails."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", run.address)

    def task(action: str, /, *, check: bool = False, **params: Any) -> dict[str, Any]:
        monkeypatch.setattr(imported, "params", params)
        monkeypatch.setattr(imported, "check_mode", check)
        module = importlib.import_module(f"ansible_collections.kmodd.kmodd.plugins.modules.{action}")
        with pytest.raises(Ended) as ended:
            module.main()
        return ended.value.result | ({"failed": True} if ended.value.failed else {})

    return task


def shown(result: dict[str, Any]) -> tuple[Any, Any]:
    return result["diff"]["before"], result["diff"]["after"]


# --- module -------------------------------------------------------------------------------------------------------------


def test_a_module_is_loaded_once(play: Play) -> None:
    foreseen = play("module", name="vfat", check=True)
    assert (foreseen["changed"], foreseen["modules"]) == (True, ["fat", "vfat"])
    assert [(step["action"], step["module"], step["because"]) for step in foreseen["steps"]] == [
        ("insert", "fat", "dependency of vfat"),
        ("insert", "vfat", "requested"),
    ]
    first = play("module", name="vfat")
    assert (first["changed"], first["modules"], shown(first)) == (True, ["fat", "vfat"], shown(foreseen))
    again = play("module", name="vfat")
    assert (again["changed"], again["modules"], again["steps"]) == (False, [], [])
    before, after = shown(again)
    assert before == after


def test_parameters_of_a_loaded_module(play: Play) -> None:
    """Values that mean the same change nothing; what is not writable needs leave to reload."""
    assert play("module", name="loop", parameters={"max_loop": 8, "max_part": "15"})["changed"]
    assert not play("module", name="loop", parameters={"max_loop": "0x8", "max-part": 15})["changed"]
    refused = play("module", name="loop", parameters={"max_loop": 16})
    assert (refused["failed"], refused["error"], refused["evidence"]["module"]) == (True, "ReadOnlyParameter", "loop")
    assert refused["hint"]
    foreseen = play("module", name="loop", parameters={"max_loop": 16}, reload=True, check=True)
    assert [step["action"] for step in foreseen["steps"]] == ["remove", "insert"]
    done = play("module", name="loop", parameters={"max_loop": 16}, reload=True)
    assert (done["changed"], shown(done)[0]["parameters"], shown(done)[1]["parameters"]) == (
        True,
        {"max_loop": "8"},
        {"max_loop": "16"},
    )
    assert shown(done) == shown(foreseen)
    assert not play("module", name="loop", parameters={"max_loop": 16}, reload=True)["changed"]


def test_a_live_parameter_is_written(play: Play) -> None:
    assert play("module", name="snd_hda_intel", parameters={"power_save": 5})["changed"]
    foreseen = play("module", name="snd-hda-intel", parameters={"power_save": 10}, check=True)
    assert [step["action"] for step in foreseen["steps"]] == ["set-parameter"]
    done = play("module", name="snd-hda-intel", parameters={"power_save": 10})
    assert (done["changed"], done["modules"], shown(done)) == (True, ["snd_hda_intel"], shown(foreseen))
    assert not play("module", name="snd-hda-intel", parameters={"power_save": 10})["changed"]
    # What does not differ is not written: it may not be writable.
    assert play("module", name="snd_hda_intel", state="reloaded", parameters={"index": 2}, disconnect=True)["changed"]
    both = play("module", name="snd_hda_intel", parameters={"index": 2, "power_save": 5})
    assert [(step["action"], step["parameters"]) for step in both["steps"]] == [("set-parameter", "power_save=5")]


def test_a_value_that_only_root_may_read_is_compared_when_it_is_written(play: Play) -> None:
    wanted = {"name": "nf_conntrack", "parameters": {"hashsize": 1024}}
    assert play("module", **wanted)["changed"]
    assert not play("module", **wanted)["changed"]
    assert play("module", check=True, **wanted)["changed"]  # a plan is public, and does not tell
    assert play("module", name="nf_conntrack", parameters={"hashsize": 2048})["modules"] == ["nf_conntrack"]


def test_a_value_that_no_one_can_read_is_no_reason_to_reload(play: Play) -> None:
    wanted = {"name": "bonding", "parameters": {"mode": "1"}, "reload": True, "disconnect": True}
    assert play("module", **wanted)["changed"]
    for check in (True, False):
        refused = play("module", check=check, **wanted)
        assert (refused["error"], refused["evidence"]["parameter"]) == ("ReadOnlyParameter", "mode")
        assert (refused["msg"].endswith("its value cannot be read"), "state: reloaded" in refused["hint"]) == (
            True,
            True,
        )
    assert play("module", name="bonding", parameters={"mode": "1"}, state="reloaded", disconnect=True)["changed"]


def test_unloading_names_what_uses_it(play: Play) -> None:
    play("module", name="vfat")
    refused = play("module", name="fat", state="absent")
    assert (refused["error"], refused["evidence"]["holders"]) == ("InUse", ["vfat"])
    assert refused["hint"]
    gone = play("module", name="fat", state="absent", dependents=True)
    assert (gone["changed"], gone["modules"]) == (True, ["vfat", "fat"])
    assert not play("module", name="fat", state="absent")["changed"]
    assert not play("module", name="no_such_module", state="absent")["changed"]
    assert play("module", name="no_such_module")["error"] == "NoSuchModule"


def test_reloading_is_always_a_change(play: Play) -> None:
    assert play("module", name="loop")["changed"]
    assert play("module", name="loop", state="reloaded", check=True)["modules"] == ["loop"]
    assert play("module", name="loop", state="reloaded")["changed"]


def test_persistence_comes_and_goes(play: Play, run: Runner) -> None:
    wanted = {"name": "loop", "parameters": {"max_loop": 8}, "persistent": True}
    foreseen = play("module", check=True, **wanted)
    assert run("config", "show", "loop", "--json").document == []
    done = play("module", **wanted)
    assert (done["changed"], done["persistent"], shown(done)) == (True, True, shown(foreseen))
    assert {(row["kind"], row["value"]) for row in run("config", "show", "loop", "--json").document} == {
        ("autoload", ""),
        ("options", "max_loop=8"),
    }
    assert not play("module", **wanted)["changed"]
    assert play("module", name="loop", state="absent", persistent=False)["changed"]
    assert run("config", "show", "loop", "--json").document == []


def test_what_a_file_refuses_is_known_before_a_module_is_touched(play: Play, run: Runner) -> None:
    run("config", "blacklist", "tun", "--hard")
    refused = play("module", name="loop", persistent=True, parameters={"max_lop": 8})
    assert refused["error"] == "UnknownParameter"
    # systemd's own options line for dummy would override kmodd's; the kernel itself would take the value.
    assert play("module", name="dummy", persistent=True, parameters={"numdummies": 2})["error"] == "Conflict"
    refused = play("module", name="tun", persistent=True)
    assert (refused["error"], refused["evidence"]["file"]) == (
        "DisabledByPolicy",
        "/etc/modprobe.d/kmodd-blacklist.conf",
    )
    assert [row["name"] for row in run("list", "--json").document if row["name"] in ("loop", "tun", "dummy")] == []


def test_what_contradicts_absent(play: Play) -> None:
    contradictions: list[dict[str, Any]] = [{"persistent": True}, {"parameters": {"max_loop": 8}}, {"version": "1.0"}]
    for params in contradictions:
        assert play("module", name="loop", state="absent", **params)["error"] == "InvalidArgs", params


# --- rule -------------------------------------------------------------------------------------------------------------


def test_a_rule_comes_and_goes(play: Play, run: Runner) -> None:
    rules: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
        ({"kind": "autoload"}, [("autoload", "")]),
        (
            {"kind": "options", "parameters": {"max_loop": 8, "hw_queue_depth": "64"}},
            [("options", "max_loop=8 hw_queue_depth=64")],
        ),
        ({"kind": "blacklist"}, [("blacklist", "")]),
        ({"kind": "blacklist", "hard": True}, [("blacklist", ""), ("softdep", "pre:"), ("install", "/bin/false")]),
    ]
    for rule, lines in rules:
        foreseen = play("rule", name="loop", check=True, **rule)
        assert run("config", "show", "loop", "--json").document == []
        done = play("rule", name="loop", **rule)
        assert (done["changed"], done["rules"], done["diff"]) == (True, foreseen["rules"], foreseen["diff"])
        assert [(row["kind"], row["value"]) for row in run("config", "show", "loop", "--json").document] == lines
        again = play("rule", name="loop", **rule)
        assert (again["changed"], again["diff"]["before"]) == (False, again["diff"]["after"])
        assert play("rule", name="loop", kind=rule["kind"], state="absent")["changed"]
        assert not play("rule", name="loop", kind=rule["kind"], state="absent")["changed"]


def test_rules_of_other_files_do_not_count(play: Play) -> None:
    """systemd has an options line for dummy."""
    left = play("rule", name="dummy", kind="options", state="absent")
    assert (left["changed"], left["rules"]["options"]) == (False, {})


def _withheld(shown_rule: ShownRule) -> ShownRule:
    return replace(shown_rule, rule=replace(shown_rule.rule, value=""), public=False)


def _long(shown_rule: ShownRule) -> ShownRule:
    return replace(shown_rule, rule=replace(shown_rule.rule, value="max_loop=8 ".ljust(4096, "x")))


def _escaped(shown_rule: ShownRule) -> ShownRule:
    return replace(shown_rule, rule=replace(shown_rule.rule, value=r"max_loop=\xe4"))


@pytest.mark.parametrize("cut", [_withheld, _long, _escaped])
def test_options_that_are_shown_in_part_are_not_written_back(
    play: Play, run: Runner, monkeypatch: pytest.MonkeyPatch, cut: Callable[[ShownRule], ShownRule]
) -> None:
    play("rule", name="loop", kind="options", parameters={"max_loop": 8, "hw_queue_depth": 64})
    before = run("config", "show", "loop", "--json").document
    show = Configuration.show

    async def part(configuration: Configuration) -> tuple[ShownRule, ...]:
        return tuple(cut(row) if row.rule.module == "loop" else row for row in await show(configuration))

    tasks: list[tuple[str, dict[str, Any]]] = [
        ("module", {"persistent": True, "parameters": {"max_part": 15}}),
        ("module", {"persistent": False}),
        ("rule", {"kind": "options", "state": "absent"}),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(Configuration, "show", part)
        for action, params in tasks:
            refused = play(action, name="loop", **params)
            assert (refused["error"], refused["evidence"]["file"]) == (
                "NotPermitted",
                "/etc/modprobe.d/kmodd-options.conf",
            )
            assert refused["hint"]
        assert run("config", "show", "loop", "--json").document[0]["kind"] == "options"
        # Other rules do not depend on them.
        assert play("rule", name="loop", kind="autoload")["changed"]
        assert play("rule", name="loop", kind="autoload", state="absent")["changed"]
    assert run("config", "show", "loop", "--json").document == before


def test_a_blacklist_becomes_hard_and_soft(play: Play) -> None:
    for hard, mode in ((False, "soft"), (True, "hard"), (False, "soft")):
        done = play("rule", name="loop", kind="blacklist", hard=hard)
        assert (done["changed"], done["rules"]["blacklist"]) == (True, mode)


def test_a_rule_that_another_file_overrides_names_it(play: Play) -> None:
    refused = play("rule", name="dummy", kind="options", parameters={"numdummies": 2}, check=True)
    assert (refused["error"], refused["evidence"]["file"]) == ("Conflict", "/usr/lib/modprobe.d/systemd.conf")
    assert refused["hint"]


def test_a_rule_that_makes_no_sense(play: Play) -> None:
    rules: list[dict[str, Any]] = [
        {"kind": "options"},
        {"kind": "autoload", "parameters": {"max_loop": 8}},
        {"kind": "autoload", "hard": True},
        {"kind": "blacklist", "hard": True, "state": "absent"},
        {"kind": "options", "parameters": {"max_loop": {"a": 1}}},
    ]
    for rule in rules:
        assert play("rule", name="loop", **rule)["error"] == "InvalidArgs", rule


# --- desired state ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the desired state; the daemon has none, for its system is simulated."""
    module = importlib.import_module("ansible_collections.kmodd.kmodd.plugins.modules.desired_state")
    monkeypatch.setattr(module, "FOLDER", str(tmp_path / "modules.d"))
    return tmp_path / "modules.d"


def test_a_file_comes_and_goes(play: Play, folder: Path) -> None:
    tables = {"loop": {"state": "loaded", "parameters": {"max_loop": 16}}, "ext4": {"state": "absent"}}
    foreseen = play("desired_state", name="site", modules=tables, check=True)
    assert not folder.exists()
    assert [(step["action"], step["module"], step.get("error")) for step in foreseen["steps"]] == [
        ("insert", "loop", None),
        ("remove", "ext4", "InUse"),
    ]
    done = play("desired_state", name="site", modules=tables)
    assert (done["changed"], done["results"], done["drift"]) == (True, [], [])
    assert tomllib.loads((folder / "site.toml").read_text()) == {"module": tables}
    assert stat.S_IMODE((folder / "site.toml").stat().st_mode) == 0o644
    assert foreseen["diff"] == done["diff"]
    again = play("desired_state", name="site", modules=tables)
    assert (again["changed"], again["diff"]) == (False, [])
    assert not play("desired_state")["changed"]
    assert play("desired_state", name="site", state="absent", check=True)["changed"]
    assert play("desired_state", name="site", state="absent")["changed"]
    assert list(folder.iterdir()) == []
    assert not play("desired_state", name="site", state="absent")["changed"]


@pytest.mark.parametrize("before", ["# as it was\n", None])
def test_what_the_daemon_refuses_is_put_back(
    play: Play, folder: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    folder.mkdir()
    path = folder / "site.toml"
    if before is not None:
        path.write_text(before)
    read: list[str] = []

    async def reload(_: Configuration, **__: object) -> None:
        read.append(path.read_text() if path.exists() else "")
        if len(read) == 1:
            raise Conflict("line 2 is wrong", evidence=Evidence(file=str(path), line=2))

    monkeypatch.setattr(Configuration, "reload", reload)
    refused = play("desired_state", name="site", content="[module.loop]\nstat = 1\n")
    assert (refused["error"], refused["msg"], refused["evidence"]["line"]) == ("Conflict", "line 2 is wrong", 2)
    assert read == ["[module.loop]\nstat = 1\n", before or ""]
    assert (path.read_text() if path.exists() else None) == before


@pytest.mark.parametrize("params", [{"content": "[module.loop]\nstat = 1\n"}, {"state": "absent"}])
def test_a_file_keeps_its_mode_and_belongs_to_root(
    play: Play, folder: Path, monkeypatch: pytest.MonkeyPatch, params: dict[str, Any]
) -> None:
    folder.mkdir()
    path = folder / "site.toml"
    path.write_text("# as it was\n")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 1234)

    async def reload(_: Configuration, **__: object) -> None:
        if not path.exists() or "stat" in path.read_text():
            raise Conflict("line 2 is wrong")

    monkeypatch.setattr(Configuration, "reload", reload)
    assert play("desired_state", name="site", **params)["error"] == "Conflict"
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("# as it was\n", 0o640)
    assert play("desired_state", name="site", content="# new\r\n")["changed"]
    status = path.stat()
    assert (path.read_bytes(), stat.S_IMODE(status.st_mode)) == (b"# new\r\n", 0o640)
    assert not play("desired_state", name="site", content="# new\r\n")["changed"]
    if os.geteuid() == 0:
        assert (status.st_uid, status.st_gid) == (0, 1234)


def test_check_mode_shows_only_what_would_be_settled(play: Play, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in another program's file or in the initramfs stays as it is."""
    loaded = {"module": "loop", "kind": "presence", "wanted": "loaded", "actual": "not loaded", "hint": ""}
    other = {"module": "tun", "kind": "autoload", "wanted": "off", "actual": "on", "hint": ""}

    async def data(_: Configuration, member: str, **__: object) -> list[dict[str, Any]]:
        results = [{"module": "loop", "action": "load", "result": "changed"}]
        return [loaded, other] if member == "GetDrift" else results

    monkeypatch.setattr(Configuration, "data", data)
    (difference,) = play("desired_state", check=True)["diff"]
    assert difference["before"] == "loop presence: not loaded\ntun autoload: on\n"
    assert difference["after"] == "loop presence: loaded\ntun autoload: on\n"
    # What a changed file settles is not known before it is read.
    (difference,) = play("desired_state", name="site", content="# new\n", check=True)["diff"]
    assert difference["after"] == "# new\n"


def test_a_description_that_makes_no_sense(play: Play, folder: Path) -> None:
    descriptions: list[tuple[dict[str, Any], str]] = [
        ({"content": ""}, "InvalidArgs"),
        ({"state": "absent"}, "InvalidArgs"),
        ({"name": "site"}, "InvalidArgs"),
        ({"name": "site", "state": "absent", "content": ""}, "InvalidArgs"),
        ({"name": "../site", "content": ""}, "InvalidArgs"),
        ({"name": "site.toml", "content": ""}, "InvalidArgs"),
        ({"name": "site", "modules": {"loop": "loaded"}}, "InvalidArgs"),
        ({"name": "site", "modules": {"loop": {"parameters": {"max_loop": None}}}}, "InvalidArgs"),
        ({"name": "site", "modules": {"loop": {"after": ["ext4", None]}}}, "InvalidArgs"),
        ({"name": "site", "modules": {None: {"state": "loaded"}}}, "InvalidArgs"),
        ({"name": "site", "modules": {"loop": {"state": "loaded", "parameters": "max_loop=8"}}}, "Conflict"),
        ({"name": "site", "content": '[module.loop]\nstate = "loaded"\noptions = [1]\n'}, "Conflict"),
        ({"name": "site", "content": "[module.loop]\nstate = loaded\n"}, "Conflict"),
    ]
    for params, error in descriptions:
        assert play("desired_state", check=True, **params)["error"] == error, params
    assert not folder.exists()


def test_a_file_that_cannot_be_read_or_written(play: Play, folder: Path) -> None:
    folder.mkdir()
    (folder / "site.toml").mkdir()
    refused = play("desired_state", name="site", content="")
    assert (refused["error"], refused["evidence"]["file"]) == ("NotPermitted", str(folder / "site.toml"))
    (folder / "site.toml").rmdir()
    (folder / "site.toml").write_bytes(b"\xff")
    assert play("desired_state", name="site", content="")["error"] == "NotPermitted"
    (folder / "site.toml").unlink()
    folder.rmdir()
    folder.write_text("a file")
    refused = play("desired_state", name="other", content="")
    assert (refused["error"], refused["evidence"]["errno"]) == ("NotPermitted", errno.ENOTDIR)


@pytest.mark.parametrize(("call", "content"), [("fsync", "# new\n"), ("fchmod", "# new\n"), ("", "\udcff")])
def test_a_write_that_fails_leaves_the_file_as_it_was(
    play: Play, folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, content: str
) -> None:
    folder.mkdir()
    (folder / "site.toml").write_text("# as it was\n")

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call:
        monkeypatch.setattr(os, call, full)
    refused = play("desired_state", name="site", content=content)
    assert (refused["error"], refused["evidence"].get("errno")) == ("NotPermitted", errno.ENOSPC if call else None)
    assert refused["hint"]
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("site.toml", "# as it was\n")]


# --- the attack surface -------------------------------------------------------------------------------------------------


def test_a_response_begins_and_ends(play: Play, run: Runner) -> None:
    foreseen = play("response", modules=["overlay"], check=True)
    assert (foreseen["changed"], foreseen["id"], foreseen["stage"]) == (True, "module:overlay", "assessed")
    assert run("config", "show", "overlay", "--json").document == []
    done = play("response", modules=["overlay"])
    assert (done["changed"], done["proven"], done["diff"]) == (True, True, foreseen["diff"])
    assert done["diff"]["after"] == "blocks overlay\n"
    assert run("load", "overlay").status == ExitCode.POLICY
    assert not play("response", modules=["overlay"])["changed"]
    assert not play("response", modules=["overlay"], check=True)["changed"]
    assert play("response", id="module:overlay", state="absent", check=True)["changed"]
    ended = play("response", id="module:overlay", state="absent")
    assert (ended["changed"], ended["modules"]) == (True, ["overlay"])
    assert not play("response", id="module:overlay", state="absent")["changed"]
    assert run("config", "show", "overlay", "--json").document == []


@pytest.mark.parametrize("check", [True, False])
def test_a_response_stops_at_a_module_in_use(play: Play, run: Runner, check: bool) -> None:
    stopped = play("response", modules=["ext4"], check=check)
    assert (stopped["failed"], stopped["error"], stopped["uses"][0]["module"]) == (True, "InUse", "ext4")
    assert run("config", "show", "ext4", "--json").document == []
    forced = play("response", modules=["ext4"], force_in_use=True, check=check)
    assert (forced["changed"], forced.get("failed")) == (True, None)
    blocked = run("config", "show", "ext4", "--json").document
    assert bool(blocked) is not check


def test_check_mode_counts_what_a_response_would_unload(play: Play) -> None:
    play("module", name="vfat")
    assert play("response", modules=["fat"])["msg"].endswith("nothing is blocked")
    assert play("response", modules=["fat"], force_in_use=True)["changed"]
    assert play("response", modules=["fat"])["msg"].endswith("nothing more is blocked")
    assert not play("response", modules=["fat"], force_in_use=True, check=True)["changed"]
    assert play("module", name="vfat", state="absent")["modules"] == ["vfat"]
    assert play("response", modules=["fat"], check=True)["changed"]
    done = play("response", modules=["fat"])
    assert (done["changed"], done["unloaded"]) == (True, ["fat"])
    assert not play("response", modules=["fat"], check=True)["changed"]


def test_check_mode_sees_that_a_record_names_more_modules(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play("response", modules=["overlay"])
    assert not play("response", modules=["overlay"], check=True)["changed"]
    responses = AttackSurface.responses

    async def fewer(surface: AttackSurface) -> tuple[ResponseRow, ...]:
        return tuple(replace(row, modules=("squashfs",), rules=("squashfs",)) for row in await responses(surface))

    monkeypatch.setattr(AttackSurface, "responses", fewer)
    foreseen = play("response", modules=["overlay"], check=True)
    assert (foreseen["changed"], *shown(foreseen)) == (True, "blocks squashfs\n", "blocks overlay\n")


def test_what_a_response_needs(play: Play) -> None:
    assert play("response", state="absent", modules=["overlay"])["error"] == "InvalidArgs"
    assert play("response", id="CVE-1999-0001")["error"] == "NoSuchResponse"


@pytest.fixture
def policy(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the policy; the daemon has none, for its system is simulated."""
    module = importlib.import_module("ansible_collections.kmodd.kmodd.plugins.modules.surface")
    monkeypatch.setattr(module, "FOLDER", str(tmp_path / "surface.d"))
    return tmp_path / "surface.d"


def test_a_policy_comes_and_goes(play: Play, policy: Path) -> None:
    wanted = {"name": "site", "content": '[surface]\nmode = "audit"\n'}
    assert play("surface", check=True, **wanted)["changed"]
    assert not policy.exists()
    done = play("surface", **wanted)
    assert (done["changed"], done["block"], (policy / "site.toml").read_text()) == (True, [], wanted["content"])
    again = play("surface", **wanted)
    assert (again["changed"], again["mode"]) == (False, "off")
    assert play("surface", name="site", state="absent", apply=False)["changed"]
    assert not play("surface", name="site", state="absent")["changed"]


def test_the_rules_of_a_policy_are_a_change(play: Play, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    async def data(_: AttackSurface, member: str, *, options: Mapping[str, object]) -> dict[str, Any]:
        asked.append((member, options["dry-run"], options["weaken"]))
        return {"mode": "enforce", "file": "/etc/x", "block": ["sctp"], "release": ["dccp"], "remarks": []}

    monkeypatch.setattr(AttackSurface, "data", data)
    for check in (True, False):
        done = play("surface", check=check, weaken=True)
        assert (done["changed"], done["block"], done["release"]) == (True, ["sctp"], ["dccp"])
        assert (done["diff"][0]["before"], done["diff"][0]["after"]) == ("dccp\n", "sctp\n")
    assert asked == [("Apply", True, True), ("Apply", False, True)]


def test_a_policy_that_makes_no_sense(play: Play, policy: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"content": ""},
        {"name": "site"},
        {"name": "site", "state": "absent", "content": ""},
    ]
    for params in wrong:
        assert play("surface", **params)["error"] == "InvalidArgs", params
    assert not policy.exists()


# --- info and what all have in common ---------------------------------------------------------------------------------


def test_information(play: Play) -> None:
    everything = play("info", gather=["modules", "health", "rules", "drift"], explain=["ext4"], match="ext*")
    assert (everything["changed"], everything["version"]) == (False, VERSION)
    assert [row["name"] for row in everything["modules"]] == ["ext4"]
    assert everything["health"]["signature_enforced"] is False
    assert everything["drift"] == []
    assert everything["explained"]["ext4"]["state"] == "live"
    assert play("info", gather=[]).keys() == {"changed", "version", "kernel", "explained"}


def test_without_a_daemon(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
    refused = play("info")
    assert (refused["failed"], refused["error"], bool(refused["hint"])) == (True, "Unavailable", True)


def test_without_the_library(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kmodd.client", None)
    refused = play("info")
    assert (refused["failed"], refused["msg"].startswith("no kmodd")) == (True, True)
    assert "python3-kmodd" in refused["hint"]


def test_parameters_are_spelled_for_the_kernel(imported: object) -> None:
    session = importlib.import_module("ansible_collections.kmodd.kmodd.plugins.module_utils.session")
    given = {"a-flag": True, "off": False, "list": [1, "two", True], "number": 0x10, "text": "a b"}
    spelled = {"a_flag": "1", "off": "0", "list": "1,two,1", "number": "16", "text": "a b"}
    assert session.spelled(given) == spelled
    assert session.spelled(None) == {}


def test_tables_become_toml(imported: object) -> None:
    drop_in = importlib.import_module("ansible_collections.kmodd.kmodd.plugins.module_utils.drop_in")
    tables = {
        "rack-monitor": {
            "state": "loaded",
            "after": ["ipmi_si", "i2c-i801"],
            "unload-when-gone": True,
            "parameters": {"poll_ms": 500, "name": 'a "b" \\ \n\x7f', "odd key": [1, True]},
            "options": {},
            "when": {"kernel": ">=6.1"},
        },
        "firewire_core": {"blacklist": "hard"},
    }
    assert tomllib.loads(drop_in.toml(tables, "module.")) == {"module": tables}
