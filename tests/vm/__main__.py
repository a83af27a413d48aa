"""``python3 -m tests.vm``: build the machine's image, run a command in it, enter it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from tests.vm import gateway, host, image, modules, snapshot, terminal
from tests.vm.channel import CommandTimeoutError
from tests.vm.progress import say
from tests.vm.qemu import GuestDeadError, Options

if TYPE_CHECKING:
    from tests.vm.machine import Machine


def main() -> int:
    """The exit code: the guest command's own, 2 for a wrong call, 125 when the machine failed, 124 for a time-out."""
    arguments = _parser().parse_args()
    try:
        code: int = arguments.run(arguments)
    except (host.HostError, GuestDeadError, RuntimeError) as error:
        print(f"{error}", file=sys.stderr)
        return 125
    except CommandTimeoutError as error:
        print(f"{error}", file=sys.stderr)
        return 124
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tests.vm", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("deps", help="install what the host needs")
    command.set_defaults(run=_deps)
    command = commands.add_parser("modules", help="build the test modules")
    command.set_defaults(run=_modules)
    command = commands.add_parser("build", help="build the image and its snapshot")
    command.add_argument("--fresh", action="store_true", help="from today's packages, even when there is an image")
    command.set_defaults(run=_build)
    command = commands.add_parser("run", help="run a command in a fresh machine")
    _start_options(command)
    command.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS")
    command.add_argument("--user", default="root")
    command.add_argument(
        "argv", nargs="+", metavar="CMD", help="one word goes to the shell, several are run as they are"
    )
    command.set_defaults(run=_run)
    command = commands.add_parser("shell", help="a login shell in a fresh machine")
    _start_options(command)
    command.add_argument("--user", default="root")
    command.set_defaults(run=_shell)
    return parser


def _start_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--kmodd", action="store_true", help="with this tree's kmodd installed and running")
    command.add_argument("--snapshot", action="store_true", help="from the snapshot, also with kmodd (the default)")
    command.add_argument("--cold", action="store_true", help="boot instead of starting from the snapshot")
    command.add_argument("--cmdline", action="append", default=[], help="a word for the kernel's command line (boots)")
    command.add_argument(
        "--forward", action="append", default=[], metavar="HOST:GUEST", help="a TCP port (adds a network)"
    )


def _machine(arguments: argparse.Namespace) -> Machine:
    forward = {int(near): int(far) for near, _, far in (pair.partition(":") for pair in arguments.forward)}
    network = bool(forward)
    if arguments.cold or arguments.cmdline:
        say("booting")
        return snapshot.boot(*arguments.cmdline, kmodd=arguments.kmodd, network=network, forward=forward)
    start = snapshot.start_with_kmodd if arguments.kmodd else snapshot.start_clean
    return start(Options(network=network), forward=forward)


def _deps(_: argparse.Namespace) -> int:
    host.install_missing()
    return 0


def _modules(_: argparse.Namespace) -> int:
    print(modules.build())
    return 0


def _build(arguments: argparse.Namespace) -> int:
    built = image.build(fresh=arguments.fresh)
    snapshot.clean_state(built, Options())
    say(f"the machine is ready: {built.disk}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    argv: list[str] = arguments.argv
    with _machine(arguments) as machine:
        command = machine.start(argv[0] if len(argv) == 1 else argv, user=arguments.user, on_output=_write)
        command.end_input()
        return command.wait(arguments.timeout).code


def _write(stream: str, data: bytes) -> None:
    target = sys.stderr if stream == "e" else sys.stdout
    target.buffer.write(data)
    target.buffer.flush()


def _shell(arguments: argparse.Namespace) -> int:
    if not sys.stdin.isatty():
        print("a shell needs a terminal; `run -- CMD` does not", file=sys.stderr)
        return 2
    address = None
    if arguments.kmodd and not (arguments.cold or arguments.cmdline or arguments.forward):
        machine, address = gateway.start()
    else:
        machine = _machine(arguments)
    with machine:
        print("This is the test machine. `exit` or Ctrl-] leaves it; it is thrown away then.", file=sys.stderr)
        if address is not None:
            print(f"Its dashboard: {address.url}  token: {address.token}", file=sys.stderr)
        terminal.attach(machine, user=arguments.user)
    return 0


if __name__ == "__main__":
    sys.exit(main())
