"""Lets any sampler search ordered choices, such as batch sizes 32, 64, 128, as numbers.

Optuna's categorical distribution ignores that 64 lies between 32 and 128. Here, choices are searched as a range, and a
drawn value is moved to a choice before it is stored, so that the database and the dashboard show the batch size that
was used.
"""

from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState


class OrderedChoicesSampler(BaseSampler):
    """Wraps `inner` and moves what it draws for the parameters in `choices` (name -> choices, whether logarithmic) to a
    choice.
    """

    def __init__(self, inner: BaseSampler, choices: Mapping[str, tuple[Sequence[Any], bool]]) -> None:
        self._inner = inner
        self._choices = choices

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        drawn = self._inner.sample_relative(study, trial, search_space)
        return {name: self._to_choice(name, value) for name, value in drawn.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._to_choice(param_name, self._inner.sample_independent(study, trial, param_name, param_distribution))

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._inner.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self._inner.reseed_rng()

    def _to_choice(self, name: str, value: Any) -> Any:
        if name not in self._choices:
            return value
        choices, logarithmic = self._choices[name]
        return to_choice(value, choices, logarithmic)


def to_choice(value: float, choices: Sequence[Any], logarithmic: bool) -> Any:
    """The choice in whose cell `value` lies.

    Every choice lies in its own cell. Evenly spaced choices have cells of equal width, so that a uniform draw takes
    each equally often; rounding to the nearest choice would take the first and last only half as often.
    """
    ordered = sorted(choices)
    scale = log if logarithmic else float
    n = len(ordered)
    edges = [
        scale(left) + (scale(right) - scale(left)) * (n - 1 - k) / n
        for k, (left, right) in enumerate(pairwise(ordered))
    ]
    return ordered[bisect(edges, scale(value))]
