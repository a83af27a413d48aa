# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl store` against the real daemon on a simulated kernel."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from kmodd.cli.arguments import ExitCode
from kmodd.cli.commands import store
from kmodd.cli.session import Session
from kmodd.errors import Busy
from kmodd.kernel.simulated.modules import RELEASE
from tests.cli.runner import Runner, screen
from tests.kernel.elf import module_file

FACTS = ("name=special", "version=1.0", f"vermagic={RELEASE} SMP preempt mod_unload modversions ", "depends=")


def test_a_dry_run_of_each_command_changes_nothing(run: Runner, tmp_path: Path) -> None:
    file = tmp_path / "special.ko"
    file.write_bytes(module_file(FACTS, this_module="special", versions={"module_layout": 1}))
    ended = run("store", "import", str(file), "--dry-run")
    assert (ended.status, ended.err) == (0, "")
    assert "special would be imported as version 1.0 (dry run, nothing was changed)" in ended.out
    assert run("store", "list", "--json").document == []
    ended = run("store", "remove", "special", "1.0", "--dry-run")
    assert (ended.status, "hint:    kmodctl store list" in ended.err) == (ExitCode.NOT_FOUND, True)
    ended = run("store", "activate", "spezial", "1.0")
    assert (ended.status, "hint:    kmodctl store list" in ended.err) == (ExitCode.NOT_FOUND, True)
    assert run("store", "import", str(file)).status == 0
    assert "is already in the store: special 1.0" in run("store", "import", str(file), "--version", "2").out
    ended = run("store", "activate", "special", "1.0", "--load", "--dry-run")
    assert "reloaded: special (dry run, nothing was changed)" in ended.out
    assert run("store", "remove", "special", "2.0", "--dry-run").status == ExitCode.NOT_FOUND
    assert "would remove version 1.0 of special" in run("store", "remove", "special", "1.0", "--dry-run").out
    assert [row["active"] for row in run("store", "list", "--json").document] == [False]
    assert run("store", "activate", "special", "1.0").status == 0
    ended = run("store", "deactivate", "special", "--dry-run")
    assert (ended.status, "no version of special from the store would be active (dry run" in ended.out) == (0, True)
    for dry_run in ([], ["--dry-run"]):
        ended = run("store", "remove", "special", "1.0", *dry_run)
        assert (ended.status, "hint:    kmodctl store deactivate special" in ended.err) == (ExitCode.IN_THE_WAY, True)
    assert [row["active"] for row in run("store", "list", "--json").document] == [True]


def test_the_outcome_of_a_reload_is_reported(run: Runner, tmp_path: Path) -> None:
    file = tmp_path / "dummy.ko"
    file.write_bytes(module_file(["name=dummy", *FACTS[1:]], this_module="dummy", versions={"module_layout": 1}))
    assert run("load", "dummy").status == 0
    assert run("store", "import", "--shadow", str(file)).status == 0
    assert "is active, reloaded: dummy" in run("store", "activate", "dummy", "1.0", "--load").out
    ended = run("store", "deactivate", "dummy", "--load", "--dry-run")
    assert "would be active, reloaded or unloaded: dummy (dry run, nothing was changed" in ended.out
    # Where the kernel has none of its own; a simulated one always has.
    assert run("unload", "dummy").status == 0
    assert "is active\n" in run("store", "deactivate", "dummy", "--load").out


async def test_what_cannot_be_found_out_afterwards_makes_nothing_fail() -> None:
    class Searching:
        async def explain(self, module: str) -> None:
            raise Busy("too many searches are under way", module=module)

    searching: Any = Searching()
    session = Session(searching, screen(0), json=False, authorize=lambda: None)
    arguments = Namespace(verb="deactivate", module="dummy", dry_run=False)
    assert await store._became(session, arguments) == "reloaded or unloaded"


def test_a_refused_import_says_what_helps(run: Runner, tmp_path: Path) -> None:
    file = tmp_path / "special.ko"
    with file.open("wb") as open_file:
        open_file.truncate(65 << 20)
    ended = run("store", "import", str(file))
    assert ended.status == ExitCode.LIMIT
    assert "hint:    see kmodd.toml(5) for the limits" in ended.err
