# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's command line and the environment set by systemd."""

from collections.abc import Mapping, Sequence

from kmodd.fast_dataclass import dataclass

USAGE = """\
usage: kmodd [--simulate] [--address ADDRESS]

kmodd is the system daemon behind org.kmodd1; systemd starts it. See kmodd(8).

  --simulate         serve a simulated kernel on the session bus, for writing clients and for tests; nothing real changes
  --address ADDRESS  D-Bus address to serve on instead of the system bus (with --simulate: instead of the session bus)
  --version          print the version
  --help             print this
"""


class UsageError(Exception):
    """The command line makes no sense; the text is one sentence."""


def read_options(arguments: Sequence[str], defaults: Mapping[str, str]) -> tuple[dict[str, str], dict[str, bool]]:
    """The values of options such as `--state DIRECTORY` or `--state=DIRECTORY`, by their names in `defaults`, and which of `help` and
    `version` were given.

    UsageError for an argument that is not among them or lacks its value. argparse would cost a program that mostly waits a megabyte.
    """
    flags = {"--help": "help", "-h": "help", "--version": "version"}
    values, given = dict(defaults), dict[str, bool]()
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if argument in flags:
            given[flags[argument]] = True
        elif name in values:
            values[name] = value if equals else next(rest, "")
            if not values[name]:
                raise UsageError(f"{name} needs a value")
        else:
            raise UsageError(f"unknown argument {argument!r}")
    return values, given


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the composition root needs to know before it builds anything."""

    simulate: bool = False
    address: str = ""
    """D-Bus address; empty for the system bus, or the session bus when simulating."""
    help: bool = False
    version: bool = False
    watchdog_usec: int = 0
    """The interval systemd expects a sign of life in (WATCHDOG_USEC, sd_watchdog_enabled(3)); 0 when it expects none."""
    runtime_directory: str = ""
    """Where to remember what is stuck over a restart; empty for nowhere."""
    state_directory: str = ""
    """Where to keep what outlives a boot; empty for nowhere."""
    worker_socket: str = ""
    """Where systemd starts workers, one for each connection; empty to start them as children."""
    parser_socket: str = ""
    """Where systemd starts parsers of module files, likewise."""
    inspector_socket: str = ""
    """Where systemd starts the processes that look at other processes, likewise."""
    tables_socket: str = ""
    """Where systemd starts the processes that read tables of iptables-legacy, likewise."""
    namespaces_socket: str = ""
    """Where systemd starts the processes that enter network namespaces, likewise."""
    watcher_socket: str = ""
    """Where systemd starts the process that reads the kernel's trace of module requests; empty for none."""
    devices: str = "/dev"
    """Where the system's device nodes can be seen: the unit has a private /dev."""

    @classmethod
    def parse(cls, arguments: Sequence[str], environment: Mapping[str, str], pid: int) -> "Settings":
        """Read the command line by hand: argparse would cost the idle daemon a megabyte."""
        simulate = wants_help = wants_version = False
        address = ""
        rest = iter(arguments)
        for argument in rest:
            match argument:
                case "--simulate":
                    simulate = True
                case "--address":
                    address = next(rest, "")
                    if not address:
                        raise UsageError("--address needs a D-Bus address, such as unix:path=/run/bus")
                case "--help" | "-h":
                    wants_help = True
                case "--version":
                    wants_version = True
                case _ if argument.startswith("--address="):
                    address = argument.removeprefix("--address=")
                case _:
                    raise UsageError(f"unknown argument {argument!r}")
        return cls(
            simulate=simulate,
            address=address,
            help=wants_help,
            version=wants_version,
            watchdog_usec=_watchdog(environment, pid),
            # systemd gives a colon-separated list; ours is one folder (RuntimeDirectory=kmodd/state).
            runtime_directory="" if simulate else environment.get("RUNTIME_DIRECTORY", "").split(":")[0],
            state_directory="" if simulate else environment.get("STATE_DIRECTORY", "").split(":")[0],
            worker_socket="" if simulate else environment.get("KMODD_WORKER_SOCKET", ""),
            parser_socket="" if simulate else environment.get("KMODD_PARSER_SOCKET", ""),
            inspector_socket="" if simulate else environment.get("KMODD_INSPECTOR_SOCKET", ""),
            tables_socket="" if simulate else environment.get("KMODD_TABLES_SOCKET", ""),
            namespaces_socket="" if simulate else environment.get("KMODD_NAMESPACES_SOCKET", ""),
            watcher_socket="" if simulate else environment.get("KMODD_WATCHER_SOCKET", ""),
            devices=environment.get("KMODD_DEVICES", "/dev"),
        )


def _watchdog(environment: Mapping[str, str], pid: int) -> int:
    # WATCHDOG_PID names the process the value is meant for; a child must not take it over.
    if environment.get("WATCHDOG_PID", str(pid)) != str(pid):
        return 0
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) if text.isdecimal() else 0
