# SPDX-License-Identifier: LGPL-2.1-or-later
"""The grammar of `kmodctl store`."""

import argparse


def define(store: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the commands below `store`."""
    commands = store.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: str, text: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common], allow_abbrev=False
        )
        parser.set_defaults(run=f"kmodd.cli.{run}", verb=name)
        return parser

    listing = add("list", "store_list", "show every version of custom modules")
    listing.add_argument("module", metavar="MODULE", nargs="?", default="", help="only this module")
    importing = add("import", "store_import", "take a module file into the store")
    importing.add_argument("file", metavar="FILE", help="a module: plain, or compressed with gzip, xz or zstd")
    importing.add_argument("--version", metavar="VERSION", default="", help="default: the module's own")
    importing.add_argument("--description", metavar="TEXT", default="", help="one line about it")
    importing.add_argument("--shadow", action="store_true", help="although the kernel has a module of this name")
    importing.add_argument(
        "--sign", nargs=2, metavar=("KEY", "CERT"), help="sign it first, with this private key and certificate"
    )
    activate = add("activate", "store_switch", "bring a version into force")
    deactivate = add("deactivate", "store_switch", "give the kernel's own module back")
    remove = add("remove", "store_remove", "remove a version that is not in force")
    for parser in (activate, deactivate, remove):
        parser.add_argument("module", metavar="MODULE", help="module")
    for parser in (activate, remove):
        parser.add_argument("version", metavar="VERSION", help="version, as `kmodctl store list` shows it")
    for parser in (importing, activate, deactivate, remove):
        parser.add_argument("--dry-run", action="store_true", help="check everything, change nothing")
    for parser in (activate, deactivate):
        parser.add_argument("--load", action="store_true", help="also load or reload it")
        parser.add_argument("--kernel", metavar="RELEASE", default="", help="default: the running one")
