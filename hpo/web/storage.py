"""The storage that optuna-dashboard reads: trials in bulk, constraints where it expects them, a plot and notes.

The plot and the notes are drawn whenever they are requested, so they are never stale.
"""

import json
import threading
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from hpo.artifacts import Artifacts
from hpo.search.confirmation import run_name
from hpo.search.sql.attributes import ARTIFACTS_KEY, CONFIRMS_KEY
from hpo.search.sql.old_attributes import NOT_SHOWN, parts_of
from hpo.search.sql.studies import SPEC_KEY
from hpo.search.sql.tables import CONSTRAINT_PREFIX, studies, study_user_attributes, trials
from hpo.search.sql.trials_in_memory import read_trials
from hpo.web.drawing import PARTS, elsewhere_note, illustrated_note, is_feasible, part_against_part, score_of

CHUNK = 2045  # characters in an attribute, as optuna-dashboard splits plots and notes
STUDY_NOTE = "dashboard:note_str:"


@dataclass
class Known:
    """A study as last read.

    identity: its name and spec, which tell it from a later study with the same id; ended: rows and trials that no
    longer change, by id; seen: all trials, by number.
    """

    identity: Any
    ended: dict[int, tuple[Any, FrozenTrial]] = field(default_factory=dict)
    seen: list[FrozenTrial] = field(default_factory=list)

    @property
    def is_there(self) -> bool:
        return self.identity is not None

    @property
    def is_ours(self) -> bool:
        return self.is_there and self.identity.spec is not None

    def best(self) -> FrozenTrial | None:
        """Of the complete trials, the feasible ones if there are such."""
        complete = [trial for trial in self.seen if trial.state == TrialState.COMPLETE]
        feasible = [trial for trial in complete if is_feasible(trial)]
        return max(feasible or complete, key=lambda trial: (score_of(trial), -trial.number), default=None)


class DashboardStorage(_CachedStorage):
    """Reads trials in bulk and keeps those that no longer change: Optuna's own storage takes eight seconds for ten
    thousand trials, and rereads every waiting one each time. A trial that ended before the baseline may still get its
    constraint.

    A cached trial or study is never trusted by its id alone, since SQLite reuses the ids of deleted ones. Studies that
    hpo did not create are shown unchanged.
    """

    def __init__(self, backend: RDBStorage, artifacts: Artifacts | None = None, base_path: str = "") -> None:
        super().__init__(backend)
        self._engine = backend.engine
        self._artifacts = artifacts
        self._base_path = base_path
        self._known: dict[int, Known] = {}
        self._reading = threading.Lock()
        self.when_replaced: Callable[[], None] = lambda: None

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._backend.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._backend.get_study_directions(study_id)

    def forget(self, study_id: int) -> None:
        """Drops what was read of a study that was deleted or renamed."""
        self._known.pop(study_id, None)
        self.when_replaced()

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return [trial for trial in self.read(study_id).seen if states is None or trial.state in states]

    def read(self, study_id: int) -> Known:
        """The study as it is now; that before again, with what has changed, if it is still the same one."""
        with self._reading, self._engine.connect() as connection:
            return self._read(connection, study_id)

    def _read(self, connection: sa.Connection, study_id: int) -> Known:
        identity = connection.execute(_identity(study_id)).one_or_none()
        rows = connection.execute(sa.select(trials).where(trials.c.study_id == study_id)).all()
        known = self._known.get(study_id)
        there = {row.trial_id: row for row in rows}
        if known is not None and (
            known.identity != identity or any(there.get(key) != row for key, (row, _) in known.ended.items())
        ):
            self.forget(study_id)
            known = None
        if known is None:
            known = self._known[study_id] = Known(identity)
        new = [row for row in rows if row.trial_id not in known.ended]
        read = {trial._trial_id: trial for trial in read_trials(connection, new, whole=True)}
        if known.is_ours:
            for trial in read.values():
                _prepare(trial)
        kept = {key: trial for key, (_, trial) in known.ended.items()}
        found = kept | read
        baselines = [trial for trial in found.values() if known.is_ours and "baseline" in trial.user_attrs]
        if not baselines or any(trial.state == TrialState.COMPLETE for trial in baselines):
            known.ended |= {key: (there[key], trial) for key, trial in read.items() if trial.state.is_finished()}
        known.seen = sorted(found.values(), key=lambda trial: trial.number)
        return known

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """In our studies the best feasible trial, if there is one."""
        known = self.read(study_id)
        if not known.is_ours:
            return super().get_best_trial(study_id)
        best = known.best()
        if best is None:
            raise ValueError("no trial is complete")
        return best

    def get_all_studies(self) -> list[FrozenStudy]:
        """With the plot, and a note on each trial with figures, for studies whose trials have been read."""
        found = super().get_all_studies()
        for study in found:
            known = self._known.get(study._study_id)
            if known is not None and known.is_ours:
                study.system_attrs = self._drawn(study, known.seen)
        return found

    def _drawn(self, study: FrozenStudy, seen: Sequence[FrozenTrial]) -> dict[str, Any]:
        drawn: dict[str, Any] = {}
        if figure := part_against_part(seen):
            drawn |= _in_chunks("dashboard:plot_data:clean-against-perturbed:", json.dumps(figure))
        missing = elsewhere_note(study.user_attrs.get(ARTIFACTS_KEY), self._artifacts)
        for trial in seen:
            version, text = f"dashboard:{trial._trial_id}:note_ver", f"dashboard:{trial._trial_id}:note_str:"
            if version in study.system_attrs:  # a user's own note takes precedence
                continue
            if note := illustrated_note(study._study_id, trial, self._base_path):
                drawn |= {version: 0} | _in_chunks(text, missing + note)  # 0: saving a note works as if there were none
        kept = drawn | study.system_attrs
        if missing:
            pieces = [kept.get(f"{STUDY_NOTE}{i}", "") for i in range(sum(key.startswith(STUDY_NOTE) for key in kept))]
            kept = {"dashboard:note_ver": 0} | kept | _in_chunks(STUDY_NOTE, missing + "".join(pieces))
        return kept

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Saves a user's note without the text that we show above it."""
        if key.endswith("note_str:0"):
            location = self.get_study_user_attrs(study_id).get(ARTIFACTS_KEY)
            value = value.removeprefix(elsewhere_note(location, self._artifacts))
        super().set_study_system_attr(study_id, key, value)


def _identity(study_id: int) -> sa.Select[Any]:
    """(name, spec); the spec is None if hpo did not create the study."""
    spec = study_user_attributes.c
    return (
        sa.select(studies.c.study_name, spec.value_json.label("spec"))
        .outerjoin(study_user_attributes, (spec.study_id == studies.c.study_id) & (spec.key == SPEC_KEY))
        .where(studies.c.study_id == study_id)
    )


def _prepare(trial: FrozenTrial) -> None:
    """As the page understands it: constraints where optuna-dashboard 0.21 looks for them, and no end of what waits."""
    trial._system_attrs[PARTS] = parts_of(trial.user_attrs)
    trial.user_attrs = _shown(trial.user_attrs, trial._system_attrs[PARTS])
    violations = [value for key, value in trial._system_attrs.items() if key.startswith(CONSTRAINT_PREFIX)]
    if violations:
        trial._system_attrs["constraints"] = violations
    if trial.state == TrialState.WAITING:
        trial.datetime_complete = None  # of a paused trial: when it was paused


def _shown(attributes: dict[str, Any], parts: dict[str, float]) -> dict[str, Any]:
    """As short lines, since the page does not break long ones: parts of the score and what made the trial, item by
    item, and no reports, which are there as intermediate values. The page plots attributes that are numbers.
    """
    made_by = attributes.get("made_by")
    items = made_by if isinstance(made_by, dict) else {}
    short = {key: value for key, value in attributes.items() if key not in (*NOT_SHOWN, "made_by", CONFIRMS_KEY)}
    confirms = {"confirms": run_name(attributes[CONFIRMS_KEY])} if CONFIRMS_KEY in attributes else {}
    return parts | confirms | short | {f"made_by {key}": value for key, value in items.items()}


def _in_chunks(prefix: str, text: str) -> dict[str, str]:
    return {f"{prefix}{i}": text[at : at + CHUNK] for i, at in enumerate(range(0, len(text), CHUNK))}
