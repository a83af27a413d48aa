# SPDX-License-Identifier: LGPL-2.1-or-later
"""A CVE record of the kernel's CNA, as JSON (CVE record format 5): the source files with the fault, and the corrected versions.

The file is a stranger's. Of the whole only `containers.cna.affected` is used, and of that what has the expected form; what has not is an
error, and never taken for "not affected". https://docs.kernel.org/process/cve.html
"""

import json
import re
from pathlib import Path
from typing import Any

from kmodd.errors import InvalidArgs
from kmodd.fast_dataclass import dataclass
from kmodd.names import is_cve, is_source_file

FILE_MAX = 1 << 20
"""Bytes; those of the kernel have some ten thousand."""
_ENTRIES_MAX = 256
_VERSION = re.compile(r"\d{1,3}\.\d{1,3}(?:\.\d{1,5})?")
_SERIES = re.compile(r"(\d{1,3}\.\d{1,3})\.\*")


@dataclass(frozen=True, slots=True)
class CveRecord:
    """What such a record says about versions and files."""

    id: str
    files: tuple[str, ...]
    fixed: tuple[str, ...]
    """The first corrected version of each stable series."""
    unaffected_from: str
    unaffected_before: str


def read_file(path: Path) -> CveRecord:
    """Read a record; InvalidArgs says what is wrong with it."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX + 1)
    except OSError as error:
        raise InvalidArgs(f"{path} cannot be read ({error.strerror})", argument="id") from error
    if len(data) > FILE_MAX:
        raise InvalidArgs(f"{path} is larger than {FILE_MAX >> 20} MiB", argument="id")
    return parse(data)


def parse(data: bytes) -> CveRecord:
    """Read the text of a record; InvalidArgs."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _fault("it is not JSON") from error
    key = _at(_at(document, "cveMetadata", dict), "cveId", str)
    if not is_cve(key):
        raise _fault("cveMetadata.cveId is not the number of a CVE")
    affected = _at(_at(_at(document, "containers", dict), "cna", dict), "affected", list)
    products = [entry for entry in affected[:_ENTRIES_MAX] if isinstance(entry, dict)]
    if len(products) != len(affected):
        raise _fault("containers.cna.affected is not a short list of products")
    files: dict[str, None] = {}
    fixed: list[str] = []
    first, before = "", ""
    for product in products:
        if _at(product, "product", str) != "Linux":
            raise _fault("a product is not Linux")
        for name in _texts(product.get("programFiles", []), "programFiles"):
            if not is_source_file(name):
                raise _fault("programFiles has what is not a source file")
            files[name] = None
        # One product has commits, which say nothing of a kernel that is installed, and another one versions.
        if product.get("defaultStatus", "unknown") != "affected":
            continue
        for version in _at(product, "versions", list)[:_ENTRIES_MAX]:
            status, number = _at(version, "status", str), _at(version, "version", str)
            if status != "unaffected":
                continue
            end = version.get("lessThanOrEqual", "")
            series = _SERIES.fullmatch(end) if isinstance(end, str) else None
            if series is not None and number.startswith(f"{series[1]}.") and _VERSION.fullmatch(number):
                fixed.append(number)
            elif end == "*" and _VERSION.fullmatch(number):
                first = number
            elif number == "0" and isinstance(version.get("lessThan"), str) and _VERSION.fullmatch(version["lessThan"]):
                before = version["lessThan"]
            else:
                raise _fault(f"the versions from {number[:32]!r} on have no known form")
    if not files:
        raise _fault("it names no source files")
    return CveRecord(key, tuple(files), tuple(fixed), first, before)


def _at(value: Any, key: str, kind: type) -> Any:
    entry = value.get(key) if isinstance(value, dict) else None
    if not isinstance(entry, kind):
        raise _fault(f"{key} is missing or of another type")
    return entry


def _texts(value: Any, name: str) -> list[str]:
    if not isinstance(value, list) or len(value) > _ENTRIES_MAX or not all(isinstance(each, str) for each in value):
        raise _fault(f"{name} is not a list of texts")
    return value


def _fault(sentence: str) -> InvalidArgs:
    return InvalidArgs(f"the file is no CVE record of the kernel: {sentence}", argument="id")
