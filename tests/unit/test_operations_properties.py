# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever is asked of whatever machine: the end is what was asked for or a typed error, and what fails is undone."""

import asyncio
from dataclasses import replace

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from kmodd.errors import InvalidArgs, KmoddError
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import Fault, SimulatedModule, SimulatedParameter
from kmodd.model import (
    Consequence,
    ConsequenceKind,
    Operation,
    Plan,
    Request,
    Result,
    Rule,
    State,
    StepAction,
    User,
    Verb,
)
from kmodd.names import ModuleName
from tests.unit.fakes import machine, rule
from tests.unit.test_operations import CALLER, Bench, make_bench

NAMES = [f"m{i}" for i in range(7)]


@st.composite
def kernels(draw: st.DrawFn) -> SimulatedKernel:
    """A few modules that need earlier ones, some of them broken, forbidden, busy or loaded."""
    modules = []
    for position, name in enumerate(NAMES):
        earlier = NAMES[:position]
        depends = tuple(draw(st.lists(st.sampled_from(earlier), unique=True, max_size=2))) if earlier else ()
        soft = tuple(draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=1)))
        modules.append(
            SimulatedModule(
                name,
                depends=depends,
                softdep_pre=soft,
                permanent=draw(st.integers(0, 9)) == 0,
                builtin=not depends and draw(st.integers(0, 9)) == 0,
                aliases=(f"pci:v{position % 2}",),
                parameters=(SimulatedParameter("level", "int", "", "4", 0o644, limit=(0, 9)),),
            )
        )
    rules: list[Rule] = [
        rule("blacklist", name) for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=1))
    ]
    kernel = machine(*modules, rules=rules)
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4)):
        if not kernel.index.is_builtin(ModuleName(name)):
            kernel.modprobe(name)
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=1)):
        if ModuleName(name) in kernel.loaded.snapshot():
            kernel.hold(name, User("mount", "/mnt", "x"))
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=1)):
        kernel.fail_next(name, Fault(errno=5), removes=False, times=1)
    return kernel


names = st.sampled_from([ModuleName(name) for name in [*NAMES, "nowhere"]])
moves = st.builds(
    Operation,
    st.sampled_from([Verb.LOAD, Verb.UNLOAD, Verb.RELOAD]),
    names,
    dependents=st.booleans(),
    unused_dependencies=st.booleans(),
)
writes = st.builds(
    Operation,
    st.just(Verb.SET_PARAMETER),
    names,
    st.integers(0, 12).map(lambda level: (("level", str(level)),)),
)
operations = st.one_of(moves, moves, writes, st.builds(Operation, st.just(Verb.RESET_FAILED), names))
requests = st.builds(
    Request,
    st.lists(operations, min_size=1, max_size=5).map(tuple),
    atomic=st.booleans(),
    override_policy=st.booleans(),
)


def levels(kernel: SimulatedKernel) -> dict[str, str | None]:
    """The parameter of each module that is loaded."""
    return {name: kernel.loaded.parameters(ModuleName(name), private=True)[0].value for name in live(kernel)}


def live(kernel: SimulatedKernel) -> set[str]:
    return {name for name, module in kernel.loaded.snapshot().items() if module.state is State.LIVE}


async def carry_out(
    bench: Bench, request: Request, *, look: bool = False
) -> tuple[Plan, list[Result], list[KmoddError | None]]:
    plan = bench.operations.plan(request)
    if look and plan.unseen:
        plan = bench.operations.plan(request, await bench.operations.look(plan))
    results = await bench.operations.execute(plan, CALLER)
    bench.check_quiet()
    return plan, [result.result for result in results], [result.error for result in results]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kernels(), requests)
def test_every_request_succeeds_or_ends_in_a_typed_error(kernel: SimulatedKernel, request: Request) -> None:
    bench = make_bench(kernel)
    before, levels_before = live(kernel), levels(kernel)
    plan, results, errors = asyncio.run(carry_out(bench, request))
    after = live(kernel)
    note(f"steps {[(s.operation, str(s.action), s.module, s.because) for s in plan.steps]}")
    note(f"calls {list(kernel.executor.calls)}, results {results}, failures {bench.failures.all()}")
    for result, error in zip(results, errors, strict=True):
        assert (result is Result.FAILED) == (error is not None)
        assert not isinstance(error, InvalidArgs)
        if error is not None:
            assert error.message
            assert type(error).__name__ != "Failed"
    left = {name for error in errors if error is not None for name in error.touched}
    if request.atomic and Result.FAILED in results:
        # All or nothing, but for what the error says stays changed.
        assert after ^ before <= left
        assert {name for name in after & before if levels(kernel)[name] != levels_before[name]} <= left
    elif Result.FAILED not in results:
        # The last word on each module is what the machine shows; optional steps may have been left out.
        last = {step.module: step for step in plan.steps if step.action in (StepAction.INSERT, StepAction.REMOVE)}
        for module, step in last.items():
            if not step.optional:
                assert (module in after) == (step.action is StepAction.INSERT)
        for name in set(NAMES) - {str(module) for module in last}:
            assert (name in after) == (name in before)
        for step in plan.steps:
            later = [one for one in plan.steps[plan.steps.index(step) + 1 :] if one.module == step.module]
            if step.action is StepAction.SET_PARAMETER and not later:
                assert levels(kernel)[step.module] == step.parameters[0][1]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kernels(), requests, st.sets(st.sampled_from(NAMES)), st.booleans())
def test_no_unload_disconnects_without_the_option(
    kernel: SimulatedKernel, request: Request, attached: set[str], disconnect: bool
) -> None:
    bench = make_bench(kernel)
    up = Consequence(ConsequenceKind.INTERFACE, "wg0", up=True)
    attached &= live(kernel)
    for name in attached:
        kernel.attach(name, up)
    plan, results, _ = asyncio.run(carry_out(bench, replace(request, disconnect=disconnect), look=True))
    note(f"steps {[(s.operation, str(s.action), s.module, s.because) for s in plan.steps]}, results {results}")
    if not disconnect:
        # Nothing else takes one away either, so each is as it was.
        assert not {name for action, name, _ in kernel.executor.calls if action == "remove"} & attached
        assert attached <= live(kernel)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kernels(), requests)
def test_plan_needs_nothing_that_is_not_there(kernel: SimulatedKernel, request: Request) -> None:
    """Replayed on a model: dependencies before the module, holders gone before what they hold."""
    plan = make_bench(kernel).operations.plan(request)
    there = live(kernel)
    for step in plan.steps:
        if step.error is not None:
            continue
        needs = kernel.index.dependencies(step.module)
        if step.action is StepAction.INSERT:
            assert step.module not in there
            assert all(need in there or kernel.index.is_builtin(need) for need in needs)
            there.add(step.module)
        elif step.action is StepAction.SET_PARAMETER:
            assert step.module in there
        elif step.action is StepAction.REMOVE:
            assert step.module in there
            assert not [name for name in there if step.module in kernel.index.dependencies(ModuleName(name))]
            there.discard(step.module)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kernels(), requests)
def test_planning_changes_nothing_and_repeats_itself(kernel: SimulatedKernel, request: Request) -> None:
    bench = make_bench(kernel)
    before = kernel.loaded.raw()
    first, second = bench.operations.plan(request), bench.operations.plan(request)
    assert kernel.loaded.raw() == before
    assert [(s.action, s.module, type(s.error)) for s in first.steps] == [
        (s.action, s.module, type(s.error)) for s in second.steps
    ]
    assert not kernel.executor.calls
