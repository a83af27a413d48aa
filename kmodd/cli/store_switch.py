# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl store activate` and `deactivate`."""

from argparse import Namespace

from kmodd.cli.session import Session
from kmodd.cli.text import clean
from kmodd.client_store import Store
from kmodd.errors import Evidence, NoSuchModule


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
    if arguments.verb == "activate":
        touched = await store.activate(
            arguments.module,
            arguments.version,
            load=arguments.load,
            kernel=arguments.kernel,
            dry_run=arguments.dry_run,
        )
        said = f"version {clean(arguments.version)} of {session.screen.paint.name(name)} is active"
    else:
        touched = await store.deactivate(
            arguments.module, load=arguments.load, kernel=arguments.kernel, dry_run=arguments.dry_run
        )
        said = f"no version of {session.screen.paint.name(name)} from the store is active"
    if session.json:
        session.document({"module": arguments.module, "reloaded": list(touched)})
    else:
        paint, glyphs = session.screen.paint, session.screen.glyphs
        loaded = f", loaded anew: {clean(' '.join(touched))}" if touched else ""
        verdict = paint.dim(" (nothing was changed: dry run)") if arguments.dry_run else ""
        session.screen.tell(f"{paint.good(glyphs.yes)} {said}{loaded}{verdict}")
    return 0
