# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files of responses: records below responses.d, and what is kept of responses in the state directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kmodd.config.toml_file import DropIns
from kmodd.core.surface.kept_responses import dump, load
from kmodd.core.surface.records import read_records
from kmodd.errors import Conflict, Evidence, InvalidArgs, NotPermitted, errno_name
from kmodd.kernel.atomic_file import read_file, write_whole
from kmodd.model.responses import Response, Vulnerability

FOLDER = "responses.d"


def shipped_records(root: Path | None) -> Mapping[str, Vulnerability]:
    """The records in effect below `root`; none for a simulated system. Read when they are needed, which is rare."""
    return {} if root is None else read_records(DropIns(root, FOLDER).read())


class KeptResponses:
    """Responses on a file, which outlives the boot; in memory where there is no state directory."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._memory: tuple[Response, ...] = ()

    def read(self) -> tuple[Response, ...]:
        """What was written last; Conflict for a file that something else wrote, NotPermitted for one that cannot be read."""
        if self._path is None:
            return self._memory
        try:
            text = read_file(self._path)
        except OSError as error:
            raise self._refusal("read", error) from error
        if text is None:
            return ()
        try:
            return load(text)
        except (ValueError, InvalidArgs) as error:
            raise Conflict(
                f"{self._path} is damaged, and which rules belong to which response is not known",
                evidence=Evidence(file=str(self._path), hint=f"move {self._path} away; kmodctl config show"),
            ) from error

    def write(self, responses: Sequence[Response]) -> None:
        """Replace all of it; NotPermitted leaves what was there."""
        if self._path is None:
            self._memory = tuple(responses)
            return
        try:
            write_whole(self._path, dump(responses), 0o600)
        except OSError as error:
            raise self._refusal("written", error) from error

    def _refusal(self, what: str, error: OSError) -> NotPermitted:
        return NotPermitted(
            f"{self._path} cannot be {what} ({errno_name(error.errno or 0)})",
            evidence=Evidence(errno=error.errno, file=str(self._path)),
        )
