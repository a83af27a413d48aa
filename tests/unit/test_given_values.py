# SPDX-License-Identifier: LGPL-2.1-or-later
"""A value that reads back in another way is in effect as long as it reads back so."""

from pathlib import Path

import pytest

from kmodd.core.operations.live_values import GivenValues
from kmodd.names import ModuleName
from tests.unit.fakes import kept_values

NBD, LOOP = ModuleName("nbd"), ModuleName("loop")


def test_a_value_that_was_given_is_met_whatever_the_module_made_of_it() -> None:
    values = GivenValues()
    assert not values.is_met(NBD, "max_part", "int", "8", "15")
    values.inserted(NBD, (("max_part", "8"), ("flag", None), ("list", "1,2")))
    assert values.is_met(NBD, "max_part", "int", "0x8", "15")
    assert values.is_met(NBD, "flag", "bool", "1", "Y")
    assert values.is_met(NBD, "list", "array of int", "1,2", "1,2,0,0")
    assert not values.is_met(NBD, "max_part", "int", "9", "15"), "nobody gave it 9"
    assert values.is_met(NBD, "max_part", "int", "15", "15")
    assert not values.is_met(LOOP, "max_part", "int", "8", "15")


def test_another_value_later_is_foreign() -> None:
    values = GivenValues()
    values.inserted(NBD, (("max_part", "8"),))
    assert values.is_met(NBD, "max_part", "int", "8", "15")
    assert not values.is_met(NBD, "max_part", "int", "8", "7")
    values.written(NBD, "max_part", "9", "31")
    assert values.is_met(NBD, "max_part", "int", "9", "31")
    assert not values.is_met(NBD, "max_part", "int", "8", "31")


def test_a_parameter_that_cannot_be_read_has_what_it_was_given() -> None:
    values = GivenValues()
    values.inserted(NBD, (("hidden", "7"),))
    assert values.is_met(NBD, "hidden", "int", "7", None)
    assert not values.is_met(NBD, "hidden", "int", "8", None)
    values.inserted(NBD, ())
    assert not values.is_met(NBD, "hidden", "int", "7", None)


def test_a_module_that_went_is_forgotten_and_a_restart_is_not(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    values = kept_values(path)
    for module in (NBD, LOOP):
        values.inserted(module, (("max_part", "8"),))
        assert values.is_met(module, "max_part", "int", "8", "15")
    values.removed(LOOP)
    assert path.stat().st_mode & 0o777 == 0o600
    later = kept_values(path)
    assert later.is_met(NBD, "max_part", "int", "8", "15")
    assert not later.is_met(LOOP, "max_part", "int", "8", "15")


def test_what_is_known_is_of_the_module_that_is_loaded(tmp_path: Path) -> None:
    """Somebody else unloads and loads it, while the daemon runs or while none does."""
    path = tmp_path / "values.json"
    instances = {NBD: 5, LOOP: 6}
    values = kept_values(path, instances.__getitem__)
    values.inserted(NBD, (("hidden", "7"), ("flag", None)))
    values.written(LOOP, "x", "1", "2")
    for one in (values, kept_values(path, instances.__getitem__)):
        assert one.of(NBD) == (("hidden", "7"), ("flag", None))
        assert one.is_met(NBD, "hidden", "int", "7", None)
        assert one.is_met(LOOP, "x", "int", "1", "2")
    instances.update({NBD: 8, LOOP: 9})
    for one in (values, kept_values(path, instances.__getitem__)):
        assert one.of(NBD) == ()
        assert not one.is_met(NBD, "hidden", "int", "7", None)
        assert not one.is_met(LOOP, "x", "int", "1", "2")
    values.written(NBD, "max_part", "8", "15")
    assert values.of(NBD) == (), "nothing of the former one comes back"


def test_what_was_loaded_before_the_first_start_is_known_at_all_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    instances = {NBD: 5, LOOP: 6}
    assert not GivenValues(None).appeared(NBD)
    first = kept_values(path, instances.__getitem__)
    assert not first.appeared(NBD), "nothing is known before the first look"
    first.begin([NBD])
    later = kept_values(path, instances.__getitem__)
    later.begin([NBD, LOOP])
    for one in (first, later):
        assert not one.appeared(NBD)
        assert one.appeared(LOOP)
    instances[NBD] = 7
    assert later.appeared(NBD)


def test_the_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Of what was loaded then it is not known what it was given, but for the values that differ."""
    path = tmp_path / "values.json"
    path.write_text('[["nbd","max_part","8","15"]]')
    values = kept_values(path, {NBD: 5, LOOP: 6}.__getitem__)
    values.begin([NBD, LOOP])
    assert values.is_met(NBD, "max_part", "int", "8", "15")
    assert not values.appeared(NBD)
    assert not values.appeared(LOOP)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        '{"before": 1, "modules": {}}',
        '{"before": null, "modules": {"nbd": [1, [], [["max_part", 8, "15"]]]}}',
        "[[1]]",
        '[["nbd","a","8"]]',
        '[["../x","a","8","15"]]',
        '[["nbd","max_part",8,15]]',
        "\xff",
    ],
)
def test_a_damaged_file_is_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "values.json"
    path.write_bytes(text.encode("latin-1"))
    assert not kept_values(path).is_met(NBD, "max_part", "int", "8", "15")
    path.unlink()
    path.symlink_to("/etc/passwd")
    kept_values(path).written(NBD, "max_part", "8", "15")
    assert not path.is_symlink()
