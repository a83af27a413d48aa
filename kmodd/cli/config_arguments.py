# SPDX-License-Identifier: LGPL-2.1-or-later
"""The grammar of `kmodctl config`."""

import argparse


def define(config: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the commands below `config`."""
    commands = config.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: str, text: str, *, module: str = "") -> argparse.ArgumentParser:
        parser = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common], allow_abbrev=False
        )
        parser.set_defaults(run=f"kmodd.cli.{run}", verb=name, dry_run=False, reason="")
        if module:
            parser.add_argument("module", metavar="MODULE", help=module)
        return parser

    show = add("show", "config_show", "show every rule about modules, and what is wrong with it")
    show.add_argument("module", metavar="MODULE", nargs="?", default="", help="only rules about this module")
    show.add_argument("--findings", action="store_true", help="only rules with something wrong")
    autoload = add("autoload", "config_change", "load a module at every boot, or no longer", module="module")
    options = add("options", "config_change", "set the parameters a module is loaded with", module="module")
    for parser in (autoload, options):
        parser.add_argument(
            "parameters", metavar="PARAMETER=VALUE", nargs="*", default=[], help="parameters of the module"
        )
    blacklist = add("blacklist", "config_change", "keep a module from being loaded", module="module")
    blacklist.add_argument("--hard", action="store_true", help="by its name and as a dependency too")
    for parser in (autoload, options, blacklist):
        parser.add_argument("--off", action="store_true", help="take kmodd's own rule away")
        _change_options(parser)
    add("drift", "config_drift", "show what is not as the files want it")
    apply = add("apply", "config_apply", "bring the machine to what the files want")
    apply.add_argument("--initramfs", action="store_true", help="then refresh the initramfs, if it is older")
    _change_options(apply)
    add("reload", "config_reload", "have kmodd read its files again")


def _change_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="check everything, change nothing")
    parser.add_argument("--reason", default="", metavar="TEXT", help="one line for the journal and the file")
