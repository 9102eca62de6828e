"""Checks what an objective yields before anything of it is stored: a mistake in its code is told in one line."""

import json
import math
import operator
from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np

from hpo.doors.objective import OBJECTIVES, BelowBaseline, Measurement, Outcome, Trial
from hpo.doors.parameters import Params
from hpo.errors import InputError, nearest, short
from hpo.search.sql.old_attributes import RESERVED
from hpo.search.sql.views import ACCURACY_COLUMNS, KINDS
from hpo.study_file.custom import is_taken
from hpo.trial_result import as_column

UNKNOWN_VIOLATION = 1.0
"""Of a constraint that is no finite number, which SQL could not store: infeasible, unless it is minus infinity."""


class _MistakeError(ValueError):
    """The message goes on from "objective 'NAME', trial 3, step 2: "."""


def checked(measured: Any, objective: str, trial: Trial, previous: int) -> Measurement:
    """The measurement, its numbers as Python's. previous: the trial's step before, 0 at first. Raises InputError."""
    where = f"objective '{objective}', trial {trial.number}"
    try:
        if not isinstance(measured, Measurement):
            raise _MistakeError(f"yielded {short(measured)}; yield hpo.Measurement(step=…, score=…)")
        for name in ("parts", "constraints", "attributes"):
            if not isinstance(getattr(measured, name), Mapping):
                raise _MistakeError(f"{name} is {short(getattr(measured, name))}; give values by name")
        step = _step(measured.step, previous, trial.steps)
        where = f"{where}, step {step}"
        for name in measured.parts:
            _check_name(name, trial.params)
        parts = {name: _number(f"part '{name}'", value) for name, value in measured.parts.items()}
        constraints = {name: _constraint(name, limit, parts) for name, limit in measured.constraints.items()}
        if objective not in OBJECTIVES.own():
            _check_reserved(measured)
        score = _number("score", measured.score)
        if math.isinf(score):
            score = math.nan
        if not (measured.checkpoint is None or isinstance(measured.checkpoint, bytes) or callable(measured.checkpoint)):
            raise _MistakeError(f"checkpoint is {short(measured.checkpoint)}; give bytes, or a function that takes it")
        _check_attributes(measured)
        outcomes = [_outcome(outcome) for outcome in measured.outcomes]
    except _MistakeError as mistake:
        raise InputError(f"{where}: {mistake}") from None
    return replace(measured, step=step, score=score, parts=parts, constraints=constraints, outcomes=outcomes)


def _step(value: Any, previous: int, steps: int) -> int:
    try:
        step = operator.index(value)
    except TypeError:
        step = 0
    if not previous < step <= steps:
        after = f" after {previous}" if previous else ""
        raise _MistakeError(f"step is {short(value)}{after}; steps are numbered 1, 2, … up to {steps}, in order")
    return step


def _outcome(outcome: Any) -> Outcome:
    if not isinstance(outcome, Outcome):
        raise _MistakeError(f"outcomes holds {short(outcome)}; give hpo.Outcome(condition, value)")
    what = f"outcome '{outcome.condition}'"
    right = None if outcome.right is None else np.asarray(outcome.right)
    if right is not None and (right.dtype != bool or right.ndim != 1 or not len(right)):
        raise _MistakeError(
            f"{what}: right is {short(outcome.right)}; give a bool array with an entry for each example"
        )
    value = _number(f"value of {what}", outcome.value)
    severity = None if outcome.severity is None else _number(f"severity of {what}", outcome.severity)
    return replace(outcome, value=value, right=right, severity=severity)


def _number(what: str, value: Any) -> float:
    if hasattr(value, "item"):  # NumPy's scalars, and arrays and tensors of one value
        try:
            value = value.item()
        except (TypeError, ValueError, RuntimeError):
            raise _MistakeError(f"{what} has several values; give one number") from None
    try:
        if isinstance(value, Real):
            return float(value)
    except OverflowError:
        pass
    raise _MistakeError(f"{what} is {short(value)}; give a number")


def _check_name(name: Any, params: Params) -> None:
    if not isinstance(name, str) or not as_column(name).isidentifier():
        raise _MistakeError(f"a part is named {short(name)}; allowed: letters, digits, - and _, such as noisy-accuracy")
    column = as_column(name)
    if column in params:
        raise _MistakeError(f"part '{name}' has the name of a parameter; name it otherwise")
    if name == "step" or (name not in ACCURACY_COLUMNS and (column in KINDS or is_taken(column))):
        raise _MistakeError(f"part '{name}' has the name of a field or of a word of --where; name it otherwise")


def _constraint(name: str, limit: Any, parts: dict[str, float]) -> float | BelowBaseline:
    if not isinstance(limit, BelowBaseline):
        value = _number(f"constraint '{name}'", limit)
        return value if math.isfinite(value) else math.copysign(UNKNOWN_VIOLATION, -1 if value < 0 else 1)
    if limit.part not in parts:
        raise _MistakeError(
            f"constraint '{name}' compares part '{limit.part}', which was not measured.{nearest(limit.part, parts)}"
        )
    return BelowBaseline(limit.part, _number(f"at_most of constraint '{name}'", limit.at_most))


def _check_reserved(measured: Measurement) -> None:
    for what, names in (("attribute", measured.attributes), ("constraint", measured.constraints)):
        for name in names:
            if name in RESERVED or (what == "constraint" and name in measured.attributes):
                raise _MistakeError(f"{what} '{name}' has a name that hpo uses; name it otherwise")


def _check_attributes(measured: Measurement) -> None:
    for name, value in measured.attributes.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise _MistakeError(f"attribute '{name}' is {short(value)}; give what JSON can hold") from None
