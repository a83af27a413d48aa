# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl store remove`."""

from argparse import Namespace

from kmodd.cli.session import Session
from kmodd.cli.text import clean
from kmodd.client_store import Store


async def run(session: Session, arguments: Namespace) -> int:
    """Remove a version that is not active."""
    session.authorize()
    await Store(session.client).remove(arguments.module, arguments.version)
    if session.json:
        session.document({"module": arguments.module, "version": arguments.version, "removed": True})
    else:
        paint, glyphs = session.screen.paint, session.screen.glyphs
        said = f"removed version {clean(arguments.version)} of {paint.name(clean(arguments.module))}"
        session.screen.tell(f"{paint.good(glyphs.yes)} {said}")
    return 0
