# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line's grammar. Each command names the module of `kmodd.cli` that runs it, imported only then."""

import argparse
from collections.abc import Sequence

from kmodd import VERSION
from kmodd.cli import config_arguments, store_arguments
from kmodd.cli.parser import Parser

_EPILOG = """\
Exit status: 0 done, 2 usage, 3 not found, 4 access denied, 5 in use or in the way, 6 disabled by policy, 7 limit,
8 bad module file, 9 bad parameter, 10 refused by the module, 11 forbidden by the kernel, 12 lost in the kernel,
13 kmodd is not available, 1 internal error. See kmodctl(1).
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; bad usage and --help leave by SystemExit, as argparse does."""
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
    _Grammar(commands, common).define()
    parsed = parser.parse_args(arguments)
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
        parser.error("--session and --bus name two buses")
    return parsed


def _common() -> Parser:
    # Accepted before and after the command; SUPPRESS keeps the second parser from undoing what the first one saw.
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("everywhere")
    group.add_argument("--json", action="store_true", help="print one JSON document, keys as on the bus")
    group.add_argument("--no-pager", action="store_true", help="do not pipe long output into a pager")
    group.add_argument("--no-ask-password", action="store_true", help="never ask for a password")
    group.add_argument("--session", action="store_true", help="speak to the kmodd of the session bus (simulation)")
    group.add_argument("--bus", metavar="ADDRESS", help="speak to the kmodd of the bus at this address")
    return common


class _Grammar:
    def __init__(self, commands: "argparse._SubParsersAction[Parser]", common: Parser) -> None:
        self._commands = commands
        self._common = common

    def define(self) -> None:
        self._readers()
        self._changers(self._commands, dry_run=True)
        self._batch(self._commands, dry_run=True)
        plan = self._add(self._commands, "plan", "plan", "show the exact steps a change would take, changing nothing")
        verbs = plan.add_subparsers(title="changes", metavar="CHANGE", required=True)
        self._changers(verbs, dry_run=False)
        self._batch(verbs, dry_run=False)
        self._others()
        self._tokens()

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
        parser.set_defaults(run=f"kmodd.cli.{module}", verb=name)
        if module_help:
            parser.add_argument("module", metavar="MODULE", help=module_help)
        return parser

    def _readers(self) -> None:
        listing = self._add(self._commands, "list", "listing", "list modules")
        listing.add_argument("glob", metavar="GLOB", nargs="?", default="", help="only names like this: 'snd_*'")
        listing.add_argument(
            "--state", choices=("loaded", "available", "builtin", "all"), default="loaded", help="default: loaded"
        )
        self._add(self._commands, "show", "show", "show what a module is", "module or alias")
        self._add(self._commands, "why", "why", "explain why a module is there, or is not, and what holds it", "module")

    def _changers(self, commands: "argparse._SubParsersAction[Parser]", *, dry_run: bool) -> None:
        load = self._add(commands, "load", "change", "load a module with what it needs", "module or alias")
        self._parameters(load)
        self._change_options(load, dry_run=dry_run)
        self._override(load)
        unload = self._add(commands, "unload", "change", "unload a module that nothing uses", "module")
        unload.add_argument("--dependents", action="store_true", help="first unload the modules that use it")
        unload.add_argument(
            "--unused-dependencies", action="store_true", help="then unload dependencies nobody needs any more"
        )
        self._change_options(unload, dry_run=dry_run)
        reload = self._add(commands, "reload", "change", "unload a module and load it anew", "module")
        self._parameters(reload)
        self._change_options(reload, dry_run=dry_run)
        self._override(reload)

    def _batch(self, commands: "argparse._SubParsersAction[Parser]", *, dry_run: bool) -> None:
        batch = self._add(commands, "batch", "batch", "do several changes as one: all of them or none")
        batch.add_argument(
            "file", metavar="FILE", help="lines such as 'load dummy numdummies=2', or JSON; - reads stdin"
        )
        batch.add_argument("--no-atomic", action="store_true", help="let each change stand for itself")
        batch.set_defaults(dry_run=not dry_run, reason="")
        if dry_run:
            batch.add_argument("--dry-run", action="store_true", help="show the plan, change nothing")
            batch.add_argument("--reason", default="", metavar="TEXT", help="one line for the journal")

    def _others(self) -> None:
        setting = self._add(self._commands, "set", "parameter", "write a parameter of a loaded module", "module")
        setting.add_argument("parameter", metavar="PARAMETER", help="its name")
        setting.add_argument("value", metavar="VALUE", help="the new value")
        self._add(self._commands, "status", "status", "show how kmodd and the machine's modules are")
        log = self._add(self._commands, "log", "log", "show what was done, by whom, why and with which result")
        log.add_argument("module", metavar="MODULE", nargs="?", default="", help="only this module")
        log.add_argument("-f", "--follow", action="store_true", help="keep showing what happens")
        log.add_argument("--since", metavar="TIME", default="", help="such as '1h', 'today', '2024-05-01 12:00'")
        log.add_argument("-n", "--lines", type=int, default=100, metavar="N", help="at most so many (default: 100)")
        self._add(self._commands, "monitor", "monitor", "show what happens to modules as it happens")
        store_arguments.define(
            self._add(self._commands, "store", "store_list", "keep custom modules in versions"), self._common
        )
        config_arguments.define(
            self._add(self._commands, "config", "config_show", "show and change the rules about modules"), self._common
        )
        self._add(self._commands, "reset-failed", "reset", "forget a failed or stuck operation", "module")
        self._notify()

    def _notify(self) -> None:
        notify = self._add(self._commands, "notify", "notify", "show and manage who is told what happens")
        verbs = notify.add_subparsers(title="notifications", metavar="WHAT", required=True)
        self._add(verbs, "status", "notify", "show how deliveries go")
        self._add(verbs, "list", "notify", "list endpoints")
        add = self._add(verbs, "add", "notify_change", "add a webhook or recipients of mail")
        add.add_argument("name", metavar="NAME", help="its name")
        add.add_argument(
            "target", metavar="TARGET", nargs="+", help="a https URL, - to read one from stdin, or e-mail addresses"
        )
        add.add_argument("--event", action="append", default=[], metavar="EVENT", help="only these, such as failure")
        add.add_argument("--error", action="append", default=[], metavar="NAME", help="only failures with these errors")
        add.add_argument(
            "--module", action="append", default=[], metavar="GLOB", help="only modules like this", dest="glob"
        )
        add.add_argument("--uid", action="append", default=[], type=int, metavar="UID", help="only what they asked for")
        add.add_argument("--severity", choices=("info", "notice", "warning", "error"), help="at least")
        add.add_argument("--format", choices=("json", "chat"), help="of a webhook's messages")
        add.add_argument("--digest", type=int, metavar="SECONDS", help="to collect before a mail")
        add.add_argument("--per-hour", type=int, metavar="N", help="mails at most")
        for name, text in (
            ("remove", "remove an endpoint that was added here"),
            ("enable", "send to an endpoint again, at once"),
            ("disable", "send to an endpoint no more"),
            ("test", "send a test to an endpoint"),
        ):
            self._add(verbs, name, "notify_change", text).add_argument("name", metavar="NAME", help="of the endpoint")
        self._add(verbs, "reload", "notify_change", "read notify.toml again")

    def _tokens(self) -> None:
        token = self._commands.add_parser(
            "token", help="make, list and revoke the HTTP gateway's tokens (as root)", allow_abbrev=False
        )
        verbs = token.add_subparsers(title="commands", metavar="COMMAND", required=True)
        create = self._add(verbs, "create", "token", "make a token and print it, once")
        create.add_argument("name", metavar="NAME", help="whose it is; the journal shows it with every operation")
        create.add_argument(
            "--scope",
            metavar="SCOPE",
            action="append",
            required=True,
            help="what it is good for, repeatable or separated by commas: read, load, unload, set-parameter, configure, "
            "import, admin",
        )
        create.add_argument(
            "--module", metavar="MODULE", action="append", default=[], help="a module it may change (default: all)"
        )
        create.add_argument("--expires", metavar="SPAN", default="90d", help="such as 12h, 90d, 1y (default: 90d)")
        listing = self._add(verbs, "list", "token", "list tokens; never the secret itself")
        revoke = self._add(verbs, "revoke", "token", "have a token count no more, at once")
        revoke.add_argument("token", metavar="ID|NAME", help="its id or name")
        for verb in (create, listing, revoke):
            verb.set_defaults(local=True)
            verb.add_argument("--file", metavar="FILE", default="", help="default: the one the gateway reads")

    @staticmethod
    def _parameters(parser: Parser) -> None:
        parser.add_argument(
            "parameters", metavar="PARAMETER=VALUE", nargs="*", default=[], help="parameters of the module"
        )

    @staticmethod
    def _override(parser: Parser) -> None:
        parser.add_argument("--override-policy", action="store_true", help="load although modprobe.d blacklists it")

    @staticmethod
    def _change_options(parser: Parser, *, dry_run: bool) -> None:
        parser.set_defaults(dry_run=not dry_run, reason="", timeout=None)
        if dry_run:
            parser.add_argument("--dry-run", action="store_true", help="show the plan, change nothing")
            parser.add_argument("--reason", default="", metavar="TEXT", help="one line for the journal")
            parser.add_argument(
                "--timeout", type=int, metavar="SECONDS", help="for each call into the kernel (default: 30)"
            )
