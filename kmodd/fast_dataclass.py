# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dataclasses that are made in a fifth of the time: programs of kmodd have up to 160, and start for a single command.

`dataclasses` writes source text for each method of each class and compiles it at every start: six methods for one that is frozen.
Here only `__init__` is made so; comparison, hash and text are the same few functions for all. The type checker sees the
standard library's decorator, and holds the instances for frozen; at run time nothing refuses an assignment. What polkit authorizes
(`kmodd.model.requests`) is made by the standard library, and is frozen in earnest.
"""

from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass  # noqa: PLC0414 - for others to import
else:
    import dataclasses

    def dataclass(cls=None, /, *, frozen=False, slots=False, eq=True):
        """Do as `dataclasses.dataclass`, to which a class is left that is not frozen."""
        if cls is None:
            return lambda cls: dataclass(cls, frozen=frozen, slots=slots, eq=eq)
        if not frozen:
            return dataclasses.dataclass(cls, slots=slots, eq=eq)
        own = cls.__dict__.keys()
        made = dataclasses.dataclass(cls, slots=slots, eq=False, repr=False)
        fields = made.__dataclass_fields__.values()
        if eq and "__eq__" not in own:
            made.__eq__, made.__hash__ = _comparison(tuple(field.name for field in fields if field.compare))
        if "__repr__" not in own:
            made.__repr__ = _text(tuple(field.name for field in fields if field.repr))
        return made


def _comparison(names: tuple[str, ...]) -> tuple[Any, Any]:
    """`__eq__` and `__hash__` by the fields of these names, for instances of exactly the same class."""
    values = attrgetter(*names) if names else lambda _: ()

    def equal(self: object, other: object) -> bool:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def hashed(self: object) -> int:
        return hash(values(self))

    return equal, hashed


def _text(names: tuple[str, ...]) -> Any:
    """`__repr__` with the fields of these names."""

    def text(self: object) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    return text
