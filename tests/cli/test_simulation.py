# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodctl against the real daemon on a simulated kernel: what the scripted one could have got wrong."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.cli.arguments import ExitCode
from kmodd.cli.commands.surface_report import read_controls
from tests.cli.private_bus import private_bus
from tests.cli.runner import Runner

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a bus with `kmodd --simulate` on it."""
    with private_bus(tmp_path_factory.mktemp("simulation")) as address:
        command = [sys.executable, "-m", "kmodd.daemon.daemon", "--simulate", "--address", address]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as daemon:
            assert daemon.stderr is not None
            assert "SIMULATED" in daemon.stderr.readline()
            yield address
            daemon.terminate()


@pytest.fixture
def run(simulation: str, kmodctl: Runner) -> Runner:
    """kmodctl, once the daemon has its name."""
    kmodctl.address = simulation
    deadline = time.monotonic() + 10
    while kmodctl("status").status == ExitCode.UNAVAILABLE:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return kmodctl


def test_a_module_comes_and_goes_with_its_dependency(run: Runner) -> None:
    plan = run("plan", "load", "vfat", "--json").document
    assert [(row["action"], row["module"]) for row in plan] == [("insert", "fat"), ("insert", "vfat")]
    loaded = run("load", "vfat", "--reason", "a test", "--json")
    assert loaded.document == {"module": "vfat", "inserted": ["fat", "vfat"]}
    assert run("load", "vfat", "--json").document["inserted"] == []
    assert "vfat" in {row["name"] for row in run("list", "--json").document}
    used = run("unload", "fat")
    assert used.status == ExitCode.IN_THE_WAY
    assert "module is in use" in used.err
    assert "vfat" in used.err
    assert run("why", "fat", "--json").document["free"] == ["kmodctl unload fat --dependents"]
    assert run("unload", "fat", "--dependents", "--json").document["removed"] == ["vfat", "fat"]
    assert "reason: a test" in run("log", "vfat").out


def test_failures_bring_their_evidence(run: Runner) -> None:
    ended = run("load", "kmodd_test_fail", "--json")
    assert ended.status == ExitCode.REFUSED_BY_MODULE
    assert ended.document["errno"] == 5
    assert "kmodd_test_fail: the flux capacitor is not charged" in ended.document["kernel-log"]
    assert "Last failure: load: module failed to initialise" in run("why", "kmodd_test_fail").out
    assert run("reset-failed", "kmodd_test_fail").status == 0
    assert "Last failure" not in run("why", "kmodd_test_fail").out


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["load", "no_such_thing"], ExitCode.NOT_FOUND, "no such module"),
        (["load", "virtio_ne"], ExitCode.NOT_FOUND, "did you mean virtio_net"),
        (["load", "../evil"], ExitCode.USAGE, "expected a module name"),
        (["load", "dummy", "numdummies=abc"], ExitCode.BAD_PARAMETER, "numdummies"),
        (["load", "dummy", "nosuch=1"], ExitCode.BAD_PARAMETER, "has no parameter nosuch"),
        (["load", "pcspkr"], ExitCode.POLICY, ": blacklist pcspkr"),
        (["load", "dccp"], ExitCode.POLICY, "only a blacklist can be overridden"),
        (["load", "kmodd_test_wrong_kernel"], ExitCode.BAD_FILE, "version magic"),
        (["load", "kmodd_test_nodev"], ExitCode.REFUSED_BY_MODULE, "no device"),
        (["unload", "ext4"], ExitCode.IN_THE_WAY, "/dev/vda1"),
        (["unload", "dummy", "--timeout", "0"], ExitCode.USAGE, "timeout"),
        (["set", "dummy", "x", "1"], ExitCode.NOT_FOUND, "not loaded"),
        (["list", "a/b"], ExitCode.USAGE, "a pattern is"),
    ],
)
def test_refusals(words: list[str], status: ExitCode, said: str, run: Runner) -> None:
    ended = run(*words)
    assert said in ended.err
    assert ended.status == status


def test_a_batch_undoes_itself(run: Runner) -> None:
    ended = run("batch", "-", stdin="load tun\nload kmodd_test_fail\nload dummy\n")
    assert ended.status == ExitCode.REFUSED_BY_MODULE
    assert "load    tun              rolled back" in ended.out
    assert "flux" not in ended.out
    assert "tun" not in {row["name"] for row in run("list", "--json").document}


def test_every_module_can_be_shown_and_explained(run: Runner) -> None:
    names = [row["name"] for row in run("list", "--state", "all", "--json").document]
    assert len(names) > 60
    for name in names[::7]:
        assert run("why", name).status == 0
        assert run("show", name).status in (0, ExitCode.BAD_FILE)


def test_status_knows_the_daemon(run: Runner) -> None:
    document = run("status", "--json").document
    assert document["health"]["status"] in ("ok", "degraded", "failing")
    assert "SIMULATED KERNEL: loading and unloading here is not real" in run("status").out
    assert "simulated" in document["manager"]["KernelRelease"]


def test_surface_counts_ranks_and_explains(run: Runner) -> None:
    report = run("surface", "--json").document
    assert report["kernels"] == [report["kernel"]]
    listed = report["modules"]
    assert sum(report[reach] for reach in ("unprivileged", "userns", "device", "hardware", "root", "none")) == len(
        listed
    )
    assert [row["reach"] for row in listed[:1]] == ["unprivileged"]
    shown = run("surface").out
    assert "any user who makes a user namespace" in shown
    (row,) = run("surface", "dccp*", "--json").document
    assert (row["module"], row["reach"], row["reach-without"]) == ("dccp", "none", "unprivileged")
    assert {row["reach"] for row in run("surface", "--reach", "userns", "--json").document} == {"userns"}
    routes = run("surface", "dccp")
    assert "closed  net-pf-2-proto-33: any user who opens a socket of the protocol" in routes.out
    assert "/etc/modprobe.d/hardening.conf:2: install dccp /bin/false" in routes.out
    assert "net-pf-2-proto-33" in run("why", "dccp").out
    assert run("why", "dccp", "--json").document["routes"][0]["open"] is False


def test_surface_of_what_is_not_there(run: Runner) -> None:
    assert run("surface", "nosuch").status == ExitCode.NOT_FOUND
    assert run("surface", "--kernel", "9.9.9").status == ExitCode.NOT_FOUND
    assert run("surface", "--kernel", "../etc").status == ExitCode.USAGE
    assert run("surface", "--reach", "everyone").status == ExitCode.USAGE


def test_respond_reports_use_and_routes_and_changes_nothing(run: Runner) -> None:
    ended = run("respond", "--dry-run", "--module", "ext4", "dccp")
    assert ended.status == ExitCode.OK
    assert "used by mount /" in ended.out
    assert "to close all routes: kmodctl config blacklist --hard ext4" in ended.out
    assert "config blacklist --hard dccp" not in ended.out
    (row,) = run("respond", "--dry-run", "--module", "ext4", "--json").document
    assert (row["state"], row["kernels"][0]["reach"]) == ("live", "userns")
    assert run("respond").status == ExitCode.USAGE
    assert run("respond", "end").status == ExitCode.USAGE
    assert run("respond", "list", "--probe").status == ExitCode.USAGE
    assert run("respond", "CVE-2026-99999").status == ExitCode.NOT_FOUND


def test_report_judges_by_effect(run: Runner, tmp_path: Path) -> None:
    profile = tmp_path / "site.toml"
    profile.write_text(
        '[profile.site.block.dccp]\nids = ["CIS 3.2.1"]\n[profile.site.block.nosuch]\n[profile.site.block.overlay]\n'
    )
    report = run("surface", "report", "--benchmark", str(profile), "--json")
    assert report.status == ExitCode.DIFFERS
    states = {row["module"]: row["state"] for row in report.document}
    assert states == {"dccp": "blocked", "nosuch": "absent", "overlay": "open"}
    sarif = run("surface", "report", "--benchmark", str(profile), "--format", "sarif").document
    kinds = {row["ruleId"]: row["kind"] for row in sarif["runs"][0]["results"]}
    assert kinds == {"CIS 3.2.1": "pass", "module-nosuch": "pass", "module-overlay": "fail"}
    profile.write_text("[profile.site.block.dccp]")
    passed = run("surface", "report", "--benchmark", str(profile))
    assert passed.status == ExitCode.OK
    assert "1 of 1 module as the benchmark wants" in passed.out
    profile.write_text("[profile.site.block.ext4]")
    assert run("surface", "report", "--benchmark", str(profile)).status == ExitCode.DIFFERS, "it is loaded"
    for wrong in ("", "[profile]", "profile = 1", '[profile.x.block."a b"]', "[profile.x]\nblock = 2", "not TOML"):
        profile.write_text(wrong)
        assert run("surface", "report", "--benchmark", str(profile)).status == ExitCode.USAGE
    assert run("surface", "report", "--benchmark", "no-such-profile").status == ExitCode.USAGE
    assert run("surface", "report").status == ExitCode.USAGE


@pytest.mark.parametrize("path", sorted((ROOT / "install/surface.d").glob("stig-*.toml")), ids=lambda path: path.stem)
def test_a_stig_is_reported_by_its_own_ids(run: Runner, path: Path) -> None:
    rows = run("surface", "report", "--benchmark", str(path), "--format", "json").document
    assert {row["ids"][1][:2] for row in rows} == {"V-"}
    assert read_controls(path.stem, [str(path.parents[1])]) == read_controls(str(path))
    (sarif,) = run("surface", "report", "--benchmark", str(path), "--format", "sarif").document["runs"]
    assert [row["ruleId"] for row in sarif["results"]] == [row["ids"][0] for row in rows]
    assert all(re.fullmatch(r"(RHEL-\d\d|UBTU-22)-\d{6}", rule["id"]) for rule in sarif["tool"]["driver"]["rules"])
    verdicts = {row["ruleId"]: row["kind"] for row in sarif["results"]}
    assert verdicts == {row["ids"][0]: "pass" if row["passed"] else "fail" for row in rows}


def test_a_module_of_two_profiles_has_the_ids_of_both(tmp_path: Path) -> None:
    (tmp_path / "surface.d").mkdir()
    for name in ("site-a", "site-b"):
        (tmp_path / f"surface.d/{name}.toml").write_text(f'[profile.{name}.block.can]\nids = ["{name}", "both"]')
    (control,) = read_controls("site", [str(tmp_path)])
    assert control.ids == ("site-a", "both", "site-b")


def test_respond_keeps_modules_out_and_ends(run: Runner) -> None:
    done = run("respond", "--module", "overlay")
    assert done.status == ExitCode.OK
    assert "proven:" in done.out
    (row,) = run("respond", "list", "--json").document
    assert (row["id"], row["rules"]) == ("module:overlay", ["overlay"])
    assert run("load", "overlay").status == ExitCode.POLICY
    assert run("respond", "status").status == ExitCode.OK
    assert run("respond", "end", "module:overlay").status == ExitCode.OK
    assert run("respond", "end", "module:overlay").status == ExitCode.NOT_FOUND
    assert run("load", "overlay").status == ExitCode.OK
    run("unload", "overlay")
    run("load", "vfat")
    stopped = run("respond", "--module", "fat")
    run("unload", "vfat", "--unused-dependencies")
    assert stopped.status == ExitCode.IN_THE_WAY
    assert "nothing was changed" in stopped.out


def test_a_trial_of_nothing_is_neither_kept_nor_taken_back(run: Runner) -> None:
    assert run("config", "apply", "--try", "10m").status == 0, "there is no difference"
    for verb in ("confirm", "revert"):
        ended = run("config", verb)
        assert ended.status == ExitCode.IN_THE_WAY
        assert "no desired state is on trial" in ended.err
    assert run("config", "apply", "--try", "1s").status == ExitCode.USAGE
    assert run("config", "apply", "--try", "10m", "--initramfs").status == ExitCode.USAGE


def test_a_lock_is_confirmed_and_then_holds(run: Runner) -> None:
    """The last test: it cannot be taken back."""
    plan = run("surface", "lock", "--dry-run", "--json")
    assert plan.err == ""
    assert (plan.status, plan.document["locked"], plan.document["pending"]) == (0, False, [])
    assert "nothing is pending" in run("surface", "lock", "--dry-run").out
    unconfirmed = run("surface", "lock")
    assert (unconfirmed.status, "--yes" in unconfirmed.err) == (ExitCode.USAGE, True)
    assert run("surface", "lock", "--yes", "--reason", "a test").out == (
        "loading and unloading of modules is disabled until reboot\n"
    )
    assert run("load", "dummy").status == ExitCode.FORBIDDEN_BY_KERNEL
    assert run("surface", "lock", "--yes", "--json").document["locked"] is True
    assert "disabled until reboot" in run("status").out
