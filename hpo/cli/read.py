"""The commands that only look: how far studies are, and what was found. None of them loads torch."""

import csv
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from hpo.cli.options import csv_option, json_option, most_option, open_study, storage_option, studies_argument
from hpo.errors import HpoError, InputError, NothingCompleteError

if TYPE_CHECKING:
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
    """How far studies are: budgets, trials by state, what runs where, the best so far, time left, failures.

    All studies of the database, if none is named; a single one with the tracebacks of its failures. Gives back
    trials whose workers are gone.
    """
    from hpo.cli import tables
    from hpo.cli.watching import look
    from hpo.search.sql.storage import open_engine
    from hpo.search.sql.url import parse_url

    records = look(open_engine(parse_url(storage)), studies)
    if as_json:
        found = [record.as_json() for record in records]
        click.echo(json.dumps(found[0] if len(studies) == 1 else found, indent=2))
    else:
        tables.console().print(tables.status_view(records, tracebacks=len(studies) == 1))
        if not records:
            click.echo("there are no studies yet; `hpo submit` puts one into the database", err=True)


@click.command()
@studies_argument
@storage_option
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, help="Seconds.")
def watch(studies: Sequence[str], storage: str, interval: float) -> None:
    """The same, live, until the budgets are used.

    Ctrl-C ends it; the workers go on. Where there is no terminal, prints what has changed.
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
def best(study: str, storage: str, as_json: bool, as_csv: bool, as_toml: bool) -> None:
    """The best configuration of a study, beside its baseline."""
    from hpo.cli import tables
    from hpo.search.sql.queries import best_trials
    from hpo.study_file.reading import trial_as_toml

    engine, found = open_study(study, storage)
    _refuse_several(json=as_json, csv=as_csv, toml=as_toml)
    results = best_trials(engine, study, 1)
    if not results:
        raise NothingCompleteError(study)
    if as_toml:
        if results[0].baseline:
            click.echo(f"# {tables.nothing_beats_baseline(found)}: this is the baseline itself.")
        click.echo(trial_as_toml(found.spec, results[0].number, results[0].params), nl=False)
    elif as_json:
        click.echo(json.dumps(results[0].as_json(), indent=2))
    elif as_csv:
        _print_csv(results)
    else:
        tables.print_best(tables.console(), engine, found, results)


@click.command()
@click.argument("study")
@most_option
@click.option("--sort", default="score", show_default=True, metavar="FIELD", help="Highest first, or FIELD:asc.")
@click.option("--where", default="", metavar="CONDITION", help="Such as 'batch_size >= 128 and clean_accuracy > 0.6'.")
@storage_option
@json_option
@csv_option
def top(study: str, most: int, sort: str, where: str, storage: str, as_json: bool, as_csv: bool) -> None:
    """The best configurations of a study, best first.

    Complete trials; a --where that names the state looks at all. Fields: score, clean_accuracy, perturbed_accuracy,
    the accuracy under each perturbation (gaussian_noise, pixel_recolor, …), batch_size, learning_rate, frozen_layers,
    augmentation_strength, initial_weights and others that the study searches, number, state, worker, started_at,
    finished_at, baseline, feasible.
    """
    from hpo.cli import tables
    from hpo.search.sql.filters import names_state
    from hpo.search.sql.queries import best_trials

    engine, found = open_study(study, storage)
    results = best_trials(engine, study, most, where, sort)
    if not _print_data(results, as_json, as_csv):
        if where and not results:
            others = "" if names_state(where) else "; name the state to look at others, as in: state = 'pruned'"
            raise HpoError(f"study '{study}' has no complete trial where {where}{others}")
        if not results:
            raise NothingCompleteError(study)
        chosen = [f"where {where}" if where else "", f"by {sort}" if sort != "score" else ""]
        tables.print_best(tables.console(), engine, found, results, " ".join(filter(None, chosen)))


@click.command()
@click.argument("study")
@storage_option
@json_option
@csv_option
def pareto(study: str, storage: str, as_json: bool, as_csv: bool) -> None:
    """The trials that no other beats both clean and perturbed."""
    from hpo.cli import tables
    from hpo.search.sql.queries import pareto_front

    engine, found = open_study(study, storage)
    results = pareto_front(engine, study, found.spec.trade_off)
    if not _print_data(results, as_json, as_csv):
        title = f"Clean against perturbed: {study}"
        _print_table(found, results, tables.results_table(found, results, None, title))
        for line in tables.explain_feasibility(found, results[0].images):
            tables.console().print(line)


@click.command()
@click.argument("study")
@storage_option
@json_option
@csv_option
def history(study: str, storage: str, as_json: bool, as_csv: bool) -> None:
    """When the best score was reached: each trial that was better than all before it."""
    from hpo.cli import tables
    from hpo.search.sql.queries import began_at, improvements

    engine, found = open_study(study, storage)
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
    """How much of the score each searched parameter explains.

    By Optuna's default evaluator, PED-ANOVA; shares, which sum to 1.
    """
    from hpo.cli import tables
    from hpo.search.importances import MIN_TRIALS, parameter_importances
    from hpo.search.sql.queries import best_trials

    engine, found = open_study(study, storage)
    some = best_trials(engine, study, MIN_TRIALS)
    if len(some) == MIN_TRIALS and not best_trials(engine, study, 1, f"score != {some[0].score!r}"):
        raise HpoError(f"all complete trials of study '{study}' have the same score: there is nothing to explain")
    shares = parameter_importances(engine, found)
    if as_json:
        click.echo(json.dumps(shares, indent=2))
    elif as_csv:
        csv.writer(sys.stdout).writerows([("parameter", "importance"), *shares.items()])
    else:
        tables.console().print(tables.importances_table(shares, f"What the score of {study} depends on"))


@click.command()
@storage_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on. Others need a password.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: a free one.")
@click.option("--password-file", type=click.Path(), help="A file with the password. Also HPO_DASHBOARD_PASSWORD.")
@click.option("--read-only", is_flag=True, help="Refuse everything that changes a study.")
@click.option("--tls-certificate", type=click.Path(), help="A certificate (PEM): serve https.")
@click.option("--tls-key", type=click.Path(), help="Its key (PEM).")
def dashboard(
    storage: str,
    host: str,
    port: int,
    password_file: str | None,
    read_only: bool,
    tls_certificate: str | None,
    tls_key: str | None,
) -> None:
    """A web page on this storage: optuna-dashboard, with pictures of good trials.

    Pictures come from HPO_ARTIFACTS, as the workers write them.
    """
    from hpo.web.server import Address, serve

    if (tls_certificate is None) != (tls_key is None):
        raise InputError("--tls-certificate and --tls-key: give both or none")
    serve(storage, Address(host, port, tls_certificate, tls_key), password_file, read_only)


def _print_data(results: "Sequence[TrialResult]", as_json: bool, as_csv: bool) -> bool:
    """Prints JSON or CSV if one is asked for."""
    _refuse_several(json=as_json, csv=as_csv)
    if as_json:
        click.echo(json.dumps([result.as_json() for result in results], indent=2))
    elif as_csv:
        _print_csv(results)
    return as_json or as_csv


def _refuse_several(**options: bool) -> None:
    given = [f"--{name}" for name, is_given in options.items() if is_given]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)}: give one of them")


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


READING_COMMANDS = (status, watch, best, top, pareto, history, importances, dashboard)
