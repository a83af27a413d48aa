# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl load`, `unload` and `reload`, and their dry runs."""

from argparse import Namespace
from dataclasses import replace

from kmodd.cli import plan
from kmodd.cli.parameter import parse_pairs
from kmodd.cli.session import Session
from kmodd.cli.text import clean
from kmodd.errors import Conflict
from kmodd.model import Verb

_MEMBERS = {Verb.LOAD: "Load", Verb.UNLOAD: "Unload", Verb.RELOAD: "Reload"}


async def run(session: Session, arguments: Namespace) -> int:
    """Change one module, or show what that would take."""
    verb = Verb(arguments.verb)
    parameters = parse_pairs(getattr(arguments, "parameters", ()))
    switches = {
        name: True
        for name in ("override_policy", "dependents", "unused_dependencies")
        if getattr(arguments, name, False)
    }
    if arguments.dry_run:
        return await plan.show(session, [(verb.value, arguments.module, parameters)], switches)
    options: dict[str, object] = dict(switches)
    if arguments.reason:
        options["reason"] = arguments.reason
    if arguments.timeout is not None:
        options["timeout"] = arguments.timeout
    given = (arguments.module,) if verb is Verb.UNLOAD else (arguments.module, parameters)
    session.authorize()
    try:
        touched = await session.client.data(_MEMBERS[verb], *given, options=options)
    except Conflict as error:
        if verb is Verb.LOAD and not error.evidence.hint:
            name = arguments.module
            hint = (
                f"kmodctl reload {name} NAME=VALUE loads it anew; kmodctl set {name} NAME VALUE, where it is writable"
            )
            error.evidence = replace(error.evidence, hint=hint)
        raise
    key = "removed" if verb is Verb.UNLOAD else "inserted"
    if session.json:
        session.document({"module": arguments.module, key: touched})
    else:
        session.screen.tell(_sentence(session, arguments.module, key, touched))
    return 0


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
