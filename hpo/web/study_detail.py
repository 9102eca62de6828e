"""The request for a study and its trials, which optuna-dashboard 0.21 answers anew for each page: five seconds for ten
thousand trials, and a second for each of the requests that follow. Here what no longer changes is serialised once.
"""

import json
import re
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.web.storage import DashboardStorage, Known

OF_TRIAL = re.compile(r"dashboard:(?:artifacts:)?(\d+):")
"""How attributes of the study begin that are a trial's note or artifacts; in brackets the trial's id."""


@dataclass
class _Serialised:
    """What was serialised of a study as `known` has it.

    texts: of each trial that has ended, with what it was made from; space: what optuna-dashboard gathers of the
    parameters and attributes of all trials; gathered: the kinds of trials that are in it; looked_at: ids of trials that
    have ended and whose kind is.
    """

    known: Known
    space: Any
    texts: dict[int, tuple[FrozenTrial, Mapping[str, Any], str]] = field(default_factory=dict)
    gathered: set[Any] = field(default_factory=set)
    looked_at: set[int] = field(default_factory=set)


class StudyDetails:
    """Answers for studies that hpo created."""

    def __init__(self, storage: DashboardStorage) -> None:
        self._storage = storage
        self._serialised: dict[int, _Serialised] = {}
        self._lock = threading.Lock()

    def clear(self) -> None:
        self._serialised.clear()

    def answer(self, study_id: int, known: Known, after: int) -> str | None:
        """JSON, as optuna-dashboard writes it, of the study and its trials from the one at position `after` on; None
        if it is no longer there.
        """
        from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
        from optuna_dashboard._inmemory_cache import _CachedExtraStudyProperty
        from optuna_dashboard._serializer import serialize_study_detail
        from optuna_dashboard._storage import get_study

        study = get_study(self._storage, study_id)
        if study is None:
            return None
        with self._lock:
            done = self._serialised.get(study_id)
            if done is None or done.known is not known:
                done = self._serialised[study_id] = _Serialised(known, _CachedExtraStudyProperty())
            space = _gathered(done)
            about = _by_trial(study.system_attrs)
            trials = [
                _serialised(done, study_id, trial, about.get(trial._trial_id, {})) for trial in known.seen[after:]
            ]
            best = known.best()
        rest = serialize_study_detail(
            study,
            [] if best is None else [best],
            [],
            space.intersection_search_space,
            space.union_search_space,
            space.union_user_attrs,
            space.has_intermediate_values,
            get_plotly_graph_objects(study.system_attrs),
            [],
        )
        del rest["trials"]
        return f'{json.dumps(rest)[:-1]}, "trials": [{", ".join(trials)}]}}'


def _gathered(done: _Serialised) -> Any:
    """Of one trial of each kind, since gathering takes a fifth of a millisecond a trial."""
    new = [trial for trial in done.known.seen if trial._trial_id not in done.looked_at]
    kinds = {_kind(trial): trial for trial in new}
    done.space._cursor = -1  # otherwise it leaves out trials that ended before one that is running
    done.space.update([trial for kind, trial in kinds.items() if kind not in done.gathered])
    done.gathered |= kinds.keys()
    done.looked_at |= {trial._trial_id for trial in new if trial._trial_id in done.known.ended}
    return done.space


def _kind(trial: FrozenTrial) -> Any:
    """What it adds: its parameters' distributions, its attributes' names and types, whether it has reports."""
    attributes = tuple((name, type(value)) for name, value in trial.user_attrs.items())
    failed = trial.state == TrialState.FAIL
    return tuple(trial.distributions.items()), attributes, not failed and bool(trial.intermediate_values), failed


def _by_trial(attributes: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Those about a trial, by its id: otherwise each trial would be looked for among all of them."""
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for key, value in attributes.items():
        if of_trial := OF_TRIAL.match(key):
            found[int(of_trial[1])][key] = value
    return found


def _serialised(done: _Serialised, study_id: int, trial: FrozenTrial, about: Mapping[str, Any]) -> str:
    from optuna_dashboard._serializer import serialize_frozen_trial

    before = done.texts.get(trial._trial_id)
    if before is not None and before[0] is trial and before[1] == about:
        return before[2]
    text = json.dumps(serialize_frozen_trial(study_id, trial, dict(about)))
    if trial._trial_id in done.known.ended:
        done.texts[trial._trial_id] = trial, about, text
    return text
