# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl set`, and parameters as people write them."""

from argparse import Namespace
from collections.abc import Sequence

from kmodd.cli.session import Session
from kmodd.cli.text import clean
from kmodd.errors import Evidence, InvalidArgs


def parse_pairs(words: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` words as parameters, in their order; the daemon checks names and values."""
    parameters: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise InvalidArgs(
                f"'{clean(word)}' is not a parameter of the form NAME=VALUE",
                evidence=Evidence(hint="a switch is written as NAME=1 or NAME=y"),
            )
        if name in parameters:
            raise InvalidArgs(f"parameter {clean(name)} is given twice")
        parameters[name] = value
    return parameters


async def run(session: Session, arguments: Namespace) -> int:
    """Write a live parameter."""
    session.authorize()
    held = await session.client.set_parameter(arguments.module, arguments.parameter, arguments.value)
    if session.json:
        session.document({"module": arguments.module, "parameter": arguments.parameter, "value": held})
        return 0
    paint = session.screen.paint
    note = "" if held == arguments.value else paint.warn(f"  (the kernel made this of '{clean(arguments.value)}')")
    session.screen.tell(f"{clean(arguments.module)}: {clean(arguments.parameter)} = {paint.bold(clean(held))}{note}")
    return 0
