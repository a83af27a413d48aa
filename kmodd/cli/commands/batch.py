# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl batch`, whose operations are lines or JSON, and the progress line of the caller's job.

    # comment
    load dummy numdummies=2
    unload loop
    reload kvm_intel nested=1 "name=with spaces"
    set-parameter loop max_loop=16
    reset-failed nouveau

or JSON: `[{"action": "load", "module": "dummy", "parameters": {"numdummies": "2"}}, …]`.
"""

import asyncio
import shlex
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from kmodd.cli import failure
from kmodd.cli.commands.module import parse_pairs, show_plan
from kmodd.cli.output.screen import Screen
from kmodd.cli.output.text import clean, columns, listed, shorten
from kmodd.cli.session import Session, confirm_disconnect
from kmodd.client import JOB, OBJECTS, PROPERTIES, Client, Operation, Signal, SignalStream
from kmodd.client.replies import operation_result
from kmodd.errors import InvalidArgs, KmoddError
from kmodd.model import OperationResult, Result, Verb
from kmodd.names import BATCH_MAX

_WORDS = {
    Result.CHANGED: "changed",
    Result.UNCHANGED: "unchanged",
    Result.FAILED: "failed",
    Result.ROLLED_BACK: "rolled back",
    Result.SKIPPED: "not tried",
}
SIZE_MAX = 1 << 20
"""Characters read at most."""
BAR = 24


async def run(session: Session, arguments: Namespace) -> int:
    """Do a batch, or show what it would take."""
    operations = parse_operations(_read(arguments.file, session.screen))
    options: dict[str, object] = {"atomic": not arguments.no_atomic}
    if arguments.disconnect:
        options["disconnect"] = True
    if arguments.dry_run:
        return await show_plan(session, operations, options)
    if arguments.reason:
        options["reason"] = arguments.reason
    if arguments.disconnect:
        await confirm_disconnect(session, operations, {"disconnect": True})
    session.authorize()
    async with progress_shown(session.client, session.screen):
        rows = await session.client.data("Batch", operations, options=options)
    results = [operation_result(row) for row in rows]
    if session.json:
        session.document(rows)
    else:
        session.screen.show(lines(operations, results, session.screen))
    return next((result.error.exit_code for result in results if result.error is not None), 0)


def _read(file: str, screen: Screen) -> str:
    try:
        if file == "-":
            return screen.stdin.read(SIZE_MAX)
        with Path(file).open(encoding="utf-8") as stream:
            return stream.read(SIZE_MAX)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not valid UTF-8"
        raise InvalidArgs(f"cannot read {clean(file)}: {reason}") from error


def lines(operations: Sequence[Operation], results: Sequence[OperationResult], screen: Screen) -> list[str]:
    """One line for each operation, and what it came to; below a failure what to do about it."""
    paint, glyphs = screen.paint, screen.glyphs
    marks = {
        Result.CHANGED: paint.good(glyphs.yes),
        Result.UNCHANGED: paint.dim(glyphs.same),
        Result.FAILED: paint.bad(glyphs.no),
        Result.ROLLED_BACK: paint.warn(glyphs.undone),
        Result.SKIPPED: paint.dim(glyphs.empty),
    }
    width = max(columns(clean(module)) for _, module, _ in operations)
    verbs = max(len(Verb.UNLOAD), *(len(verb) for verb, _, _ in operations))
    text = []
    for (verb, module, _), result in zip(operations, results, strict=True):
        name = clean(module)
        padding = " " * (width - columns(name))
        text.append(
            f"{marks[result.result]} {verb:<{verbs}}  {paint.name(name)}{padding}  {_outcome(result, screen)}".rstrip()
        )
        text += failure.hint_lines(result.error, screen, indent=4)
    counts = Counter(result.result for result in results)
    summary = ", ".join(f"{counts[kind]} {word}" for kind, word in _WORDS.items() if counts[kind])
    return [*text, "", summary]


def _outcome(result: OperationResult, screen: Screen) -> str:
    paint = screen.paint
    if result.error is not None:
        return paint.bad(clean(result.error.message) or result.error.title)
    if result.result is Result.CHANGED:
        return clean(listed(result.touched))
    return paint.dim(_WORDS[result.result])


def parse_operations(text: str) -> list[Operation]:
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


@asynccontextmanager
async def progress_shown(client: Client, screen: Screen) -> AsyncIterator[None]:
    """Show the progress of the job this connection starts, while the block runs."""
    if not screen.stderr.isatty() or screen.environment.get("TERM", "dumb") == "dumb":
        yield
        return
    async with client.signals() as stream:
        task = asyncio.create_task(_follow(stream, client, screen))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, KmoddError):
                await task
            screen.stderr.write("\r\x1b[K")
            screen.stderr.flush()


async def _follow(stream: SignalStream, client: Client, screen: Screen) -> None:
    job = ""
    last = ""
    async for signal in stream:
        if signal.interface == OBJECTS and signal.member == "InterfacesAdded":
            # Whose job it is stands in no signal: the daemon tells it to the one who started it.
            if JOB in signal.arguments[1] and await client.started_by_us(str(signal.arguments[0])):
                job = str(signal.arguments[0])
        elif signal.member == "ModuleAdded":
            last = f"inserted {clean(signal.arguments[0])}"
        elif signal.member == "ModuleRemoved":
            last = f"removed {clean(signal.arguments[0])}"
        elif job and signal.path == job:
            _draw(signal, last, screen)


def _draw(signal: Signal, last: str, screen: Screen) -> None:
    if signal.interface != PROPERTIES or "Progress" not in signal.arguments[1]:
        return
    line = f"\r\x1b[K{progress_bar(signal.arguments[1]['Progress'], last, screen)}"
    screen.stderr.write(line)
    screen.stderr.flush()


def progress_bar(progress: float, last: str, screen: Screen) -> str:
    """The line itself, narrower than the terminal."""
    done = round(min(max(progress, 0.0), 1.0) * BAR)
    full, empty = ("━", "─") if screen.glyphs.arrow == "→" else ("#", ".")
    text = f"{full * done}{empty * (BAR - done)} {progress:4.0%}"
    return shorten(f"{text}  {last}".rstrip(), (screen.width or 80) - 1, screen.glyphs.ellipsis)
