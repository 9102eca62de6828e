"""Draws a trial's parameters with the Optuna sampler that the spec names."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from hpo.doors.parameters import Params, Row
from hpo.search.ordered_choices import OrderedChoicesSampler
from hpo.search.sql.claims import Claim
from hpo.search.sql.trials_in_memory import History, starting_trial, with_estimates
from hpo.study_file.spec import Spec

MAX_REDRAWS = 20
STARTUP_TRIALS = {"tpe": 10, "gp": 4}
"""Maximum number of trials drawn at random before a sampler learns from results."""
MAX_GP_TRIALS = 100
"""A Gaussian process learns more from few trials (benchmarks/LOG.md), but takes time cubic in their number."""


class Sampling:
    """Draws parameters for claimed trials of one study in one worker."""

    def __init__(self, engine: sa.Engine, study_id: int, spec: Spec) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.spec = spec
        self._history = History(engine, study_id, spec.name)

    def draw(self, claim: Claim) -> tuple[Params, dict[str, BaseDistribution]]:
        """The claimed trial's parameters, and the distribution of each.

        The sampler is seeded from the study's seed and the trial's number, so that no two workers draw the same, and
        sees other workers' running trials. A configuration that was tried before would give the same result, as all
        trials share a seed, so it is replaced by a random one, with up to MAX_REDRAWS attempts.
        """
        trial = starting_trial(claim.hold.trial_id, claim.number, _now())
        given = given_params(self.spec, claim.start.fixed_params)
        trial.distributions = distributions(self.spec, given)
        free = {name: trial.distributions[name] for name in self.spec.search.searched if name not in given}
        trial.params = given | self._sampled(trial, free, given) if free else given
        params = {name: _as_kept(trial.params[name], kind) for name, kind in trial.distributions.items()}
        return params, trial.distributions

    def _sampled(self, trial: FrozenTrial, free: Mapping[str, BaseDistribution], given: Params) -> Params:
        seed = f"{self.spec.seed}/{trial.number}"
        study = self._history.study(trial)
        tried = [other.params for other in study.get_trials(deepcopy=False)]
        shown = with_estimates(study, trial)
        params = _draw(_sampler(self.spec, _kind(self.spec, tried), seed), shown, trial, free)
        for attempt in range(MAX_REDRAWS):
            if given | params not in tried:
                break
            params = _draw(_sampler(self.spec, "random", f"{seed}/{attempt}"), shown, trial, free)
        return params


def _as_kept(value: Any, distribution: BaseDistribution) -> Any:
    """The value as the database returns it, such as 1.0 for a float 1: checkpoints are identified by parameters."""
    return distribution.to_external_repr(distribution.to_internal_repr(value))


def _now() -> datetime:
    """The time as Optuna stores it: UTC without a time zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def _draw(
    sampler: optuna.samplers.BaseSampler,
    study: optuna.Study,
    trial: FrozenTrial,
    free: Mapping[str, BaseDistribution],
) -> Params:
    drawn = sampler.sample_relative(study, trial, dict(free))
    return {
        name: drawn[name] if name in drawn else sampler.sample_independent(study, trial, name, distribution)
        for name, distribution in free.items()
    }


def given_params(spec: Spec, fixed_params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that the sampler does not choose, fixed by the trial's start or the spec."""
    fixed = {name: value for name, value in spec.search.parameters() if isinstance(value, int | float | str)}
    return {**fixed, **fixed_params}


def distributions(spec: Spec, given: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """The distribution of each parameter of a trial, in the study file's order."""
    return {name: _distribution(name, spec, given.get(name)) for name, _ in spec.search.parameters()}


def _distribution(name: str, spec: Spec, given: Any) -> BaseDistribution:
    """A parameter's distribution; a single value if the spec fixes it, so that the trial has the parameter anyway."""
    row, parameter = spec.search.rows[name], getattr(spec.search, name)
    if row.kind == "word":
        return CategoricalDistribution(row.words if parameter != row.words[0] else row.words[:1])
    low = high = given
    logarithmic = False
    if hasattr(parameter, "choices"):
        low, high = min(parameter.choices), max(parameter.choices)
        logarithmic = _is_logarithmic(row, parameter.choices)
    elif hasattr(parameter, "low"):
        low, high, logarithmic = parameter.low, parameter.high, parameter.log
    if given is not None:  # the baseline may lie outside the search space
        low, high = min(low, given), max(high, given)
        logarithmic = logarithmic and low > 0
    if row.kind == "whole":
        return IntDistribution(low, high, log=logarithmic)
    return FloatDistribution(low, high, log=logarithmic)


def _is_logarithmic(row: Row, choices: Sequence[Any]) -> bool:
    return row.log and min(choices) > 0


def _kind(spec: Spec, tried: Sequence[Params]) -> str:
    """The kind of sampler. Workers that draw at the same time do not see each other's parameters, and would draw almost
    the same from a Gaussian process; `auto` is TPE then.
    """
    if spec.sampler.name == "auto":
        others_draw = any(not params for params in tried)
        return "tpe" if others_draw or len(tried) >= MAX_GP_TRIALS else "gp"
    return spec.sampler.name


def _sampler(spec: Spec, kind: str, seed_text: str) -> optuna.samplers.BaseSampler:
    seed = Random(seed_text).getrandbits(32)  # noqa: S311 (not for secrets)
    startup = min(STARTUP_TRIALS.get(kind, 0), max(4, spec.budget // 4))
    inner: optuna.samplers.BaseSampler
    match kind:
        case "tpe":
            inner = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
        case "gp":
            inner = optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
        case _:  # random; grid points are planned in plan.py
            inner = optuna.samplers.RandomSampler(seed=seed)
    rows = spec.search.rows
    choices = {
        name: (parameter.choices, _is_logarithmic(rows[name], parameter.choices))
        for name, parameter in spec.search.parameters()
        if hasattr(parameter, "choices") and rows[name].kind != "word"
    }
    return OrderedChoicesSampler(inner, choices)
