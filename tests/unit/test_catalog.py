# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every event has a message id, every message id an entry in the catalog, and journald can read the catalog."""

import ast
import re
import subprocess
from pathlib import Path

from kmodd.journal.fields import MESSAGE_IDS

ROOT = Path(__file__).parents[2]
CATALOG = ROOT / "systemd" / "kmodd.catalog"


def entries() -> dict[str, str]:
    """The catalog's text by message id."""
    parts = re.split(r"^-- ([0-9a-f]{32})\n", CATALOG.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_table_and_the_catalog_agree() -> None:
    assert set(entries()) == set(MESSAGE_IDS.values())
    assert len(set(MESSAGE_IDS.values())) == len(MESSAGE_IDS)
    named = re.findall(r"^# ([a-z.-]+)\n-- ([0-9a-f]{32})$", CATALOG.read_text(), flags=re.MULTILINE)
    assert dict(named) == MESSAGE_IDS


def test_every_entry_has_a_subject_and_an_explanation() -> None:
    for text in entries().values():
        header, _, body = text.partition("\n\n")
        assert header.startswith("Subject: ")
        assert "Documentation: man:kmodd(8)" in header
        assert len(body.strip()) > 60


def test_no_entry_shows_the_name_of_a_field_that_is_missing() -> None:
    """journalctl puts the name of a field where the record has none: only where that is said may one be missing."""
    for text in entries().values():
        assert not re.search("@KMODD_(REASON|PARAMETERS)@", text), "most operations have none"
        if re.search("@KMODD_(ERRNO|HINT)@", text):
            assert "A field without a value is shown by its name." in text


def texts(node: ast.AST) -> set[str]:
    """Dotted names among the texts below a node."""
    found = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}
    return {text for text in found if re.fullmatch(r"[a-z]+\.[a-z-]+", text)}


def events(tree: ast.AST) -> set[str]:
    """Events that a file records: what it gives to a Record, and whatever else is named like one of the table's."""
    families = {name.partition(".")[0] for name in MESSAGE_IDS}
    found = {text for text in texts(tree) if text.partition(".")[0] in families}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.lower().endswith("record"):
            for given in (*node.args[:1], *(word.value for word in node.keywords if word.arg == "event")):
                found |= texts(given)
    return found


def test_every_event_in_the_source_has_a_message_id() -> None:
    found = events(ast.parse('Record("never.heard-of" if x else "module.loaded", "text with.dots")'))
    assert found == {"never.heard-of", "module.loaded"}
    used = set[str]()
    for path in (ROOT / "kmodd").rglob("*.py"):
        used |= events(ast.parse(path.read_text()))
    assert used <= set(MESSAGE_IDS)


def test_journald_reads_it(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/systemd/catalog").mkdir(parents=True)
    (tmp_path / "usr/lib/systemd/catalog/kmodd.catalog").write_bytes(CATALOG.read_bytes())
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    done = subprocess.run(["journalctl", f"--root={tmp_path}", "--update-catalog"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    listed = subprocess.run(["journalctl", f"--root={tmp_path}", "--list-catalog"], capture_output=True, text=True)
    assert len(listed.stdout.splitlines()) == len(MESSAGE_IDS)
