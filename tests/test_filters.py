"""`--where` and `--sort`: what they find is what Python would find, and whatever is written is never SQL."""

import json
import operator
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from free_objective import FreeObjective
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgresql_servers import fresh_database
from support.studies import make_spec

from hpo.errors import InputError
from hpo.search.sql import queries
from hpo.search.sql.filters import FIELDS, parse_sort, parse_where
from hpo.search.sql.queries import TrialResult
from hpo.search.sql.storage import create_database
from hpo.search.sql.submitting import submit
from hpo.search.sql.url import parse_url
from hpo.search.worker import work

OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
}
NUMBERS = ("number", "score", "clean_accuracy", "batch_size", "learning_rate", "gaussian_noise")
PIECES = [
    *FIELDS,
    *OPERATORS,
    *("and", "or", "not", "in", "is", "null", "(", ")", ",", "'", '"', ";", "--", "/*", "\\", "%", ":x", "{0}", "\n"),
    *("0.5", "128", "1e999", "-1", "'complete'", "'x'; DROP TABLE trials; --", "1 OR 1=1", "UNION SELECT", "\x00"),
    *("__import__('os').system('true')", "[]", "lambda: 0", "score.real", "f'{score}'", "ünï", "\x1b[2J"),
]
malicious = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=12).map(" ".join) | st.text(max_size=60)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def searched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Engine]:
    """A finished study on either database."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('filters')}/hpo.db"
    else:
        url = fresh_database(request.getfixturevalue("postgresql_server"))
    engine = create_database(parse_url(url))
    spec = make_spec(budget=12, pruner={"name": "median", "min_epochs": 1})
    submit(engine, spec)
    work(engine, [spec.name], FreeObjective, "worker", lambda text: None)
    yield engine
    engine.dispose()


def values(trial: TrialResult) -> dict[str, Any]:
    return {**trial.as_row(), **{name.replace("-", "_"): x for name, x in trial.perturbed_accuracy.items()}}


@st.composite
def conditions(draw: st.DrawFn) -> tuple[str, Any]:
    """A condition as text, and as a Python predicate of a trial's values; where something is missing, neither holds."""
    kind = draw(st.sampled_from(["compare", "compare", "in", "flag", "state"]))
    if kind == "compare":
        field, sign = draw(st.sampled_from(NUMBERS)), draw(st.sampled_from(sorted(OPERATORS)))
        bound = draw(st.integers(-1, 128) | st.floats(0, 1))
        compare = OPERATORS[sign]
        return f"{field} {sign} {bound}", lambda row: row.get(field) is not None and compare(row[field], bound)
    if kind == "in":
        chosen = draw(st.lists(st.sampled_from([16, 32, 64]), min_size=1))
        return f"batch_size in {json.dumps(chosen)}", lambda row: row.get("batch_size") in chosen
    if kind == "flag":
        texts = [
            "baseline",
            "baseline = true",
            "not baseline = 0",
            "1 = baseline",
            "baseline > false",
            "baseline in (1,)",
        ]
        return draw(st.sampled_from([*texts, "baseline != 0"])), lambda row: row["baseline"]
    state = draw(st.sampled_from(["complete", "pruned"]))
    word = draw(st.sampled_from([state, state.upper(), f"'{state}'", f"'{state.upper()}'"]))
    text = draw(st.sampled_from([f"state = {word}", f"state in ({word}, waiting)", f"{word} = state"]))
    return text, lambda row: row["state"] == state


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(left=conditions(), right=conditions(), word=st.sampled_from(["and", "or", "AND"]))
def test_where_finds_what_python_finds(searched: sa.Engine, left: Any, right: Any, word: str) -> None:
    everything = queries.all_trials(searched, "study")
    assert len(everything) == 12
    together = any if word == "or" else all
    expected = [t.number for t in everything if together((left[1](values(t)), right[1](values(t))))]
    found = queries.all_trials(searched, "study", f"({left[0]}) {word} {right[0]}")
    assert [trial.number for trial in found] == expected


@settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=malicious)
def test_whatever_is_written_gives_results_or_one_line(searched: sa.Engine, text: str) -> None:
    """500 strings on each database: 1,000 in all."""
    said = "--where: "
    try:
        assert len(queries.best_trials(searched, "study", 3, text)) <= 3
    except InputError as error:
        said = str(error)
    assert said.startswith("--where: ")
    assert said.isprintable()
    with searched.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM trials")) == 12


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_sorts_both_ways_with_what_is_missing_last(searched: sa.Engine, field: str) -> None:
    for direction in ("", ":asc"):
        found = queries.best_trials(searched, "study", 20, "state != 'waiting'", f"{field}{direction}")
        assert len(found) == 12
        keys = [values(trial).get(field) for trial in found if values(trial).get(field) is not None]
        if field not in ("perturbed_accuracy", "initial_weights", "worker", "state"):
            assert keys == sorted(keys, reverse=not direction)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch_sz > 1", "'batch_sz' is not a field; fields: number, .*Did you mean 'batch_size'"),
        ("score > 'high'", "score is compared with a number, not with"),
        ("state = 'done'", "'done' is not a state; allowed: running, complete, pruned, fail, waiting"),
        ("state = compleet", "'compleet' is not a state; .*Did you mean 'complete'"),
        ("feasible = 2", "feasible is compared with true or false"),
        ("worker = me", 'worker is compared with text in quotes: "…", not with me'),
        ("score", "score must be compared with something"),
        ("score > 1; DROP TABLE trials", "cannot be read; write for example"),
        ("started_at > 'yesterday'", "'yesterday' is not a time"),
        ("score > state", "score and state cannot be compared"),
        ("worker = '\\udc80'", "worker is compared with text in quotes: "),
        ("SCORE > 1", "Did you mean 'score'"),
        ("score + 1 > 2", "is not a field"),
        ("x" * 2000, "longer than 1000 characters"),
        ("", "cannot be read"),
    ],
)
def test_a_mistake_says_what_is_allowed(text: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        parse_where(text)


def test_a_direction_or_field_that_does_not_exist() -> None:
    with pytest.raises(InputError, match="'up' is no direction; allowed: asc, desc"):
        parse_sort("score:up")
    with pytest.raises(InputError, match="Did you mean 'clean_accuracy'"):
        parse_sort("clean_acuracy")
