# SPDX-License-Identifier: LGPL-2.1-or-later
"""A module that is imported lazily is executed at the first use, once, and one that is not there fails as ever."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.startup.lazy_import import import_lazily

NAME = "kmodd_lazy_import_sample"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file into which the sample writes a line when it is executed."""
    log = tmp_path / "log"
    log.touch()
    text = f"from pathlib import Path\nwith Path({str(log)!r}).open('a') as file:\n    file.write('executed\\n')\nVALUE = 7\n"
    (tmp_path / f"{NAME}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield log
    sys.modules.pop(NAME, None)


def test_a_module_is_executed_at_the_first_use(log: Path) -> None:
    import_lazily([NAME])
    sample = importlib.import_module(NAME)
    assert log.read_text() == ""
    assert sample.VALUE == 7
    assert sample.VALUE == 7
    assert log.read_text() == "executed\n"


def test_others_are_executed_at_once(log: Path) -> None:
    import_lazily([f"{NAME}_of_another_name"])
    importlib.import_module(NAME)
    assert log.read_text() == "executed\n"


def test_a_module_that_is_not_there_is_an_import_error(log: Path) -> None:
    missing = f"{NAME}_missing"
    import_lazily([missing])
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(missing)
    assert log.read_text() == ""
