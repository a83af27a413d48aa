# SPDX-License-Identifier: LGPL-2.1-or-later
"""Print what kmodd and its tests require, one line each, as pyproject.toml has it."""

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
print("\n".join([*project["dependencies"], *extras["daemon"], *extras["test"]]))
