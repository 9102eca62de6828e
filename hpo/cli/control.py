"""The commands that steer a study, copy, rename or delete it, and the one that cleans up."""

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpo.cli.options import launch_command, open_study, storage_option
from hpo.counted import counted
from hpo.errors import InputError

if TYPE_CHECKING:
    import sqlalchemy as sa

    from hpo.search.sql.studies import Study


@click.command()
@click.argument("study")
@storage_option
def stop(study: str, storage: str) -> None:
    """Stop a study: all its workers release their trials.

    On whatever machine they run. `hpo resume` continues the study.
    """
    from hpo.search.sql import heartbeats
    from hpo.search.sql.counts import count
    from hpo.search.sql.stopping import stop as stop_study

    engine, found = open_study(study, storage)
    counts = count(engine, found.study_id)
    if counts.finished >= found.budget:
        outcome = f"has used up its budget of {found.budget}; there is nothing to stop"
    elif stop_study(engine, found, "requested by `hpo stop`"):
        outcome = (
            f"is stopped; its running trials ({counts.running}) are released within "
            f"{heartbeats.HEARTBEAT_INTERVAL_SECS:g} s; `{found.resume_command}` continues it"
        )
    else:
        outcome = f"was already stopped; `{found.resume_command}` continues it"
    click.echo(f"study {study} {outcome}", err=True)


@click.command()
@click.argument("study")
@storage_option
def resume(study: str, storage: str) -> None:
    """Resume a stopped study.

    Including one that stopped because too many trials failed.
    """
    from hpo.search.sql.stopping import resume as resume_study

    engine, found = open_study(study, storage)
    outcome = "is resumed" if resume_study(engine, found) else "was not stopped; nothing changed"
    click.echo(f"study {study} {outcome}. Start workers with: {launch_command(study)}", err=True)


@click.command()
@click.argument("study")
@click.option("--budget", type=click.IntRange(1, 1_000_000), help="The new total budget.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change what is searched (search.learning_rate.high=0.5), stop, priority, max_parallel. May be repeated.",
)
@storage_option
def extend(study: str, budget: int | None, overrides: Sequence[str], storage: str) -> None:
    """Raise the budget of a study, even of a finished one, or widen its search.

    Running trials end as they are.
    """
    from hpo.search.sql.submitting import extend as extend_study

    if budget is None and not overrides:
        raise InputError("extend: give --budget or --set, or both")
    engine, found = open_study(study, storage)
    if overrides:
        _respecify(engine, found, overrides)
    if budget is None:
        return
    added = extend_study(engine, found, budget)
    outcome = f"{added} {'trial' if added == 1 else 'trials'} added" if added else "nothing changed"
    start = f". Start workers with: {launch_command(study)}" if added else ""
    if found.stopped:
        start = f". It is {found.why_stopped}"
    click.echo(f"study {study} has a budget of {budget}: {outcome}{start}", err=True)


def _respecify(engine: "sa.Engine", study: "Study", overrides: Sequence[str]) -> None:
    from hpo.search.sql.respecifying import respecify

    within, finished = respecify(engine, study, overrides)
    left_out = finished - within
    known = f"; {left_out} of its {counted(finished, 'finished trial')} lie outside of what is searched now, so that "
    known += "samplers leave them out"
    click.echo(f"study {study.name} is changed: {', '.join(overrides)}{known if left_out else ''}", err=True)


@click.command("try")
@click.argument("study")
@click.argument("params", nargs=-1, required=True, metavar="NAME=VALUE …")
@storage_option
def try_(study: str, params: Sequence[str], storage: str) -> None:
    """Add a configuration of your own to a running study.

    It uses a trial of the budget, and is the next that a worker takes. The
    sampler chooses the parameters that you leave out; values may lie outside
    of what is searched.
    """
    from hpo.search.plan import Plan
    from hpo.search.sql.asked_for import try_params
    from hpo.study_file.overrides import parse_value

    given = {}
    for text in params:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise InputError(f"{text}: must be NAME=VALUE, such as learning_rate=0.01")
        given[name] = parse_value(value)
    engine, found = open_study(study, storage)
    number = try_params(engine, found, given, Plan(found.spec, found.first).start_of)
    left = [name for name in found.spec.search.searched if name not in given]
    rest = f"; the sampler chooses {', '.join(left)}" if left else ""
    start = f". It is {found.why_stopped}" if found.stopped else ""
    click.echo(f"study {study}: trial {number} waits for a worker{rest}{start}", err=True)


@click.command()
@click.argument("study")
@click.argument("trial", type=click.IntRange(min=0))
@click.option("--why", help="Kept with the trial.")
@click.option("--undo", is_flag=True, help="Count it again.")
@storage_option
def exclude(study: str, trial: int, why: str | None, undo: bool, storage: str) -> None:
    """Leave a trial out, from now on.

    Samplers do not learn from it, and no query or view shows it. It uses its part of the budget all the same.
    """
    from hpo.search.sql import asked_for

    if undo == bool(why):
        raise InputError("exclude: give either --why or --undo")
    engine, found = open_study(study, storage)
    if undo:
        outcome = "counts again" if asked_for.include(engine, found, trial) else "was not excluded; nothing changed"
    else:
        outcome = "is excluded" if asked_for.exclude(engine, found, trial, str(why)) else "was excluded before"
    click.echo(f"study {study}: trial {trial} {outcome}", err=True)


@click.command()
@click.argument("study")
@click.argument("name")
@storage_option
def rename(study: str, name: str, storage: str) -> None:
    """Rename a study, and its confirmation with it.

    While none of its trials is running.
    """
    from hpo.artifacts import open_artifacts
    from hpo.search.housekeeping import rename_study

    engine, found = open_study(study, storage)
    rename_study(engine, found.study_id, name, open_artifacts(), partial(click.echo, err=True))
    click.echo(f"study {study} is called {name} now", err=True)


@click.command()
@click.argument("study")
@click.option("--to", required=True, metavar="URL", help="The database to copy it into, which may be the same.")
@click.option("--name", help="What the copy is called. Default: as the study.")
@click.option(
    "--artifacts", metavar="LOCATION", help="Where the copy's files go. Default: a folder of its own in HPO_ARTIFACTS."
)
@storage_option
def copy(study: str, to: str, name: str | None, artifacts: str | None, storage: str) -> None:
    """Copy a study into another database, with all that belongs to it.

    Trials that are running are given back in the copy. The study itself stays as it is; stop it first if only the copy
    is to go on.
    """
    from hpo.artifacts import Artifacts, open_artifacts
    from hpo.search.housekeeping import copy_study
    from hpo.search.sql.storage import create_database
    from hpo.search.sql.url import masked, parse_url

    engine, found = open_study(study, storage)
    url = parse_url(to)
    here = open_artifacts()
    there = Artifacts(artifacts) if artifacts else here
    called = name or study
    try:
        copy_study(engine, found, create_database(url), called, here, there)
    except OSError as error:
        raise InputError(f"its files cannot be copied to {there.location}: {error.strerror or error}") from None
    click.echo(f"study {study} is copied to {masked(url)} as {called}; its files are in {there.location}", err=True)


@click.command()
@click.argument("study")
@click.option("--yes", is_flag=True, help="Do not ask.")
@storage_option
def delete(study: str, yes: bool, storage: str) -> None:
    """Delete a study, with all its trials and files.

    And with its confirmation. Workers that are at it go on with other studies.
    """
    from hpo.artifacts import open_artifacts
    from hpo.search.housekeeping import delete_study
    from hpo.search.sql.confirming import find_confirmation
    from hpo.search.sql.counts import count

    engine, found = open_study(study, storage)
    doomed = [found] if found.confirmation else [found, find_confirmation(engine, found)]
    what = " and ".join(
        f"{each.name} ({counted(count(engine, each.study_id).finished, 'finished trial')})" for each in doomed if each
    )
    if not yes and not _agrees(f"delete {what} for good?"):
        raise InputError(f"nothing was deleted; --yes deletes {what} without asking")
    delete_study(engine, found.study_id, open_artifacts(), True, partial(click.echo, err=True))
    click.echo(f"deleted: {what}", err=True)


def _agrees(question: str) -> bool:
    """False where nobody can be asked."""
    return sys.stdin.isatty() and click.confirm(question, err=True)


@click.command()
@click.option("--cache", is_flag=True, help="Decoded images of this machine.")
@click.option("--artifacts", is_flag=True, help="Files in HPO_ARTIFACTS that no study owns.")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    envvar="HPO_DATA_ROOT",
    default=Path("~/.cache/hpo"),
    show_default=True,
    show_envvar=True,
    help="The folder that study files name as data.root.",
)
@click.option(
    "--storage",
    "storages",
    multiple=True,
    metavar="URL",
    help="With --artifacts: all databases whose studies keep files there. May be repeated. Default: HPO_STORAGE.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def clean(cache: bool, artifacts: bool, root: Path, storages: Sequence[str], yes: bool) -> None:
    """Remove what is not needed any more.

    Decoded images are decoded again when a study needs them; downloaded archives and weights are kept. Files of no
    study are shown before they are removed, and kept if they are less than a day old.
    """
    if not (cache or artifacts):
        raise InputError("clean: give --cache or --artifacts, or both")
    if cache:
        from hpo.vision.data.disk import remove_decoded_images

        count, size = remove_decoded_images(root.expanduser())
        click.echo(f"{counted(count, 'image set')} removed from {root}/images, {_megabytes(size)}", err=True)
    if artifacts:
        _clean_artifacts(storages, yes)


def _clean_artifacts(storages: Sequence[str], yes: bool) -> None:
    from hpo.artifacts import open_artifacts
    from hpo.search.housekeeping import ownerless
    from hpo.search.sql.storage import open_engine
    from hpo.search.sql.url import DEFAULT_STORAGE, parse_url

    store, storages = open_artifacts(), storages or [os.environ.get("HPO_STORAGE") or DEFAULT_STORAGE]
    found = ownerless([open_engine(parse_url(storage)) for storage in storages], store)
    if not found:
        click.echo(f"no file in {store.location} is without a study", err=True)
        return
    for name, size in found.items():
        click.echo(f"{_megabytes(size):>12}  {name}")
    what = f"{counted(len(found), 'file')} in {store.location}, {_megabytes(sum(found.values()))}"
    named = counted(len(storages), "database")
    if not yes and not _agrees(f"no study of the {named} named owns these; remove {what}?"):
        raise InputError(f"nothing was removed; --yes removes {what}, which no study of the {named} named owns")
    for name in found:
        store.remove(name)
    click.echo(f"removed: {what}", err=True)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


CONTROL_COMMANDS = (stop, resume, extend, try_, exclude, copy, rename, delete, clean)
