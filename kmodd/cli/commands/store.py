# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl store`: versions of custom modules."""

import os
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress

from kmodd.cli import own_session
from kmodd.cli.output.screen import Screen
from kmodd.cli.output.table import Column, render
from kmodd.cli.output.text import clean, counted, size
from kmodd.cli.session import Session
from kmodd.client.store import Store, stored_module
from kmodd.errors import Conflict, Evidence, InvalidArgs, KmoddError, NoSuchModule
from kmodd.model import State
from kmodd.model.store import StoredModule

SHORT = 12


async def run_list(session: Session, arguments: Namespace) -> int:
    """Show every version."""
    wanted = arguments.module.replace("-", "_")
    data = [row for row in await Store(session.client).data("List") if not wanted or row["name"] == wanted]
    if session.json:
        session.document(data)
    else:
        session.screen.show(lines([stored_module(row) for row in data], session.screen))
    return 0


def lines(versions: Sequence[StoredModule], screen: Screen) -> list[str]:
    """The table."""
    if not versions:
        return ["No custom modules."] if screen.stdout.isatty() else []
    paint, glyphs = screen.paint, screen.glyphs
    header = [
        Column("", paint=paint.good),
        Column("MODULE", paint=paint.name),
        Column("VERSION"),
        Column("KERNEL"),
        Column("SIZE", right=True),
        Column("SHA256", paint=paint.dim),
        Column("SIGNED BY"),
        Column("DESCRIPTION", stretch=True),
    ]
    rows = [
        [
            glyphs.full if version.active else "",
            clean(version.name),
            clean(version.version),
            clean(version.kernel),
            size(version.size),
            version.sha256[:SHORT],
            clean(version.signer or ("unknown" if version.signed else "nobody")),
            clean(version.description),
        ]
        for version in versions
    ]
    table = render(screen, header, rows)
    summary = f"{counted(len(versions), 'version')}, {glyphs.full} is active"
    return [*table, "", paint.dim(summary)] if screen.stdout.isatty() else table


async def run_import(session: Session, arguments: Namespace) -> int:
    """Sign the file if requested, and pass it to the daemon."""
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
            file,
            version=arguments.version,
            description=arguments.description,
            shadow=arguments.shadow,
            reason=arguments.reason,
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
        message = f"this file is already in the store: {paint.name(name)} {version}"
        session.screen.tell(f"{paint.dim(glyphs.same)} {message}")
        return 0
    if arguments.dry_run:
        message = f"{paint.name(name)} would be imported as version {version}"
        session.screen.tell(f"{paint.good(glyphs.yes)} {message}{paint.dim(' (dry run, nothing was changed)')}")
        return 0
    session.screen.tell(f"{paint.good(glyphs.yes)} imported {paint.name(name)} {version}")
    session.screen.tell(paint.dim(f"  kmodctl store activate {name} {version} activates it"))
    return 0


async def run_switch(session: Session, arguments: Namespace) -> int:
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
    if arguments.load and arguments.disconnect and not arguments.dry_run:
        await own_session.confirm(session, [("reload", arguments.module, {})], {"disconnect": True})
    if arguments.verb == "activate":
        touched = await store.activate(
            arguments.module,
            arguments.version,
            load=arguments.load,
            disconnect=arguments.disconnect,
            kernel=arguments.kernel,
            dry_run=arguments.dry_run,
            reason=arguments.reason,
        )
        message = f"version {clean(arguments.version)} of {session.screen.paint.name(name)} {is_so} active"
    else:
        touched = await store.deactivate(
            arguments.module,
            load=arguments.load,
            disconnect=arguments.disconnect,
            kernel=arguments.kernel,
            dry_run=arguments.dry_run,
            reason=arguments.reason,
        )
        message = f"no version of {session.screen.paint.name(name)} from the store {is_so} active"
    if session.json:
        session.document({"module": arguments.module, "reloaded": list(touched)})
    else:
        paint, glyphs = session.screen.paint, session.screen.glyphs
        loaded = f", {await _became(session, arguments)}: {clean(' '.join(touched))}" if touched else ""
        verdict = paint.dim(" (dry run, nothing was changed)") if arguments.dry_run else ""
        session.screen.tell(f"{paint.good(glyphs.yes)} {message}{loaded}{verdict}")
    return 0


async def _became(session: Session, arguments: Namespace) -> str:
    """What became of a module that was touched: where no other one has its name, there is nothing to load in its place."""
    if arguments.verb == "activate":
        return "reloaded"
    # It is done, and what cannot be found out about it now does not make it fail.
    with suppress(KmoddError):
        if not arguments.dry_run:
            explanation = await session.client.explain(arguments.module)
            return "reloaded" if explanation.state in (State.LIVE, State.COMING) else "unloaded"
    return "reloaded or unloaded"


async def run_remove(session: Session, arguments: Namespace) -> int:
    """Remove a version that is not active."""
    session.authorize()
    try:
        await Store(session.client).remove(
            arguments.module, arguments.version, dry_run=arguments.dry_run, reason=arguments.reason
        )
    except NoSuchModule as error:
        error.evidence = Evidence(hint="kmodctl store list")
        raise
    except Conflict as error:
        error.evidence = Evidence(hint=f"kmodctl store deactivate {clean(arguments.module)}")
        raise
    if session.json:
        session.document({"module": arguments.module, "version": arguments.version, "removed": not arguments.dry_run})
    else:
        paint, glyphs = session.screen.paint, session.screen.glyphs
        done = "would remove" if arguments.dry_run else "removed"
        message = f"{done} version {clean(arguments.version)} of {paint.name(clean(arguments.module))}"
        session.screen.tell(f"{paint.good(glyphs.yes)} {message}")
    return 0
