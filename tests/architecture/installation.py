# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make install` below a folder, as a package build does it."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def make(target: str, destination: Path, **variables: str) -> str:
    """Run one target of the Makefile; AssertionError with its output when it fails."""
    given = {"DESTDIR": str(destination), **variables}
    command = ["make", "-C", str(ROOT), target, *(f"{name}={value}" for name, value in given.items())]
    # Variables of a `make test` around this must not reach it.
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PREFIX", "VENV"))
    }
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"make {target}:\n{done.stdout}{done.stderr}"
    return done.stdout


def files(folder: Path) -> set[str]:
    """Every file below the folder, as absolute paths of the system it is."""
    return {f"/{path.relative_to(folder)}" for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}
