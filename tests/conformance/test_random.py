# SPDX-License-Identifier: LGPL-2.1-or-later
"""Thousands of random questions: kmodd's plan is what modprobe does, or a refusal that names the rule."""

from pathlib import Path

import pytest

from tests.conformance.run import run

SEED = 13
UNLOADS = 900
QUESTIONS = 1500
"""For each modprobe."""


def test_plans_are_what_modprobe_does(program: tuple[str, ...], shim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tally = run(SEED, QUESTIONS, program, shim)
    with capsys.disabled():
        print(f"\n{tally.counts.total()} questions, seed {SEED}: {dict(tally.counts)}")
    assert not tally.divergences, "\n\n".join(map(str, tally.divergences[:5]))
    assert tally.counts.total() >= QUESTIONS
    # A generator that asks only what changes nothing proves nothing.
    assert tally.counts["agree"] > QUESTIONS / 2
    assert tally.counts["refused"] > QUESTIONS / 50
    assert tally.counts["no oracle"] < QUESTIONS / 100


def test_unloads_remove_what_modprobe_removes_in_its_order(
    program: tuple[str, ...], shim: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Holders, soft dependencies before and after, what nothing uses any more, and names of any letters."""
    tally = run(SEED, UNLOADS, program, shim, unloading=True)
    with capsys.disabled():
        print(f"\n{tally.counts.total()} unloads, seed {SEED}: {dict(tally.counts)}")
    assert not tally.divergences, "\n\n".join(map(str, tally.divergences[:5]))
    assert tally.counts["agree"] > UNLOADS / 2
    assert tally.counts["better"] < UNLOADS / 5
