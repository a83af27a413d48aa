# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl load`, `unload`, `reload`, their dry runs, and `reset-failed`."""

from argparse import Namespace
from dataclasses import replace
from shlex import quote

from kmodd.cli import own_session
from kmodd.cli.commands import plan
from kmodd.cli.commands.parameter import parse_pairs
from kmodd.cli.output.text import clean
from kmodd.cli.session import Session
from kmodd.errors import Conflict, Evidence, InvalidArgs
from kmodd.model import Verb
from kmodd.names import is_module_name
from kmodd.suggestions import file_module, is_module_file

_MEMBERS = {Verb.LOAD: "Load", Verb.UNLOAD: "Unload", Verb.RELOAD: "Reload"}


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
        return await plan.show(session, [(verb.value, arguments.module, parameters)], switches)
    options: dict[str, object] = dict(switches)
    if arguments.reason:
        options["reason"] = arguments.reason
    if arguments.timeout is not None:
        options["timeout"] = arguments.timeout
    values = (arguments.module,) if verb is Verb.UNLOAD else (arguments.module, parameters)
    if switches.get("disconnect"):
        await own_session.confirm(session, [(verb.value, arguments.module, parameters)], switches)
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
