# SPDX-License-Identifier: LGPL-2.1-or-later
"""An explanation for everyone holds only what the caller could read without kmodd."""

from dataclasses import replace

import pytest

from kmodd.api.disclosure import Disclosure
from kmodd.core.audit.redaction import View, redact, redact_evidence
from kmodd.core.diagnosis.advice import drives, sentence
from kmodd.errors import Evidence, InUse, LimitsExceeded
from kmodd.model import (
    Caller,
    Explanation,
    Failure,
    LoadedBy,
    ModuleLoad,
    OperationResult,
    Requester,
    Result,
    State,
    User,
)
from kmodd.names import ModuleName

M = ModuleName("tun")
EVERYONE = View()
BY = LoadedBy(1000, "/srv/secret-client", "secret ticket", 5)
FAILURE = Failure(
    M, "load", "InitFailed", "tun failed to initialise", Evidence(5, ("tun: secret line",), "journalctl -k"), 7, by=BY
)
PROCESS = User("process", "/srv/secret-agent", "pid 7 /dev/net/tun", command="kill 7", pid=7, exe="/srv/secret-agent")
OWN = replace(PROCESS, owner=1000)
ELSEWHERE = User("mount", "/secret/merged", "type overlay, source secret, in the mount namespace of pid 42", owner=0)
PUBLIC = User("netdev", "tun0", "link kind tun, state up", command="ip link delete tun0")


def explained(*users: User, **fields: object) -> Explanation:
    made = Explanation(
        M,
        State.LIVE,
        len(users),
        users=users,
        blockers=tuple(sentence(user) for user in users),
        because=drives(users) or "loaded by something other than kmodd",
        driven=bool(drives(users)),
        free=tuple(user.command for user in users if user.command),
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def test_what_everyone_can_read_is_shown_whole() -> None:
    whole = explained(PUBLIC, failure=replace(FAILURE, by=None, evidence=Evidence(5)))
    assert redact(whole, EVERYONE) == whole


@pytest.mark.parametrize(
    "user",
    [PROCESS, OWN, ELSEWHERE, replace(PUBLIC, name="secret0", owner=0), User("rule set", "secret", "table secret")],
    ids=["process of unknown owner", "process", "mount of another namespace", "interface of another", "new kind"],
)
def test_foreign_users_are_reported_by_kind_and_number(user: User) -> None:
    answer = redact(explained(PUBLIC, user), EVERYONE)
    assert "secret" not in repr(answer)
    hidden = answer.users[1]
    assert (hidden.kind, hidden.name, hidden.count) == (user.kind, "", 1)
    assert answer.users[0] == PUBLIC
    assert answer.blockers == (sentence(PUBLIC), f"It is in use by {hidden.detail}.")
    assert (answer.free, answer.withheld) == ((), ("users",))
    assert answer.because == "drives tun0"


def test_hidden_name_that_is_part_of_a_word_changes_nothing_else() -> None:
    whole = explained(replace(PROCESS, name="a"), because="loaded by something other than kmodd")
    assert redact(whole, EVERYONE).because == "loaded by something other than kmodd"


def test_own_blocker_stays_where_another_user_has_the_same() -> None:
    """Two processes of one name and the same path: they are told apart by whose they are."""
    answer = redact(explained(OWN, replace(OWN, owner=1001)), View(1000))
    assert answer.blockers == (sentence(OWN), "It is in use by 1 process of other users.")


def test_evidence_of_an_error_is_redacted_as_an_explanation() -> None:
    evidence, withheld = redact_evidence(Evidence(5, ("tun: secret line",), users=(OWN, PUBLIC)), EVERYONE)
    assert "secret" not in repr(evidence)
    assert (evidence.errno, evidence.users[1], withheld) == (5, PUBLIC, ("users", "kernel-log"))
    assert redact_evidence(Evidence(5, ("line",), users=(OWN,)), View(1000, log=True))[1] == ()


def test_a_row_stands_for_all_of_a_kind() -> None:
    second = replace(PROCESS, detail="pid 7 /dev/net/secret")
    third = replace(PROCESS, pid=8, detail="pid 8 /dev/net/tun")
    (row,) = redact(explained(PROCESS, second, third), EVERYONE).users
    assert (row.detail, row.count) == ("2 processes of other users", 2)
    assert redact(explained(PROCESS, second, third), EVERYONE).blockers == (
        "It is in use by 2 processes of other users.",
    )


def test_the_callers_own_process_is_shown() -> None:
    whole = explained(OWN)
    assert redact(whole, View(1000)) == whole
    assert redact(whole, View(1001)).withheld == ("users",)
    # Whose process it is cannot be told, so it is nobody's.
    assert redact(explained(PROCESS), View(1000)).withheld == ("users",)


def test_who_loaded_it_and_why_is_history() -> None:
    whole = explained(loaded_by=BY, because="loaded through kmodd by uid 1000: secret ticket", failure=FAILURE)
    answer = redact(whole, View(1001, log=True))
    assert (answer.loaded_by, answer.because) == (None, "loaded through kmodd")
    assert answer.failure is not None
    assert answer.failure.by is None
    assert answer.withheld == ("loaded-by",)
    assert redact(whole, View(history=True, log=True)) == whole
    assert redact(replace(whole, holders=(ModuleName("a"),), because="needed by a"), EVERYONE).because == "needed by a"


def test_callers_see_what_their_own_user_requested() -> None:
    whole = explained(loaded_by=BY, because="loaded through kmodd by uid 1000: secret ticket", failure=FAILURE)
    assert redact(whole, View(1000, log=True)) == whole
    assert redact(whole, View(log=True)).withheld == ("loaded-by",)
    nobodys = replace(whole, loaded_by=replace(BY, uid=None), failure=replace(FAILURE, by=replace(BY, uid=None)))
    for view in (View(1000, log=True), View(log=True)):
        answer = redact(nobodys, view)
        assert (answer.loaded_by, answer.withheld) == (None, ("loaded-by",))
        assert "secret" not in answer.because
    # What the kernel saw is about a process, its unit and its container.
    request = ModuleLoad(M, Requester(1000, 7, "tool"))
    assert redact(replace(whole, load=request), View(1000, log=True)).loaded_by is None


def test_the_kernels_log_is_shown_where_it_is_not_restricted() -> None:
    whole = explained(failure=replace(FAILURE, by=None))
    answer = redact(whole, EVERYONE)
    assert answer.failure is not None
    assert answer.failure.evidence.kernel_log == ()
    assert (answer.failure.message, answer.failure.evidence.hint) == (FAILURE.message, "journalctl -k")
    assert answer.withheld == ("kernel-log",)
    assert redact(whole, View(log=True)) == whole


@pytest.mark.parametrize("restricted", [False, OSError(24, "Too many open files")])
async def test_outcomes_of_a_batch_are_returned_whatever_fails_afterwards(restricted: bool | OSError) -> None:
    """The modules are loaded and unloaded by then: an error in place of the rows would hide it."""

    async def permits(*_: object) -> bool:
        raise LimitsExceeded("too many prompts are open")

    def log_restricted() -> bool:
        if isinstance(restricted, OSError):
            raise restricted
        return restricted

    error = InUse("tun is in use", module=M, evidence=Evidence(11, ("tun: secret line",), users=(PROCESS,)))
    results = [OperationResult(M, Result.FAILED, error), OperationResult(ModuleName("dummy"), Result.CHANGED)]
    failed, done = await Disclosure(permits, log_restricted).outcomes(
        results, Caller(":1.7", 1000, interactive=True), "Batch", public=False
    )
    assert (failed["error"], done["result"]) == (("s", "InUse"), ("s", "changed"))
    assert "secret-agent" not in str(failed)
    assert ("kernel-log" in failed) == (restricted is False)
