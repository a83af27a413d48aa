# SPDX-License-Identifier: LGPL-2.1-or-later
"""What pyproject.toml cannot say: a distribution has the API's XML, of dbus/, in the package, where the client reads it."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDER = Path("kmodd/dbus")


class BuildWithInterfaces(build_py):
    def _interfaces(self):
        # A checkout that is installed as editable has them where it is.
        return [] if self.editable_mode else sorted(map(str, Path("dbus").glob("*.xml")))

    def run(self):
        super().run()
        for name in self._interfaces():
            self.copy_file(name, str(Path(self.build_lib) / FOLDER / Path(name).name))

    def get_source_files(self):
        return super().get_source_files() + self._interfaces()


setup(cmdclass={"build_py": BuildWithInterfaces})
