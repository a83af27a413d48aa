# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl store import`."""

import os
from argparse import Namespace
from dataclasses import replace

from kmodd.cli.session import Session
from kmodd.cli.text import clean
from kmodd.client_store import Store
from kmodd.errors import BadSignature, InvalidArgs, KmoddError, LimitsExceeded, UnknownSymbol


async def run(session: Session, arguments: Namespace) -> int:
    """Sign the file if so wished, and hand it over."""
    try:
        return await _import(session, arguments)
    except KmoddError as error:
        # What is said of these errors elsewhere is of a module that is loaded from the tree.
        if not error.evidence.hint and (hint := what_helps(error)):
            error.evidence = replace(error.evidence, hint=hint)
        raise


def what_helps(error: KmoddError) -> str:
    """A hint of what to do about a file that was not taken; empty for what any command says of such an error."""
    match error:
        case UnknownSymbol():
            return "import and activate the modules it depends on first, or rebuild it for this kernel"
        case BadSignature() if "no signature" in error.message:
            return "kmodctl store import --sign KEY CERT FILE"
        case LimitsExceeded() if "under way" not in error.message and "waiting" not in error.message:
            return "kmodctl store remove makes room, and kmodd.toml(5) has the limits"
        case _:
            return ""


async def _import(session: Session, arguments: Namespace) -> int:
    try:
        # O_NONBLOCK: a FIFO would wait for a writer here; the daemon says that it wants a file.
        file = os.open(arguments.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidArgs(f"{clean(arguments.file)} cannot be read: {error.strerror}") from error
    try:
        if arguments.sign:
            from kmodd.cli.store_signing import signed  # subprocess, only where it is needed

            plain, file = file, -1
            file = signed(plain, *arguments.sign)
        session.authorize()
        store = Store(session.client)
        send = store.try_file if arguments.dry_run else store.import_file
        imported = await send(
            file, version=arguments.version, description=arguments.description, shadow=arguments.shadow
        )
    finally:
        if file >= 0:
            os.close(file)
    if session.json:
        session.document({"name": imported.name, "version": imported.version, "sha256": imported.sha256})
        return 0
    paint, glyphs = session.screen.paint, session.screen.glyphs
    name, version = clean(imported.name), clean(imported.version)
    if arguments.version and arguments.version != imported.version:
        said = f"this very file is in the store already: {paint.name(name)} {version}"
        session.screen.tell(f"{paint.dim(glyphs.same)} {said}")
        return 0
    if arguments.dry_run:
        said = f"{paint.name(name)} would be imported as version {version}"
        session.screen.tell(f"{paint.good(glyphs.yes)} {said}{paint.dim(' (nothing was changed: dry run)')}")
        return 0
    session.screen.tell(f"{paint.good(glyphs.yes)} imported {paint.name(name)} {version}")
    session.screen.tell(paint.dim(f"  kmodctl store activate {name} {version} brings it into force"))
    return 0
