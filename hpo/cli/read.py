"""The commands that only read: the progress of studies and their results. None of them loads torch."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpo.cli.options import (
    csv_option,
    json_option,
    limit_option,
    open_search,
    print_json,
    storage_option,
    studies_argument,
)
from hpo.errors import HpoError, InputError, NothingCompleteError

if TYPE_CHECKING:
    import sqlalchemy as sa
    from rich.table import Table

    from hpo.search.sql.studies import Study
    from hpo.trial_result import TrialResult

CSV_TIMES = ("started_at", "finished_at")
CSV_WITHOUT_TRIALS = ["study", "number", "state", "baseline", "feasible", "score", "clean_accuracy", *CSV_TIMES]


@click.command()
@studies_argument
@storage_option
@json_option
def status(studies: Sequence[str], storage: str, as_json: bool) -> None:
    """The progress of studies.

    Budgets, trials by state, what runs where, the best score so far, the time left and failures: if none is named, of
    all that are not finished and of the latest others; for a single study, failures with their tracebacks. Also
    requeues the trials of workers that are gone.
    """
    from hpo.cli import tables
    from hpo.cli.watching import look
    from hpo.search.sql.storage import open_engine
    from hpo.search.sql.url import parse_url

    overview = look(open_engine(parse_url(storage)), studies, everything=as_json)
    records = overview.records
    if as_json:
        found = [record.as_json() for record in records]
        print_json(found[0] if len(studies) == 1 else found)
    else:
        from hpo.cli.status_tables import status_view

        tables.console().print(status_view(records, tracebacks=True) if len(studies) == 1 else overview)
        if not records:
            click.echo("there are no studies yet; `hpo submit` adds one to the database", err=True)


@click.command()
@studies_argument
@storage_option
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, help="Seconds between updates."
)
def watch(studies: Sequence[str], storage: str, interval: float) -> None:
    """The same as `hpo status`, live.

    Until the budgets are used up. Ctrl-C ends it; the workers keep running. When the output is not a terminal, prints
    the status whenever it has changed.
    """
    from hpo.cli.watching import watch as watch_studies
    from hpo.search.sql.storage import open_engine
    from hpo.search.sql.url import parse_url

    watch_studies(open_engine(parse_url(storage)), studies, interval)


@click.command()
@click.argument("study")
@storage_option
@json_option
@csv_option
@click.option("--toml", "as_toml", is_flag=True, help="Print a study file with this configuration, for `hpo run`.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the weights of its network into a file (safetensors).",
)
def best(study: str, storage: str, as_json: bool, as_csv: bool, as_toml: bool, weights: "Path | None") -> None:
    """The best configuration of a study and its baseline."""
    from hpo.cli import tables
    from hpo.search.sql.queries import best_trials
    from hpo.study_file.reading import trial_as_toml

    engine, found = open_search(study, storage)
    _refuse_several(json=as_json, csv=as_csv, toml=as_toml)
    results = best_trials(engine, study, 1)
    if not results:
        raise NothingCompleteError(study)
    if weights is not None:
        _write_weights(engine, found, results[0].number, weights)
    if as_toml:
        if results[0].baseline:
            click.echo(f"# {tables.nothing_beats_baseline(found)}: this is the baseline itself.")
        click.echo(trial_as_toml(found.spec, results[0].number, results[0].params), nl=False)
    elif as_json:
        print_json(results[0].as_json())
    elif as_csv:
        _print_csv(results)
    else:
        tables.print_best(tables.console(), engine, found, results)


def _write_weights(engine: "sa.Engine", study: "Study", number: int, target: Path) -> None:
    from hpo.artifacts import open_artifacts
    from hpo.search.kept_files import write_weights

    try:
        write_weights(engine, study, number, open_artifacts(), target)
    except OSError as error:
        raise InputError(f"--weights: {target} cannot be written: {error.strerror or error}") from None
    click.echo(f"the weights of trial {number} are in {target}", err=True)


@click.command()
@click.argument("study")
@limit_option
@click.option(
    "--sort", default="score", show_default=True, metavar="FIELD", help="Highest first; FIELD:asc: lowest first."
)
@click.option(
    "--where", default="", metavar="CONDITION", help="For example 'batch_size >= 128 and clean_accuracy > 0.6'."
)
@storage_option
@json_option
@csv_option
def top(study: str, limit: int, sort: str, where: str, storage: str, as_json: bool, as_csv: bool) -> None:
    """The best configurations of a study, best first.

    Only complete trials, unless --where mentions the state. Fields: score, clean_accuracy, perturbed_accuracy,
    the accuracy under each perturbation (gaussian_noise, pixel_recolor, …), batch_size, learning_rate, frozen_layers,
    augmentation_strength, initial_weights and whatever else the study searches, number, state, worker, started_at,
    finished_at, baseline, feasible.
    """
    from hpo.cli import tables
    from hpo.search.sql.filters import names_state
    from hpo.search.sql.queries import best_trials

    engine, found = open_search(study, storage)
    results = best_trials(engine, study, limit, where, sort)
    if not _print_data(results, as_json, as_csv):
        if where and not results:
            others = "" if names_state(where) else "; for other trials name the state, as in: state = 'pruned'"
            raise HpoError(f"study '{study}' has no complete trial where {where}{others}")
        if not results:
            raise NothingCompleteError(study)
        selection = [f"where {where}" if where else "", f"by {sort}" if sort != "score" else ""]
        tables.print_best(tables.console(), engine, found, results, " ".join(filter(None, selection)))


@click.command()
@click.argument("study")
@storage_option
@json_option
@csv_option
def pareto(study: str, storage: str, as_json: bool, as_csv: bool) -> None:
    """The Pareto front of clean and perturbed accuracy."""
    from hpo.cli import tables
    from hpo.search.sql.queries import pareto_front

    engine, found = open_search(study, storage)
    results = pareto_front(engine, study, found.spec.trade_off)
    if not _print_data(results, as_json, as_csv):
        title = f"The Pareto front of {study}"
        _print_table(found, results, tables.results_table(found, results, None, title))
        for line in tables.explain_feasibility(found, results[0].images):
            tables.console().print(line)


@click.command()
@click.argument("study")
@storage_option
@json_option
@csv_option
def history(study: str, storage: str, as_json: bool, as_csv: bool) -> None:
    """Each trial that improved on the best score, and when."""
    from hpo.cli import tables
    from hpo.search.sql.queries import began_at, improvements

    engine, found = open_search(study, storage)
    results = improvements(engine, study)
    if not _print_data(results, as_json, as_csv):
        table = tables.history_table(found, results, began_at(engine, study), f"The best score of {study}")
        _print_table(found, results, table)


@click.command()
@click.argument("study")
@storage_option
@json_option
@csv_option
def importances(study: str, storage: str, as_json: bool, as_csv: bool) -> None:
    """How much each searched parameter matters for the score.

    Computed by PED-ANOVA, Optuna's default. The importances sum to 1.
    """
    from hpo.cli import tables
    from hpo.search.importances import MIN_TRIALS, parameter_importances
    from hpo.search.sql.queries import best_trials

    engine, found = open_search(study, storage)
    some = best_trials(engine, study, MIN_TRIALS)
    if len(some) == MIN_TRIALS and not best_trials(engine, study, 1, f"score != {some[0].score!r}"):
        raise HpoError(f"all complete trials of study '{study}' have the same score: there is nothing to explain")
    shares = parameter_importances(engine, found)
    if as_json:
        print_json(shares)
    elif as_csv:
        csv.writer(sys.stdout).writerows([("parameter", "importance"), *shares.items()])
    else:
        tables.console().print(tables.importances_table(shares, f"Parameter importances for the score of {study}"))


def _print_data(results: "Sequence[TrialResult]", as_json: bool, as_csv: bool) -> bool:
    """Prints JSON or CSV if asked to; whether it did."""
    _refuse_several(json=as_json, csv=as_csv)
    if as_json:
        print_json([result.as_json() for result in results])
    elif as_csv:
        _print_csv(results)
    return as_json or as_csv


def _refuse_several(**options: bool) -> None:
    given = [f"--{name}" for name, is_given in options.items() if is_given]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)}: give only one of them")


def _print_csv(results: "Sequence[TrialResult]") -> None:
    from hpo.trial_result import in_iso_8601

    rows = [result.as_row() | {key: in_iso_8601(getattr(result, key)) for key in CSV_TIMES} for result in results]
    writer = csv.DictWriter(sys.stdout, list(dict.fromkeys(key for row in rows for key in row)) or CSV_WITHOUT_TRIALS)
    writer.writeheader()
    writer.writerows(rows)


def _print_table(study: "Study", results: "Sequence[TrialResult]", table: "Table") -> None:
    from hpo.cli import tables

    if not results:
        raise NothingCompleteError(study.name)
    tables.console().print(table)


READING_COMMANDS = (status, watch, best, top, pareto, history, importances)
