"""Which parameters a trial tries: Optuna's samplers as the spec names them."""

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
"""At most so many trials are drawn at random before a sampler learns from what it sees."""
MAX_GP_TRIALS = 100
"""A Gaussian process learns more from few trials (benchmarks/LOG.md); its time grows with the cube of their number."""


class Sampling:
    """One study's sampling in one worker: a claimed trial gets its parameters."""

    def __init__(self, engine: sa.Engine, study_id: int, spec: Spec) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.spec = spec
        self._history = History(engine, study_id, spec.name)

    def draw(self, claim: Claim) -> tuple[Params, dict[str, BaseDistribution]]:
        """The claimed trial's parameters, and what each was drawn from.

        Each sampler is seeded from the study's seed and the trial's number, so that no two workers draw alike, and
        sees the running trials of others. What it draws again (all trials have the same seed, so it would give the same
        result) is drawn at random instead, as long as there is something new.
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
    """As the database gives it back: 1.0 for a 1 among floats. Checkpoints are known by their parameters."""
    return distribution.to_external_repr(distribution.to_internal_repr(value))


def _now() -> datetime:
    """As Optuna stores times: UTC that does not say so."""
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
    """What the sampler does not choose: values that the trial's start or the spec fixes."""
    fixed = {name: value for name, value in spec.search.parameters() if isinstance(value, int | float | str)}
    return {**fixed, **fixed_params}


def distributions(spec: Spec, given: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """What each parameter of a trial is drawn from, in the study file's order."""
    return {name: _distribution(name, spec, given.get(name)) for name, _ in spec.search.parameters()}


def _distribution(name: str, spec: Spec, given: Any) -> BaseDistribution:
    """What a parameter is drawn from: a single value where the spec fixes it, so that the trial has it all the same."""
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
    if given is not None:  # the baseline may lie outside of what is searched
        low, high = min(low, given), max(high, given)
        logarithmic = logarithmic and low > 0
    if row.kind == "whole":
        return IntDistribution(low, high, log=logarithmic)
    return FloatDistribution(low, high, log=logarithmic)


def _is_logarithmic(row: Row, choices: Sequence[Any]) -> bool:
    return row.log and min(choices) > 0


def _kind(spec: Spec, tried: Sequence[Params]) -> str:
    """Of sampler. Two workers that draw at the same time, and so do not see what the other draws, would draw alike from
    a Gaussian process: then `auto` is TPE.
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
        case _:  # random; a grid's points are planned (plan.py)
            inner = optuna.samplers.RandomSampler(seed=seed)
    rows = spec.search.rows
    choices = {
        name: (parameter.choices, _is_logarithmic(rows[name], parameter.choices))
        for name, parameter in spec.search.parameters()
        if hasattr(parameter, "choices") and rows[name].kind != "word"
    }
    return OrderedChoicesSampler(inner, choices)
