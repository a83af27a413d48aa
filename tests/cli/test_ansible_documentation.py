# SPDX-License-Identifier: LGPL-2.1-or-later
"""The documentation of the Ansible collection says what its modules take; its examples, and those of the page, are valid."""

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from kmodd import VERSION
from tests.architecture.test_documentation import blocks

ROOT = Path(__file__).parents[2]
COLLECTION = ROOT / "ansible"
MODULES = sorted(path.stem for path in (COLLECTION / "plugins/modules").glob("*.py"))


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
