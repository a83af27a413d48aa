# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl list`, `show` and `status`: the modules; facts from a module's file and its live values; and how the system is."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from kmodd.cli.output.screen import Screen
from kmodd.cli.output.table import Column, render
from kmodd.cli.output.text import clean, counted, duration, moment, size, wrap
from kmodd.cli.session import Session
from kmodd.client.replies import Fields, ListedModule, health, listed_module, module_info
from kmodd.errors import KmoddError
from kmodd.model import Health, HealthCheck, HealthStatus, ModuleInfo, State
from kmodd.model.modules import difference

LOADED = (State.LIVE, State.COMING, State.GOING)
LABEL = 12
ALIASES_MAX = 6


async def run_list(session: Session, arguments: Namespace) -> int:
    """List modules."""
    options = {"state": arguments.state} | ({"match": arguments.glob} if arguments.glob else {})
    data = await session.client.data("ListModules", options=options)
    if session.json:
        session.document(data)
        return 0
    session.screen.show(list_lines([listed_module(row) for row in data], session.screen))
    return 0


def list_lines(modules: list[ListedModule], screen: Screen) -> list[str]:
    """The table; columns that say nothing are left out."""
    if not modules:
        return ["No modules."] if screen.stdout.isatty() else []
    loaded = any(module.state in LOADED for module in modules)
    tainted = any(module.taint for module in modules)
    mixed = any(module.state is not State.LIVE for module in modules)
    paint = screen.paint
    header = [Column("MODULE", paint=paint.name)]
    if loaded:
        header += [Column("SIZE", right=True), Column("REFS", right=True)]
    if mixed:
        header += [Column("STATE", paint=lambda cell: _painted_state(screen, cell))]
    if tainted:
        header += [Column("TAINT", paint=paint.warn)]
    if loaded:
        header += [Column("USED BY", stretch=True)]
    rows = []
    for module in modules:
        live = module.state in LOADED
        row = [clean(module.name)]
        if loaded:
            row += [size(module.size) if live else "", str(module.references) if live else ""]
        if mixed:
            row += [module.state.value]
        if tainted:
            row += [clean(module.taint)]
        if loaded:
            row += [clean(" ".join(module.holders))]
        rows.append(row)
    table = render(screen, header, rows)
    return [*table, "", paint.dim(counted(len(modules), "module"))] if screen.stdout.isatty() else table


def _painted_state(screen: Screen, cell: str) -> str:
    paint = screen.paint
    if cell == State.LIVE:
        return paint.good(cell)
    if cell in (State.COMING, State.GOING, State.DISABLED):
        return paint.warn(cell)
    return paint.dim(cell)


async def run(session: Session, arguments: Namespace) -> int:
    """Describe one module."""
    data = await session.client.data("Describe", arguments.module)
    info, writable = module_info(data)
    try:
        live = await session.client.module_properties(info.module)
    except KmoddError:
        live = None  # not loaded: it has no object
    if session.json:
        session.document({"description": data, "module": live})
    else:
        session.screen.show(lines(info, writable, live, session.screen))
    return 0


def lines(info: ModuleInfo, writable: tuple[str, ...], live: Mapping[str, Any] | None, screen: Screen) -> list[str]:
    """The description as text; what is not known is left out."""
    paint = screen.paint
    about = f" {screen.glyphs.dash} {clean(info.description)}" if info.description else ""
    text = wrap(clean(info.name) + about, screen.width or 10_000)
    text[0] = text[0].replace(clean(info.name), paint.bold(clean(info.name)), 1)
    softdeps = [
        f"{when}: {' '.join(names)}"
        for when, names in (("pre", info.softdep_pre), ("post", info.softdep_post))
        if names
    ]
    fields = [
        ("State", _state(info, live)),
        *_live(live),
        ("File", info.filename),
        ("Holds", f"the module {info.holds}" if info.holds else ""),
        ("Version", info.version),
        ("Differs", _differs(info, live)),
        ("License", info.license),
        ("Author", info.author),
        ("Signed", _signed(info)),
        ("In-tree", "yes" if info.intree else "no" if info.filename else ""),
        ("Built for", info.vermagic),
        ("Needs", " ".join(info.depends)),
        ("Soft needs", "; ".join(softdeps)),
        ("Firmware", " ".join(info.firmware)),
        ("Aliases", _aliases(info.aliases)),
    ]
    for label, value in fields:
        rows = wrap(clean(value), screen.fits(LABEL + 3) or 10_000)
        head = f"{label:>{LABEL}}: "
        text += [f"{paint.dim(head) if n == 0 else ' ' * len(head)}{row}" for n, row in enumerate(rows)]
    return [*text, *_parameters(info, writable, live, screen)]


def _state(info: ModuleInfo, live: Mapping[str, Any] | None) -> str:
    if live is None:
        return "not loaded" if info.filename else "built into the kernel"
    fields = Fields(live)
    return f"{fields.text('State')}, {size(fields.number('Size'))}, {counted(fields.number('References'), 'reference')}"


def _live(live: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if live is None:
        return []
    fields = Fields(live)
    taken = fields.number("LoadDurationUSec")
    loaded = fields.number("LoadedAt")
    when = (moment(loaded) + (f", in {duration(taken)}" if taken else "")) if loaded else ""
    return [
        ("Used by", " ".join(fields.texts("Holders"))),
        ("Loaded", when),
        ("Origin", fields.text("Origin")),
        ("Taints", fields.text("Taint")),
    ]


def _differs(info: ModuleInfo, live: Mapping[str, Any] | None) -> str:
    """The difference between the loaded module and its file; empty if there is none."""
    if live is None or not info.filename:
        return ""
    fields = Fields(live)
    facts = {"version": fields.text("Version"), "srcversion": fields.text("SourceVersion")}
    differences = difference(facts, info)
    return f"from the file on disk: {differences}; reload it to use the file" if differences else ""


def _signed(info: ModuleInfo) -> str:
    if not info.filename:
        return ""
    if not info.signed:
        return "no"
    return f"by {info.signer}" if info.signer else "yes"


def _aliases(aliases: tuple[str, ...]) -> str:
    rest = len(aliases) - ALIASES_MAX
    return " ".join(aliases[:ALIASES_MAX]) + (f" (and {rest} more)" if rest > 0 else "")


def _parameters(
    info: ModuleInfo, writable: tuple[str, ...], live: Mapping[str, Any] | None, screen: Screen
) -> list[str]:
    if not info.parameters:
        return []
    values = Fields(live).get("Parameters", dict, {}) if live is not None else {}
    paint = screen.paint
    header = [Column("PARAMETER", paint=paint.name), Column("TYPE", paint=paint.dim)]
    if live is not None:
        header += [Column("VALUE", paint=paint.bold), Column("WRITE")]
    header += [Column("MEANING", stretch=True)]
    rows = []
    for parameter in info.parameters:
        row = [clean(parameter.name), clean(parameter.type)]
        if live is not None:
            row += [clean(str(values.get(parameter.name, screen.glyphs.dash)))]
            row += ["yes" if parameter.name in writable else "no"]
        rows.append([*row, clean(parameter.description)])
    return ["", *render(screen, header, rows)]


async def run_status(session: Session, arguments: Namespace) -> int:
    """Show how kmodd and the machine's modules are."""
    data = await session.client.data("GetHealth")
    properties = await session.client.properties()
    if session.json:
        session.document({"health": data, "manager": properties})
    else:
        session.screen.show(status_lines(health(data), properties, session.screen))
    return 0


def status_lines(report: Health, properties: Mapping[str, Any], screen: Screen) -> list[str]:
    """The status as text: the verdict, the kernel's facts, then every check that is not well before the others."""
    paint, glyphs, facts = screen.paint, screen.glyphs, report.facts
    manager = Fields(properties)
    version = clean(manager.text("Version"))
    text = [
        f"{_painted(report.status, glyphs.full, screen)} {paint.bold('kmodd')} {version}: {_word(report.status, screen)}"
    ]
    if "simulated" in facts.release:  # the simulated kernel's release says so, to everyone who asks
        text.append(paint.bad("  SIMULATED KERNEL: loading and unloading here is not real"))
    enforced = "only signed modules are accepted" if facts.signature_enforced else "not enforced"
    taint = "no" if not facts.taint else str(facts.taint)
    rows = [
        ("Kernel", [clean(facts.release)]),
        (
            "Modules",
            [
                f"{manager.number('LoadedCount')} loaded"
                + (paint.bad(", loading and unloading disabled until reboot") if facts.modules_disabled else "")
            ],
        ),
        ("Signatures", [enforced]),
        ("Lockdown", [clean(facts.lockdown)]),
        ("Secure boot", ["yes" if facts.secure_boot else "no"]),
        ("Tainted", [taint, *(clean(flag) for flag in report.taint_flags)]),
    ]
    for label, values in rows:
        head = f"{label:>{LABEL}}: "
        text += [f"{paint.dim(head) if n == 0 else ' ' * len(head)}{value}" for n, value in enumerate(values)]
    order = {HealthStatus.FAILING: 0, HealthStatus.DEGRADED: 1, HealthStatus.OK: 2}
    checks = sorted(report.checks, key=lambda check: order[check.status])
    if checks:
        text += ["", paint.bold(counted(len(checks), "check"))]
    for check in checks:
        text += _check_lines(check, screen)
    return text


def _check_lines(check: HealthCheck, screen: Screen) -> list[str]:
    mark = {
        HealthStatus.OK: screen.glyphs.yes,
        HealthStatus.DEGRADED: screen.glyphs.warning,
        HealthStatus.FAILING: screen.glyphs.no,
    }[check.status]
    # What is found about a line of a file says where it stands; every other check names its module itself.
    about = f"{clean(check.module)}: " if check.module and check.finding is not None else ""
    room = screen.fits(6) or 10_000
    paragraph = wrap(f"{clean(check.name)}: {about}{clean(check.message)}", room)
    hint = wrap(f"hint: {clean(check.hint)}", room) if check.hint and check.status is not HealthStatus.OK else []
    rows = [*paragraph, *(screen.paint.warn(line) for line in hint)]
    return [f"  {_painted(check.status, mark, screen) if n == 0 else ' '} {row}" for n, row in enumerate(rows)]


def _painted(status: HealthStatus, text: str, screen: Screen) -> str:
    paint = screen.paint
    return {HealthStatus.OK: paint.good, HealthStatus.DEGRADED: paint.warn, HealthStatus.FAILING: paint.bad}[status](
        text
    )


def _word(status: HealthStatus, screen: Screen) -> str:
    return _painted(status, status.value, screen)
