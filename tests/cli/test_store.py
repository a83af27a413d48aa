# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl store` against the real daemon on a simulated kernel."""

from pathlib import Path

from kmodd.cli.exit_codes import ExitCode
from kmodd.kernel.simulated_modules import RELEASE
from tests.cli.runner import Runner
from tests.kernel.elf import module_file

FACTS = ("name=special", "version=1.0", f"vermagic={RELEASE} SMP preempt mod_unload modversions ", "depends=")


def test_a_dry_run_of_each_command_changes_nothing(run: Runner, tmp_path: Path) -> None:
    file = tmp_path / "special.ko"
    file.write_bytes(module_file(FACTS, this_module="special", versions={"module_layout": 1}))
    ended = run("store", "import", str(file), "--dry-run")
    assert (ended.status, ended.err) == (0, "")
    assert "special would be imported as version 1.0 (nothing was changed: dry run)" in ended.out
    assert run("store", "list", "--json").document == []
    ended = run("store", "remove", "special", "1.0", "--dry-run")
    assert (ended.status, "hint:    kmodctl store list" in ended.err) == (ExitCode.NOT_FOUND, True)
    ended = run("store", "activate", "spezial", "1.0")
    assert (ended.status, "hint:    kmodctl store list" in ended.err) == (ExitCode.NOT_FOUND, True)
    assert run("store", "import", str(file)).status == 0
    assert "is in the store already: special 1.0" in run("store", "import", str(file), "--version", "2").out
    ended = run("store", "activate", "special", "1.0", "--load", "--dry-run")
    assert "loaded anew: special (nothing was changed: dry run)" in ended.out
    assert run("store", "remove", "special", "2.0", "--dry-run").status == ExitCode.NOT_FOUND
    assert "would remove version 1.0 of special" in run("store", "remove", "special", "1.0", "--dry-run").out
    assert [row["active"] for row in run("store", "list", "--json").document] == [False]
    assert run("store", "activate", "special", "1.0").status == 0
    assert run("store", "deactivate", "special", "--dry-run").status == 0
    for dry_run in ([], ["--dry-run"]):
        ended = run("store", "remove", "special", "1.0", *dry_run)
        assert (ended.status, "hint:    kmodctl store deactivate special" in ended.err) == (ExitCode.IN_THE_WAY, True)
    assert [row["active"] for row in run("store", "list", "--json").document] == [True]
