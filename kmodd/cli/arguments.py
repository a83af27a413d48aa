# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line parser. Each command names its function in `kmodd.cli.commands`, which is imported only when it runs."""

import argparse
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

from kmodd import VERSION
from kmodd.names import SCOPES


class ExitCode(IntEnum):
    """Exit status of kmodctl. The classes of `kmodd.errors` carry these numbers; a test holds the two together."""

    OK = 0
    FAILED = 1
    """kmodd has a bug."""
    USAGE = 2
    """The request was malformed: command line, name, value, option."""
    NOT_FOUND = 3
    ACCESS_DENIED = 4
    IN_THE_WAY = 5
    """In use, built in, not removable, in conflict, busy."""
    POLICY = 6
    LIMIT = 7
    BAD_FILE = 8
    BAD_PARAMETER = 9
    REFUSED_BY_MODULE = 10
    FORBIDDEN_BY_KERNEL = 11
    LOST_IN_KERNEL = 12
    UNAVAILABLE = 13
    DIFFERS = 14
    """The system is not as it should be: no error of a call, but what a check found."""
    INTERRUPTED = 130
    """As a shell reports SIGINT."""
    BROKEN_PIPE = 141
    """As a shell reports SIGPIPE."""


def _define_config(config: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the commands below `config`."""
    commands = config.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: str, text: str, *, module: str = "") -> argparse.ArgumentParser:
        parser = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common], allow_abbrev=False
        )
        parser.set_defaults(run=f"kmodd.cli.commands.{run}", verb=name, dry_run=False, reason="")
        if module:
            parser.add_argument("module", metavar="MODULE", help=module)
        return parser

    show = add("show", "config:run_show", "list module rules and the problems found in them")
    show.add_argument("module", metavar="MODULE", nargs="?", default="", help="only rules about this module")
    show.add_argument("--findings", action="store_true", help="only rules with problems")
    autoload = add(
        "autoload", "config:run_change", "load a module at boot, or stop doing so (--off)", module="name of the module"
    )
    options = add(
        "options", "config:run_change", "set the parameters a module is loaded with", module="name of the module"
    )
    for parser in (autoload, options):
        parser.add_argument(
            "parameters", metavar="PARAMETER=VALUE", nargs="*", default=[], help="parameters of the module"
        )
    blacklist = add("blacklist", "config:run_change", "keep a module from being loaded", module="name of the module")
    blacklist.add_argument("--hard", action="store_true", help="also block loading by name or as a dependency")
    for parser in (autoload, options, blacklist):
        parser.add_argument("--off", action="store_true", help="remove the rule that kmodd wrote")
        _change_options(parser)
    add("drift", "config:run_drift", "show differences from the desired state")
    apply = add("apply", "config:run_apply", "bring the system to the desired state")
    apply.add_argument(
        "--disconnect", action="store_true", help="even if this removes network interfaces or devices in use"
    )
    apply.add_argument(
        "--try",
        metavar="TIME",
        dest="trial",
        default="",
        help="take it back after TIME, such as '10m', unless it is confirmed",
    )
    apply.add_argument("--initramfs", action="store_true", help="then refresh the initramfs, if it is older")
    _change_options(apply)
    for verb, text in (("confirm", "keep what is on trial"), ("revert", "take back what is on trial")):
        ending = add(verb, "config:run_end_trial", text)
        ending.add_argument("--reason", default="", metavar="TEXT", help="reason to record in the journal (one line)")
    again = add("reload", "config:run_reload", "make kmodd read its files again")
    again.add_argument("--reason", default="", metavar="TEXT", help="reason to record in the journal (one line)")


def _change_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="check everything, change nothing")
    parser.add_argument(
        "--reason", default="", metavar="TEXT", help="reason to record in the journal and the file (one line)"
    )


def _define_store(store: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the commands below `store`."""
    commands = store.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: str, text: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common], allow_abbrev=False
        )
        parser.set_defaults(run=f"kmodd.cli.commands.{run}", verb=name)
        return parser

    listing = add("list", "store:run_list", "show every version of custom modules")
    listing.add_argument("module", metavar="MODULE", nargs="?", default="", help="only this module")
    importing = add("import", "store:run_import", "import a module file into the store")
    importing.add_argument("file", metavar="FILE", help="a module: plain, or compressed with gzip, xz or zstd")
    importing.add_argument("--version", metavar="VERSION", default="", help="version (default: the module's own)")
    importing.add_argument("--description", metavar="TEXT", default="", help="short description")
    importing.add_argument("--shadow", action="store_true", help="even if the kernel has a module of this name")
    importing.add_argument(
        "--sign", nargs=2, metavar=("KEY", "CERT"), help="sign it first, with this private key and certificate"
    )
    activate = add("activate", "store:run_switch", "activate a version")
    deactivate = add("deactivate", "store:run_switch", "use the kernel's own module again")
    remove = add("remove", "store:run_remove", "remove a version that is not active")
    for parser in (activate, deactivate, remove):
        parser.add_argument("module", metavar="MODULE", help="name of the module")
    for parser in (activate, remove):
        parser.add_argument("version", metavar="VERSION", help="version, as `kmodctl store list` shows it")
    for parser in (importing, activate, deactivate, remove):
        parser.add_argument("--dry-run", action="store_true", help="check everything, change nothing")
        parser.add_argument("--reason", default="", metavar="TEXT", help="reason to record in the journal (one line)")
    for parser in (activate, deactivate):
        parser.add_argument("--load", action="store_true", help="also load or reload it")
        parser.add_argument(
            "--disconnect", action="store_true", help="also when live interfaces or devices go with the module"
        )
        parser.add_argument("--kernel", metavar="RELEASE", default="", help="kernel release (default: the running one)")


_MATCHES = 3


class Parser(argparse.ArgumentParser):
    """Parsers of its commands are of this class too."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # Called for every choice, and overridable by convention only: argparse has no public place for this (3.11 to 3.14).
        if action.choices is None or value in action.choices:
            return
        from difflib import get_close_matches  # only a mistyped word needs it

        words = [str(choice) for choice in action.choices]
        close = get_close_matches(str(value), words, n=_MATCHES, cutoff=0.6)
        choices = f"did you mean {' or '.join(close)}?" if close else f"expected one of: {', '.join(words)}"
        raise argparse.ArgumentError(action, f"{str(value)!r} is not known; {choices}")


_EPILOG = """\
Exit status: 0 success, 1 internal error, 2 usage, 3 not found, 4 access denied, 5 in use or in conflict, 6 disabled by policy,
7 limit exceeded, 8 bad module file, 9 bad parameter, 10 refused by the module, 11 forbidden by the kernel,
12 timed out, stuck or crashed in the kernel, 13 kmodd is not available. See kmodctl(1).
"""


def _split(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """kmodctl's own words, and those of the command behind `--` of `hold`."""
    if "hold" not in arguments or "--" not in arguments:
        return arguments, ()
    end = list(arguments).index("--")
    return (arguments[:end], arguments[end + 1 :]) if "hold" in arguments[:end] else (arguments, ())


SURFACE_VERBS = ("show", "learn", "plan", "apply", "confirm", "revert", "check", "lock", "refused", "report")


def _with_verb(arguments: Sequence[str]) -> Sequence[str]:
    """`surface` alone and `surface MODULE` are `surface show`."""
    words = [number for number, word in enumerate(arguments) if not word.startswith("-")]
    if not words or arguments[words[0]] != "surface":
        return arguments
    after = words[0] + 1
    if arguments[after : after + 1] and arguments[after] in (*SURFACE_VERBS, "-h", "--help"):
        return arguments
    return [*arguments[:after], "show", *arguments[after:]]


def make_parser(command: str = "") -> Parser:
    """The parser of the whole command line, from which the completion of shells is generated too.

    With the name of a command, of little more than that one: all of them take longer to define than most take to run.
    """
    common = _common()
    parser = Parser(
        prog="kmodctl",
        description="Load, unload and explain kernel modules through kmodd.",
        epilog=_EPILOG,
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"kmodctl {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _Grammar(commands, common).define(command)
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; bad usage and --help leave by SystemExit, as argparse does."""
    own, command = _split(arguments)
    own = _with_verb(own)
    # Behind options the first word need not be the command, as in `--bus list`, and `--help list` lists all of them.
    parser = make_parser(own[0] if own else "")
    parsed = parser.parse_args(own)
    parsed.command = command
    for name, value in {
        "json": False,
        "no_pager": False,
        "no_ask_password": False,
        "session": False,
        "bus": None,
    }.items():
        if not hasattr(parsed, name):
            setattr(parsed, name, value)
    if parsed.session and parsed.bus:
        parser.error("--session and --bus are mutually exclusive")
    return parsed


def _common() -> Parser:
    # Accepted before and after the command; SUPPRESS keeps the second parser from undoing what the first one saw.
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("global options")
    group.add_argument("--json", action="store_true", help="print one JSON document, with the D-Bus keys")
    group.add_argument("--no-pager", action="store_true", help="do not pipe long output into a pager")
    group.add_argument("--no-ask-password", action="store_true", help="never ask for a password")
    group.add_argument("--session", action="store_true", help="connect to kmodd on the session bus (simulation)")
    group.add_argument("--bus", metavar="ADDRESS", help="connect to kmodd on the bus at this address")
    return common


class _Grammar:
    def __init__(self, commands: "argparse._SubParsersAction[Parser]", common: Parser) -> None:
        self._commands = commands
        self._common = common

    def define(self, command: str) -> None:
        """Define the part that has this command; all of them where none has it."""
        parts: dict[Callable[[], None], tuple[str, ...]] = {
            self._readers: ("list", "show", "why"),
            self._changes: ("load", "unload", "reload", "batch", "plan"),
            self._others: ("set", "hold", "status", "log", "monitor"),
            self._groups: ("store", "config", "reset-failed", "notify"),
            self._surface: ("surface", "respond"),
            self._tokens: ("token",),
        }
        having = [part for part, names in parts.items() if command in names]
        for part in having or parts:
            part()

    def _changes(self) -> None:
        self._changers(self._commands, dry_run=True)
        self._batch(self._commands, dry_run=True)
        plan = self._add(self._commands, "plan", "plan", "show the exact steps a change would take, changing nothing")
        verbs = plan.add_subparsers(title="changes", metavar="CHANGE", required=True)
        self._changers(verbs, dry_run=False)
        self._batch(verbs, dry_run=False)

    def _add(
        self,
        commands: "argparse._SubParsersAction[Parser]",
        name: str,
        module: str,
        text: str,
        module_help: str = "",
    ) -> Parser:
        parser = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", parents=[self._common], allow_abbrev=False
        )
        parser.set_defaults(run=f"kmodd.cli.commands.{module}", verb=name)
        if module_help:
            parser.add_argument("module", metavar="MODULE", help=module_help)
        return parser

    def _readers(self) -> None:
        listing = self._add(self._commands, "list", "show:run_list", "list modules")
        listing.add_argument(
            "glob", metavar="GLOB", nargs="?", default="", help="only modules whose name matches, such as 'snd_*'"
        )
        listing.add_argument(
            "--state",
            choices=("loaded", "available", "builtin", "all"),
            default="loaded",
            help="state of the modules (default: loaded)",
        )
        self._add(self._commands, "show", "show", "show information about a module", "module or alias")
        why = self._add(
            self._commands,
            "why",
            "why",
            "explain why a module is loaded or not, and what uses it",
            "name of the module",
        )
        why.add_argument(
            "--inspect",
            action="store_true",
            help="request authorization to see other users' processes and who loaded it",
        )

    def _surface(self) -> None:
        group = self._add(
            self._commands,
            "surface",
            "surface",
            "show and restrict which modules can be loaded by whom, and by which route",
        )
        verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
        surface = self._add(verbs, "show", "surface", "show the surface (the default), or the routes to a module")
        surface.add_argument(
            "module",
            metavar="MODULE|GLOB",
            nargs="?",
            default="",
            help="the routes to a module, or only modules that match",
        )
        surface.add_argument(
            "--reach",
            choices=("unprivileged", "userns", "device", "hardware", "root", "none"),
            default="",
            help="only modules with this reach",
        )
        surface.add_argument("--limit", metavar="N", type=int, default=0, help="only the first N modules")
        learn = self._add(verbs, "learn", "surface_policy:run_learn", "show which modules this system needs, and why")
        plan = self._add(verbs, "plan", "surface_policy:run_plan", "show what the policy in surface.d blocks, and why")
        apply = self._add(verbs, "apply", "surface_policy:run_apply", "write the rules of the policy in surface.d")
        apply.add_argument("--weaken", action="store_true", help="also allow modules again that are blocked now")
        apply.add_argument("--dry-run", action="store_true", help="check everything, change nothing")
        apply.add_argument(
            "--try",
            metavar="TIME",
            dest="trial",
            default="",
            help="revert the rules after TIME, such as '10m', unless confirmed",
        )
        self._reason(apply)
        confirm = self._add(verbs, "confirm", "surface_policy:run_confirm", "keep the rules that are on trial")
        revert = self._add(verbs, "revert", "surface_policy:run_revert", "revert the rules that are on trial")
        for ending in (confirm, revert):
            self._reason(ending)
        check = self._add(
            verbs, "check", "surface_policy:run_check", "check that the rules match the policy and are effective"
        )
        for reader in (learn, plan):
            reader.add_argument("module", metavar="GLOB", nargs="?", default="", help="only modules that match")
        for reader in (surface, learn, check):
            reader.add_argument("--kernel", metavar="RELEASE", default="", help="an installed kernel")
        lock = self._add(
            verbs, "lock", "surface_policy:run_lock", "disable loading and unloading of modules until reboot"
        )
        lock.add_argument("--yes", action="store_true", help="do not ask")
        lock.add_argument("--dry-run", action="store_true", help="show what is pending and what would break")
        self._reason(lock)
        tried = self._add(
            verbs, "refused", "surface:run_refused", "show attempts to have a module loaded that a rule refused"
        )
        tried.add_argument("--since", metavar="TIME", default="", help="only attempts since then, such as '1h'")
        tried.add_argument("-f", "--follow", action="store_true", help="continue with new attempts")
        report = self._add(verbs, "report", "surface_report", "check modules against a benchmark")
        report.add_argument(
            "--benchmark", metavar="PROFILE|FILE", required=True, help="modules that must not be available"
        )
        report.add_argument("--format", choices=("text", "json", "sarif"), default="text")
        respond = self._add(
            self._commands,
            "respond",
            "respond",
            "respond to a vulnerability: block its modules by every route, and prove it",
        )
        respond.add_argument(
            "target",
            metavar="CVE|FILE|list|status|end",
            nargs="?",
            default="",
            help="the vulnerability, a record of the kernel's CNA, or a command for responses",
        )
        respond.add_argument("id", metavar="ID", nargs="?", default="", help="the response, for status and end")
        respond.add_argument("--module", metavar="MODULE", dest="modules", nargs="+", default=[], help="the modules")
        respond.add_argument("--force-in-use", action="store_true", help="even if something uses them")
        respond.add_argument("--probe", action="store_true", help="then attempt to load them as an unprivileged user")
        respond.add_argument("--dry-run", action="store_true", help="show the assessment, change nothing")
        self._reason(respond)

    def _changers(self, commands: "argparse._SubParsersAction[Parser]", *, dry_run: bool) -> None:
        load = self._add(commands, "load", "module", "load a module and its dependencies", "module or alias")
        self._parameters(load)
        self._change_options(load, dry_run=dry_run)
        self._override(load)
        if dry_run:
            load.add_argument(
                "--try",
                metavar="TIME",
                dest="trial",
                default="",
                help="unload it after TIME, such as '10m', unless you keep it",
            )
        unload = self._add(commands, "unload", "module", "unload a module that nothing uses", "name of the module")
        unload.add_argument("--dependents", action="store_true", help="first unload the modules that use it")
        unload.add_argument(
            "--unused-dependencies", action="store_true", help="then unload dependencies that are no longer needed"
        )
        self._disconnect(unload)
        self._change_options(unload, dry_run=dry_run)
        reload = self._add(commands, "reload", "module", "unload a module and load it again", "name of the module")
        self._parameters(reload)
        self._disconnect(reload)
        self._change_options(reload, dry_run=dry_run)
        self._override(reload)

    def _batch(self, commands: "argparse._SubParsersAction[Parser]", *, dry_run: bool) -> None:
        batch = self._add(commands, "batch", "batch", "apply several changes as one: all or none")
        batch.add_argument(
            "file", metavar="FILE", help="lines such as 'load dummy numdummies=2', or JSON; - reads stdin"
        )
        batch.add_argument("--no-atomic", action="store_true", help="make each change independently of the others")
        self._disconnect(batch)
        batch.set_defaults(dry_run=not dry_run, reason="")
        if dry_run:
            batch.add_argument("--dry-run", action="store_true", help="show the plan, change nothing")
            self._reason(batch)

    def _others(self) -> None:
        setting = self._add(
            self._commands, "set", "module:run_set", "write a parameter of a loaded module", "name of the module"
        )
        setting.add_argument("parameter", metavar="PARAMETER", help="name of the parameter")
        setting.add_argument("value", metavar="VALUE", help="the new value")
        self._reason(setting)
        hold = self._add(
            self._commands, "hold", "module:run_hold", "keep a module loaded while a command runs", "module or alias"
        )
        self._parameters(hold)
        self._reason(hold)
        hold.usage = "kmodctl hold [-h] [--reason TEXT] MODULE [PARAMETER=VALUE ...] -- COMMAND [ARGUMENT ...]"
        self._add(self._commands, "status", "show:run_status", "show the status of kmodd and of the system's modules")
        log = self._add(self._commands, "log", "log", "show who did what, why, and the result")
        log.add_argument("module", metavar="MODULE", nargs="?", default="", help="only this module")
        log.add_argument("-f", "--follow", action="store_true", help="continue with new records")
        log.add_argument("--since", metavar="TIME", default="", help="such as '1h', 'today', '2024-05-01 12:00'")
        log.add_argument(
            "--requests", action="store_true", help="show only modules that the kernel requested for a process"
        )
        log.add_argument(
            "-n", "--lines", type=int, default=100, metavar="N", help="show at most N entries (default: 100)"
        )
        self._add(self._commands, "monitor", "log:run_monitor", "show what happens to modules as it happens")

    def _groups(self) -> None:
        _define_store(
            self._add(self._commands, "store", "store:run_list", "manage versions of custom modules"), self._common
        )
        _define_config(
            self._add(self._commands, "config", "config:run_show", "show and change module rules"),
            self._common,
        )
        self._reason(
            self._add(
                self._commands,
                "reset-failed",
                "module:run_reset",
                "clear a failure, or a stuck call once it has returned",
                "name of the module",
            )
        )
        self._notify()

    def _notify(self) -> None:
        notify = self._add(self._commands, "notify", "notify", "manage notifications")
        verbs = notify.add_subparsers(title="notifications", metavar="WHAT", required=True)
        self._add(verbs, "status", "notify", "show the state of deliveries")
        self._add(verbs, "list", "notify", "list endpoints")
        add = self._add(verbs, "add", "notify:run_change", "add a webhook or recipients of mail")
        add.add_argument("name", metavar="NAME", help="name of the endpoint")
        add.add_argument(
            "target", metavar="TARGET", nargs="+", help="an HTTPS URL, - to read one from stdin, or e-mail addresses"
        )
        add.add_argument(
            "--event", action="append", default=[], metavar="EVENT", help="only these events, such as failure"
        )
        add.add_argument("--error", action="append", default=[], metavar="NAME", help="only failures with these errors")
        add.add_argument(
            "--module", action="append", default=[], metavar="GLOB", help="only modules whose name matches", dest="glob"
        )
        add.add_argument(
            "--uid", action="append", default=[], type=int, metavar="UID", help="only operations of this user"
        )
        add.add_argument("--severity", choices=("info", "notice", "warning", "error"), help="minimum severity")
        add.add_argument("--format", choices=("json", "chat"), help="format of a webhook's messages")
        add.add_argument("--digest", type=int, metavar="SECONDS", help="collect events this long before a mail is sent")
        add.add_argument("--per-hour", type=int, metavar="N", help="maximum number of mails per hour")
        self._reason(add)
        for name, text in (
            ("remove", "remove an endpoint that was added here"),
            ("enable", "resume sending to an endpoint immediately"),
            ("disable", "stop sending to an endpoint"),
            ("test", "send a test message to an endpoint"),
        ):
            verb = self._add(verbs, name, "notify:run_change", text)
            verb.add_argument("name", metavar="NAME", help="name of the endpoint")
            self._reason(verb)
        self._reason(self._add(verbs, "reload", "notify:run_change", "read notify.toml again"))

    def _tokens(self) -> None:
        token = self._commands.add_parser(
            "token", help="create, list and revoke the HTTP gateway's tokens (as root)", allow_abbrev=False
        )
        verbs = token.add_subparsers(title="commands", metavar="COMMAND", required=True)
        create = self._add(verbs, "create", "token", "create a token and print it, once")
        create.add_argument("name", metavar="NAME", help="name of its owner; the journal shows it with every operation")
        create.add_argument(
            "--scope",
            metavar="SCOPE",
            action="append",
            required=True,
            help=f"scopes, repeatable or separated by commas: {', '.join(SCOPES)}",
        )
        create.add_argument(
            "--module", metavar="MODULE", action="append", default=[], help="a module it may change (default: all)"
        )
        create.add_argument("--expires", metavar="SPAN", default="30d", help="such as 12h, 30d, 1y (default: 30d)")
        create.add_argument(
            "--user",
            metavar="USER",
            default="",
            help="only this user's processes may use it, over the unix socket (default: any)",
        )
        listing = self._add(verbs, "list", "token", "list tokens; never the secret itself")
        revoke = self._add(verbs, "revoke", "token", "revoke a token immediately")
        revoke.add_argument("token", metavar="ID|NAME", help="its id or name")
        for verb in (create, listing, revoke):
            verb.set_defaults(local=True)
            verb.add_argument(
                "--file", metavar="FILE", default="", help="token file (default: the one the gateway reads)"
            )

    @staticmethod
    def _parameters(parser: Parser) -> None:
        parser.add_argument(
            "parameters", metavar="PARAMETER=VALUE", nargs="*", default=[], help="parameters of the module"
        )

    @staticmethod
    def _disconnect(parser: Parser) -> None:
        parser.add_argument(
            "--disconnect", action="store_true", help="even if this removes network interfaces or devices in use"
        )

    @staticmethod
    def _override(parser: Parser) -> None:
        parser.add_argument("--override-policy", action="store_true", help="load even if modprobe.d blacklists it")

    @staticmethod
    def _reason(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--reason", default="", metavar="TEXT", help="reason to record in the journal (one line)")

    @classmethod
    def _change_options(cls, parser: Parser, *, dry_run: bool) -> None:
        parser.set_defaults(dry_run=not dry_run, reason="", timeout=None)
        if dry_run:
            parser.add_argument("--dry-run", action="store_true", help="show the plan, change nothing")
            cls._reason(parser)
            parser.add_argument(
                "--timeout", type=int, metavar="SECONDS", help="for each call into the kernel (default: 30)"
            )
