# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl reset-failed`."""

from argparse import Namespace

from kmodd.cli.session import Session
from kmodd.cli.text import clean


async def run(session: Session, arguments: Namespace) -> int:
    """Forget a failed operation."""
    session.authorize()
    await session.client.reset_failed(arguments.module)
    if session.json:
        session.document({"module": arguments.module})
    else:
        session.screen.tell(f"{clean(arguments.module)}: nothing failed is remembered any more")
    return 0
