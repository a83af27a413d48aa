# SPDX-License-Identifier: LGPL-2.1-or-later
"""Parses the operations of a batch, as lines or as JSON.

    # comment
    load dummy numdummies=2
    unload loop
    reload kvm_intel nested=1 "name=with spaces"
    set-parameter loop max_loop=16
    reset-failed nouveau

or JSON: `[{"action": "load", "module": "dummy", "parameters": {"numdummies": "2"}}, …]`.
"""

import shlex
from collections.abc import Mapping

from kmodd.cli.commands.parameter import parse_pairs
from kmodd.cli.output.text import clean
from kmodd.client import Operation
from kmodd.errors import InvalidArgs
from kmodd.model import Verb
from kmodd.names import BATCH_MAX

SIZE_MAX = 1 << 20
"""Characters read at most."""


def parse(text: str) -> list[Operation]:
    """Parse either form; InvalidArgs names the line or the entry."""
    operations = _json(text) if text.lstrip().startswith(("[", "{")) else _lines(text)
    if not operations:
        raise InvalidArgs("the batch has no operations")
    if len(operations) > BATCH_MAX:
        raise InvalidArgs(f"a batch has at most {BATCH_MAX} operations, this one has {len(operations)}")
    return operations


def _lines(text: str) -> list[Operation]:
    operations: list[Operation] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise InvalidArgs(f"line {number}: {str(error).lower()}") from None
        if not words:
            continue
        try:
            operations.append(_operation(words))
        except InvalidArgs as error:
            raise InvalidArgs(f"line {number}: {error.message}", evidence=error.evidence) from None
    return operations


def _operation(words: list[str]) -> Operation:
    verb = _verb(words[0])
    if len(words) < 2:
        raise InvalidArgs(f"'{verb}' needs a module")
    parameters = parse_pairs(words[2:])
    _check(verb, parameters)
    return verb, words[1], parameters


def _check(verb: str, parameters: Mapping[str, str]) -> None:
    if verb in (Verb.UNLOAD, Verb.RESET_FAILED) and parameters:
        raise InvalidArgs(f"'{verb}' takes no parameters")
    if verb == Verb.SET_PARAMETER and not parameters:
        raise InvalidArgs(f"'{verb}' needs a parameter, as NAME=VALUE")


def _verb(word: str) -> str:
    try:
        return Verb(word).value
    except ValueError:
        raise InvalidArgs(f"'{clean(word)}' is none of {', '.join(Verb)}") from None


def _json(text: str) -> list[Operation]:
    import json  # only for a batch in JSON

    try:
        entries = json.loads(text)
    except ValueError as error:
        raise InvalidArgs(f"the batch is not valid JSON: {error}") from None
    if not isinstance(entries, list):
        raise InvalidArgs("a batch in JSON must be a list")
    return [_entry(entry, number) for number, entry in enumerate(entries, 1)]


def _entry(entry: object, number: int) -> Operation:
    if not isinstance(entry, dict) or not {"action", "module"} <= entry.keys() <= {"action", "module", "parameters"}:
        raise InvalidArgs(f"entry {number} needs 'action' and 'module', and may have 'parameters'")
    module, parameters = entry["module"], entry.get("parameters", {})
    scalars = isinstance(parameters, dict) and all(isinstance(value, (str, int)) for value in parameters.values())
    if not isinstance(module, str) or not scalars:
        raise InvalidArgs(
            f"entry {number}: 'module' must be a string, 'parameters' an object of strings, numbers and booleans"
        )
    return _verb(str(entry["action"])), module, {str(name): _value(value) for name, value in parameters.items()}


def _value(value: str | int) -> str:
    return ("Y" if value else "N") if isinstance(value, bool) else str(value)
