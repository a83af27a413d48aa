# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `make install` puts where, and that `make uninstall` takes all of it away again."""

import gzip
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from tests.architecture.installation import ROOT, files, make

INTEGRATION = {
    "/usr/share/dbus-1/interfaces/org.kmodd1.Notifier.xml",
    "/usr/share/dbus-1/interfaces/org.kmodd1.xml",
    "/usr/share/dbus-1/system-services/org.kmodd1.Notifier.service",
    "/usr/share/dbus-1/system-services/org.kmodd1.service",
    "/usr/share/dbus-1/system.d/org.kmodd1.Notifier.conf",
    "/usr/share/dbus-1/system.d/org.kmodd1.conf",
    "/usr/share/fish/vendor_completions.d/kmodctl.fish",
    "/usr/share/polkit-1/actions/org.kmodd1.policy",
    "/usr/share/polkit-1/rules.d/50-kmodd-notifier.rules",
}
BELOW_PREFIX = {
    "bin/kmodctl",
    "bin/kmodd",
    "bin/kmodd-notifier",
    "lib/kernel/install.d/95-kmodd-surface.install",
    "lib/systemd/catalog/kmodd.catalog",
    "lib/systemd/system/kmodd-inspector-namespaces.socket",
    "lib/systemd/system/kmodd-inspector-namespaces@.service",
    "lib/systemd/system/kmodd-inspector-tables.socket",
    "lib/systemd/system/kmodd-inspector-tables@.service",
    "lib/systemd/system/kmodd-inspector.socket",
    "lib/systemd/system/kmodd-watcher.socket",
    "lib/systemd/system/kmodd-watcher@.service",
    "lib/systemd/system/kmodd-inspector@.service",
    "lib/systemd/system/kmodd-notifier.service",
    "lib/systemd/system/kmodd-parser.socket",
    "lib/systemd/system/kmodd-parser@.service",
    "lib/systemd/system/kmodd-worker.socket",
    "lib/systemd/system/kmodd-worker@.service",
    "lib/systemd/system/kmodd.service",
    "lib/systemd/user/kmodd-desktop-notify.service",
    "lib/sysusers.d/kmodd-notifier.conf",
    "share/bash-completion/completions/kmodctl",
    "share/doc/kmodd/50-netadm-dummy.rules",
    "share/man/man1/kmodctl.1.gz",
    "share/man/man5/notify.toml.5.gz",
    "share/man/man5/kmodd-modules.d.5.gz",
    "share/man/man5/kmodd.toml.5.gz",
    "share/man/man5/org.kmodd1.5.gz",
    "share/man/man8/kmodd-notifier.8.gz",
    "share/man/man8/kmodd.8.gz",
    "share/zsh/site-functions/_kmodctl",
}


# What `make install-gateway` adds.
OF_THE_GATEWAY = {
    "bin/kmodd-gateway",
    "lib/systemd/system/kmodd-gateway.service",
    "lib/systemd/system/kmodd-gateway.socket",
    "lib/sysusers.d/kmodd-gateway.conf",
    "share/doc/kmodd/50-kmodd-gateway-modules.rules",
    "share/doc/kmodd/alerts.yml",
    "share/doc/kmodd/grafana.json",
    "share/doc/kmodd/kmodd-gateway-loopback.conf",
    "share/man/man5/kmodd-gateway.toml.5.gz",
    "share/man/man8/kmodd-gateway.8.gz",
}


# What `make install-cockpit` adds, besides the folder of the page.
SHARED_VIEWS = "kmodd/gateway/static/dashboard/shared"
METAINFO = "share/metainfo/org.kmodd.cockpit.metainfo.xml"


# What `make install-agent` adds.
OF_THE_AGENT = {
    "bin/kmodd-agent",
    "lib/systemd/system/kmodd-agent.service",
    "lib/sysusers.d/kmodd-agent.conf",
    "share/doc/kmodd/50-kmodd-agent.rules",
    "share/man/man8/kmodd-agent.8.gz",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with kmodd installed below /usr/local."""
    destination = tmp_path_factory.mktemp("install")
    make("install-gateway", destination)
    make("install-agent", destination)
    make("install-cockpit", destination)
    return destination


def outside_the_package(found: set[str], prefix: str) -> set[str]:
    return {name for name in found if not name.startswith(f"{prefix}/lib/kmodd/")}


@pytest.mark.parametrize("prefix", ["/usr/local", "/usr", "/opt/kmodd"])
def test_prefix_is_honoured(tmp_path: Path, prefix: str) -> None:
    make("install", tmp_path, PREFIX=prefix)
    # AppArmor looks in one place; where systemd would not look either, nothing outside the prefix is touched.
    etc = f"{'' if prefix in {'/usr', '/usr/local'} else prefix}/etc"
    outside = {f"{etc}/apparmor.d/kmodd", f"{etc}/kernel/postinst.d/zz-kmodd-surface"}
    wanted = INTEGRATION | {f"{prefix}/{name}" for name in BELOW_PREFIX} | outside
    assert outside_the_package(files(tmp_path), prefix) == wanted
    texts = [(tmp_path / name[1:]).read_bytes() for name in wanted if not name.endswith(".gz")]
    assert not [text for text in texts if b"@PKGDIR@" in text or b"@BINDIR@" in text or b"@PYTHON@" in text]
    make("install-gateway", tmp_path, PREFIX=prefix)
    wanted |= {f"{prefix}/{name}" for name in OF_THE_GATEWAY} | {"/usr/share/polkit-1/rules.d/90-kmodd-gateway.rules"}
    assert outside_the_package(files(tmp_path), prefix) == wanted
    make("install-agent", tmp_path, PREFIX=prefix)
    wanted |= {f"{prefix}/{name}" for name in OF_THE_AGENT}
    assert outside_the_package(files(tmp_path), prefix) == wanted
    make("install-cockpit", tmp_path, PREFIX=prefix)
    folder = f"{prefix}/share/cockpit/kmodd"
    page = {f"{folder}/{path.name}" for path in (ROOT / "cockpit").iterdir() if path.suffix != ".xml"}
    views = {f"{folder}/shared/{path.name}" for path in (ROOT / SHARED_VIEWS).iterdir()}
    assert len(views) > 20
    wanted |= page | views | {f"{prefix}/{METAINFO}"}
    assert outside_the_package(files(tmp_path), prefix) == wanted
    unit = (tmp_path / f"{prefix[1:]}/lib/systemd/system/kmodd.service").read_text()
    assert f"{prefix}/bin/kmodd\n" in unit
    manual = gzip.decompress((tmp_path / f"{prefix[1:]}/share/man/man8/kmodd.8.gz").read_bytes()).decode()
    (documentation,) = re.findall(r"\\fI(\S*/share/doc/kmodd)\\fR", manual)
    assert (tmp_path / documentation[1:] / "50-netadm-dummy.rules").is_file()


def test_every_service_names_a_profile_that_is_installed(installed: Path) -> None:
    text = (installed / "etc/apparmor.d/kmodd").read_text()
    profiles = re.findall(r"^profile (\S+) flags=\(attach_disconnected\) {$", text, re.MULTILINE)
    units = (installed / "usr/local/lib/systemd/system").glob("*.service")
    named = {unit.name: re.findall(r"^AppArmorProfile=(.*)$", unit.read_text(), re.MULTILINE) for unit in units}
    assert named == {name: [f"-{name.removesuffix('.service').rstrip('@')}"] for name in named}
    assert {name for (name,) in named.values()} <= {f"-{profile}" for profile in profiles}
    removed = re.findall(r"for profile in (.*); do", (ROOT / "install/after-uninstall").read_text())
    assert removed == [" ".join(profiles)]


def test_where_systemd_would_not_look_nothing_is_begun() -> None:
    with pytest.raises(AssertionError, match="systemd finds units below /usr and /usr/local alone, not in /opt/kmodd"):
        make("install-check", Path("/"), DESTDIR="", PREFIX="/opt/kmodd", LIVE="true")


@pytest.mark.parametrize("prefix", ["/usr/local", "/usr"])
def test_uninstall_leaves_no_file(tmp_path: Path, prefix: str) -> None:
    other = tmp_path / prefix[1:] / "bin/other"
    other.parent.mkdir(parents=True)
    other.write_text("not ours")
    make("install-gateway", tmp_path, PREFIX=prefix)
    make("install-agent", tmp_path, PREFIX=prefix)
    make("install-cockpit", tmp_path, PREFIX=prefix)
    (tmp_path / prefix[1:] / "share/cockpit/kmodd/shared/of_last_year.js").touch()
    make("uninstall", tmp_path, PREFIX=prefix)
    assert files(tmp_path) == {f"{prefix}/bin/other"}
    folders = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_dir()}
    assert folders == {"usr", prefix[1:], f"{prefix[1:]}/bin"}


def test_folder_that_was_there_stays(tmp_path: Path) -> None:
    empty = tmp_path / "usr/local/share/zsh/site-functions"
    empty.mkdir(parents=True)
    make("install", tmp_path)
    make("install", tmp_path)
    make("uninstall", tmp_path)
    assert [path for path in tmp_path.rglob("*") if not list(path.iterdir())] == [empty]


def test_installing_again_removes_what_is_no_longer_part_of_it(installed: Path) -> None:
    old = installed / "usr/local/lib/kmodd/kmodd/of_last_year.py"
    old.write_text("")
    make("install", installed)
    assert not old.exists()


def test_package_is_whole_and_compiled(installed: Path) -> None:
    package = installed / "usr/local/lib/kmodd/kmodd"
    names = {path.relative_to(package) for path in package.rglob("*.py")}
    assert names == {path.relative_to(ROOT / "kmodd") for path in (ROOT / "kmodd").rglob("*.py")}
    pages = {path.relative_to(ROOT / "kmodd") for path in (ROOT / "kmodd/gateway/static").rglob("*") if path.is_file()}
    assert pages <= {path.relative_to(package) for path in package.rglob("*")}
    compiled = {path.name.split(".")[0] for path in package.rglob("*.pyc")}
    assert {path.stem for path in names} <= compiled
    assert str(installed).encode() not in next(package.rglob("names.*.pyc")).read_bytes()


def test_only_the_owner_may_write(installed: Path) -> None:
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in installed.rglob("*") if path.is_file()}
    assert not [str(path) for path, mode in modes.items() if mode & 0o022]
    assert {path.name for path, mode in modes.items() if mode & 0o111} == {
        "kmodd",
        "kmodctl",
        "kmodd-agent",
        "kmodd-gateway",
        "kmodd-notifier",
        "zz-kmodd-surface",
        "95-kmodd-surface.install",
    }


def test_manual_pages_are_whole(installed: Path) -> None:
    pages = list((installed / "usr/local/share/man").rglob("*.gz"))
    assert len(pages) == len(list((ROOT / "docs/man").glob("*.scd"))) + 1
    for page in pages:
        text = gzip.decompress(page.read_bytes())
        assert text.lstrip().startswith((b".", b"'\\\"")), page.name
        # A shell takes no other sign for the minus of an option.
        assert not re.search(rb"^(?![.']|\\h').*[^\\]-", text, re.MULTILINE), page.name
        command = ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(page)]
        done = subprocess.run(command, capture_output=True, env={**os.environ, "MANWIDTH": "100"}, check=False)
        assert (done.returncode, done.stderr.decode()) == (0, ""), page.name


@pytest.fixture(scope="module")
def in_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefix whose programs can run: the paths inside are those of the installed system, so it is installed for where it lies."""
    prefix = tmp_path_factory.mktemp("in-place") / "prefix"
    make("install-gateway", Path("/"), DESTDIR="", PREFIX=str(prefix), SHAREDIR=str(prefix / "share"), LIVE="false")
    return prefix


@pytest.mark.parametrize("program", ["kmodd", "kmodctl", "kmodd-gateway", "kmodd-notifier"])
def test_program_runs_from_its_place_alone(in_place: Path, tmp_path: Path, program: str) -> None:
    hostile = tmp_path / "hostile"
    (hostile / "kmodd").mkdir(parents=True)
    (hostile / "kmodd/__init__.py").write_text("raise SystemExit('the wrong package')")
    done = subprocess.run(
        [in_place / "bin" / program, "--version"],
        cwd=hostile,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(hostile)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "0.1.0" in done.stdout
