"""A study in the database: submit a spec, load it back, extend, stop and resume it."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.exc import IntegrityError

from hpo import OLDEST_PROTOCOL, PROTOCOL, __version__
from hpo.doors.parameters import Params
from hpo.errors import StudyError, nearest
from hpo.search.sql import attributes
from hpo.search.sql.attributes import BUDGET_KEY, FIRST_STARTS_KEY, NEXT_START_KEY, STOPPED_KEY, UID_KEY
from hpo.search.sql.claims import lock_study
from hpo.search.sql.conditions import StudyKey
from hpo.search.sql.counts import Counts, count_all
from hpo.search.sql.fence import new_token
from hpo.search.sql.storage import writing
from hpo.search.sql.study_note import note_attributes
from hpo.search.sql.tables import (
    studies,
    study_directions,
    study_system_attributes,
    study_user_attributes,
    trial_user_attributes,
    trials,
)
from hpo.search.sql.views import trial_results
from hpo.study_file.images import ImageSpec
from hpo.study_file.reading import read_kept_spec
from hpo.study_file.spec import Spec, flatten

SPEC_KEY = "spec"
PROTOCOL_KEY = "protocol"
FINGERPRINTS_KEY = "fingerprints"
FORGIVEN_KEY = "failures_forgiven"
FAILURES_ALWAYS_ALLOWED = 2
DIFFERENCES_SHOWN = 8
WARM_STARTS = 4
"""So many of an earlier study's configurations are tried first."""


@dataclass(frozen=True)
class Study:
    """A submitted study. budget: as submitted or as extended since; first: the parameters that a warm start tries
    first, None in a study of an older hpo, which stored all its trials in advance; stopped: why no trials are given
    out, if so; failing: because too many trials failed; uid: what tells it from a later one that got the id of one that
    was deleted; refused: why this version of hpo may read it, but not work on it, if so.
    """

    study_id: int
    spec: Spec
    budget: int
    stopped: str | None = None
    failing: bool = False
    uid: str | None = None
    refused: str | None = None
    first: tuple[Params, ...] | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def key(self) -> StudyKey:
        return self.study_id, self.uid

    def refuse(self) -> None:
        """Raises StudyError if this version of hpo may not work on it."""
        if self.refused:
            raise StudyError(self.refused)


def submit(engine: sa.Engine, spec: Spec) -> tuple[Study, bool]:
    """Puts a study into the database, in one transaction; (the study, whether it is new).

    The same spec again changes nothing. Raises StudyError if the name is taken by a study with another spec.
    """
    try:
        with writing(engine) as connection:
            existing = _find(connection, spec.name)
            if existing is None:
                return _insert(connection, spec), True
    except IntegrityError:  # another process has just submitted a study of this name
        with engine.connect() as connection:
            existing = _find(connection, spec.name)
    if existing is None:
        raise StudyError(f"study '{spec.name}' exists, but was not made by hpo; choose another name")
    existing.refuse()
    as_submitted = _as_before(spec, existing.spec).model_copy(update={"budget": existing.spec.budget})
    if as_submitted != existing.spec or spec.budget not in (existing.spec.budget, existing.budget):
        raise StudyError(_difference(_as_before(spec, existing.spec), existing))
    return existing, False


def _as_before(spec: Spec, existing: Spec) -> Spec:
    """The spec without what an older hpo, which submitted the existing study, did not know."""
    if isinstance(spec, ImageSpec) and isinstance(existing, ImageSpec) and existing.data.split_seed is None:
        return spec.model_copy(update={"data": spec.data.model_copy(update={"split_seed": None})})
    return spec


def _insert(connection: sa.Connection, spec: Spec) -> Study:
    first = _earlier_best(connection, spec)
    uid = new_token()
    row = connection.execute(studies.insert().values(study_name=spec.name).returning(studies.c.study_id))
    study_id = int(row.scalar_one())
    connection.execute(study_directions.insert().values(study_id=study_id, direction="MAXIMIZE", objective=0))
    kept = {SPEC_KEY: spec.model_dump(mode="json"), PROTOCOL_KEY: [PROTOCOL, __version__], BUDGET_KEY: spec.budget}
    kept |= {UID_KEY: uid, NEXT_START_KEY: 0, FIRST_STARTS_KEY: first}
    attributes.write(connection, study_user_attributes, study_id, kept)
    shown = {"study:metric_names": ["score"], **note_attributes(spec)}
    attributes.write(connection, study_system_attributes, study_id, shown)
    return Study(study_id, spec, spec.budget, uid=uid, first=tuple(first))


def _earlier_best(connection: sa.Connection, spec: Spec) -> list[Params]:
    """The best configurations of the study that this one starts from, as near as its own search allows."""
    if spec.warm_start is None:
        return []
    there = [name for _, name, *_ in connection.execute(_query_studies(SPEC_KEY))]
    if spec.warm_start not in there:
        raise StudyError(f"warm_start: no study '{spec.warm_start}'; {_those_there(spec.warm_start, there)}")
    found = [spec.search.nearest(params) for params in _best_params(connection, spec.warm_start)]
    if not found:
        raise StudyError(f"warm_start: study '{spec.warm_start}' has no complete trial yet besides its baseline")
    return found


def _best_params(connection: sa.Connection, study: str) -> list[Params]:
    """The best WARM_STARTS configurations of a study, feasible ones first, without its baseline."""
    t = trial_results.c
    query = (
        sa.select(t.params)
        .where(t.study == study, t.state == "complete", t.score.is_not(None), ~t.baseline)
        .order_by(t.feasible.desc(), t.score.desc(), t.number)
        .limit(WARM_STARTS)
    )
    return [json.loads(params) for params in connection.execute(query).scalars()]


def _difference(spec: Spec, existing: Study) -> str:
    """What the study was submitted with and what is given now; the budget last, and not at all if it is as submitted,
    whatever `hpo extend` has made of it since.
    """
    old, new = _by_key(existing.spec), _by_key(spec)
    changed = [key for key in new | old if new.get(key) != old.get(key) and key != "budget"]
    differences = [f"{key} = {_shown(old.get(key))}, not {_shown(new.get(key))}" for key in changed]
    if spec.budget not in (existing.spec.budget, existing.budget):
        differences.append(f"budget = {existing.budget}, not {spec.budget}")
    differences = differences or ["objective.perturbations in another order"]
    advice = f"choose another name (--set name=…) or take the {'changes' if len(differences) > 1 else 'change'} back"
    if not changed and spec.budget > existing.budget:
        advice = f"to add to it: hpo extend {spec.name} --budget {spec.budget}"
    if len(differences) > DIFFERENCES_SHOWN:
        differences[DIFFERENCES_SHOWN:] = [f"and {len(differences) - DIFFERENCES_SHOWN} more"]
    return f"study '{spec.name}' was submitted with {'; '.join(differences)}; {advice}"


def _by_key(spec: Spec) -> dict[str, Any]:
    """As `--set` names them."""
    document = spec.model_dump()
    perturbations = {entry["name"]: entry for entry in document["objective"]["perturbations"]}
    return flatten(document | {"objective": document["objective"] | {"perturbations": perturbations}})


def _shown(value: Any) -> str:
    return "its default" if value is None else str(value)


def _query_studies(*keys: str) -> sa.Select[Any]:
    """(study_id, name, attribute's key, its JSON) of these attributes of all studies."""
    a = study_user_attributes.c
    return (
        sa.select(studies.c.study_id, studies.c.study_name, a.key, a.value_json)
        .join(study_user_attributes, a.study_id == studies.c.study_id)
        .where(a.key.in_(keys))
        .order_by(studies.c.study_id)
    )


def _load(
    connection: sa.Connection, names: Sequence[str] = (), ids: Sequence[int] | None = None
) -> dict[str, Study | StudyError]:
    """Studies that hpo submitted, by name; instead of one that this version of hpo cannot read, what differs."""
    query = _query_studies(SPEC_KEY, PROTOCOL_KEY, BUDGET_KEY, STOPPED_KEY, UID_KEY, FIRST_STARTS_KEY)
    if names:
        query = query.where(studies.c.study_name.in_(names))
    if ids is not None:
        query = query.where(studies.c.study_id.in_(ids))
    kept: dict[tuple[int, str], dict[str, str]] = {}
    for study_id, name, key, text in connection.execute(query):
        kept.setdefault((study_id, name), {})[key] = text
    found: dict[str, Study | StudyError] = {}
    for (study_id, name), texts in kept.items():
        if SPEC_KEY not in texts:
            continue
        try:
            found[name] = _as_study(study_id, name, texts)
        except ValidationError as error:
            reason = error.errors()[0]
            key = ".".join(map(str, reason["loc"])) or "it"
            found[name] = StudyError(f"study '{name}' cannot be read by hpo {__version__}: {key}: {reason['msg']}")
    return found


def _as_study(study_id: int, name: str, texts: Mapping[str, str]) -> Study:
    spec, unknown = _read_spec(texts[SPEC_KEY])
    protocol, version = json.loads(texts.get(PROTOCOL_KEY, '[0, "0.1.0"]'))
    stopped = json.loads(texts.get(STOPPED_KEY, "{}"))
    differs = None if OLDEST_PROTOCOL <= protocol <= PROTOCOL else f"protocol {protocol}, not {PROTOCOL}"
    differs = f"this version does not know {', '.join(unknown)}" if unknown else differs
    return Study(
        study_id,
        spec.model_copy(update={"name": name}),  # other tools may have renamed it
        int(texts.get(BUDGET_KEY, spec.budget)),
        stopped.get("reason"),
        stopped.get("failing", False),
        json.loads(texts.get(UID_KEY, "null")),
        _refusal(name, version, differs) if differs else None,
        tuple(json.loads(texts[FIRST_STARTS_KEY])) if FIRST_STARTS_KEY in texts else None,
    )


def _refusal(name: str, version: str, differs: str) -> str:
    return (
        f"study '{name}' was submitted by hpo {version}, this is hpo {__version__} ({differs}): it can be read, but "
        "the workers of a study need the same version"
    )


@lru_cache(maxsize=2000)
def _read_spec(text: str) -> tuple[Spec, tuple[str, ...]]:
    """A stored spec, and the keys in it that this version does not know. Raises ValidationError."""
    try:
        return read_kept_spec(text), ()
    except ValidationError as error:
        unknown = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
        if len(unknown) < error.error_count():
            raise
    values = json.loads(text)
    for location in unknown:
        _remove(values, location)
    return read_kept_spec(json.dumps(values)), tuple(".".join(map(str, location)) for location in unknown)


def _remove(values: Any, location: Sequence[str | int]) -> None:
    *parents, last = location
    for key in parents:
        with contextlib.suppress(KeyError, IndexError, TypeError):  # pydantic names the kinds of a union too
            values = values[key]
    values.pop(last, None)


def _find(connection: sa.Connection, name: str) -> Study | None:
    """None if there is no such study, or if it was not made by hpo."""
    found = _load(connection, [name]).get(name)
    if isinstance(found, StudyError):
        raise found
    return found


def open_studies(engine: sa.Engine, names: Sequence[str] = ()) -> list[tuple[Study, Counts]]:
    """Those of the named studies, or of all, whose budgets are not used and which are not stopped; finished ones cost
    next to nothing. Raises StudyError for a name that is not there or cannot be read, or that this version may not work
    on.
    """
    if names:
        for study in find_studies(engine, names):
            study.refuse()
    with engine.connect() as connection:
        counts = count_all(connection)
        a = study_user_attributes.c
        budgets = connection.execute(sa.select(a.study_id, a.value_json).where(a.key == BUDGET_KEY)).all()
        ids = [study_id for study_id, text in budgets if counts.get(study_id, Counts()).finished < int(text)]
        found = _load(connection, names, ids) if ids else {}
    loaded = (study for study in found.values() if isinstance(study, Study))
    return [(study, counts.get(study.study_id, Counts())) for study in loaded if not study.stopped]


def find_studies(
    engine: sa.Engine, names: Sequence[str] = (), say: Callable[[str], object] | None = None
) -> list[Study]:
    """The named studies, or all that this version of hpo can read; what it cannot, it says. Raises StudyError for a
    name that is not there or cannot be read.
    """
    with engine.connect() as connection:
        found = _load(connection, names)
        there = [name for _, name, *_ in connection.execute(_query_studies(SPEC_KEY))] if names else []
    for name in names:
        if name not in found:
            raise StudyError(f"no study '{name}' in this storage; {_those_there(name, there)}")
        if isinstance(unreadable := found[name], StudyError):
            raise unreadable
    for unreadable in found.values():
        if say and isinstance(unreadable, StudyError):
            say(str(unreadable))
    return [study for name in names or found if isinstance(study := found[name], Study)]


def _those_there(name: str, there: Sequence[str]) -> str:
    listed = f"there are: {', '.join(there)}" if there else "there are none; `hpo submit` makes one"
    return f"{listed}.{nearest(name, there)}"


def extend(engine: sa.Engine, study: Study, budget: int) -> int:
    """Raises the budget, also of a finished study; by how much.

    Raises StudyError if the budget is smaller than it was, or more than a grid has points.
    """
    study.refuse()
    if study.spec.sampler.name == "grid" and budget > (points := len(study.spec.search.grid()) + 1):
        raise StudyError(f"study '{study.name}': the grid and the baseline are {points} trials, not {budget}")
    with writing(engine) as connection:
        lock_study(connection, study.study_id)
        before = int(attributes.read_study(connection, study.study_id, BUDGET_KEY))
        if budget < before:
            raise StudyError(f"study '{study.name}' has a budget of {before}; --budget must be more, not {budget}")
        kept = {BUDGET_KEY: budget}
        if attributes.read_study(connection, study.study_id, NEXT_START_KEY) is None:
            kept[NEXT_START_KEY] = before  # an older hpo gave out that many when the study was submitted
        attributes.write(connection, study_user_attributes, study.study_id, kept)
    return budget - before


def stop(engine: sa.Engine, study: Study, reason: str, failing: bool = False) -> bool:
    """From now on no trial of the study is given out, and its workers give back what they run; False if it was stopped
    before.
    """
    with writing(engine) as connection:
        lock_study(connection, study.study_id)
        if attributes.read_study(connection, study.study_id, STOPPED_KEY) is not None:
            return False
        value = {"reason": reason, "failing": failing}
        attributes.write(connection, study_user_attributes, study.study_id, {STOPPED_KEY: value})
    return True


def resume(engine: sa.Engine, study: Study) -> bool:
    """Lets a stopped study go on; the failures so far no longer count. False if it was not stopped."""
    with writing(engine) as connection:
        lock_study(connection, study.study_id)
        forgiven = {FORGIVEN_KEY: _count_failures(connection, study)}
        attributes.write(connection, study_user_attributes, study.study_id, forgiven)
        removed = connection.execute(
            study_user_attributes.delete().where(
                study_user_attributes.c.study_id == study.study_id, study_user_attributes.c.key == STOPPED_KEY
            )
        )
    return removed.rowcount > 0


def stop_if_failing(engine: sa.Engine, study: Study) -> None:
    """Stops a study of which more trials have failed than its spec allows, and keeps the reason."""
    with engine.connect() as connection:
        forgiven = attributes.read_study(connection, study.study_id, FORGIVEN_KEY) or 0
        failed = _count_failures(connection, study) - forgiven
        if failed <= max(FAILURES_ALWAYS_ALLOWED, study.spec.max_failed_share * study.budget):
            return
        ((number, text),) = latest_failures(connection, study, limit=1)
    reason = (
        f"{failed} trials failed, more than max_failed_share = {study.spec.max_failed_share:g} of the budget "
        f"allows; the last, trial {number}: {text.strip().splitlines()[-1]}"
    )
    stop(engine, study, reason, failing=True)


def _count_failures(connection: sa.Connection, study: Study) -> int:
    return int(connection.scalar(_failures(study, sa.func.count())) or 0)


def latest_failures(connection: sa.Connection, study: Study, limit: int) -> list[tuple[int, str]]:
    """(trial number, what was kept of the failure), the latest first."""
    query = _failures(study, trials.c.number, trial_user_attributes.c.value_json)
    rows = connection.execute(query.order_by(trials.c.number.desc()).limit(limit))
    return [(number, json.loads(text)) for number, text in rows]


def _failures(study: Study, *columns: Any) -> sa.Select[Any]:
    failure = trial_user_attributes.c
    return (
        sa.select(*columns)
        .select_from(trials.join(trial_user_attributes, failure.trial_id == trials.c.trial_id))
        .where(trials.c.study_id == study.study_id, failure.key == "failure")
    )


def adopt(engine: sa.Engine, study: Study) -> None:
    """From now on workers of an older hpo may not join the study: they do not know what this one writes."""
    with writing(engine) as connection:
        lock_study(connection, study.study_id)
        protocol, version = attributes.read_study(connection, study.study_id, PROTOCOL_KEY) or [0, "0.1.0"]
        if protocol < PROTOCOL:
            kept = {PROTOCOL_KEY: [PROTOCOL, version]}
            attributes.write(connection, study_user_attributes, study.study_id, kept)


def has_fingerprints(engine: sa.Engine, study: Study) -> bool:
    """Whether a worker has taken this study up before."""
    with engine.connect() as connection:
        return attributes.read_study(connection, study.study_id, FINGERPRINTS_KEY) is not None


def check_fingerprints(
    engine: sa.Engine, study: Study, fingerprints: Mapping[str, str], about: Mapping[str, Any]
) -> None:
    """The first worker's images and weights become the study's, and what it says about them is kept with the study;
    raises StudyError for a worker with others.
    """
    with writing(engine) as connection:
        lock_study(connection, study.study_id)
        expected = attributes.read_study(connection, study.study_id, FINGERPRINTS_KEY)
        if expected is None:
            kept = {FINGERPRINTS_KEY: dict(fingerprints), **about}
            attributes.write(connection, study_user_attributes, study.study_id, kept)
            return
    for name, known in expected.items():
        given = fingerprints.get(name, "missing")
        if given != known:
            raise StudyError(
                f"study '{study.name}': this machine's {name} differ from the study's "
                f"(fingerprint {given[:12]}, not {known[:12]}); use the same {name} on every machine, or "
                f"another study name if you changed them (--set name=…)"
            )
