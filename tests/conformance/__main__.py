# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ask a hundred thousand questions: `python -m tests.conformance [--questions N] [--seed N]`."""

import argparse
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conformance import debian13
from tests.conformance.conftest import HOST
from tests.conformance.oracle import build_shim
from tests.conformance.reduce import reduce
from tests.conformance.run import Judged, run

SHOWN = 20


def main() -> int:
    """Run it with both versions of modprobe; the exit status is 1 when anything diverges."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance")
    parser.add_argument("--questions", type=int, default=100_000, help="of all together")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    divergences: list[tuple[Judged, tuple[str, ...]]] = []
    with TemporaryDirectory() as folder:
        shim = build_shim(Path(folder))
        for program in (HOST, debian13.modprobe()):
            tally = run(arguments.seed, arguments.questions // 2, program, shim)
            print(
                f"{Path(program[-1]).resolve()}: {tally.counts.total()} questions, seed {arguments.seed}: {dict(tally.counts)}"
            )
            divergences += ((judged, program) for judged in tally.divergences)
        kinds: Counter[str] = Counter()
        for judged, program in divergences:
            kinds[judged.verdict.difference] += 1
            if kinds[judged.verdict.difference] <= 3 and kinds.total() <= SHOWN:
                print(f"\n{reduce(judged, program, shim)}")
        if kinds:
            print(f"\ndivergences: {dict(kinds)}")
    return bool(kinds)


if __name__ == "__main__":
    sys.exit(main())
