"""A study in the database: submit a spec, load it back, draw parameters as it says."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from hpo.errors import StudyError, nearest
from hpo.parameters import Params
from hpo.search.budget import Slot, add_slots, lock_study
from hpo.search.storage import Database
from hpo.search.tables import (
    CONSTRAINT_KEY,
    studies,
    study_directions,
    study_system_attributes,
    study_user_attributes,
    trial_system_attributes,
    trial_user_attributes,
    trials,
)
from hpo.spec import Spec, flatten

if TYPE_CHECKING:
    import optuna

SPEC_KEY = "spec"
FINGERPRINTS_KEY = "fingerprints"
INTEGERS = {"batch_size", "frozen_layers"}
LOGARITHMIC = {"batch_size", "learning_rate"}
"""Numeric choices of these are searched on a logarithmic scale."""


@dataclass(frozen=True)
class Study:
    """A submitted study."""

    study_id: int
    spec: Spec

    @property
    def name(self) -> str:
        return self.spec.name


def submit(database: Database, spec: Spec) -> tuple[Study, bool]:
    """Puts a study with all its slots into the database, in one transaction; (the study, whether it is new).

    The same spec again changes nothing. Raises StudyError if the name is taken by a study with another spec.
    """
    try:
        with database.engine.begin() as connection:
            existing = _find(connection, spec.name)
            if existing is None:
                return Study(_insert(connection, spec), spec), True
    except IntegrityError:  # another process has just submitted a study of this name
        with database.engine.connect() as connection:
            existing = _find(connection, spec.name)
    if existing is None or existing.spec != spec:
        raise StudyError(_difference(spec, existing))
    return existing, False


def _insert(connection: sa.Connection, spec: Spec) -> int:
    row = connection.execute(studies.insert().values(study_name=spec.name).returning(studies.c.study_id))
    study_id = int(row.scalar_one())
    connection.execute(study_directions.insert().values(study_id=study_id, direction="MAXIMIZE", objective=0))
    spec_json = spec.model_dump_json()
    connection.execute(study_user_attributes.insert().values(study_id=study_id, key=SPEC_KEY, value_json=spec_json))
    names = json.dumps(["score"])
    connection.execute(
        study_system_attributes.insert().values(study_id=study_id, key="study:metric_names", value_json=names)
    )
    add_slots(connection, study_id, _slots(spec))
    return study_id


def _slots(spec: Spec) -> list[Slot]:
    """The baseline, the file's defaults if they are more than the baseline, then the rest of the budget.

    A grid's points are dealt out here, in an order drawn from the seed.
    """
    search = spec.search
    slots = [Slot(search.baseline(), baseline=True)]
    if spec.sampler.name == "grid":
        points = search.grid()
        Random(spec.seed).shuffle(points)  # noqa: S311 (not for secrets)
        return [*slots, *(Slot(point) for point in points)][: spec.budget]
    if search.defaults() != search.baseline():
        slots.append(Slot(search.defaults()))
    fixed = {"initial_weights": "baseline"} if search.initial_weights == "baseline" else {}
    return [*slots, *(Slot(fixed) for _ in range(spec.budget))][: spec.budget]


def _difference(spec: Spec, existing: Study | None) -> str:
    if existing is None:
        return f"study '{spec.name}' exists, but was not made by hpo; choose another name"
    old, new = flatten(existing.spec.model_dump()), flatten(spec.model_dump())
    changed = [key for key in new | old if new.get(key) != old.get(key)]
    advice = "choose another name (--set name=…) or take the change back"
    key = changed[0]
    return (
        f"study '{spec.name}' was submitted with {key} = {old.get(key)}, not {new.get(key)}"
        f"{f' (and {len(changed) - 1} more)' if len(changed) > 1 else ''}; {advice}"
    )


def _find(connection: sa.Connection, name: str) -> Study | None:
    """None if there is no such study, or if it was not made by hpo."""
    query = (
        sa.select(studies.c.study_id, study_user_attributes.c.value_json)
        .join(study_user_attributes, study_user_attributes.c.study_id == studies.c.study_id)
        .where(studies.c.study_name == name, study_user_attributes.c.key == SPEC_KEY)
    )
    row = connection.execute(query).one_or_none()
    return Study(row.study_id, Spec.model_validate_json(row.value_json)) if row else None


def find_studies(engine: sa.Engine, names: Sequence[str] = ()) -> list[Study]:
    """The named studies, or all that hpo submitted. Raises StudyError for a name that is not there."""
    query = (
        sa.select(studies.c.study_id, study_user_attributes.c.value_json)
        .join(study_user_attributes, study_user_attributes.c.study_id == studies.c.study_id)
        .where(study_user_attributes.c.key == SPEC_KEY)
        .order_by(studies.c.study_id)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    found = {study.name: study for study in (Study(r.study_id, Spec.model_validate_json(r.value_json)) for r in rows)}
    for name in names:
        if name not in found:
            there = f"there are: {', '.join(found)}" if found else "there are none; `hpo submit` makes one"
            raise StudyError(f"no study '{name}' in this storage; {there}.{nearest(name, found)}")
    return [found[name] for name in names] if names else list(found.values())


def check_fingerprints(database: Database, study: Study, fingerprints: Mapping[str, str]) -> None:
    """The first worker's images and weights become the study's; raises StudyError for a worker with others."""
    with database.engine.begin() as connection:
        lock_study(connection, study.study_id)
        stored = connection.scalar(
            sa.select(study_user_attributes.c.value_json).where(
                study_user_attributes.c.study_id == study.study_id,
                study_user_attributes.c.key == FINGERPRINTS_KEY,
            )
        )
        if stored is None:
            value = json.dumps(dict(fingerprints))
            connection.execute(
                study_user_attributes.insert().values(study_id=study.study_id, key=FINGERPRINTS_KEY, value_json=value)
            )
            return
    for name, expected in json.loads(stored).items():
        given = fingerprints.get(name, "missing")
        if given != expected:
            raise StudyError(
                f"study '{study.name}': this machine's {name} differ from the study's "
                f"(fingerprint {given[:12]}, not {expected[:12]}); use the same {name} on every machine"
            )


def record_constraints(database: Database, study: Study) -> None:
    """Sets Optuna's constraint on every scored trial that lacks it, once the baseline's clean accuracy is known.

    Called when a trial has written its accuracies and before it is told: whichever of it and the baseline comes second
    sees the other's, so that no complete trial stays without a constraint. The drop is a user attribute too, since
    optuna-dashboard 0.21 does not show constraints.
    """
    most = study.spec.objective.max_clean_drop
    if most is None:
        return
    clean = trial_user_attributes.alias()
    marker = trial_user_attributes.alias()
    has_marker = sa.exists().where(marker.c.trial_id == trials.c.trial_id, marker.c.key == "baseline")
    has_constraint = sa.exists().where(
        trial_system_attributes.c.trial_id == trials.c.trial_id,
        trial_system_attributes.c.key == CONSTRAINT_KEY,
    )
    scored = (
        sa.select(trials.c.trial_id, clean.c.value_json, has_marker.label("baseline"), has_constraint.label("known"))
        .join(clean, clean.c.trial_id == trials.c.trial_id)
        .where(trials.c.study_id == study.study_id, trials.c.state.in_(["RUNNING", "COMPLETE"]))
        .where(clean.c.key == "clean_accuracy")
    )
    with database.engine.begin() as connection:
        lock_study(connection, study.study_id)
        rows = connection.execute(scored).all()
        baseline = next((float(row.value_json) for row in rows if row.baseline), None)
        if baseline is None:
            return
        for row in rows:
            if row.known:
                continue
            drop = baseline - float(row.value_json)
            connection.execute(
                trial_system_attributes.insert().values(
                    trial_id=row.trial_id, key=CONSTRAINT_KEY, value_json=json.dumps(drop - most)
                )
            )
            connection.execute(
                trial_user_attributes.insert().values(
                    trial_id=row.trial_id, key="clean_drop", value_json=json.dumps(drop)
                )
            )


def start_trial(database: Database, study: Study, trial_id: int) -> "tuple[optuna.Trial, Params]":
    """Optuna's trial for a claimed slot, and its parameters.

    The sampler is seeded from the study's seed and the trial's number, so that no two workers draw alike.
    """
    import optuna

    database.storage.get_all_trials(
        study.study_id, deepcopy=False
    )  # Optuna's cache must know the trial before it is changed
    slot = database.storage.get_trial(trial_id)
    optuna_study = optuna.load_study(
        study_name=study.name,
        storage=database.storage,
        sampler=_sampler(study.spec, slot.number),
        pruner=_pruner(study.spec),
    )
    trial = optuna.Trial(optuna_study, trial_id)
    fixed = slot.system_attrs.get("fixed_params", {})
    return trial, {name: _suggest(trial, name, study.spec, fixed) for name, _ in study.spec.search.parameters()}


def _suggest(trial: "optuna.Trial", name: str, spec: Spec, fixed: Mapping[str, Any]) -> Any:
    """One parameter. A fixed one is suggested from its single value, so that it stands among the trial's parameters."""
    parameter = getattr(spec.search, name)
    if name == "initial_weights":
        both = parameter != "pretrained"
        return trial.suggest_categorical(name, ["pretrained", "baseline"] if both else ["pretrained"])
    if not isinstance(parameter, int | float | str):
        low, high, logarithmic = _bounds(name, parameter)
    else:
        low = high = fixed.get(name, parameter)
        logarithmic = False
    if name in INTEGERS:
        return trial.suggest_int(name, low, high, log=logarithmic)
    return trial.suggest_float(name, low, high, log=logarithmic)


def _bounds(name: str, parameter: Any) -> tuple[Any, Any, bool]:
    if hasattr(parameter, "choices"):
        low, high = min(parameter.choices), max(parameter.choices)
        return low, high, name in LOGARITHMIC
    return parameter.low, parameter.high, parameter.log


def _sampler(spec: Spec, number: int) -> "optuna.samplers.BaseSampler":
    import optuna

    from hpo.search.ordered_choices import OrderedChoicesSampler

    seed = Random(f"{spec.seed}/{number}").getrandbits(32)  # noqa: S311 (not for secrets)
    startup = min(10, max(4, spec.budget // 4))
    inner: optuna.samplers.BaseSampler
    match spec.sampler.name:
        case "tpe":
            inner = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
        case "gp":
            inner = optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
        case _:  # random; a grid's points are in its slots
            inner = optuna.samplers.RandomSampler(seed=seed)
    choices = {
        name: (parameter.choices, name in LOGARITHMIC)
        for name, parameter in spec.search.parameters()
        if hasattr(parameter, "choices") and name != "initial_weights"
    }
    return OrderedChoicesSampler(inner, choices)


def _pruner(spec: Spec) -> "optuna.pruners.BasePruner":
    import optuna

    least = spec.pruner.min_epochs or max(1, spec.training.epochs // 3)
    factor = spec.pruner.reduction_factor
    match spec.pruner.name:
        case "asha":
            return optuna.pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=factor)
        case "hyperband":
            return optuna.pruners.HyperbandPruner(
                min_resource=min(least, spec.training.epochs),
                max_resource=spec.training.epochs,
                reduction_factor=factor,
            )
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=least - 1)
    return optuna.pruners.NopPruner()
