# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl hold`: a module is there as long as a command runs."""

import asyncio
import os
import shutil
import signal
from argparse import Namespace

from kmodd.cli.commands.parameter import parse_pairs
from kmodd.cli.output.text import clean
from kmodd.cli.session import Session
from kmodd.errors import InvalidArgs

NOT_FOUND = 127
"""As a shell, env(1) and systemd-inhibit(1) report a command that is not there..."""
NOT_RUN = 126
"""...and one that cannot be run."""
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP)


async def run(session: Session, arguments: Namespace) -> int:
    """Hold the module while the command runs, and answer the command's exit status; 128 and the signal's number where one ended it."""
    if not arguments.command:
        raise InvalidArgs("hold needs a command behind --")
    command = arguments.command
    if shutil.which(command[0]) is None:
        session.screen.complain([f"kmodctl: {clean(command[0])}: command not found"])
        return NOT_FOUND
    parameters = parse_pairs(arguments.parameters, arguments.module)
    session.authorize()
    lease = await session.client.hold(arguments.module, parameters, **session.asking(arguments))
    loop = asyncio.get_running_loop()

    def over() -> None:
        loop.remove_reader(lease)
        session.screen.complain([f"kmodctl: the lease is over: {clean(arguments.module)} may be unloaded"])

    try:
        try:
            process = await asyncio.create_subprocess_exec(*command)
        except OSError as error:
            session.screen.complain([f"kmodctl: {clean(command[0])}: {error.strerror}"])
            return NOT_RUN
        loop.add_reader(lease, over)
        # The terminal sends the first two to the command as well, and that decides.
        for number in (signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, lambda: None)
        for number in _PASSED_ON:
            loop.add_signal_handler(number, process.send_signal, number)
        status = await process.wait()
    finally:
        loop.remove_reader(lease)
        os.close(lease)
    return status if status >= 0 else 128 - status
