# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records of the kernel's CNA as files: what is read of them, and that nothing else is taken for a correction."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.cli.cve_record import CveRecord, parse, read_file
from kmodd.errors import InvalidArgs

UNAFFECTED: dict[str, Any] = {"status": "unaffected", "versionType": "semver"}


def record(*, versions: list[Any] | None = None, files: Any = None, **changes: Any) -> dict[str, Any]:
    """A record as vulns.git has them: one product of commits, one of versions."""
    programs = ["crypto/algif_aead.c"] if files is None else files
    product = {"product": "Linux", "vendor": "Linux", "programFiles": programs}
    commits = {"version": "72548b093ee3", "lessThan": "fafe0fa2995a", "status": "affected", "versionType": "git"}
    semver = [
        {"version": "4.14", "status": "affected"},
        {**UNAFFECTED, "version": "0", "lessThan": "4.14"},
        {**UNAFFECTED, "version": "6.1.170", "lessThanOrEqual": "6.1.*"},
        {**UNAFFECTED, "version": "6.12.85", "lessThanOrEqual": "6.12.*"},
        {**UNAFFECTED, "version": "7.0", "lessThanOrEqual": "*", "versionType": "original_commit_for_fix"},
    ]
    affected = [
        {**product, "defaultStatus": "unaffected", "versions": [commits]},
        {**product, "defaultStatus": "affected", "versions": semver if versions is None else versions},
    ]
    return {
        "dataType": "CVE_RECORD",
        "dataVersion": "5.0",
        "cveMetadata": {"cveId": "CVE-2026-31431"},
        "containers": {"cna": {"affected": affected}},
        **changes,
    }


def test_files_and_versions() -> None:
    assert parse(json.dumps(record()).encode()) == CveRecord(
        "CVE-2026-31431", ("crypto/algif_aead.c",), ("6.1.170", "6.12.85"), "7.0", "4.14"
    )


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        record(cveMetadata={"cveId": "../../etc"}),
        record(cveMetadata=[]),
        record(containers={"cna": {"affected": {}}}),
        record(containers={"cna": {"affected": [{"product": "Windows"}]}}),
        record(files=[]),
        record(files=["/etc/passwd"]),
        record(files=["net/../../x.c"]),
        record(files=[1]),
        record(versions=[1]),
        record(versions=[{**UNAFFECTED, "version": "6.1.170", "lessThanOrEqual": "6.12.*"}]),
        record(versions=[{**UNAFFECTED, "version": "6.1.170"}]),
        record(versions=[{**UNAFFECTED, "version": "0", "lessThan": "next"}]),
        record(versions=[{**UNAFFECTED, "version": "6.1.170", "lessThanOrEqual": 7}]),
    ],
)
def test_what_has_another_form_is_an_error(document: Any) -> None:
    with pytest.raises(InvalidArgs):
        parse(json.dumps(document).encode())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_value_in_any_place_is_an_error_or_a_record(value: Any) -> None:
    for document in (
        record(versions=[value]),
        record(files=value if value is not None else 0),
        record(cveMetadata=value),
        record(containers=value),
        record(versions=[{**UNAFFECTED, "version": value, "lessThanOrEqual": value}]),
    ):
        try:
            parsed = parse(json.dumps(document).encode())
        except InvalidArgs:
            continue
        assert parsed.id == "CVE-2026-31431"
        assert parsed.files


def test_files_that_are_too_large_missing_or_no_json(tmp_path: Path) -> None:
    path = tmp_path / "CVE.json"
    with pytest.raises(InvalidArgs, match="cannot be read"):
        read_file(path)
    path.write_bytes(b"[" * 200_000)
    with pytest.raises(InvalidArgs):
        read_file(path)
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(InvalidArgs, match="larger"):
        read_file(path)
