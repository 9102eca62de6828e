"""`hpo copy`: a study with all that belongs to it in another database, where it goes on by itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from free_objective import FreeObjective
from support.commands import Hpo
from support.search import claim_next, open_fresh, report, run
from support.studies import make_spec

from hpo.artifacts import Artifacts
from hpo.conclude.candidates import choose
from hpo.errors import StudyError
from hpo.search.housekeeping import copy_study, delete_study
from hpo.search.sql.confirming import confirm, find_confirmation
from hpo.search.sql.counts import count
from hpo.search.sql.queries import all_trials
from hpo.search.sql.studies import Study, find_studies
from hpo.search.sql.submitting import extend
from hpo.search.sql.views import trial_results
from hpo.search.worker import work

IN_ORDER = sa.select(trial_results).where(trial_results.c.study == "study").order_by(trial_results.c.number)


def rows(engine: sa.Engine, query: sa.Executable = IN_ORDER) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def finish(engine: sa.Engine, artifacts: Artifacts) -> None:
    work(engine, [], lambda spec, store: FreeObjective(spec), "worker", lambda text: None, artifacts=artifacts)


@pytest.fixture
def store(tmp_path: Path) -> Artifacts:
    return Artifacts(str(tmp_path / "store"))


def searched(engine: sa.Engine, budget: int = 9) -> Study:
    run(engine, make_spec(budget=budget, pruner={"name": "asha"}))
    return find_studies(engine, ["study"])[0]


def test_there_and_back_every_column_is_the_same(
    sqlite_engine: sa.Engine, postgresql_engine: sa.Engine, store: Artifacts, tmp_path: Path
) -> None:
    study = searched(sqlite_engine)
    confirm(sqlite_engine, study, *choose(sqlite_engine, study, 1, anyway=False), 2, ())
    finish(sqlite_engine, store)
    copy_study(sqlite_engine, study, postgresql_engine, "study", store, store)
    (there,) = find_studies(postgresql_engine, ["study"])
    back = open_fresh(f"sqlite:///{tmp_path}/back.db")
    copy_study(postgresql_engine, there, back, "study", store, store)
    assert rows(back) == rows(sqlite_engine)
    of_confirmation = sa.text("SELECT * FROM confirmations ORDER BY role, trial, seed, condition, severity")
    assert rows(back, of_confirmation) == rows(sqlite_engine, of_confirmation) != []
    copied = find_confirmation(back, find_studies(back, ["study"])[0])
    assert copied is not None
    assert count(back, copied.study_id) == count(sqlite_engine, study.study_id + 1)


def test_a_copy_goes_on_where_the_study_was_and_neither_touches_the_other(
    sqlite_engine: sa.Engine, postgresql_engine: sa.Engine, store: Artifacts
) -> None:
    study = searched(sqlite_engine, budget=4)
    extend(sqlite_engine, study, 8)
    (study,) = find_studies(sqlite_engine, ["study"])
    claim = claim_next(sqlite_engine, study, "worker")
    assert claim is not None
    report(sqlite_engine, claim.hold, 1, 0.5)
    store.write(f"study/trial-{claim.number}.checkpoint", b"of the study")
    before = rows(sqlite_engine)
    folder = copy_study(sqlite_engine, study, postgresql_engine, "study", store, store)
    assert rows(sqlite_engine) == before
    assert store.read(f"{folder}/trial-{claim.number}.checkpoint") == b"of the study"
    (copied,) = find_studies(postgresql_engine, ["study"])
    counts = count(postgresql_engine, copied.study_id)
    assert (counts.running, counts.failed, counts.waiting) == (0, 1, 1), "the running trial became a slot"
    finish(postgresql_engine, store)
    assert count(postgresql_engine, copied.study_id).finished == 8
    assert rows(sqlite_engine) == before
    assert store.read(f"study/trial-{claim.number}.checkpoint") == b"of the study"
    delete_study(postgresql_engine, copied.study_id, store, True, lambda text: None)
    assert store.read(f"study/trial-{claim.number}.checkpoint") == b"of the study"


def test_a_copy_in_the_same_database_has_another_name_and_pictures_of_its_own(
    sqlite_engine: sa.Engine, store: Artifacts
) -> None:
    study = searched(sqlite_engine)
    text = json.dumps(json.dumps({"artifact_id": "a", "filename": "curve.png"}))
    with sqlite_engine.begin() as connection:
        add = "INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES (1, 'artifacts:a', :text)"
        connection.execute(sa.text(add), {"text": text})
    store.write("a", b"a picture")
    with pytest.raises(StudyError, match="there is a study 'study' already"):
        copy_study(sqlite_engine, study, sqlite_engine, "study", store, store)
    copy_study(sqlite_engine, study, sqlite_engine, "other", store, store)
    assert [trial.params for trial in all_trials(sqlite_engine, "other")] == [
        trial.params for trial in all_trials(sqlite_engine, "study")
    ]
    query = "SELECT key, value_json FROM trial_system_attributes WHERE key LIKE 'artifacts:%'"
    kept = rows(sqlite_engine, sa.text(query))
    ids = [json.loads(json.loads(row["value_json"]))["artifact_id"] for row in kept]
    assert [row["key"] for row in kept] == [f"artifacts:{each}" for each in ids]
    assert len(set(ids)) == 2
    assert [store.read(each) for each in ids] == [b"a picture"] * 2
    (other,) = find_studies(sqlite_engine, ["other"])
    delete_study(sqlite_engine, other.study_id, store, True, lambda text: None)
    assert store.read("a") == b"a picture"


def test_what_cannot_be_copied_is_said_in_a_line(sqlite_engine: sa.Engine, hpo_here: Hpo, tmp_path: Path) -> None:
    searched(sqlite_engine)
    for arguments, said in {
        ("study", "--to", "sqlite:///hpo.db"): "there is a study 'study' already; choose another name: --name NAME",
        ("study", "--to", "nonsense"): "not a database URL",
        ("studi", "--to", "sqlite:///other.db"): "Did you mean 'study'?",
    }.items():
        refused = hpo_here("copy", *arguments)
        assert refused.returncode in (1, 2)
        assert said in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "other.db").exists()
    done = hpo_here("copy", "study", "--to", "sqlite:///other.db")
    assert done.returncode == 0, done.stderr
    assert "study study is copied to sqlite:///other.db as study" in done.stderr
    same = hpo_here("top", "study", "--json", "--storage", "sqlite:///other.db").stdout
    assert same == hpo_here("top", "study", "--json").stdout
