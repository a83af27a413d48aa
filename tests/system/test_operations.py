# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loading and unloading on the real kernel, as callers see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.system.client import Client, Kmodctl, clear, loaded, named, record, texts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.machine import Machine

T = "kmodd_test_"
CONFIGURATION = "/etc/modprobe.d/test.conf"
PARAMETERS = "/sys/module/kmodd_test_params/parameters"


@pytest.fixture(autouse=True)
def nothing_left(vm: Machine) -> Iterator[None]:
    """Each test begins without test modules and without rules."""
    yield
    clear(vm)


def rules(vm: Machine, *lines: str) -> None:
    """Write modprobe.d."""
    vm.write_file(CONFIGURATION, "".join(f"{line}\n" for line in lines))


def steps(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """A plan in short."""
    return [(row["action"], row["module"].removeprefix(T)) for row in rows]


def shown(vm: Machine, parameter: str) -> str:
    """What the kernel holds."""
    return vm.check(["cat", f"{PARAMETERS}/{parameter}"]).removesuffix("\n")


# --- what comes along ---------------------------------------------------------------------------------------------------


def test_chain_comes_in_order_and_goes_in_order(vm: Machine, client: Client) -> None:
    plan = client.plan(("load", "kmodd-test-dep-c", {}))
    foretold = client.load("kmodd_test_dep_c", dry_run=True)
    assert loaded(vm) == set()
    inserted = client.load("kmodd-test-dep-c")
    assert inserted == foretold == [row["module"] for row in plan] == [f"{T}dep_{x}" for x in "abc"]
    assert [row["because"] for row in plan] == [f"dependency of {T}dep_c"] * 2 + ["requested"]
    assert client.load("kmodd_test_dep_c") == []
    assert client.plan(("load", "kmodd_test_dep_c", {})) == []

    error = client.refused("Unload", f"{T}dep_a", {})
    assert (error.name, error.message) == ("InUse", f"{T}dep_a is used by {T}dep_b")
    plan = client.plan(("unload", f"{T}dep_a", {}), dependents=True)
    assert steps(plan) == [("remove", "dep_c"), ("remove", "dep_b"), ("remove", "dep_a")]
    assert client.unload(f"{T}dep_a", dependents=True) == [row["module"] for row in plan]
    assert loaded(vm) == set()
    assert client.unload(f"{T}dep_a") == []


def test_unused_dependencies_go_only_with_the_option(vm: Machine, client: Client) -> None:
    client.load(f"{T}dep_c")
    assert client.unload(f"{T}dep_c") == [f"{T}dep_c"]
    client.load(f"{T}dep_c")
    plan = client.plan(("unload", f"{T}dep_c", {}), unused_dependencies=True)
    removed = client.unload(f"{T}dep_c", unused_dependencies=True)
    assert removed == [f"{T}dep_{x}" for x in "cba"] == [row["module"] for row in plan]
    assert [row.get("optional", False) for row in plan] == [False, True, True]
    # What somebody else needs stays.
    client.load(f"{T}dep_c")
    assert client.unload(f"{T}dep_c") == [f"{T}dep_c"]
    vm.check(["modprobe", f"{T}dep_b"])
    assert loaded(vm) == {"dep_a", "dep_b"}


def test_soft_dependencies_come_along_and_their_failure_does_not_count(vm: Machine, client: Client) -> None:
    assert client.load(f"{T}soft") == [f"{T}soft_pre", f"{T}soft", f"{T}soft_post"]
    rules(vm, f"softdep {T}good pre: {T}nodev {T}xz post: nothing_of_that_name")
    plan = client.plan(("load", f"{T}good", {}))
    assert [(row["module"].removeprefix(T), row.get("optional", False)) for row in plan] == [
        ("nodev", True),
        ("xz", True),
        ("good", False),
    ]
    assert client.load(f"{T}good") == [f"{T}xz", f"{T}good"]
    assert "failure" not in client.explain(f"{T}nodev")


@pytest.mark.parametrize("alias", ["kmodd-test-alias", "test:v0001p00FFd1234"])
def test_alias_loads_what_it_stands_for(client: Client, alias: str) -> None:
    assert client.load(alias, reason=alias) == [f"{T}info"]
    assert client.load(alias) == []
    assert client.call("Describe", alias)["name"] == f"{T}info"


def test_alias_that_stands_for_two_loads_both(vm: Machine, client: Client) -> None:
    order = vm.check("modprobe -R kmodd-test-shared").split()
    assert client.load("kmodd-test-shared") == order
    assert client.refused("Describe", "kmodd-test-shared").name == "Conflict"


@pytest.mark.parametrize("module", [f"{T}xz", f"{T}zst"])
def test_compressed_module_loads(client: Client, module: str) -> None:
    assert client.load(module) == [module]
    assert client.unload(module) == [module]


def test_built_in_is_there_already_and_stays(vm: Machine, client: Client) -> None:
    name = "ext4"
    assert f"/{name}.ko" in vm.check("cat /lib/modules/$(uname -r)/modules.builtin")
    assert client.load(name) == []
    assert client.explain(name)["state"] == "builtin"
    assert client.refused("Unload", name, {}).name == "Builtin"
    assert client.refused("Load", name, {"x": "1"}, {}).name == "Builtin"


# --- modprobe.d -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "module", "asked"),
    [
        ("blacklist kmodd_test_good", "good", "kmodd_test_good"),
        ("blacklist kmodd-test-good", "good", "kmodd-test-good"),
        ("install kmodd_test_good /bin/false", "good", "kmodd_test_good"),
        ("install kmodd_test_good /bin/true", "good", "kmodd_test_good"),
        ("install kmodd_test_good touch /tmp/pwned", "good", "kmodd_test_good"),
        ("alias kmodd_test_good off", "good", "kmodd_test_good"),
        ("blacklist kmodd_test_info", "info", "kmodd-test-alias"),
        ("blacklist kmodd-test-alias", "info", "kmodd_test_info"),
        ("alias kmodd-test-alias off", "kmodd_test_alias", "kmodd-test-alias"),
        ("blacklist kmodd_test_dep_a", "dep_a", "kmodd_test_dep_c"),
        ("install kmodd_test_dep_b /bin/false", "dep_b", "kmodd_test_dep_c"),
    ],
)
def test_rule_of_the_administrator_wins(vm: Machine, client: Client, line: str, module: str, asked: str) -> None:
    rules(vm, "# a comment", line)
    error = client.refused("Load", asked, {}, named({"reason": line}))
    assert error.name == "DisabledByPolicy"
    assert f"{CONFIGURATION}, line 2" in error.message
    assert loaded(vm) == set()
    assert vm.run(["test", "-e", "/tmp/pwned"]).code == 1
    written = record(vm, f"KMODD_REASON={line}")
    assert written["KMODD_ERROR"] == "DisabledByPolicy"
    assert written["KMODD_RULE"] == f"{CONFIGURATION}:2: {line}"
    assert f"{CONFIGURATION}, line 2" in written["KMODD_HINT"] or "override-policy" in written["KMODD_HINT"]
    if asked == f"kmodd_test_{module}":
        explained = client.explain(asked)
        assert (explained["state"], explained["loadable"]) == ("disabled", False)
        assert explained["policy"] == f"{CONFIGURATION}:2: {line}"


def test_blacklist_can_be_overridden_and_a_refusing_install_line_cannot(vm: Machine, client: Client) -> None:
    rules(vm, f"blacklist {T}good", f"install {T}xz /bin/false")
    assert client.load(f"{T}good", override_policy=True, reason="urgent") == [f"{T}good"]
    assert f"{CONFIGURATION}:1: blacklist {T}good" in record(vm, "KMODD_REASON=urgent")["KMODD_OVERRIDES"]
    assert client.refused("Load", f"{T}xz", {}, named({"override-policy": True})).name == "DisabledByPolicy"


def test_remove_line_is_never_run(vm: Machine, client: Client) -> None:
    client.load(f"{T}good")
    rules(vm, f"remove {T}good touch /tmp/pwned")
    assert client.refused("Unload", f"{T}good", {}).name == "DisabledByPolicy"
    assert vm.run(["test", "-e", "/tmp/pwned"]).code == 1


def test_options_lines_count_and_the_caller_has_the_last_word(vm: Machine, client: Client) -> None:
    rules(vm, f'options {T}params an_int=7 a_charp="two words"', f"options {T}params a_byte=9")
    (row,) = client.plan(("load", f"{T}params", {"a_byte": "10"}))
    client.load(f"{T}params", {"a_byte": "10"})
    assert (shown(vm, "an_int"), shown(vm, "a_charp"), shown(vm, "a_byte")) == ("7", "two words", "10")
    assert '"two words"' in row["parameters"]


# --- parameters -------------------------------------------------------------------------------------------------------------

VALUES = [
    ("a_bool", "1", "Y"), ("a_bool", "off", "N"), ("an_invbool", "1", "Y"), ("a_byte", "255", "255"),
    ("a_short", "-32768", "-32768"), ("a_ushort", "0x10", "16"), ("an_int", "-1", "-1"), ("a_uint", "4294967295", "4294967295"),
    ("a_long", "-9223372036854775808", "-9223372036854775808"), ("a_ulong", "010", "8"),
    ("a_ullong", "18446744073709551615", "18446744073709551615"), ("a_hexint", "255", "0x0000ff"),
    ("a_charp", "plain", "plain"), ("a_charp", "two words", "two words"), ("a_charp", "1 an_int=2", "1 an_int=2"),
    ("a_charp", "", ""), ("a_charp", "a=b,c -- d", "a=b,c -- d"), ("a_charp", "it's $(id) `id` ; rm", "it's $(id) `id` ; rm"),
    ("a_charp", "back\\slash", "back\\slash"), ("a_charp", "a=b#c", "a=b#c"), ("a_string", "short one", "short one"),
    ("an_array", "4,5,6", "4,5,6"), ("charps", "a b,c", "a b,c"), ("read_only", "3", "3"), ("secret", "42", "42"),
]  # fmt: skip


def test_parameters_of_every_type_reach_the_kernel_as_given(vm: Machine, client: Client) -> None:
    for parameter, value, held in VALUES:
        client.load(f"{T}params", {parameter: value, "level": "2"})
        found = (shown(vm, parameter), shown(vm, "level"), shown(vm, "an_int") if parameter != "an_int" else "-3")
        assert found == (held, "2", "-3"), (parameter, value)
        client.unload(f"{T}params")
    client.load(f"{T}params", {"async_probe": "", "dyndbg": "+p"})


@pytest.mark.parametrize(
    ("parameter", "value", "error"),
    [
        ("a_bool", "maybe", "BadParameter"),
        ("a_bool", "", "BadParameter"),
        ("a_byte", "256", "BadParameter"),
        ("a_ushort", "-1", "BadParameter"),
        ("an_int", "1 a_byte=2", "BadParameter"),
        ("an_int", "", "BadParameter"),
        ("an_array", "1,x", "BadParameter"),
        ("an_array", "1,2,3,4,5", "BadParameter"),
        ("a_string", "sixteen letters!", "BadParameter"),
        ("level", "12", "BadParameter"),
        ("nosuch", "1", "UnknownParameter"),
        ("a_charp", 'quo"te', "InvalidArgs"),
        ("a_charp", "new\nline", "InvalidArgs"),
        ("a_charp", "end\\", "InvalidArgs"),
        ("a charp", "1", "InvalidArgs"),
        ("a_charp=x b", "1", "InvalidArgs"),
    ],
)
def test_value_that_does_not_fit_is_refused(
    vm: Machine, client: Client, parameter: str, value: str, error: str
) -> None:
    found = client.refused("Load", f"{T}params", {parameter: value}, {})
    assert found.name == error
    assert loaded(vm) == set()


def test_live_parameter_is_written_and_read_back(vm: Machine, client: Client) -> None:
    client.load(f"{T}params")
    for parameter, value, held in (("level", "7", "6"), ("a_charp", "two words", "two words"), ("a_bool", "y", "Y")):
        assert client.call("SetParameter", f"{T}params", parameter, value) == held == shown(vm, parameter)
    assert client.set_parameter(f"{T}params", "level", "5", reason="deeper", only_modules=[f"{T}params"]) == "4"
    assert record(vm, "KMODD_EVENT=parameter.set", "KMODD_REASON=deeper")["KMODD_MODULE"] == f"{T}params"
    errors = {
        ("read_only", "1"): "ReadOnlyParameter",
        ("nosuch", "1"): "NoSuchParameter",
        ("an_int", "x"): "BadParameter",
        ("level", "77"): "BadParameter",
        ("../../loop/x", "1"): "InvalidArgs",
    }
    for (parameter, value), error in errors.items():
        assert client.refused("SetParameter", f"{T}params", parameter, value).name == error
    assert client.refused("SetParameter", "module", "sig_enforce", "1").name == "Builtin"
    assert client.refused("SetParameter", f"{T}good", "x", "1").name == "NotLoaded"
    assert vm.check("cat /sys/module/module/parameters/sig_enforce").strip() == "N"


def test_new_parameters_for_what_is_loaded_are_a_conflict(vm: Machine, client: Client) -> None:
    client.load(f"{T}params", {"an_int": "5"})
    assert client.load(f"{T}params", {"an_int": "0x5"}) == []
    assert client.refused("Load", f"{T}params", {"an_int": "6"}, {}).name == "Conflict"
    assert client.reload(f"{T}params", {"an_int": "6"}) == [f"{T}params"]
    assert shown(vm, "an_int") == "6"


# --- reload and batch -----------------------------------------------------------------------------------------------------


def test_reload_that_fails_restores_the_old_parameters(vm: Machine, client: Client, kmodctl: Kmodctl) -> None:
    client.load(f"{T}params", {"hidden": "3", "a_charp": "old one", "an_array": "7,8"})
    client.call("SetParameter", f"{T}params", "a_byte", "77")
    ended = kmodctl("reload", f"{T}params", "level=11", "a_byte=5")
    assert ended.code == 9
    assert f"{T}params was loaded again with its old parameters" in ended.err
    assert "level 11 is not between 0 and 9" in ended.err, "the kernel's own words"
    held = [shown(vm, name) for name in ("a_charp", "an_array", "a_byte", "level")]
    assert held == ["old one", "7,8", "77", "4"]
    assert client.explain(f"{T}params")["failure"]["error"] == "BadParameter"
    client.call("ResetFailed", f"{T}params")
    assert "failure" not in client.explain(f"{T}params")


def test_reload_with_dependents_is_a_conflict_or_says_what_uses_it(client: Client) -> None:
    client.load(f"{T}dep_b")
    assert client.refused("Reload", f"{T}dep_a", {}, {}).name == "InUse"


def test_atomic_batch_undoes_itself(vm: Machine, client: Client) -> None:
    client.load(f"{T}params", {"an_int": "5"})
    before = loaded(vm)
    results = client.batch(
        ("load", f"{T}dep_c", {}),
        ("unload", f"{T}params", {}),
        ("load", f"{T}fail", {}),
        ("load", f"{T}good", {}),
        reason="atomic",
    )
    assert [(row["action"], row["result"]) for row in results] == [
        ("load", "rolled-back"),
        ("unload", "rolled-back"),
        ("load", "failed"),
        ("load", "skipped"),
    ]
    failed = results[2]
    assert (failed["module"], failed["error"], failed["errno"]) == (f"{T}fail", "InitFailed", 5)
    assert failed["message"].startswith(f"{T}fail failed to initialise")
    assert any(f"{T}fail" in line for line in failed["kernel-log"])
    assert [row for row in results if "error" in row] == [failed]
    assert loaded(vm) == before
    assert shown(vm, "an_int") == "5"
    results = client.batch(("load", f"{T}dep_c", {}), ("load", f"{T}fail", {}), ("load", f"{T}good", {}), atomic=False)
    assert [row["result"] for row in results] == ["changed", "failed", "changed"]
    assert results[0]["changed"] == [f"{T}dep_a", f"{T}dep_b", f"{T}dep_c"]
    assert loaded(vm) >= {"dep_a", "dep_b", "dep_c", "good"}


def test_batch_does_what_its_plan_and_its_dry_run_say(vm: Machine, client: Client) -> None:
    operations: tuple[tuple[str, str, dict[str, str]], ...] = (
        ("load", f"{T}dep_b", {}),
        ("load", f"{T}soft", {}),
        ("unload", f"{T}dep_b", {}),
        ("reload", f"{T}params", {"an_int": "1"}),
    )
    plan, dry = client.plan(*operations), client.batch(*operations, dry_run=True)
    assert loaded(vm) == set()
    assert client.batch(*operations) == dry
    assert [row["module"] for row in plan] == [name for row in dry for name in row["changed"]]
    assert loaded(vm) == {"dep_a", "soft", "soft_pre", "soft_post", "params"}


def test_only_the_modules_that_are_named_are_touched(vm: Machine, client: Client) -> None:
    a, b = f"{T}dep_a", f"{T}dep_b"
    for only in ([b], []):
        error = client.refused("Load", b, {}, named({"only_modules": only}))
        assert error.name == "AccessDenied"
        assert a in error.message
    assert client.refused("Batch", [("load", b, {})], named({"only_modules": [b]})).name == "AccessDenied"
    assert loaded(vm) == set()
    assert client.load(b, only_modules=[a, b]) == [a, b]
    assert client.refused("Unload", a, named({"dependents": True, "only_modules": [a]})).name == "AccessDenied"
    assert loaded(vm) == {"dep_a", "dep_b"}


def test_what_holds_a_module_is_in_the_row_of_a_batch(vm: Machine, client: Client) -> None:
    client.load(f"{T}dep_b")
    row, done = client.batch(("unload", f"{T}dep_a", {}), ("load", f"{T}good", {}), atomic=False)
    assert (row["error"], row["holders"], row["changed"]) == ("InUse", [f"{T}dep_b"], [])
    assert row["hint"] == f"kmodctl unload {T}dep_a --dependents"
    assert done == {"module": f"{T}good", "action": "load", "result": "changed", "changed": [f"{T}good"]}


def test_batch_that_is_known_to_fail_is_not_begun(vm: Machine, client: Client) -> None:
    error = client.refused("Batch", [("load", f"{T}good", {}), ("load", "no_such_thing", {})], {})
    assert error.name == "NoSuchModule"
    assert loaded(vm) == set()


def test_one_record_for_each_result(vm: Machine, client: Client) -> None:
    client.load(f"{T}dep_c", reason="one")
    client.load(f"{T}dep_c", reason="two")
    client.refused("Unload", f"{T}dep_a", named({"reason": "three"}))
    client.unload(f"{T}dep_a", dependents=True, reason="four")
    client.refused("Load", f"{T}fail", {}, named({"reason": "five"}))
    found = [record(vm, f"KMODD_REASON={reason}") for reason in ("one", "two", "three", "four", "five")]
    assert [(one["KMODD_EVENT"], one["KMODD_RESULT"]) for one in found] == [
        ("module.loaded", "changed"),
        ("operation.unchanged", "unchanged"),
        ("operation.failed", "failed"),
        ("module.unloaded", "changed"),
        ("operation.failed", "failed"),
    ]
    assert texts(found[0]["KMODD_TOUCHED"]) == [f"{T}dep_a {T}dep_b {T}dep_c"]
    assert found[2]["KMODD_HOLDERS"] == f"{T}dep_b"
