"""Studies are deleted and renamed with all that belongs to them."""

import os
from pathlib import Path

import sqlalchemy as sa
from free_objective import FreeObjective
from support.commands import Hpo
from support.search import claim_next, run
from support.studies import make_spec

from hpo.conclude.candidates import choose
from hpo.search.sql.confirming import confirm
from hpo.search.sql.studies import Study, find_studies
from hpo.search.worker import work


def confirmed(engine: sa.Engine) -> Study:
    """A finished study with a confirmation that has not begun."""
    run(engine, make_spec(budget=3))
    study = find_studies(engine, ["study"])[0]
    confirm(engine, study, *choose(engine, study, 1, anyway=False), 1, ())
    return study


def names(engine: sa.Engine) -> list[str]:
    return [study.name for study in find_studies(engine)]


def test_delete_asks_and_takes_the_confirmation_and_the_files_along(
    sqlite_engine: sa.Engine, hpo_here: Hpo, tmp_path: Path
) -> None:
    confirmed(sqlite_engine)
    folder = tmp_path / "hpo-artifacts" / "study"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trial-1.checkpoint").write_bytes(b"left by a worker that died")
    refused = hpo_here("delete", "study")
    assert refused.returncode == 2
    expected = "nothing was deleted; --yes deletes study (3 finished trials) and study@confirmation"
    assert expected in refused.stderr
    assert names(sqlite_engine) == ["study", "study@confirmation"]
    assert "Did you mean 'study'?" in hpo_here("delete", "studi", "--yes").stderr
    done = hpo_here("delete", "study", "--yes")
    assert done.returncode == 0, done.stderr
    assert names(sqlite_engine) == []
    assert not folder.exists()
    with sqlite_engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM trials")) == 0


def test_a_confirmation_alone_is_deleted(sqlite_engine: sa.Engine, hpo_here: Hpo) -> None:
    confirmed(sqlite_engine)
    assert hpo_here("delete", "study@confirmation", "--yes").returncode == 0
    assert names(sqlite_engine) == ["study"]


def test_rename_keeps_everything_and_waits_for_workers(sqlite_engine: sa.Engine, hpo_here: Hpo) -> None:
    study = confirmed(sqlite_engine)
    before = hpo_here("top", "study", "--json").stdout
    assert "is called other now" in hpo_here("rename", "study", "other").stderr
    assert names(sqlite_engine) == ["other", "other@confirmation"]
    assert hpo_here("top", "other", "--json").stdout == before.replace('"study": "study"', '"study": "other"')
    run(sqlite_engine, make_spec(budget=1, name="taken"))
    for name, said in {"taken": "there is a study 'taken' already", "": "name: "}.items():
        refused = hpo_here("rename", "other", name)
        assert refused.returncode in (1, 2)
        assert said in refused.stderr
    assert hpo_here("extend", "other", "--budget", "4").returncode == 0
    (renamed,) = find_studies(sqlite_engine, ["other"])
    assert claim_next(sqlite_engine, renamed, "worker") is not None
    assert "1 of its trials are running" in hpo_here("rename", "other", "third").stderr
    assert study.study_id == renamed.study_id


def test_workers_go_on_with_a_renamed_study(sqlite_engine: sa.Engine, hpo_here: Hpo) -> None:
    confirmed(sqlite_engine)
    hpo_here("rename", "study", "other")
    said: list[str] = []
    work(sqlite_engine, [], lambda spec, store: FreeObjective(spec), "worker", said.append)
    assert hpo_here("status", "--json").stdout.count('"waiting": 0') == 2


def test_files_that_no_study_owns_are_shown_and_removed(
    sqlite_engine: sa.Engine, hpo_here: Hpo, tmp_path: Path
) -> None:
    confirmed(sqlite_engine)
    store = tmp_path / "hpo-artifacts"
    for name in ("study/trial-1.checkpoint", "gone/trial-1.checkpoint", "an-old-picture", "a-new-picture"):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(b"content")
        if name != "a-new-picture":
            os.utime(store / name, (0, 0))
    refused = hpo_here("clean", "--artifacts")
    assert refused.returncode == 2
    assert [line.split()[-1] for line in refused.stdout.splitlines()] == ["an-old-picture", "gone/trial-1.checkpoint"]
    assert "nothing was removed; --yes removes 2 files" in refused.stderr
    assert hpo_here("clean", "--artifacts", "--yes").returncode == 0
    left = {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()}
    assert left == {"study/trial-1.checkpoint", "a-new-picture"}
    assert "no file in hpo-artifacts is without a study" in hpo_here("clean", "--artifacts").stderr
    assert "give --cache or --artifacts" in hpo_here("clean").stderr
    bucket = hpo_here("clean", "--artifacts", HPO_ARTIFACTS="s3://bucket/x")
    assert (bucket.returncode, len(bucket.stderr.splitlines())) == (2, 1)
