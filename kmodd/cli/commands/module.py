# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl load`, `unload`, `reload`, `plan`, `hold`, `set` and `reset-failed`, and the syntax of parameters."""

import asyncio
import os
import shutil
import signal
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from shlex import quote
from typing import Any

from kmodd.cli import failure
from kmodd.cli.output.screen import Screen
from kmodd.cli.output.text import clean, columns, counted, parse_span, wrap
from kmodd.cli.session import Session, confirm_disconnect
from kmodd.client import Operation
from kmodd.client.replies import step
from kmodd.errors import Conflict, Evidence, InvalidArgs
from kmodd.model import Step, StepAction, Verb
from kmodd.names import is_module_name
from kmodd.suggestions import file_module, is_module_file, load_several, several_names

_DEEDS = {
    StepAction.INSERT: ("insert", "module"),
    StepAction.REMOVE: ("remove", "module"),
    StepAction.SET_PARAMETER: ("set", "parameter"),
    StepAction.RESET_FAILED: ("reset", "failure"),
}
_MEMBERS = {Verb.LOAD: "Load", Verb.UNLOAD: "Unload", Verb.RELOAD: "Reload"}
NOT_FOUND = 127
"""As a shell, env(1) and systemd-inhibit(1) report a command that is not there..."""
NOT_RUN = 126
"""...and one that cannot be run."""
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP)


def parse_pairs(words: Sequence[str], module: str = "") -> dict[str, str]:
    """`NAME=VALUE` words as parameters, in their order; the daemon checks names and values.

    With the module that is to be loaded, the hint about words that may be modules too is a command.
    """
    parameters: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name:
            names = several_names(" ".join((module, *words))) if module else ()
            several = load_several(names) if names else "kmodctl batch takes several modules, one on each line"
            raise InvalidArgs(
                f"'{clean(word)}' is not a parameter of the form NAME=VALUE",
                evidence=Evidence(hint=f"write a switch as NAME=1 or NAME=y; {several}"),
            )
        if name in parameters:
            raise InvalidArgs(f"parameter {clean(name)} is given twice")
        parameters[name] = value
    return parameters


async def run_set(session: Session, arguments: Namespace) -> int:
    """Write a live parameter."""
    session.authorize()
    held = await session.client.set_parameter(
        arguments.module, arguments.parameter, arguments.value, **session.asking(arguments)
    )
    if session.json:
        session.document({"module": arguments.module, "parameter": arguments.parameter, "value": held})
        return 0
    paint = session.screen.paint
    note = "" if held == arguments.value else paint.warn(f"  (the kernel stored this for '{clean(arguments.value)}')")
    session.screen.tell(f"{clean(arguments.module)}: {clean(arguments.parameter)} = {paint.bold(clean(held))}{note}")
    return 0


async def show_plan(session: Session, operations: Sequence[Operation], options: Mapping[str, object]) -> int:
    """Ask for the plan and show it; the exit status is that of its first known failure."""
    data: list[dict[str, Any]] = await session.client.data("Plan", operations, options=options)
    steps = [step(row) for row in data]
    error = next((each.error for each in steps if each.error is not None), None)
    if session.json:
        session.document(data)
    else:
        session.screen.show(plan_lines(operations, steps, session.screen))
    return error.exit_code if error is not None else 0


def plan_lines(operations: Sequence[Operation], steps: Sequence[Step], screen: Screen) -> list[str]:
    """The plan as text, ending with the verdict."""
    paint = screen.paint
    text: list[str] = []
    width = max((columns(clean(each.module)) for each in steps), default=0)
    for number, (verb, module, parameters) in enumerate(operations):
        arguments = "".join(f" {name}={value}" for name, value in parameters.items())
        text.append(paint.bold(f"{verb} {clean(module)}{clean(arguments)}"))
        own = [each for each in steps if each.operation == number]
        if not own:
            text.append(f"  {paint.dim(f'{screen.glyphs.same} nothing to do')}")
        for own_step in own:
            text += _step(own_step, screen, width)
    return [*text, "", _verdict(steps, screen)]


def _step(each: Step, screen: Screen, width: int) -> list[str]:
    paint, glyphs = screen.paint, screen.glyphs
    name = clean(each.module)
    padding = " " * (width - columns(name))
    because = clean(each.because) + (", may fail" if each.optional else "")
    if each.error is not None:
        head = (
            f"  {paint.bad(glyphs.no)} {each.action.value} {paint.name(name)}{padding}  {paint.bad(each.error.title)}"
        )
        room = screen.fits(6) or 100
        why = [f"      {line}" for line in wrap(clean(each.error.message), room)]
        return [head, *why, *_goes(each, screen), *failure.hint_lines(each.error, screen, indent=6)]
    mark = paint.warn(glyphs.arrow) if each.action is StepAction.REMOVE else paint.good(glyphs.arrow)
    head = f"  {mark} {each.action.value} {paint.name(name)}{padding}  {paint.dim(because)}".rstrip()
    arguments = clean(" ".join(value or "" for _, value in each.parameters))
    return [head, *([f"      with {arguments}"] if arguments else []), *_goes(each, screen)]


def _goes(each: Step, screen: Screen) -> list[str]:
    """What goes with a module that is removed."""
    room = screen.fits(6) or 100
    return [f"      {screen.paint.warn(line)}" for text in each.goes for line in wrap(clean(text), room)]


def _verdict(steps: Sequence[Step], screen: Screen) -> str:
    paint, glyphs = screen.paint, screen.glyphs
    error = next((each.error for each in steps if each.error is not None), None)
    if error is not None:
        return f"{paint.bad('This would fail')} ({error.name()}). Nothing was changed."
    if not steps:
        return "Nothing to do."
    counts = Counter(each.action for each in steps)
    parts = [f"{verb} {counted(counts[action], noun)}" for action, (verb, noun) in _DEEDS.items() if counts[action]]
    return f"{paint.good(glyphs.yes)} This would {' and '.join(parts)}. Nothing was changed."


async def run(session: Session, arguments: Namespace) -> int:
    """Change one module, or show what that would take."""
    verb = Verb(arguments.verb)
    if verb is not Verb.UNLOAD and is_module_file(arguments.module):
        raise _no_file(arguments.module)
    parameters = parse_pairs(getattr(arguments, "parameters", ()), arguments.module if verb is Verb.LOAD else "")
    switches = {
        name: True
        for name in ("override_policy", "dependents", "unused_dependencies", "disconnect")
        if getattr(arguments, name, False)
    }
    if arguments.dry_run:
        return await show_plan(session, [(verb.value, arguments.module, parameters)], switches)
    if getattr(arguments, "trial", ""):
        return await _try(session, arguments, parameters)
    options: dict[str, object] = dict(switches)
    if arguments.reason:
        options["reason"] = arguments.reason
    if arguments.timeout is not None:
        options["timeout"] = arguments.timeout
    values = (arguments.module,) if verb is Verb.UNLOAD else (arguments.module, parameters)
    if switches.get("disconnect"):
        await confirm_disconnect(session, [(verb.value, arguments.module, parameters)], switches)
    session.authorize()
    try:
        touched = await session.client.data(_MEMBERS[verb], *values, options=options)
    except Conflict as error:
        if verb is Verb.LOAD and not error.evidence.hint:
            name = arguments.module
            hint = f"kmodctl reload {name} NAME=VALUE reloads it; kmodctl set {name} NAME VALUE, where it is writable"
            error.evidence = replace(error.evidence, hint=hint)
        raise
    key = "removed" if verb is Verb.UNLOAD else "inserted"
    if session.json:
        session.document({"module": arguments.module, key: touched})
    else:
        session.screen.tell(_sentence(session, arguments.module, key, touched))
    return 0


async def _try(session: Session, arguments: Namespace, parameters: Mapping[str, str]) -> int:
    """Load it by a lease, which ends with this process, with its terminal and with the boot; and as usual once that is confirmed."""
    if arguments.override_policy or arguments.timeout is not None:
        raise InvalidArgs("--try takes neither --override-policy nor --timeout")
    seconds, name = parse_span(arguments.trial), clean(arguments.module)
    session.authorize()
    steps = await session.client.plan([("load", arguments.module, parameters)])
    if not steps:
        session.screen.tell(f"{name} is loaded already")
        return 0
    lease = await session.client.hold(arguments.module, parameters, **session.asking(arguments))
    try:
        screen = session.screen
        screen.stderr.write(f"{name} is loaded, and goes again in {clean(arguments.trial)}. Keep it? [y/N] ")
        screen.stderr.flush()
        answer = screen.stdin.readline() if await _readable(screen.stdin.fileno(), seconds) else "\n"
        if answer.strip().lower() not in ("y", "yes"):
            raise Conflict(f"{name} was not confirmed, so it is unloaded again")
        # What is requested without a lease stays when the lease ends.
        await session.client.load(arguments.module)
    finally:
        os.close(lease)
    if session.json:
        session.document({"module": arguments.module, "kept": True})
    else:
        screen.tell(f"{name} stays loaded")
    return 0


async def _readable(descriptor: int, seconds: float) -> bool:
    """Wait for an answer; True as well where there is nothing to wait for: a file, or the end of the input."""
    loop, there = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(descriptor, there.set)
    except PermissionError:  # epoll(7) takes no regular files
        return True
    try:
        await asyncio.wait_for(there.wait(), seconds)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
    return True


def _no_file(path: str) -> InvalidArgs:
    """insmod takes a file; the daemon loads what is in the module tree or in its store."""
    name = file_module(path)
    load = f"load a module from the module tree with: kmodctl load {name}; " if is_module_name(name) else ""
    return InvalidArgs(
        f"{clean(quote(path))} is a file, but modules are loaded by name",
        evidence=Evidence(hint=f"{load}import a custom module with: kmodctl store import {clean(quote(path))}"),
    )


def _sentence(session: Session, module: str, key: str, touched: list[str]) -> str:
    paint, glyphs = session.screen.paint, session.screen.glyphs
    name = clean(module)
    if not touched:
        state = "not loaded" if key == "removed" else "already loaded or built in"
        return f"{paint.dim(glyphs.same)} {name} is {state}, nothing to do"
    mark = paint.good(glyphs.yes)
    if len(touched) == 1:
        return f"{mark} {key} {paint.name(clean(touched[0]))}"
    chain = f" {glyphs.arrow} ".join(paint.name(clean(item)) for item in touched)
    return f"{mark} {key} {chain}"


async def run_reset(session: Session, arguments: Namespace) -> int:
    """Forget a failed operation."""
    session.authorize()
    await session.client.reset_failed(arguments.module, **session.asking(arguments))
    if session.json:
        session.document({"module": arguments.module})
    else:
        session.screen.tell(f"{clean(arguments.module)}: cleared the recorded failure")
    return 0


async def run_hold(session: Session, arguments: Namespace) -> int:
    """Hold the module while the command runs, and answer the command's exit status; 128 and the signal's number where one ended it."""
    if not arguments.command:
        raise InvalidArgs("hold needs a command behind --")
    command = arguments.command
    if shutil.which(command[0]) is None:
        session.screen.complain([f"kmodctl: {clean(command[0])}: command not found"])
        return NOT_FOUND
    parameters = parse_pairs(arguments.parameters, arguments.module)
    session.authorize()
    lease = await session.client.hold(arguments.module, parameters, **session.asking(arguments))
    loop = asyncio.get_running_loop()

    def over() -> None:
        loop.remove_reader(lease)
        session.screen.complain([f"kmodctl: the lease is over: {clean(arguments.module)} may be unloaded"])

    try:
        try:
            process = await asyncio.create_subprocess_exec(*command)
        except OSError as error:
            session.screen.complain([f"kmodctl: {clean(command[0])}: {error.strerror}"])
            return NOT_RUN
        loop.add_reader(lease, over)
        # The terminal sends the first two to the command as well, and that decides.
        for number in (signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, lambda: None)
        for number in _PASSED_ON:
            loop.add_signal_handler(number, process.send_signal, number)
        status = await process.wait()
    finally:
        loop.remove_reader(lease)
        os.close(lease)
    return status if status >= 0 else 128 - status
