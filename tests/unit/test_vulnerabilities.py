# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records of vulnerabilities: which kernel is fixed, affected, or not known to be either."""

from pathlib import Path

import pytest

from kmodd.config.toml_file import parse_document, read_document
from kmodd.core.surface.vulnerabilities import given_record, judge, kernel_version, read_records
from kmodd.errors import Conflict, InvalidArgs
from kmodd.kernel.modules.installed import image_version, running_version
from kmodd.model.surface import KernelVersion, Placement, Verdict, Vulnerability
from kmodd.names import ModuleName

SHIPPED = Path(__file__).resolve().parents[2] / "install/responses.d"
BUILDER = "(debian-kernel@lists.debian.org)"


def shipped() -> dict[str, Vulnerability]:
    documents = [read_document(path) for path in sorted(SHIPPED.glob("*.toml"))]
    return dict(read_records(document for document in documents if document is not None))


def debian(upstream: str, release: str = "6.1.0-56-amd64") -> KernelVersion:
    return kernel_version(release, f"{release} {BUILDER} #1 SMP PREEMPT_DYNAMIC Debian {upstream}-2 (2026-10-01)")


def verdict(record: Vulnerability, version: KernelVersion, placement: Placement = Placement.FILE) -> Verdict:
    return judge(record, version, dict.fromkeys(record.modules, placement))[0]


MODULES = {
    "CVE-2026-31431": ["algif_aead"],
    "CVE-2026-43033": ["authencesn"],
    "CVE-2026-43284": ["esp4", "esp6"],
    "CVE-2026-43500": ["rxrpc"],
    "CVE-2026-46300": ["esp4", "esp6"],
    "CVE-2026-31635": ["rxrpc"],
    "CVE-2026-46243": ["cifs"],
    "CVE-2026-43037": ["ip6_tunnel"],
    "CVE-2026-64531": ["openvswitch"],
    "CVE-2026-46133": ["rdma_rxe"],
    "CVE-2026-23111": ["nf_tables"],
}


def test_the_shipped_records_name_these_modules() -> None:
    assert {key: list(record.modules) for key, record in shipped().items()} == MODULES


@pytest.mark.parametrize(
    ("key", "before", "first"),
    [
        ("CVE-2026-31431", "6.1.169", "6.1.170"),
        ("CVE-2026-31431", "6.12.84", "6.12.85"),
        ("CVE-2026-31431", "6.18.21", "6.18.22"),
        ("CVE-2026-43284", "6.1.171", "6.1.172"),
        ("CVE-2026-43284", "6.6.137", "6.6.138"),
        ("CVE-2026-43284", "6.12.86", "6.12.87"),
        ("CVE-2026-43284", "7.0.4", "7.0.5"),
        ("CVE-2026-43500", "6.18.28", "6.18.29"),
        ("CVE-2026-43500", "7.0.5", "7.0.6"),
        ("CVE-2026-46300", "6.1.173", "6.1.174"),
        ("CVE-2026-46300", "6.12.90", "6.12.91"),
        ("CVE-2026-46243", "6.1.174", "6.1.175"),
        ("CVE-2026-46243", "6.18.33", "6.18.34"),
        ("CVE-2026-64531", "6.1.177", "6.1.178"),
        ("CVE-2026-64531", "6.12.96", "6.12.97"),
        ("CVE-2026-64531", "6.18.39", "6.18.40"),
    ],
)
def test_the_first_corrected_version_of_a_series_is_fixed_and_the_one_before_is_not(
    key: str, before: str, first: str
) -> None:
    record = shipped()[key]
    assert verdict(record, debian(before)) is Verdict.AFFECTED
    assert verdict(record, debian(first)) is Verdict.FIXED


@pytest.mark.parametrize(
    ("key", "version"),
    [
        ("CVE-2026-31431", "6.6.200"),  # a series that the record does not have
        ("CVE-2026-43500", "6.1.192"),
        ("CVE-2026-43284", "7.1.0"),  # later, and the record does not say that it is corrected there
        ("CVE-2026-43033", "6.1.192"),  # no version at all
        ("CVE-2026-23111", "6.12.117"),
    ],
)
def test_a_version_that_the_record_does_not_have_is_unknown(key: str, version: str) -> None:
    assert verdict(shipped()[key], debian(version)) is Verdict.UNKNOWN


def test_later_versions_are_fixed_only_where_the_record_says_so() -> None:
    record = shipped()["CVE-2026-31431"]
    assert verdict(record, debian("7.0")) is Verdict.FIXED
    assert verdict(record, debian("7.3.1")) is Verdict.FIXED


def test_a_kernel_without_the_modules_is_unknown_where_the_fault_may_be_in_the_image() -> None:
    records = shipped()
    assert verdict(records["CVE-2026-43284"], debian("6.1.171"), Placement.ABSENT) is Verdict.ABSENT
    assert verdict(records["CVE-2026-46300"], debian("6.1.173"), Placement.ABSENT) is Verdict.UNKNOWN
    assert verdict(records["CVE-2026-31431"], debian("6.1.169"), Placement.BUILTIN) is Verdict.AFFECTED


@pytest.mark.parametrize(
    ("release", "text", "upstream"),
    [
        ("6.1.0-56-amd64", f"6.1.0-56-amd64 {BUILDER} #1 SMP Debian 6.1.192-2 (2026-10-01)", (6, 1, 192)),
        ("6.12.117+deb13-amd64", f"6.12.117+deb13-amd64 {BUILDER} #1 SMP Debian 6.12.117-1 (2026)", (6, 12, 117)),
        ("6.18.22", "", (6, 18, 22)),
        # Corrections of their own, and numbers that say nothing: Ubuntu, Red Hat, a local build of Debian's sources, a candidate.
        ("6.8.0-45-generic", "6.8.0-45-generic (buildd@lcy02) #45-Ubuntu SMP Debian 6.8.12-1", None),
        ("5.14.0-427.el9.x86_64", "5.14.0-427.el9.x86_64 (mockbuild@x) #1 SMP", None),
        ("6.1.0-56-amd64", "6.1.0-56-amd64 (me@home) #1 SMP Debian 6.1.192-2 (2026-10-01)", None),
        ("7.1-rc3", "", None),
        # The text is another kernel's.
        ("6.1.0-56-amd64", f"6.1.0-55-amd64 {BUILDER} #1 SMP Debian 6.1.192-2 (2026-10-01)", None),
        ("6.1.0-56-amd64", "", None),
    ],
)
def test_the_upstream_version_is_known_of_debian_and_kernel_org_alone(
    release: str, text: str, upstream: tuple[int, int, int] | None
) -> None:
    assert kernel_version(release, text).upstream == upstream


def test_without_a_version_nothing_is_fixed() -> None:
    record = shipped()["CVE-2026-31431"]
    assert verdict(record, KernelVersion()) is Verdict.UNKNOWN
    assert verdict(record, KernelVersion(), Placement.ABSENT) is Verdict.ABSENT


def test_the_image_says_its_version_in_the_setup_header(tmp_path: Path) -> None:
    text = f"6.1.0-56-amd64 {BUILDER} #1 SMP Debian 6.1.192-2 (2026-10-01)"
    image = bytearray(0x4000)
    image[0x202:0x206] = b"HdrS"
    image[0x20E:0x210] = (0x3000).to_bytes(2, "little")
    image[0x3200 : 0x3200 + len(text)] = text.encode()
    (tmp_path / "boot").mkdir()
    for release in ("6.1.0-56-amd64", "6.1.0-57-amd64"):
        (tmp_path / f"boot/vmlinuz-{release}").write_bytes(image)
    assert image_version(tmp_path, "6.1.0-56-amd64") == text
    assert image_version(tmp_path, "6.1.0-57-amd64") == "", "it is another kernel's image"
    assert image_version(tmp_path, "6.1.0-58-amd64") == "", "there is none"
    (tmp_path / "boot/vmlinuz-6.1.0-58-amd64").write_bytes(b"\x1f\x8b" + bytes(100))
    assert image_version(tmp_path, "6.1.0-58-amd64") == ""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/version").write_text(f"Linux version {text}\n")
    assert running_version(tmp_path) == text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[response.Copy-Fail]\nmodules = ["a"]', "named by its CVE"),
        ("[response.CVE-2026-31431]\nmodules = []", "at least one module"),
        ("[response.CVE-2026-31431]", "modules is missing"),
        ('[response.CVE-2026-31431]\nmodules = ["../x"]', "a module name is"),
        ('[response.CVE-2026-31431]\nmodules = ["a"]\nfixed = ["6.1"]\nfixd = []', "did you mean fixed"),
        ('[response.CVE-2026-31431]\nmodules = ["a"]\nfixed = ["new"]', "two or three numbers"),
        ('[response.CVE-2026-31431]\nmodules = ["a"]\ninitcalls = ["a b"]', "name of a function"),
    ],
)
def test_a_record_that_says_something_else_is_refused_with_its_line(text: str, sentence: str) -> None:
    with pytest.raises(Conflict, match=sentence):
        read_records([parse_document(text, "/etc/kmodd/responses.d/x.toml")])


def test_a_given_record_is_parsed_like_any_input() -> None:
    with pytest.raises(InvalidArgs):
        given_record("CVE-1", ["x"])
    with pytest.raises(InvalidArgs):
        given_record("CVE-2026-31431", ["x"], fixed=["6.1.x"])
    with pytest.raises(InvalidArgs):
        given_record("CVE-2026-31431", ["x"], files=["net/../../etc"])
    parsed = given_record(
        "CVE-2026-31431", ["algif-aead", "algif_aead"], files=["net/core/skbuff.c"], fixed=["6.1.170"]
    )
    assert parsed.modules == (ModuleName("algif_aead"),)
    assert given_record("", ["b", "a"]).id == "module:b,a"
