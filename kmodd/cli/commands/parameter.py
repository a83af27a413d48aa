# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl set`, and the syntax of parameters on the command line."""

from argparse import Namespace
from collections.abc import Sequence

from kmodd.cli.output.text import clean
from kmodd.cli.session import Session
from kmodd.errors import Evidence, InvalidArgs
from kmodd.suggestions import load_several, several_names


def parse_pairs(words: Sequence[str], module: str = "") -> dict[str, str]:
    """`NAME=VALUE` words as parameters, in their order; the daemon checks names and values.

    With the module that is to be loaded, the hint about words that may be modules too is a command.
    """
    parameters: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name:
            names = several_names(" ".join((module, *words))) if module else ()
            several = load_several(names) if names else "kmodctl batch takes several modules, one on each line"
            raise InvalidArgs(
                f"'{clean(word)}' is not a parameter of the form NAME=VALUE",
                evidence=Evidence(hint=f"write a switch as NAME=1 or NAME=y; {several}"),
            )
        if name in parameters:
            raise InvalidArgs(f"parameter {clean(name)} is given twice")
        parameters[name] = value
    return parameters


async def run(session: Session, arguments: Namespace) -> int:
    """Write a live parameter."""
    session.authorize()
    held = await session.client.set_parameter(
        arguments.module, arguments.parameter, arguments.value, **session.asking(arguments)
    )
    if session.json:
        session.document({"module": arguments.module, "parameter": arguments.parameter, "value": held})
        return 0
    paint = session.screen.paint
    note = "" if held == arguments.value else paint.warn(f"  (the kernel stored this for '{clean(arguments.value)}')")
    session.screen.tell(f"{clean(arguments.module)}: {clean(arguments.parameter)} = {paint.bold(clean(held))}{note}")
    return 0
