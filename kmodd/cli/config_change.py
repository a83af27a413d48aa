# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl config autoload`, `config options` and `config blacklist`."""

from argparse import Namespace

from kmodd.cli.parameter import parse_pairs
from kmodd.cli.session import Session
from kmodd.cli.text import clean
from kmodd.client_configuration import Configuration
from kmodd.errors import Conflict, Evidence, InvalidArgs, KmoddError
from kmodd.model import Rule
from kmodd.model.configuration import OwnFile, way_out

_FILES = {"autoload": OwnFile.AUTOLOAD, "options": OwnFile.OPTIONS, "blacklist": OwnFile.BLACKLIST}


async def run(session: Session, arguments: Namespace) -> int:
    """Change one of kmodd's own files."""
    member, given, options = _request(arguments)
    if arguments.reason:
        options["reason"] = arguments.reason
    if arguments.dry_run:
        options["dry-run"] = True
    configuration = Configuration(session.client)
    session.authorize()
    try:
        await configuration.data(member, *given, options=options)
    except Conflict as error:
        error.evidence = await _edit(error, configuration)
        raise
    if session.json:
        session.document({"module": arguments.module, "action": arguments.verb, "dry-run": arguments.dry_run})
    else:
        session.screen.tell(_sentence(session, arguments))
    return 0


def _request(arguments: Namespace) -> tuple[str, tuple[object, ...], dict[str, object]]:
    """(member, arguments, options); InvalidArgs for what makes no sense together."""
    module, off = arguments.module, arguments.off
    if arguments.verb == "blacklist":
        return "SetBlacklisted", (module, not off), {"hard": True} if arguments.hard else {}
    parameters = parse_pairs(arguments.parameters)
    if off and parameters:
        raise InvalidArgs("--off takes no parameters", argument="parameters")
    if arguments.verb == "autoload":
        return "SetAutoload", (module, not off, parameters), {}
    if not parameters and not off:
        raise InvalidArgs(
            "the parameters are missing",
            evidence=Evidence(hint=f"kmodctl config options {clean(module)} --off takes those there are away"),
        )
    return "SetOptions", (module, parameters), {}


async def _edit(error: Conflict, configuration: Configuration) -> Evidence:
    """The evidence with what was edited, or what overrules it; a failure to find out is no failure of its own."""
    try:
        rules = await configuration.show()
    except KmoddError:
        return error.evidence
    for one in rules:
        if not one.ours and _names(error.message, one.rule):
            return Evidence(file=one.rule.file, line=one.rule.line, hint=way_out(one.rule.file))
        for finding in one.findings:
            if finding.kind == "foreign" and one.rule.file in error.message:
                return Evidence(file=one.rule.file, hint=f"give {one.rule.file} another name in the same folder")
            if finding.kind == "edited" and one.rule.file in error.message:
                hint = f"move what was added to another file in the same folder, and undo the edit or remove {one.rule.file}"
                return Evidence(file=one.rule.file, rule=finding.message, hint=hint)
    return error.evidence


def _names(message: str, rule: Rule) -> bool:
    return f"{rule.file}, line {rule.line}," in message or (rule.file == "/proc/cmdline" and rule.file in message)


def _sentence(session: Session, arguments: Namespace) -> str:
    paint, glyphs = session.screen.paint, session.screen.glyphs
    module, file = paint.name(clean(arguments.module)), _FILES[arguments.verb]
    if arguments.verb == "autoload":
        what = "is no longer loaded at boot by" if arguments.off else "is loaded at boot by"
    elif arguments.verb == "options":
        what = "has no options in" if arguments.off else "has its options in"
    else:
        hard = " hard" if arguments.hard else ""
        what = "is no longer blacklisted by" if arguments.off else f"is blacklisted{hard} by"
    verdict = " (nothing was changed: dry run)" if arguments.dry_run else ""
    return f"{paint.good(glyphs.yes)} {module} {what} {file}{paint.dim(verdict)}"
