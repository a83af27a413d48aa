# SPDX-License-Identifier: LGPL-2.1-or-later
"""The two resources: the schema as the API server enforces it, and the same documents as the programs read them."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kmodd.errors import ERRORS, InvalidArgs
from kmodd.fleet.resources import (
    Condition,
    ConditionStatus,
    Demand,
    Mode,
    ModuleSet,
    ModuleState,
    ModuleStatus,
    NodeModulesStatus,
    Rollout,
    SetStatus,
    StatusUser,
    as_json,
    parse_module_set,
    parse_node_modules,
)
from tests.fleet.cluster import CRDS, Cluster
from tests.fleet.running import CREATED, PATH, module, one_set

INVALID = 422
SETS = "/apis/kmodd.org/v1alpha1/modulesets"
DEFINITIONS: list[dict[str, Any]] = list(yaml.safe_load_all(CRDS.read_text()))


def schemas(node: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every schema below one, with its path."""
    found = [(path, node)]
    for name, below in node.get("properties", {}).items():
        found += schemas(below, f"{path}.{name}")
    if "items" in node:
        found += schemas(node["items"], f"{path}[]")
    return found


def every_schema() -> list[tuple[str, Any]]:
    """Of both kinds."""
    return [
        row
        for definition in DEFINITIONS
        for row in schemas(
            definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"], str(definition["spec"]["names"]["kind"])
        )
    ]


def test_reasons_are_the_names_of_the_table_of_errors() -> None:
    reasons = [
        (path, schema["enum"])
        for path, schema in every_schema()
        if path.endswith(".reason") and "conditions" not in path
    ]
    assert len(reasons) == 3
    for path, names in reasons:
        assert set(names) == {error.name() for error in ERRORS.values()}, path
        assert len(set(names)) == len(names)


def test_states_are_those_of_the_programs() -> None:
    states = [schema["enum"] for path, schema in every_schema() if path.endswith(".state")]
    assert states == [[str(state) for state in ModuleState]] * 2


def test_every_text_and_list_has_a_bound() -> None:
    for path, schema in every_schema():
        if path.split(".")[-1] in ("apiVersion", "kind") or path.endswith(".metadata"):
            continue
        if schema.get("type") == "string":
            assert {"maxLength", "enum", "format"} & set(schema), path
        if schema.get("type") == "array":
            assert "maxItems" in schema, path
        if "additionalProperties" in schema:
            assert "maxProperties" in schema, path


def module_set(name: str, **spec: Any) -> dict[str, Any]:
    """A ModuleSet as JSON."""
    return {
        "apiVersion": "kmodd.org/v1alpha1",
        "kind": "ModuleSet",
        "metadata": {"name": name},
        "spec": {"modules": [module("loop")], **spec},
    }


GOOD: dict[str, dict[str, Any]] = {
    "smallest": {},
    "demand": {
        "mode": "OnDemand",
        "demand": {"podSelector": {"app": "db"}, "namespaces": ["a"], "unloadAfterSeconds": 5},
    },
    "whole": {
        "nodeSelector": {"kubernetes.io/os": "linux", "gpu": "true"},
        "modules": [module("loop", max_loop="8", x="a,b c\\d"), module("vfat", required=False, version="1.0+b~1")],
        "after": ["other"],
        "rollout": {"maxUnavailable": 3, "stopAfterFailures": 0, "paused": True},
        "whenForeignParameters": "Reload",
    },
}
BAD: dict[str, dict[str, Any]] = {
    "no modules": {"modules": []},
    "a path": {"modules": [module("../x")]},
    "a name that is too long": {"modules": [module("a" * 56)]},
    "a name with a newline": {"modules": [module("a\nb")]},
    "a name twice": {"modules": [module("loop"), module("loop")]},
    "a quote in a value": {"modules": [module("loop", a='1" b=2')]},
    "a control character in a value": {"modules": [module("loop", a="1\n")]},
    "a value that is no ASCII": {"modules": [module("loop", a="\u00a0")]},
    "a value that ends in a backslash": {"modules": [module("loop", a="1\\")]},
    "a value that is too long": {"modules": [module("loop", a="1" * 1025)]},
    "a version with a slash": {"modules": [module("loop", version="1/2")]},
    "an unknown mode": {"mode": "Sometimes"},
    "demand without its mode": {"demand": {"podSelector": {"a": "b"}}},
    "the mode without demand": {"mode": "OnDemand"},
    "every pod": {"mode": "OnDemand", "demand": {"podSelector": {}}},
    "a negative grace": {"mode": "OnDemand", "demand": {"podSelector": {"a": "b"}, "unloadAfterSeconds": -1}},
    "no node at a time": {"rollout": {"maxUnavailable": 0}},
    "65 modules": {"modules": [module(f"m{number}") for number in range(65)]},
    "a number for a text": {"modules": [{"name": 5}]},
}


NEED_CEL = {"demand without its mode", "the mode without demand"}
"""What a schema alone cannot say; a server older than 1.25 leaves it to the parser."""


@pytest.mark.parametrize("name", GOOD)
def test_the_server_and_the_parser_take_what_is_good(kubernetes: Cluster, name: str) -> None:
    status, answer = kubernetes.request("POST", f"{SETS}?dryRun=All", module_set("good", **GOOD[name]))
    assert status == CREATED, answer["message"]
    parsed = parse_module_set(answer)
    assert parse_module_set({"metadata": {"name": "good"}, "spec": as_json(parsed.spec)}).spec == parsed.spec


@pytest.mark.parametrize("name", BAD)
def test_the_server_and_the_parser_refuse_what_is_bad(kubernetes: Cluster, name: str) -> None:
    document = module_set("bad", **BAD[name])
    status, answer = kubernetes.request("POST", f"{SETS}?dryRun=All", document)
    assert status == INVALID or (name in NEED_CEL and not kubernetes.modern), answer
    with pytest.raises(InvalidArgs) as refused:
        parse_module_set(document)
    assert refused.value.argument.startswith("spec.")


def test_the_server_fills_in_what_the_parser_does(kubernetes: Cluster) -> None:
    answer = kubernetes.need("POST", f"{SETS}?dryRun=All", module_set("defaults"))
    assert parse_module_set(answer).spec == parse_module_set(module_set("defaults")).spec
    document = {
        "apiVersion": "kmodd.org/v1alpha1",
        "kind": "NodeModules",
        "metadata": {"name": "n"},
        "spec": {"sets": [one_set("a", "loop")]},
    }
    answer = kubernetes.need("POST", f"{PATH}?dryRun=All", document)
    assert parse_node_modules(answer).spec == parse_node_modules(document).spec


def test_a_whole_status_is_taken_and_comes_back(kubernetes: Cluster) -> None:
    name = "status-whole"
    kubernetes.need(
        "POST", PATH, {"apiVersion": "kmodd.org/v1alpha1", "kind": "NodeModules", "metadata": {"name": name}}
    )
    status = NodeModulesStatus(
        observed_generation=1,
        boot_id="b",
        kernel_release="6.1",
        agent_version="1",
        kmodd_version="2",
        last_contact="2026-11-29T10:00:00Z",
        sets=(SetStatus("a", ModuleState.BLOCKED, "InUse", "m is in use", 3),),
        modules=(
            ModuleStatus(
                "m",
                ModuleState.BLOCKED,
                "InUse",
                "m is in use",
                "kmodctl why m",
                ("a line",),
                (StatusUser("mount", "/mnt", "/dev/sda"), StatusUser("process", count=3)),
                (("a", "1"),),
                "1.0",
                owned_by_agent=True,
                attempts=2,
                next_try="2026-11-29T10:00:05Z",
                observed_generation=1,
            ),
        ),
        conditions=(Condition("Ready", ConditionStatus.FALSE, "InUse", "m is in use", "2026-11-29T10:00:00Z", 1),),
    )
    kubernetes.need(
        "PATCH",
        f"{PATH}/{name}/status?fieldManager=tests&force=true",
        {"apiVersion": "kmodd.org/v1alpha1", "kind": "NodeModules", "status": as_json(status)},
        content="application/apply-patch+yaml",
    )
    assert parse_node_modules(kubernetes.need("GET", f"{PATH}/{name}")).status == status


def test_the_status_has_no_reason_that_is_not_of_the_table(kubernetes: Cluster) -> None:
    name = "status-reason"
    kubernetes.need(
        "POST", PATH, {"apiVersion": "kmodd.org/v1alpha1", "kind": "NodeModules", "metadata": {"name": name}}
    )
    body = {"status": {"modules": [{"name": "m", "state": "Failed", "reason": "BadLuck"}]}}
    content = "application/merge-patch+json"
    status, _ = kubernetes.request("PATCH", f"{PATH}/{name}/status", body, content=content)
    assert status == INVALID


def test_columns_read_like_a_sentence(kubernetes: Cluster) -> None:
    kubernetes.need("POST", SETS, module_set("columns"))
    table = kubernetes.need("GET", SETS, accept="application/json;as=Table;g=meta.k8s.io;v=v1")
    assert [column["name"] for column in table["columnDefinitions"] if not column["priority"]] == [
        "Name",
        "Wanted",
        "Modules",
        "Nodes",
        "Ready",
        "Failed",
        "Blocked",
        "Because",
        "Age",
    ]
    kubernetes.need("DELETE", f"{SETS}/columns")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        "metadata",
        "spec",
        "status",
        "name",
        "sets",
        "modules",
        "parameters",
        "mode",
        "demand",
        "after",
        "conditions",
        "state",
    ]
)
documents = st.recursive(
    json_values, lambda inner: st.dictionaries(KEYS, inner | st.lists(inner, max_size=3), max_size=5), max_leaves=30
)


@given(st.dictionaries(KEYS, documents, max_size=6))
def test_nonsense_is_an_invalid_argument_with_its_field(document: dict[str, Any]) -> None:
    refused: list[InvalidArgs] = []
    for parse in (parse_module_set, parse_node_modules):
        try:
            parse(document)
        except InvalidArgs as error:
            refused.append(error)
    assert all(error.argument for error in refused)


def test_defaults_of_the_values() -> None:
    parsed: ModuleSet = parse_module_set(module_set("a", mode="OnDemand", demand={"podSelector": {"a": "b"}}))
    assert parsed.spec.demand == Demand((("a", "b"),))
    assert parsed.spec.rollout == Rollout(1, 1, paused=False)
    assert parsed.spec.mode is Mode.ON_DEMAND


def test_the_file_says_what_it_is() -> None:
    assert Path(CRDS).read_text().startswith("# SPDX-License-Identifier: LGPL-2.1-or-later\n")
