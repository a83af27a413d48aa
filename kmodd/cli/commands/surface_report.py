# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl surface report`: modules that a benchmark wants not to be available, compared with what modprobe would do.

The effect counts, in every installed kernel, and not the text of a rule: a line that a soft dependency or an earlier line switches off
does not pass, and a module that no kernel has does. What cannot be known does not pass either.
"""

from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kmodd import VERSION
from kmodd.cli.arguments import ExitCode
from kmodd.cli.output.screen import Screen
from kmodd.cli.output.table import Column, render
from kmodd.cli.output.text import clean, counted
from kmodd.cli.session import Session
from kmodd.client.replies import explanation
from kmodd.client.surface import AttackSurface
from kmodd.errors import Evidence, InvalidArgs, NoSuchModule
from kmodd.fast_dataclass import dataclass
from kmodd.model import State
from kmodd.names import ModuleName, is_module_name, parse_module

PLACES = ("/etc/kmodd", "/run/kmodd", "/usr/local/lib/kmodd", "/usr/lib/kmodd")
FILE_MAX = 1 << 18
MODULES_MAX = 1024
_PASSED = ("blocked", "absent")


@dataclass(frozen=True, slots=True)
class Control:
    """A module that is not to be available, with the identifiers that the benchmark has for this."""

    module: ModuleName
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found out about one module."""

    module: str
    ids: tuple[str, ...]
    state: str
    """`blocked`, `absent`, `open`, `loaded`, `builtin`, `unknown`."""
    detail: str

    @property
    def passed(self) -> bool:
        """It is as the benchmark wants it."""
        return self.state in _PASSED


async def run(session: Session, arguments: Namespace) -> int:
    """Report on one benchmark."""
    if not arguments.benchmark:
        raise InvalidArgs("surface report needs --benchmark", argument="benchmark")
    controls = read_controls(arguments.benchmark)
    surface = AttackSurface(session.client)
    kernels = (await surface.summary()).kernels
    verdicts = [await _verdict(session, surface, control, kernels) for control in controls]
    if arguments.format == "sarif":
        session.document(sarif(verdicts))
    elif session.json or arguments.format == "json":
        session.document([{**asdict(verdict), "passed": verdict.passed} for verdict in verdicts])
    else:
        session.screen.show(lines(verdicts, session.screen))
    return ExitCode.OK if all(verdict.passed for verdict in verdicts) else ExitCode.DIFFERS


def read_controls(benchmark: str, places: Iterable[str] = PLACES) -> tuple[Control, ...]:
    """The modules of a file of profiles, or of the profiles whose names begin so; InvalidArgs."""
    if "/" in benchmark or benchmark.endswith(".toml"):
        tables = list(_profiles(Path(benchmark)).values())
    else:
        files = [file for place in places for file in sorted(Path(place, "surface.d").glob("*.toml"))]
        profiles = {name: table for file in files for name, table in _profiles(file).items()}
        tables = [table for name, table in profiles.items() if name == benchmark or name.startswith(f"{benchmark}-")]
    controls: dict[ModuleName, Control] = {}
    for table in tables:
        blocked = table.get("block", {})
        if not isinstance(blocked, dict):
            raise InvalidArgs("block is not a table of modules", argument="benchmark")
        for name, entry in blocked.items():
            ids = entry.get("ids", []) if isinstance(entry, dict) else None
            if not is_module_name(name) or not isinstance(ids, list) or not all(isinstance(each, str) for each in ids):
                raise InvalidArgs(f"{name[:64]} is not a module with a list of ids", argument="benchmark")
            module = parse_module(name)
            before = controls[module].ids if module in controls else ()
            controls[module] = Control(module, tuple(dict.fromkeys((*before, *ids))))
    if not controls or len(controls) > MODULES_MAX:
        raise InvalidArgs(
            f"{benchmark} has no profile that blocks modules, or more than {MODULES_MAX}",
            argument="benchmark",
            evidence=Evidence(hint="name a file, or a profile below /usr/lib/kmodd/surface.d"),
        )
    return tuple(controls.values())


def _profiles(path: Path) -> Mapping[str, Mapping[str, Any]]:
    from tomllib import TOMLDecodeError, loads

    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX + 1)
        if len(data) > FILE_MAX:
            raise InvalidArgs(f"{path} is larger than {FILE_MAX >> 10} KiB", argument="benchmark")
        document = loads(data.decode())
    except OSError as error:
        raise InvalidArgs(f"{path} cannot be read ({error.strerror})", argument="benchmark") from error
    except (TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgs(f"{path} is not valid TOML", argument="benchmark") from error
    profiles = document.get("profile", {})
    if not isinstance(profiles, dict) or not all(isinstance(table, dict) for table in profiles.values()):
        raise InvalidArgs(f"{path} has a profile that is not a table", argument="benchmark")
    return profiles


async def _verdict(session: Session, surface: AttackSurface, control: Control, kernels: Sequence[str]) -> Verdict:
    def verdict(state: str, detail: str) -> Verdict:
        return Verdict(control.module, control.ids, state, detail)

    explained = explanation(await session.client.data("Explain", control.module))
    if explained.state is State.BUILTIN:
        return verdict("builtin", "part of the running kernel's image")
    if explained.state in (State.LIVE, State.COMING, State.GOING):
        return verdict("loaded", "it is loaded now")
    present = 0
    for kernel in kernels:
        try:
            routes = await surface.routes(control.module, kernel=kernel)
        except NoSuchModule:
            builtin = _is_builtin(control.module, kernel) if len(kernels) > 1 else False
            if builtin is not False:
                return verdict(*(("builtin", f"part of the image of {kernel}") if builtin else _unknown(kernel)))
            continue
        present += 1
        route = next((route for route in routes if route.open), None)
        if route is not None:
            return verdict("open", f"{kernel}: {route.request}, {route.way}")
    return (
        verdict("blocked", f"no route in {counted(present, 'kernel')}")
        if present
        else verdict("absent", "no kernel has it")
    )


def _unknown(kernel: str) -> tuple[str, str]:
    return "unknown", f"what is part of the image of {kernel} cannot be read"


def _is_builtin(module: str, kernel: str) -> bool | None:
    """As depmod has it, for kernels that do not run; None where that cannot be read."""
    try:
        text = Path("/lib/modules", kernel, "modules.builtin").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    names = (line.rpartition("/")[2].removesuffix(".ko").replace("-", "_") for line in text.splitlines())
    return module in set(names)


def lines(verdicts: Sequence[Verdict], screen: Screen) -> list[str]:
    """The table, and how many pass."""
    paint = screen.paint
    header = [Column("MODULE", paint=paint.name), Column("STATE"), Column("IDS"), Column("WHY", stretch=True)]
    rows = [[clean(each.module), each.state, clean(", ".join(each.ids)), clean(each.detail)] for each in verdicts]
    passed = sum(verdict.passed for verdict in verdicts)
    total = f"{passed} of {counted(len(verdicts), 'module')} as the benchmark wants"
    return [*render(screen, header, rows), "", (paint.good if passed == len(verdicts) else paint.warn)(total)]


def sarif(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """SARIF 2.1.0: a result for each module, `kind` pass or fail."""
    rules = [
        {"id": _rule(verdict), "shortDescription": {"text": f"{verdict.module} is not available"}}
        for verdict in verdicts
    ]
    results = [
        {
            "ruleId": _rule(verdict),
            "kind": "pass" if verdict.passed else "fail",
            "level": "none" if verdict.passed else "error",
            "message": {"text": f"{verdict.module} is {verdict.state}: {verdict.detail}"},
            "locations": [{"logicalLocations": [{"name": verdict.module, "kind": "module"}]}],
            "properties": {"ids": list(verdict.ids)},
        }
        for verdict in verdicts
    ]
    driver = {"name": "kmodctl", "version": VERSION, "rules": rules}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }


def _rule(verdict: Verdict) -> str:
    return verdict.ids[0] if verdict.ids else f"module-{verdict.module}"
