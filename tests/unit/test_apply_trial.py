# SPDX-License-Identifier: LGPL-2.1-or-later
"""The desired state on trial, on a simulated kernel: taken back after silence, a crash, a stop and a reboot, and kept when confirmed."""

import asyncio

import pytest

from kmodd.core.desired.trial import load
from kmodd.errors import Conflict, NotPermitted
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.model import User
from kmodd.names import ModuleName
from tests.unit.desired_bench import CALLER, Bench, Known, Make, benches, wanted
from tests.unit.fakes import rule

bench = pytest.fixture(benches)

HOUR = 3600
SETTINGS = (
    f'{wanted("vfat")}{wanted("tuned", "parameters = { level = 2 }", "autoload = true")}[module.a]\nstate = "absent"\n'
)


def level(b: Bench) -> str:
    values = {each.name: each.value or "" for each in b.kernel.loaded.parameters(ModuleName("tuned"), private=True)}
    return values["level"]


async def tried(bench: Make, seconds: int = HOUR) -> Bench:
    """Everything of the settings is on trial: the daemon was there before they were written."""
    b = bench("", "tuned", "a", "b")
    await b.boot()
    b.files.text = SETTINGS
    await b.apply(trial=seconds)
    return b


def untouched(b: Bench) -> bool:
    return (b.live(), level(b)) == ({"tuned", "a", "b"}, "1")


def next_daemon(
    bench: Make, b: Bench, kernel: SimulatedKernel, *, boot: str = "1", known: Known | None = None
) -> Bench:
    made = bench(SETTINGS, kernel=kernel, known=known or b.known, kept_trial=b.kept_trial, boot=boot)
    made.now = b.now
    return made


async def test_what_is_done_is_taken_back_and_not_done_again_until_it_is_applied(bench: Make) -> None:
    b = await tried(bench)
    assert (b.live(), level(b)) == ({"tuned", "b", "fat", "vfat"}, "2")
    assert b.rules.written == [], "a file would act at the next boot"
    assert "on trial until" in b.trial.told
    assert [check.status.value for check in b.trial.health()] == ["degraded"]
    results = await b.trial.revert(b.trial.kept, CALLER)
    await b.settle()
    assert all(result.error is None for result in results)
    assert untouched(b)
    assert (b.trial.told, b.trial.health()) == ("", [])
    b.reconciler.reconcile(everything=True)
    await b.settle()
    assert untouched(b)
    await b.apply()
    assert (b.live(), level(b)) == ({"tuned", "b", "fat", "vfat"}, "2")
    assert [change.module for change in b.rules.written] == ["tuned"]
    assert b.kept_trial.read() is None
    assert "vfat" not in b.trial.held()


async def test_silence_takes_it_back(bench: Make) -> None:
    b = await tried(bench)
    b.trial._deadline.set(b.now)
    for _ in range(1000):
        if b.trial.until:
            await asyncio.sleep(0.01)
    await b.settle()
    assert untouched(b)
    (record,) = [each for each in b.journal.records if each.action == "apply-revert"]
    assert (record.reason, record.uid, record.result) == ("the trial was not confirmed in time", 0, "changed")


async def test_a_confirmation_writes_the_files_and_keeps_it(bench: Make) -> None:
    b = await tried(bench)
    for seconds in (0, HOUR):
        with pytest.raises(Conflict, match="on trial until"):
            await b.apply(trial=seconds)
    await b.apply(confirm=True)
    assert (b.live(), level(b)) == ({"tuned", "b", "fat", "vfat"}, "2")
    assert [change.module for change in b.rules.written] == ["tuned"]
    assert (b.kept_trial.read(), b.trial.until) == (None, 0)
    with pytest.raises(Conflict, match="no desired state is on trial"):
        await b.apply(confirm=True)
    with pytest.raises(Conflict, match="no desired state is on trial"):
        await b.trial.revert(b.trial.kept, CALLER)


async def test_a_confirmation_that_fails_leaves_the_trial(bench: Make) -> None:
    b = await tried(bench)
    b.rules.full = NotPermitted("no space")
    await b.apply(confirm=True)
    assert b.trial.until
    await b.trial.revert(b.trial.kept, CALLER)
    await b.settle()
    assert untouched(b)


async def test_a_crash_changes_nothing_of_the_time(bench: Make) -> None:
    b = await tried(bench)
    b.trial._deadline.cancel()
    after = next_daemon(bench, b, b.kernel)
    await after.boot()
    assert after.trial.until == b.trial.until
    assert (after.live(), level(after)) == ({"tuned", "b", "fat", "vfat"}, "2")
    await after.trial.revert(after.trial.kept, CALLER)
    assert untouched(after)


async def test_the_stop_of_the_daemon_takes_it_back(bench: Make) -> None:
    b = await tried(bench)
    await b.trial.close()
    assert untouched(b)


async def test_a_reboot_ends_it_and_nothing_of_it_is_applied_in_the_next_boots(bench: Make) -> None:
    b = await tried(bench)
    b.trial._deadline.cancel()
    for boot in ("2", "3"):
        machine = bench(SETTINGS, "tuned", "a", "b").kernel
        after = next_daemon(bench, b, machine, boot=boot, known=Known())
        await after.boot()
        assert untouched(after), "as it was before the trial"
        assert after.trial.until == 0
        assert ("vfat", "presence", "loaded", "absent") in await after.drift()
    await after.apply()
    assert "vfat" in after.live()
    assert after.kept_trial.read() is None


async def test_nothing_is_kept_of_a_trial_that_fails(bench: Make) -> None:
    b = bench("", "tuned")
    await b.boot()
    b.files.text = wanted("vfat") + wanted("broken")
    await b.apply(trial=HOUR)
    assert (b.live(), b.trial.until, b.kept_trial.read()) == ({"tuned"}, 0, None)
    # What an earlier one held back still waits.
    b.files.text = wanted("vfat")
    await b.apply(trial=HOUR)
    await b.trial.revert(b.trial.kept, CALLER)
    kept = b.kept_trial.read()
    b.files.text = wanted("vfat") + wanted("broken")
    await b.apply(trial=HOUR)
    assert "vfat" in b.trial.held()
    assert b.kept_trial.read() == kept


async def test_nothing_is_kept_of_a_trial_that_is_refused_as_a_whole(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench("", "tuned")
    await b.boot()
    b.files.text = wanted("vfat")

    async def refuse(*_: object) -> None:
        raise Conflict("other modules than were authorised")

    monkeypatch.setattr(b.operations, "execute", refuse)
    with pytest.raises(Conflict, match="authorised"):
        await b.apply(trial=HOUR)
    assert (b.trial.until, b.kept_trial.read()) == (0, None)


async def test_what_could_not_be_taken_back_is_not_tried(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench("", "tuned", rules=[rule("blacklist", "b", file="/etc/modprobe.d/kmodd-blacklist.conf")])
    await b.boot()
    b.files.text = wanted("vfat")

    def full(data: bytes | None) -> None:
        raise NotPermitted("no space")

    monkeypatch.setattr(b.trial, "_write", full)
    with pytest.raises(NotPermitted):
        await b.apply(trial=HOUR)
    assert "vfat" not in b.live()
    b.files.text = '[module.a]\nblacklist = "hard"\n'
    with pytest.raises(Conflict, match="nothing to try"):
        await b.apply(trial=HOUR)


async def test_what_others_undid_meanwhile_does_not_keep_the_rest(bench: Make) -> None:
    b = await tried(bench)
    await b.rmmod("vfat")
    await b.modprobe("a")
    results = await b.trial.revert(b.trial.kept, CALLER)
    assert all(result.error is None for result in results)
    assert untouched(b)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"until": 1, "boot": "", "held": ["../x"], "undo": []}'])
async def test_a_damaged_file_is_said_to_be_so(bench: Make, text: bytes) -> None:
    with pytest.raises(Conflict, match="damaged"):
        load(text)
    b = bench("", "tuned")
    b.kept_trial.write(text)
    await b.boot()
    assert [each.event for each in b.journal.records if each.priority == 4] == ["daemon.trouble"]
    # What is held back is not known, so nothing is brought to the desired state by itself.
    assert "vfat" in b.trial.held()
    assert [check.status.value for check in b.trial.health()] == ["degraded"]
    await b.apply()
    assert (b.trial.health(), "vfat" in b.trial.held(), b.kept_trial.read()) == ([], False, None)


@pytest.mark.parametrize("until", ["Infinity", "1e999", "99999999999999999999", '"1"', "null"])
def test_a_moment_that_no_message_could_show_is_damage(until: str) -> None:
    with pytest.raises(Conflict, match="damaged"):
        load(f'{{"until": {until}, "boot": "", "held": [], "undo": []}}'.encode())


def test_a_word_is_no_list_of_modules() -> None:
    with pytest.raises(Conflict, match="damaged"):
        load(b'{"until": 1, "boot": "", "held": "dummy", "undo": []}')


# --- what happens while polkit asks ----------------------------------------------------------------------------------


async def test_the_time_is_over_by_itself(bench: Make) -> None:
    b = await tried(bench, 1)
    for _ in range(2000):
        if b.trial.until:
            await asyncio.sleep(0.01)
    await b.settle()
    assert untouched(b)


async def test_a_confirmation_that_comes_too_late_changes_nothing(bench: Make) -> None:
    b = await tried(bench)
    plan = await b.plan(dry_run=False, reason="", confirm=True)
    await b.trial.revert(b.trial.kept, CALLER)
    await b.settle()
    kept = b.kept_trial.read()
    with pytest.raises(Conflict, match="ended meanwhile"):
        await b.convergence.apply(plan, CALLER)
    assert untouched(b)
    assert (b.rules.written, b.kept_trial.read()) == ([], kept)


async def test_a_confirmation_is_of_the_trial_that_was_there(bench: Make) -> None:
    b = await tried(bench)
    plan, first = await b.plan(dry_run=False, reason="", confirm=True), b.trial.kept
    await b.trial.revert(first, CALLER)
    b.now += 1
    await b.apply(trial=HOUR)
    with pytest.raises(Conflict, match="ended meanwhile"):
        await b.convergence.apply(plan, CALLER)
    with pytest.raises(Conflict, match="ended meanwhile"):
        await b.trial.revert(first, CALLER)
    assert b.trial.until


async def test_what_was_edited_since_is_not_confirmed_untried(bench: Make) -> None:
    b = await tried(bench)
    b.files.text = SETTINGS + '[module.b]\nstate = "absent"\n'
    with pytest.raises(Conflict, match="changed since the trial began: b"):
        await b.apply(confirm=True)
    assert b.trial.until
    assert "b" in b.live()


async def test_an_application_planned_before_a_trial_does_not_confirm_it(bench: Make) -> None:
    b = bench("", "tuned", "a", "b")
    await b.boot()
    b.files.text = SETTINGS
    plans = [await b.plan(dry_run=False, reason="", trial=seconds) for seconds in (0, HOUR)]
    await b.apply(trial=HOUR)
    kept = b.trial.kept
    for plan in plans:
        with pytest.raises(Conflict, match="on trial until"):
            await b.convergence.apply(plan, CALLER)
    assert b.trial.kept is kept
    assert b.trial._deadline._timer is not None


async def test_an_application_under_way_does_not_end_a_trial_that_begins(bench: Make) -> None:
    b = bench("", "tuned", "a", "b")
    await b.boot()
    b.files.text = wanted("vfat")
    plain = await b.plan(dry_run=False, reason="")
    b.files.text = wanted("vfat") + wanted("c")
    trial = await b.plan(dry_run=False, reason="", trial=HOUR)
    await asyncio.gather(b.convergence.apply(plain, CALLER), b.convergence.apply(trial, CALLER))
    await b.settle()
    assert b.trial.until
    await b.trial.revert(b.trial.kept, CALLER)
    await b.settle()
    assert "c" not in b.live()


async def test_of_two_trials_at_a_time_one_is_made(bench: Make) -> None:
    b = bench("", "tuned", "a", "b")
    await b.boot()
    b.files.text = SETTINGS
    plans = [await b.plan(dry_run=False, reason="", trial=HOUR) for _ in range(2)]
    done = await asyncio.gather(*(b.convergence.apply(plan, CALLER) for plan in plans), return_exceptions=True)
    await b.settle()
    assert [isinstance(each, Conflict) for each in done] == [False, True]
    assert b.trial._deadline._timer is not None
    await b.trial.revert(b.trial.kept, CALLER)
    await b.settle()
    assert untouched(b)


async def test_what_others_loaded_before_it_was_done_stays(bench: Make) -> None:
    b = bench("", "tuned")
    await b.boot()
    b.files.text = wanted("vfat") + wanted("c")
    plan = await b.plan(dry_run=False, reason="", trial=HOUR)
    await b.modprobe("vfat")
    await b.convergence.apply(plan, CALLER)
    await b.settle()
    await b.trial.revert(b.trial.kept, CALLER)
    await b.settle()
    assert b.live() == {"tuned", "vfat", "fat"}


# --- what cannot be taken back ---------------------------------------------------------------------------------------


async def test_a_rule_does_not_keep_what_was_loaded_from_coming_back(bench: Make) -> None:
    b = bench("", "a", rules=[rule("blacklist", "a", file="/etc/modprobe.d/site.conf")])
    await b.boot()
    b.files.text = '[module.a]\nstate = "absent"\n'
    await b.apply(trial=HOUR)
    assert b.live() == set()
    results = await b.trial.revert(b.trial.kept, CALLER)
    assert [result.error for result in results] == [None]
    assert b.live() == {"a"}


async def test_what_failed_is_shown_tried_again_and_can_be_taken_back(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kmodd.core.trial.TRIAL_RETRY", 0.01)
    b = await tried(bench)
    b.kernel.hold("vfat", User("process", "cat", "pid 7"))
    b.trial._deadline.set(b.now)
    for _ in range(2000):
        if b.trial._failed < 6:
            await asyncio.sleep(0.01)
    assert "vfat" in b.live()
    assert b.trial.until == 0
    assert "not taken back for vfat fat" in b.trial.health()[0].message
    b.kernel.end_hang("vfat")
    # The next daemon goes on with it.
    after = next_daemon(bench, b, b.kernel)
    await after.boot()
    for _ in range(2000):
        if after.trial.health():
            await asyncio.sleep(0.01)
    await after.settle()
    assert untouched(after)


async def test_a_system_without_descriptors_does_not_end_the_time(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    b = await tried(bench)

    def full(*_: object) -> None:
        raise OSError(24, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(b.operations, "plan", full)
        with pytest.raises(OSError, match="too many"):
            await b.trial.revert(b.trial.kept, CALLER)
    assert b.trial.until
    assert b.trial._deadline._timer is not None
    await b.trial.close()
    assert untouched(b)


async def test_a_parameter_that_cannot_be_read_is_not_lost(bench: Make) -> None:
    b = bench("", "fat", "vfat")
    await b.boot()
    await b.modprobe("tuned")
    b.files.text = '[module.tuned]\nstate = "absent"\n'
    b.kernel.rmmod("tuned")
    b.kernel.modprobe("tuned", "hidden=7")
    await b.settle()
    with pytest.raises(Conflict, match="parameter hidden of tuned cannot be read, so a trial could not take it back"):
        await b.apply(trial=HOUR)
    assert "tuned" in b.live()


async def test_a_string_that_was_never_set_is_as_before_without_it(bench: Make) -> None:
    b = bench("", "sound")
    await b.boot()
    b.files.text = '[module.sound]\nstate = "absent"\n'
    await b.apply(trial=HOUR)
    assert b.live() == set()
    await b.trial.revert(b.trial.kept, CALLER)
    assert b.live() == {"sound"}


async def test_a_stop_that_takes_too_long_is_ended_first_by_the_next_daemon(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = await tried(bench)
    entered = asyncio.Event()

    async def hang(*_: object) -> None:
        entered.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(b.operations, "execute", hang)
    stop = asyncio.get_running_loop().create_task(b.trial.close())
    await entered.wait()
    stop.cancel()
    await asyncio.wait({stop})
    b.trial._deadline.cancel()
    text = b.kept_trial.read()
    assert text is not None
    assert load(text).until <= b.now


async def test_a_stop_in_the_middle_of_an_application_is_taken_back_by_the_next_daemon(bench: Make) -> None:
    b = bench("", "tuned")
    await b.boot()
    b.files.text = wanted("vfat")
    plan = await b.plan(dry_run=False, reason="", trial=HOUR)
    work = asyncio.get_running_loop().create_task(b.convergence.apply(plan, CALLER))
    for _ in range(1000):
        if not b.trial.until:
            await asyncio.sleep(0)
    await b.trial.close()
    work.cancel()
    await asyncio.wait({work})
    await b.settle()
    assert "vfat" in b.live()
    after = next_daemon(bench, b, b.kernel)
    await after.boot()
    for _ in range(2000):
        if after.trial.until:
            await asyncio.sleep(0.01)
    await after.settle()
    assert after.live() == {"tuned"}


async def test_a_stop_in_the_middle_of_a_confirmation_confirms(bench: Make) -> None:
    b = await tried(bench)
    plan = await b.plan(dry_run=False, reason="", confirm=True)
    work = asyncio.get_running_loop().create_task(b.convergence.apply(plan, CALLER))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await b.trial.close()
    work.cancel()
    await asyncio.wait({work})
    assert b.kept_trial.read() is None
    assert [change.module for change in b.rules.written] == ["tuned"]
    assert (b.live(), level(b)) == ({"tuned", "b", "fat", "vfat"}, "2")


async def test_an_application_for_good_ends_the_attempts_to_take_back(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kmodd.core.trial.TRIAL_RETRY", 0.01)
    b = await tried(bench)
    b.kernel.hold("vfat", User("process", "cat", "pid 7"))
    await b.trial.revert(b.trial.kept, CALLER)
    assert "vfat" in b.trial.health()[0].message
    await b.apply()
    b.kernel.end_hang("vfat")
    await b.settle()
    assert "vfat" in b.live()
    assert (b.kept_trial.read(), b.trial.health(), "vfat" in b.trial.held()) == (None, [], False)
