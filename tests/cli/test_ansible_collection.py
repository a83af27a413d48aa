# SPDX-License-Identifier: LGPL-2.1-or-later
"""Modules of the Ansible collection against the real daemon on a simulated kernel; their documentation is what they take.

Of Ansible only the class `AnsibleModule` is replaced; tests/system/test_ansible.py runs them with Debian's Ansible.
"""

import ast
import errno
import importlib
import os
import stat
import sys
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from kmodd import VERSION
from kmodd.client.configuration import Configuration
from kmodd.errors import Conflict, Evidence
from tests.architecture.test_documentation import blocks
from tests.cli.runner import Runner

ROOT = Path(__file__).parents[2]
COLLECTION = ROOT / "ansible"
MODULES = sorted(path.stem for path in (COLLECTION / "plugins/modules").glob("*.py"))


class Ended(Exception):
    """A task ended with this result."""

    def __init__(self, result: dict[str, Any], *, failed: bool) -> None:
        super().__init__(result)
        self.result, self.failed = result, failed


class StandIn:
    """What a module sees of `AnsibleModule`."""

    params: Mapping[str, Any] = types.MappingProxyType({})
    check_mode = False
    tmpdir = ""
    atomic_move = staticmethod(os.replace)
    set_mode_if_different = staticmethod(lambda path, mode, changed: Path(path).chmod(int(mode, 8)))

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
    stand_in.tmpdir = str(tmp_path)
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
    refused = play("module", name="tun", persistent=True)
    assert (refused["error"], refused["evidence"]["file"]) == (
        "DisabledByPolicy",
        "/etc/modprobe.d/kmodd-blacklist.conf",
    )
    assert [row["name"] for row in run("list", "--json").document if row["name"] in ("loop", "tun")] == []


@pytest.mark.parametrize(
    "params",
    [{"persistent": True}, {"parameters": {"max_loop": 8}}, {"version": "1.0"}],
)
def test_what_contradicts_absent(play: Play, params: dict[str, Any]) -> None:
    assert play("module", name="loop", state="absent", **params)["error"] == "InvalidArgs"


# --- rule -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "lines"),
    [
        ({"kind": "autoload"}, [("autoload", "")]),
        ({"kind": "options", "parameters": {"max_loop": 8, "hw_queue_depth": "64"}}, None),
        ({"kind": "blacklist"}, [("blacklist", "")]),
        ({"kind": "blacklist", "hard": True}, [("blacklist", ""), ("softdep", "pre:"), ("install", "/bin/false")]),
    ],
)
def test_a_rule_comes_and_goes(
    play: Play, run: Runner, rule: dict[str, Any], lines: list[tuple[str, str]] | None
) -> None:
    foreseen = play("rule", name="loop", check=True, **rule)
    assert run("config", "show", "loop", "--json").document == []
    done = play("rule", name="loop", **rule)
    assert (done["changed"], done["rules"], done["diff"]) == (True, foreseen["rules"], foreseen["diff"])
    rows = [(row["kind"], row["value"]) for row in run("config", "show", "loop", "--json").document]
    assert rows == (lines or [("options", "max_loop=8 hw_queue_depth=64")])
    again = play("rule", name="loop", **rule)
    assert (again["changed"], again["diff"]["before"]) == (False, again["diff"]["after"])
    assert play("rule", name="loop", kind=rule["kind"], state="absent")["changed"]
    assert not play("rule", name="loop", kind=rule["kind"], state="absent")["changed"]


def test_a_rule_that_another_file_overrides_names_it(play: Play) -> None:
    refused = play("rule", name="dummy", kind="options", parameters={"numdummies": 2}, check=True)
    assert (refused["error"], refused["evidence"]["file"]) == ("Conflict", "/usr/lib/modprobe.d/systemd.conf")
    assert refused["hint"]


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "options"},
        {"kind": "autoload", "parameters": {"max_loop": 8}},
        {"kind": "autoload", "hard": True},
        {"kind": "blacklist", "hard": True, "state": "absent"},
        {"kind": "options", "parameters": {"max_loop": {"a": 1}}},
    ],
)
def test_a_rule_that_makes_no_sense(play: Play, rule: dict[str, Any]) -> None:
    assert play("rule", name="loop", **rule)["error"] == "InvalidArgs"


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


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"content": ""}, "InvalidArgs"),
        ({"state": "absent"}, "InvalidArgs"),
        ({"name": "site"}, "InvalidArgs"),
        ({"name": "site", "state": "absent", "content": ""}, "InvalidArgs"),
        ({"name": "../site", "content": ""}, "InvalidArgs"),
        ({"name": "site.toml", "content": ""}, "InvalidArgs"),
        ({"name": "site", "modules": {"loop": "loaded"}}, "InvalidArgs"),
        ({"name": "site", "content": "[module.loop]\nstate = loaded\n"}, "Conflict"),
    ],
)
def test_a_description_that_makes_no_sense(play: Play, folder: Path, params: dict[str, Any], error: str) -> None:
    assert play("desired_state", check=True, **params)["error"] == error
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


# --- documentation ----------------------------------------------------------------------------------------------------


def constants(name: str) -> dict[str, Any]:
    """Constants of a module's source, by name."""
    tree = ast.parse((COLLECTION / f"plugins/modules/{name}.py").read_text())
    texts = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    (fragment,) = [
        node for node in ast.parse((COLLECTION / "plugins/module_utils/session.py").read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "REASON"
    ]  # fmt: skip
    reason = ast.literal_eval(fragment.value)
    values = {}
    for key in ("DOCUMENTATION", "EXAMPLES", "RETURN"):
        values[key] = yaml.safe_load(ast.literal_eval(texts[key]))
    arguments = texts["ARGUMENTS"]
    assert isinstance(arguments, ast.Dict)
    values["ARGUMENTS"] = {
        ast.literal_eval(key): reason if isinstance(value, ast.Name) else ast.literal_eval(value)
        for key, value in zip(arguments.keys, arguments.values, strict=True)
        if key is not None
    }
    return values


def fragments() -> dict[str, Any]:
    """Options that the fragment of all modules documents."""
    tree = ast.parse((COLLECTION / "plugins/doc_fragments/kmodd.py").read_text())
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    (changes,) = [
        node.value for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CHANGES"
    ]
    options: dict[str, Any] = yaml.safe_load(ast.literal_eval(changes))["options"]
    return options


@pytest.mark.parametrize("name", MODULES)
def test_the_documentation_is_what_the_module_takes(name: str) -> None:
    texts = constants(name)
    options = dict(texts["DOCUMENTATION"]["options"])
    if "kmodd.kmodd.kmodd.changes" in texts["DOCUMENTATION"]["extends_documentation_fragment"]:
        options |= fragments()
    without_words = {
        option: {key: value for key, value in each.items() if key != "description"} for option, each in options.items()
    }
    assert without_words == texts["ARGUMENTS"]
    assert all(each["description"] for each in options.values())


def tasks() -> list[dict[str, Any]]:
    """The tasks of every example: of the modules, and of the page."""
    examples = [task for name in MODULES for task in constants(name)["EXAMPLES"]]
    for block in blocks(ROOT / "docs/ansible.md", "yaml"):
        for entry in yaml.safe_load(block):
            examples += [*entry.get("tasks", []), *entry.get("handlers", [])] if "hosts" in entry else [entry]
    return examples


def test_every_example_uses_what_there_is() -> None:
    used = set()
    for task in tasks():
        for action, arguments in task.items():
            if action.startswith("kmodd.kmodd."):
                name = action.rpartition(".")[2]
                used.add(name)
                assert (arguments or {}).keys() <= constants(name)["ARGUMENTS"].keys(), task
    assert used == set(MODULES)


def test_the_collection_has_the_version_and_lists_its_modules() -> None:
    assert yaml.safe_load((COLLECTION / "galaxy.yml").read_text())["version"] == VERSION
    groups = yaml.safe_load((COLLECTION / "meta/runtime.yml").read_text())["action_groups"]
    # Those that change something: defaults such as a reason are for all of a group.
    assert sorted(groups["kmodd"]) == [name for name in MODULES if "reason" in constants(name)["ARGUMENTS"]]
    readme = (COLLECTION / "README.md").read_text()
    assert all(f"`kmodd.kmodd.{name}`" in readme for name in MODULES)
