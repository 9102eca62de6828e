"""What each new trial of a study starts with, given the spec, the warm start and the trial's position; of a
confirmation, given its runs.
"""

from collections.abc import Sequence
from random import Random

from hpo.doors.parameters import Params
from hpo.search.confirmation import Confirmation
from hpo.search.sql.claims import Start
from hpo.study_file.spec import Spec


class Plan:
    """The order of new trials: the baseline, the warm start's configurations, the study file's defaults, and then the
    sampler's choices. A grid's points are all planned, in an order drawn from the seed.
    """

    def __init__(self, spec: Spec, first: Sequence[Params] | None, confirmation: Confirmation | None = None) -> None:
        """first: configurations of the warm start; None for a study of an older hpo, which stored all its trials when
        it was submitted.
        """
        if confirmation is not None:
            self.starts = _runs(confirmation)
        else:
            self.starts = _grid(spec) if spec.sampler.name == "grid" else _first(spec, first or ())

    def start_of(self, turn: int) -> Start:
        """The start of the n-th new trial, where `turn` is n counted from 0."""
        return self.starts[turn] if turn < len(self.starts) else Start()


def _runs(confirmation: Confirmation) -> list[Start]:
    configurations = confirmation.configurations
    return [
        Start(configurations[run.configuration].params, confirms=confirmation.about(run)) for run in confirmation.runs
    ]


def _first(spec: Spec, first: Sequence[Params]) -> list[Start]:
    starts = [Start(spec.search.baseline(), baseline=True)]
    for params in (*first, spec.search.defaults()):
        if all(params != start.fixed_params for start in starts):
            starts.append(Start(params))
    return starts


def _grid(spec: Spec) -> list[Start]:
    points = spec.search.grid()
    Random(spec.seed).shuffle(points)  # noqa: S311 (not for secrets)
    return [Start(spec.search.baseline(), baseline=True), *(Start(point) for point in points)]
