# SPDX-License-Identifier: LGPL-2.1-or-later
"""Frozen values that every layer shares. Times are microseconds since the epoch, durations microseconds, sizes bytes."""

from kmodd.model.asked import Attempt, Caller, Operation, OperationResult, Plan, Request, Step
from kmodd.model.kinds import HealthStatus, Origin, Result, State, StepAction, Verb
from kmodd.model.machine import (
    KernelFacts,
    LoadedModule,
    ModuleInfo,
    Outcome,
    ParameterInfo,
    ParameterValue,
    Rule,
    Uevent,
    User,
)
from kmodd.model.told import (
    Explanation,
    Failure,
    Health,
    HealthCheck,
    HistoryEntry,
    HistoryQuery,
    LoadedBy,
    Metric,
    Record,
)

__all__ = [
    "Attempt",
    "Caller",
    "Explanation",
    "Failure",
    "Health",
    "HealthCheck",
    "HealthStatus",
    "HistoryEntry",
    "HistoryQuery",
    "KernelFacts",
    "LoadedBy",
    "LoadedModule",
    "Metric",
    "ModuleInfo",
    "Operation",
    "OperationResult",
    "Origin",
    "Outcome",
    "ParameterInfo",
    "ParameterValue",
    "Plan",
    "Record",
    "Request",
    "Result",
    "Rule",
    "State",
    "Step",
    "StepAction",
    "Uevent",
    "User",
    "Verb",
]
