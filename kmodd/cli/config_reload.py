# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl config reload`."""

from argparse import Namespace

from kmodd.cli.session import Session
from kmodd.client_configuration import Configuration


async def run(session: Session, _: Namespace) -> int:
    """Have kmodd read its files again."""
    session.authorize()
    await Configuration(session.client).reload()
    if session.json:
        session.document({"reloaded": True})
    else:
        paint, glyphs = session.screen.paint, session.screen.glyphs
        session.screen.tell(f"{paint.good(glyphs.yes)} kmodd has read its files again")
    return 0
