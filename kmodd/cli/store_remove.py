# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl store remove`."""

from argparse import Namespace
from collections.abc import Sequence

from kmodd.cli.session import Session
from kmodd.cli.text import clean
from kmodd.client_store import Store
from kmodd.errors import Conflict, Evidence, NoSuchModule, NoSuchVersion
from kmodd.model.store import StoredModule


async def run(session: Session, arguments: Namespace) -> int:
    """Remove a version that is not active."""
    store = Store(session.client)
    if arguments.dry_run:
        _check(await store.list(), arguments.module, arguments.version)
    else:
        session.authorize()
        try:
            await store.remove(arguments.module, arguments.version)
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
        said = f"{done} version {clean(arguments.version)} of {paint.name(clean(arguments.module))}"
        session.screen.tell(f"{paint.good(glyphs.yes)} {said}")
    return 0


def _check(versions: Sequence[StoredModule], module: str, version: str) -> None:
    """What `Remove` would refuse, told from `List`: its signature is fixed and has no options. Asks for no authorisation."""
    name = module.replace("-", "_")
    of_name = [one for one in versions if one.name == name]
    found = [one for one in of_name if one.version == version]
    if not of_name:
        hint = Evidence(hint="kmodctl store list")
        raise NoSuchModule(f"there is no module {clean(name)} in the store", module=name, evidence=hint)
    if not found:
        raise NoSuchVersion(f"there is no such version of {clean(name)} in the store", module=name)
    for one in found:
        if one.active:
            said = f"this version of {clean(name)} is active for kernel {clean(one.kernel)}"
            raise Conflict(said, module=name, evidence=Evidence(hint=f"kmodctl store deactivate {clean(name)}"))
