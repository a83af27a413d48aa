# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl store activate` and `deactivate`."""

from argparse import Namespace
from contextlib import suppress

from kmodd.cli.session import Session
from kmodd.cli.text import clean
from kmodd.client_store import Store
from kmodd.errors import Evidence, KmoddError, NoSuchModule
from kmodd.model import State


async def run(session: Session, arguments: Namespace) -> int:
    """Bring a version into force, or take it out."""
    session.authorize()
    try:
        return await _switch(session, arguments)
    except NoSuchModule as error:
        # Not one of the kernel's: what it is called there says nothing.
        error.evidence = Evidence(hint="kmodctl store list")
        raise


async def _switch(session: Session, arguments: Namespace) -> int:
    store = Store(session.client)
    name = clean(arguments.module)
    is_so = "would be" if arguments.dry_run else "is"
    if arguments.verb == "activate":
        touched = await store.activate(
            arguments.module,
            arguments.version,
            load=arguments.load,
            kernel=arguments.kernel,
            dry_run=arguments.dry_run,
        )
        said = f"version {clean(arguments.version)} of {session.screen.paint.name(name)} {is_so} active"
    else:
        touched = await store.deactivate(
            arguments.module, load=arguments.load, kernel=arguments.kernel, dry_run=arguments.dry_run
        )
        said = f"no version of {session.screen.paint.name(name)} from the store {is_so} active"
    if session.json:
        session.document({"module": arguments.module, "reloaded": list(touched)})
    else:
        paint, glyphs = session.screen.paint, session.screen.glyphs
        loaded = f", {await _became(session, arguments)}: {clean(' '.join(touched))}" if touched else ""
        verdict = paint.dim(" (nothing was changed: dry run)") if arguments.dry_run else ""
        session.screen.tell(f"{paint.good(glyphs.yes)} {said}{loaded}{verdict}")
    return 0


async def _became(session: Session, arguments: Namespace) -> str:
    """What became of a module that was touched: where no other one has its name, there is nothing to load in its place."""
    if arguments.verb == "activate":
        return "loaded anew"
    # It is done, and what cannot be found out about it now does not make it fail.
    with suppress(KmoddError):
        if not arguments.dry_run:
            explanation = await session.client.explain(arguments.module)
            return "loaded anew" if explanation.state in (State.LIVE, State.COMING) else "unloaded"
    return "loaded anew or unloaded"
