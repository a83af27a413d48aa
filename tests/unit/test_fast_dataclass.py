# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dataclasses of `kmodd.fast_dataclass`, with those of the standard library as the judge."""

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from kmodd import fast_dataclass as values


def _fields() -> dict[str, Any]:
    return {
        "__annotations__": {"a": int, "b": tuple, "secret": str, "made": int},
        "b": (),
        "secret": dataclasses.field(default="", repr=False),
        "made": dataclasses.field(default=0, compare=False, kw_only=True),
        "__module__": __name__,
    }


@pytest.fixture(params=[{"slots": True}, {"slots": False}], ids=["slots", "plain"])
def twins(request: pytest.FixtureRequest) -> tuple[type[Any], type[Any]]:
    """The same class by the standard library and by kmodd."""
    options = {"frozen": True, **request.param}
    theirs: type[Any] = dataclasses.dataclass(**options)(type("Thing", (), _fields()))
    ours: type[Any] = values.dataclass(**options)(type("Thing", (), _fields()))
    return theirs, ours


def test_text_fields_and_copies_are_those_of_a_standard_dataclass(twins: tuple[type[Any], type[Any]]) -> None:
    theirs, ours = (twin(1, (2,), secret="x", made=3) for twin in twins)
    assert repr(ours) == repr(theirs)
    assert "x" not in repr(ours)
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert repr(dataclasses.replace(ours, a=5)) == repr(dataclasses.replace(theirs, a=5))
    assert copy.deepcopy(ours) == ours


def test_comparison_and_hash_are_those_of_a_standard_dataclass(twins: tuple[type[Any], type[Any]]) -> None:
    for twin in twins:
        assert twin(1, (2,), made=3) == twin(1, (2,), made=4)
        assert len({twin(1, (2,), made=3), twin(1, (2,), made=4), twin(1, secret="y")}) == 2
        assert twin(1) != twin(2)
        assert twin(1) != (1, (), "")
        with pytest.raises(TypeError, match="unhashable"):
            hash(twin(1, []))
    assert twins[0](1) != twins[1](1)


@values.dataclass(frozen=True, slots=True)
class Base:
    """A class that others extend."""

    a: int


@values.dataclass(frozen=True, slots=True)
class Extended(Base):
    """One with a text of its own."""

    b: int = 0

    def __repr__(self) -> str:
        return "own"


@values.dataclass(frozen=True, slots=True)
class Empty:
    """One without fields."""


def test_extended_classes_differ_from_their_base_and_keep_their_own_methods() -> None:
    assert repr(Extended(1)) == "own"
    assert Extended(1, 2) != Extended(1, 3)
    assert Base(1) != Extended(1)
    assert Empty() == Empty()
    assert {Empty(), Empty()} == {Empty()}
    assert pickle.loads(pickle.dumps(Extended(1, 2))) == Extended(1, 2)  # noqa: S301 - written a moment ago
    assert not hasattr(Base(1), "__dict__")
