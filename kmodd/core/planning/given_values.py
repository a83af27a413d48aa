# SPDX-License-Identifier: LGPL-2.1-or-later
"""The parameter values that loaded modules were loaded with, beside their live values."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kmodd.core.planning.parameters import same_setting, same_value
from kmodd.model.arguments import Arguments
from kmodd.names import ModuleName, is_module_name

REMEMBERED = 1024
"""Modules, and values of one module that read back in another way, at most."""


@dataclass(slots=True)
class _Known:
    """What one module was given, as long as it is this one that is loaded."""

    instance: int
    given: Arguments = ()
    held: dict[str, tuple[str, str]] = field(default_factory=dict)
    """(given, what it reads back as), by parameter."""


class GivenValues:
    """Remembers the parameters that modules were inserted with or that were written since, until they go.

    A module may keep another value than it is given: nbd makes 15 of max_part=8, an array reads back longer, and many
    parameters cannot be read at all. Whether the desired value is in effect is then known only from having set it. The value it
    reads back as is recorded at the first comparison, and a different value later is a change by another program.

    All of it is kept over a restart of the daemon, and so is which modules were loaded before the first one started; it is not known
    what those were given.
    """

    def __init__(
        self,
        kept: bytes | None = None,
        keep: Callable[[bytes], None] = lambda data: None,
        instance: Callable[[ModuleName], int] = lambda name: 0,
    ) -> None:
        """`kept` is what `keep` was given last, by an earlier daemon; None for nothing.

        `instance` differs for each load of a module (`LoadedModules.instance`): what is known of a module that
        others have unloaded meanwhile is of the former one.
        """
        self._keep = keep
        self._instance = instance
        self._modules: dict[ModuleName, _Known] = {}
        self._before: dict[str, int] | None = None
        if kept is not None:
            self._take(kept)

    def begin(self, loaded: Iterable[ModuleName]) -> None:
        """Note, at the first start since the machine booted, what was loaded before."""
        if self._before is None:
            self._before = {name: self._instance(name) for name in loaded}
            self._write()

    def appeared(self, module: ModuleName) -> bool:
        """Tell whether a module that is loaded was loaded since the first start: then what kmodd gave it is known."""
        return self._before is not None and self._before.get(module) != self._instance(module)

    def of(self, module: ModuleName) -> Arguments:
        """With what it was inserted; empty where that is not known."""
        record = self._known(module)
        return record.given if record is not None else ()

    def inserted(self, module: ModuleName, parameters: Arguments) -> None:
        """Note what a module was inserted with."""
        if self._modules.pop(module, None) is None and not parameters:
            return
        if parameters:
            self._new(module).given = parameters
        self._write()

    def written(self, module: ModuleName, parameter: str, value: str, held: str) -> None:
        """Note what a live parameter was set to, and what it holds since."""
        self._note(module, parameter, value, held)

    def removed(self, module: ModuleName) -> None:
        """Forget it."""
        if self._modules.pop(module, None) is not None:
            self._write()

    def is_met(self, module: ModuleName, parameter: str, kind: str, wanted: str, shown: str | None) -> bool:
        """Whether a parameter has the desired value, given that it shows `shown`, or None if it cannot be read."""
        if shown is not None and same_value(kind, wanted, shown):
            return True
        record = self._known(module)
        if record is None:
            return False
        noted = record.held.get(parameter)
        if noted is not None and shown is not None:
            return noted[1] == shown and same_value(kind, wanted, noted[0])
        arguments = dict(record.given)
        if parameter not in arguments or not same_setting(kind, wanted, arguments[parameter]):
            return False
        if shown is not None:
            self._note(module, parameter, wanted, shown)
        return True

    def _known(self, module: ModuleName) -> _Known | None:
        record = self._modules.get(module)
        return record if record is not None and record.instance == self._instance(module) else None

    def _new(self, module: ModuleName) -> _Known:
        while len(self._modules) >= REMEMBERED:
            del self._modules[next(iter(self._modules))]
        record = self._modules[module] = _Known(self._instance(module))
        return record

    def _note(self, module: ModuleName, parameter: str, value: str, held: str) -> None:
        record = self._known(module) or self._new(module)
        if record.held.get(parameter) == (value, held):
            return
        if len(record.held) >= REMEMBERED:
            del record.held[next(iter(record.held))]
        record.held[parameter] = value, held
        self._write()

    def _write(self) -> None:
        modules = {
            name: [record.instance, record.given, [[parameter, *values] for parameter, values in record.held.items()]]
            for name, record in self._modules.items()
        }
        self._keep(json.dumps({"before": self._before, "modules": modules}).encode())

    def _take(self, kept: bytes) -> None:
        """Read what `_write` wrote; nothing of anything else, and of earlier versions what they knew of values that differ."""
        try:
            document = json.loads(kept)
            if isinstance(document, list):
                for module, parameter, given, held in document:
                    name = _name(module)
                    record = self._modules.setdefault(name, _Known(self._instance(name)))
                    record.held[_text(parameter)] = _text(given), _text(held)
                return
            modules = {
                _name(name): _Known(
                    _number(instance),
                    tuple((_text(key), None if value is None else _text(value)) for key, value in given),
                    {_text(parameter): (_text(value), _text(held)) for parameter, value, held in noted},
                )
                for name, (instance, given, noted) in document["modules"].items()
            }
            before = document["before"]
            self._before = (
                None if before is None else {_name(name): _number(instance) for name, instance in before.items()}
            )
            self._modules = modules
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self._modules = {}


def _name(value: object) -> ModuleName:
    if not is_module_name(_text(value)):
        raise ValueError("no module's name")
    return ModuleName(str(value))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _number(value: object) -> int:
    if type(value) is not int:
        raise TypeError("not a number")
    return value
